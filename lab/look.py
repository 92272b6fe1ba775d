"""A look inside a saved run: which fact fired where, question by question.

    python -m lab.look runs/ffn-seed-0 --show 3
"""

from parts.command import command

from lab.saved import make_parser, open_saved
from parts.arguments import positive
from parts.inside import show


@command()
def main() -> None:
    parser = make_parser("Show questions, answers, and which fact fired at which token.")
    parser.add_argument("--show", type=positive, default=3, metavar="N",
                        help="the first N questions (default: 3)")  # fmt: skip
    args = parser.parse_args()
    model, tokenizer, questions, dtype = open_saved(args.run, args.questions, args.retrieve)
    for number, q in enumerate(questions[: args.show], 1):
        print(f"\nQuestion {number}:", *show(model, tokenizer, q, dtype), sep="\n")


if __name__ == "__main__":
    main()
