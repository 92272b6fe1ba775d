"""Predictions of a saved run: the choice, all probabilities, and the facts read with each choice.

    python -m lab.predict runs/ffn-seed-0 FOLDER/test.jsonl --out answers.jsonl
"""

import json
from pathlib import Path

from lab.saved import check_new, make_parser, open_saved
from qa.errors import command
from qa.inside import answers


def main() -> None:
    parser = make_parser("Answer questions: a JSON object a line.")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="a new file for the answers")  # fmt: skip
    args = parser.parse_args()
    check_new(args.out)
    answerer, questions = open_saved(args.run, args.questions)
    rows = []
    for q, (probabilities, facts) in zip(questions, answers(answerer, questions), strict=True):
        choice = probabilities.index(max(probabilities))
        rows.append({"choice": choice, "text": q.choices[choice], "probabilities": probabilities,
                     "facts": facts})  # fmt: skip
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{args.out}: {len(questions):,} answers, a line each")


if __name__ == "__main__":
    with command():
        main()
