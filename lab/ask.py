"""A conversation with a saved run: a fact, the question or a choice is edited, the answer follows.

    python -m lab.ask runs/ffn-seed-0
    echo "2 Mira paints clocks." | python -m lab.ask runs/ffn-seed-0
"""

from qa.command import command

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain

from kformer import KformerForMultipleChoice
from lab.saved import make_parser, open_saved
from qa.batches import encode
from qa.effects import changed, swapped
from qa.inside import answers, fact_scores, kept_texts, printable
from qa.questions import Question, of_choice
from qa.retrieval import WORD
from qa.tokenizer import Tokenizer

HOW = (
    "Type 2 TEXT to change fact 2, + TEXT to add a fact, - 2 to delete fact 2, B TEXT to change "
    "choice B, ? TEXT to change the question, or next, undo, quit."
)
HEADS = {  # inject -> what stands above the facts
    "none": "facts, which this model doesn't read",
    "concat": "facts, read as words behind the input",
    "attention": "the most attention that a token of choice {} gave the fact (* most of all)",
    "ffn": "how strongly the fact fired for choice {} (* most of all)",
}


def typed() -> Iterator[str]:
    """Lines up to "quit" or the end of input; with a prompt if it's a terminal."""
    print(HOW)
    sys.stdin.reconfigure(errors="replace")
    terminal = sys.stdin.isatty()
    if terminal:
        with suppress(ImportError):  # Windows has none, and needs none
            import readline  # noqa: F401  the arrow keys edit, and bring back what was typed
    with suppress(EOFError):
        while (line := input("> " if terminal else "").strip()) not in ("quit", "exit", "q"):
            yield line
    if terminal:
        print()


def labels(q: Question) -> list[str]:
    return [chr(ord("A") + i) for i in range(len(q.choices))]


def facts_of(q: Question) -> list[str]:
    """Each once, whichever choices have it, in the order of their numbers."""
    return list(dict.fromkeys(fact for own in q.facts for fact in own))


def edit(q: Question, line: str) -> Question:
    """The question, changed as a line asks. A fact is changed for all choices that have it, a new
    one is for all choices. Raises ValueError, with what can be typed.
    """
    found = re.fullmatch(r"([?+-]|(?:[A-Z]|\d+)(?=[\s:])):?\s*(.+)", line)
    if not found:
        raise ValueError("There is nothing to undo." if line == "undo" else HOW)
    sign, text = found.groups()
    if sign == "?":
        return replace(q, question=text)
    if sign in labels(q):
        choices = dict(zip(labels(q), q.choices, strict=True)) | {sign: text}
        return replace(q, choices=[*choices.values()])
    facts = {str(number): fact for number, fact in enumerate(facts_of(q), 1)}
    number = text if sign == "-" else sign
    if number != "+" and number not in facts:
        raise ValueError(f"There is no {printable(number, 40)}. {HOW}")
    if sign == "-":
        return changed(q, lambda own: [fact for fact in own if fact != facts[number]])
    if text in facts.values():
        raise ValueError("There is a fact that says so already.")
    if sign == "+":
        return changed(q, lambda own: [*own, text])
    return swapped(q, facts[number], text)


def marked(text: str, tokenizer: Tokenizer, *notes: str) -> str:
    """A text with notes behind it, the last one on words that the vocabulary doesn't know."""
    ids_of, unk = tokenizer.encode, tokenizer.unk_token_id
    words = re.findall(rf"{WORD.pattern}|\S", text) if unk in ids_of(text) else []
    if unknown := dict.fromkeys(word for word in words if unk in ids_of(word)):
        notes = *notes, f"not in its vocabulary: {', '.join(unknown)}"
    return printable(text) + printable(f"  ({'; '.join(notes)})" if notes else "")


def screen(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, q: Question, probabilities: list[float],
    was: list[float] | None, answer: int | None,
) -> Iterator[str]:  # fmt: skip
    """Lines, after `answers` with `look`: the question, its choices with what their probabilities
    were and are, its facts with the largest of the scores in each injected layer.
    """
    config, data, names = model.config, encode(q, tokenizer, model.config), labels(q)
    taken, bar = probabilities.index(max(probabilities)), "█" if sys.stdout.isatty() else "#"
    if q.context:
        yield f"       {marked(q.context, tokenizer)}"
    yield f"    ?  {marked(q.question, tokenizer)}"
    choices = [marked(choice, tokenizer) for choice in q.choices]
    width = min(40, max(map(len, choices)))
    for i, now in enumerate(probabilities):
        before, right = f"{was[i]:9.1%} ->" if was else "", "  <- right" if i == answer else ""
        line = f"{names[i]}  {choices[i]:<{width}}{before}{now:8.1%}  {bar * round(20 * now)}"
        yield f"  {'>' if i == taken else ' '} {line.rstrip()}{right}"

    kept = {fact: n for n, fact in enumerate(kept_texts(model, q, data, 0, taken))}
    tokens, most = len(data.input_ids[taken]), config.max_tokens
    fired = {i: s[0, taken, :tokens].amax(0).tolist() for i, s in fact_scores(model).items()}
    head = HEADS[config.inject].format(names[taken]) if facts_of(q) else "no facts"
    yield " " * 7 + "".join(f"{f'layer {i}':>8} " for i in fired) + f"  {head}"
    for number, fact in enumerate(facts_of(q), 1):
        notes, scores, ids = [], 9 * " " * len(fired), tokenizer.encode(fact)
        n = kept.get(fact if ids else "")  # without a token it's an empty slot
        if fact not in of_choice(q.facts, taken):
            notes.append(f"not among those of {names[taken]}")
        elif n is not None:
            pairs = ((round(f[n], 2) + 0.0, " *"[f[n] == max(f)]) for f in fired.values())
            scores = "".join(f"{score:8.2f}{star}" for score, star in pairs)
        elif kept:
            notes.append(f"not kept for {names[taken]}: only the {config.num_facts} nearest are")
        if len(ids) > most:
            notes.append(f"only {most} tokens of it are read")
        yield f"  {number:>3}  {scores}  {marked(fact, tokenizer, *notes)}"
    if data.shortened:
        yield f"       too long: only the last {most} tokens of question and choice are read"
    words = sum(len(tokenizer.encode(fact)[:most]) for fact in kept)
    if config.inject == "concat" and words and tokens + words >= most:
        yield f"       too long: of the question, a choice and the facts {most} tokens are read"


@command()
def main() -> None:
    parser = make_parser("Edit a fact, a choice or the question, and see the answer follow.")
    parser.epilog = f"It shows the first question and waits. {HOW}"
    args = parser.parse_args()
    model, tokenizer, questions, dtype = open_saved(args.run, args.questions, args.retrieve)
    history, was = [(0, questions[0])], {}  # places in the file, and what the questions became
    for line in chain([""], typed()):
        place, q = history[-1]
        try:
            if line == "next":
                place = (place + 1) % len(questions)
                history.append((place, questions[place]))
            elif line == "undo" and len(history) > 1:
                history.pop()
            elif line:
                history.append((place, edit(q, line)))
        except ValueError as error:
            print(error)
            continue
        place, q = history[-1]
        [(probabilities, _)] = answers(model, tokenizer, [q], dtype, look=True)
        answer = q.answer if q == questions[place] else None
        print(f"\nQuestion {place + 1:,} of {len(questions):,}")
        print(*screen(model, tokenizer, q, probabilities, was.get(place), answer), sep="\n")
        was = {place: probabilities}


if __name__ == "__main__":
    main()
