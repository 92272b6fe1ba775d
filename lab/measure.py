"""What a saved run knows: accuracy beside chance, and what its answers owe to the facts.

    python -m lab.measure runs/ffn-seed-0 FOLDER/test.jsonl
"""

from qa.command import command

from lab.saved import make_parser, open_saved
from qa.effects import measure
from qa.report import lines_of_result


@command()
def main() -> None:
    args = make_parser("Measure a saved run on questions whose answers are known.").parse_args()
    model, tokenizer, questions, dtype = open_saved(
        args.run, args.questions, args.retrieve, answers_needed=True
    )
    result = measure(model, tokenizer, questions, dtype)
    print(*lines_of_result("test", len(questions), result), sep="\n")


if __name__ == "__main__":
    main()
