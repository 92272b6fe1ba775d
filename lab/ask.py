"""A conversation with a saved run: a fact, the question or a choice is edited, the answer follows.

    python -m lab.ask runs/ffn-seed-0
    echo "2 Mira paints clocks." | python -m lab.ask runs/ffn-seed-0
"""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain

from lab.saved import make_parser, open_saved
from qa.batches import Answerer
from qa.errors import command, printable
from qa.evaluation import with_fact, with_facts
from qa.inside import facts_of, look_into, screen
from qa.questions import LETTERS, Question

HOW = (
    "Type 2 TEXT to change fact 2, + TEXT to add a fact, - 2 to delete fact 2, B TEXT to change "
    "choice B, ? TEXT to change the question, or next, undo, quit."
)


def typed() -> Iterator[str]:
    """Lines up to "quit" or the end of input; with a prompt if it's a terminal."""
    print(HOW)
    if sys.stdin is None:  # closed
        return
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # Windows has none, and needs none
            import readline  # noqa: F401  the arrow keys edit, and bring back what was typed
    with suppress(EOFError):
        while (line := input("> " if terminal else "").strip()) not in ("quit", "exit", "q"):
            yield line


def edit(q: Question, line: str) -> Question:
    """The question, changed as a line asks. A fact is changed for all choices that have it, a new
    one is for all choices. Raises ValueError, with what can be typed.
    """
    found = re.fullmatch(r"([?+-]|(?:\S|\d+)(?=[\s:]))(?::|(?!:))\s*(.+)", line)
    if not found:
        raise ValueError("There is nothing to undo." if line == "undo" else HOW)
    sign, text = found.groups()
    if sign == "?":
        return replace(q, question=text)
    facts = {str(number): fact for number, fact in enumerate(facts_of(q), 1)}
    if sign in LETTERS[: len(q.choices)]:
        choices = dict(zip(LETTERS, q.choices, strict=False)) | {sign: text}
        return replace(q, choices=[*choices.values()])
    number = text if sign == "-" else sign
    if sign != "+" and number not in facts:
        raise ValueError(f"There is no {printable(number, 40)}. {HOW}")
    if sign == "-":
        return with_facts(q, lambda own: [fact for fact in own if fact != facts[number]])
    if text in facts.values():
        raise ValueError("There is a fact that says so already.")
    if sign == "+":
        return with_facts(q, lambda own: [*own, text])
    return with_fact(q, facts[number], text)


def notes(answerer: Answerer, q: Question) -> Iterator[str]:
    """Lines: words that the vocabulary lacks, which are all the same [UNK] to the model; whether
    something is too long to be read.
    """
    ids_of, unk = answerer.tokenizer.encode, answerer.tokenizer.unk_token_id
    words = [w for w in " ".join([q.asked, *q.choices, *facts_of(q)]).split() if unk in ids_of(w)]
    parts, [data] = re.findall(r"\w+|\S", " ".join(words)), answerer.encode([q])
    if unknown := [part for part in dict.fromkeys(parts) if unk in ids_of(part)]:
        yield f"       not in its vocabulary: {printable(', '.join(unknown))}\n"
    if data.shortened or data.cut:
        most = answerer.model.config.max_tokens
        yield f"       too long: {most} tokens are read of a question, a fact, in concat of both\n"


def main() -> None:
    parser = make_parser("Edit a fact, a choice or the question, and see the answer follow.")
    parser.epilog = f"It shows the first question and waits. {HOW}"
    args = parser.parse_args()
    answerer, questions = open_saved(args.run, args.questions)
    history, was = [(0, questions[0])], {}  # places in the file, and what the questions became
    for line in chain([""], typed()):
        place, q = history[-1]
        try:
            if line == "next":
                place = (place + 1) % len(questions)
                history.append((place, questions[place]))
            elif line == "undo" and len(history) > 1:
                history.pop()
            elif line:  # the answer of the file isn't that of the changed question
                history.append((place, replace(edit(q, line), answer=None)))
        except ValueError as error:
            print(error)
            continue
        place, q = history[-1]
        seen = look_into(answerer, q)
        print(f"\nQuestion {place + 1:,} of {len(questions):,}")
        print(*screen(answerer.model.config.inject, q, seen, was.get(place)), sep="\n")
        print(*notes(answerer, q), sep="", end="")
        was = {place: [choice.probability for choice in seen]}


if __name__ == "__main__":
    with command():
        main()
