"""What a saved run knows: accuracy beside chance, and what its answers owe to the facts.

    python -m lab.measure runs/ffn-seed-0 FOLDER/test.jsonl
"""

from lab.saved import make_parser, open_saved
from qa.errors import command
from qa.evaluation import lines_of_result, measure


def main() -> None:
    args = make_parser("Measure a saved run on questions whose answers are known.").parse_args()
    answerer, questions = open_saved(args.run, args.questions, answers_needed=True)
    print(*lines_of_result("accuracy", len(questions), measure(answerer, questions)), sep="\n")


if __name__ == "__main__":
    with command():
        main()
