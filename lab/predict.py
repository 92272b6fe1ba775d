"""Predictions of a saved run: the choice, all probabilities and the facts that were used.

    python -m lab.predict runs/ffn-seed-0 FOLDER/test.jsonl --out answers.jsonl
"""

from parts.command import command

import json
import os
from pathlib import Path

from lab.saved import make_parser, open_saved
from parts.files import replacing
from parts.inside import answers


def check_new(path: Path) -> None:
    if os.path.lexists(path):
        raise ValueError(f"--out {path}: is there already; name a new file")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--out {path}: no folder that can be written into")


@command()
def main() -> None:
    parser = make_parser("Answer questions: a JSON object a line.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="a new file for the answers")  # fmt: skip
    args = parser.parse_args()
    check_new(args.out)
    model, tokenizer, questions, dtype = open_saved(args.run, args.questions, args.retrieve)
    lines = []
    found = answers(model, tokenizer, questions, dtype)
    for q, (probabilities, facts) in zip(questions, found, strict=True):
        choice = probabilities.index(max(probabilities))
        row = {"choice": choice, "text": q.choices[choice], "probabilities": probabilities}
        lines.append(json.dumps(row | {"facts": facts}) + "\n")
    check_new(args.out)  # it took a while
    with replacing(args.out.parent) as new:
        (new / args.out.name).write_text("".join(lines), encoding="utf-8")
    print(f"{args.out}: {len(questions):,} answers, a line each")


if __name__ == "__main__":
    main()
