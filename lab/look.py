"""A look inside a saved run: which fact fired where, question by question.

    python -m lab.look runs/ffn-seed-0 --show 3
    python -m lab.look runs/ffn-seed-0 --html look.html
"""

from qa.command import command

from pathlib import Path

from lab.page import page
from lab.saved import check_new, make_parser, open_saved, write_new
from qa.arguments import positive
from qa.inside import show


@command()
def main() -> None:
    parser = make_parser("Show questions, answers, and which fact fired at which token.")
    parser.add_argument("--show", type=positive, metavar="N",
                        help="the first N questions (default: 3, with --html 20)")  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="a new file for a page that a browser shows")  # fmt: skip
    args = parser.parse_args()
    if args.html:
        check_new(args.html, "--html")
    model, tokenizer, questions, dtype = open_saved(args.run, args.questions, args.retrieve)
    some = questions[: args.show or (20 if args.html else 3)]
    if args.html:
        lines = page(model, tokenizer, some, dtype, f"A look inside {args.run}")
        write_new(args.html, "\n".join(lines), "--html")
        print(f"{args.html}: {len(some)} questions, for a browser")
    else:
        for number, q in enumerate(some, 1):
            print(f"\nQuestion {number}:", *show(model, tokenizer, q, dtype), sep="\n")


if __name__ == "__main__":
    main()
