"""A look inside a saved run, question by question: which facts fired, and how strongly.

    python -m lab.look runs/ffn-seed-0 --show 3
    python -m lab.look runs/ffn-seed-0 --html look.html
    python -m lab.look runs/ffn-seed-0 --beside runs/concat-seed-0 --html look.html

The page runs the models, up to two million parameters each: in it, everything can be typed.
"""

from pathlib import Path

from lab.page import page
from lab.saved import check_new, make_parser, open_saved, positive
from qa.errors import command
from qa.inside import look_into, screen


def main() -> None:
    parser = make_parser("Show questions, answers, and how strongly each fact fired.")
    parser.add_argument("--show", type=positive, metavar="N",
                        help="the first N questions (default: 3, with --html 20)")  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="a new file for a page that runs the model")  # fmt: skip
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="RUN",
                        help="with --html: more runs, to be seen beside this one")  # fmt: skip
    args = parser.parse_args()
    if args.html:
        check_new(args.html)
    elif args.beside:
        raise ValueError("--beside is for a page: name it with --html FILE")
    answerer, questions = open_saved(args.run, args.questions)
    some = questions[: args.show or (20 if args.html else 3)]
    if args.html:
        runs = [(args.run.name, answerer)]
        runs += [(run.name, open_saved(run, args.questions)[0]) for run in args.beside]
        names = ", ".join(map(str, [args.run, *args.beside]))
        text = page(runs, some, f"A look inside {names}")
        args.html.write_text(text, encoding="utf-8")
        print(f"{args.html}: {len(some)} questions, for a browser")
        return
    for number, q in enumerate(some, 1):
        lines = screen(answerer.model.config.inject, q, look_into(answerer, q))
        print(f"\nQuestion {number}:", *lines, sep="\n")


if __name__ == "__main__":
    with command():
        main()
