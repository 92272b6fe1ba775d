"""Predictions of a saved run: the choice, all probabilities and the facts that were used.

    python -m lab.predict runs/ffn-seed-0 FOLDER/test.jsonl --out answers.jsonl
"""

import json
from pathlib import Path

from lab.saved import make_parser, open_saved
from parts.command import command
from parts.files import replacing
from parts.inside import answers


@command()
def main() -> None:
    parser = make_parser("Answer questions: a JSON object a line.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="a new file for the answers")  # fmt: skip
    args = parser.parse_args()
    if args.out.exists():
        raise ValueError(f"--out {args.out}: is there already; name a new file")
    with replacing(args.out.parent) as new:
        model, tokenizer, questions, dtype = open_saved(args)
        lines = []
        for q, (probabilities, facts) in zip(
            questions, answers(model, tokenizer, questions, dtype), strict=True
        ):
            choice = probabilities.index(max(probabilities))
            row = {"choice": choice, "text": q.choices[choice], "probabilities": probabilities}
            lines.append(json.dumps(row | {"facts": facts}) + "\n")
        (new / args.out.name).write_text("".join(lines), encoding="utf-8")
    print(f"{args.out}: {len(questions):,} answers, a line each")


if __name__ == "__main__":
    main()
