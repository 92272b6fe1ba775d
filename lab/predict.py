"""Predictions of a saved run: the choice, all probabilities and the facts that were used.

    python -m lab.predict runs/ffn-seed-0 FOLDER/test.jsonl --out answers.jsonl
"""

from qa.command import command

import json
from pathlib import Path

from lab.saved import check_new, make_parser, open_saved, write_new
from qa.inside import answers


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
    write_new(args.out, "".join(lines))
    print(f"{args.out}: {len(questions):,} answers, a line each")


if __name__ == "__main__":
    main()
