"""How many unrelated facts does a method bear? Accuracy with 4, 20, 100 and 1,000 facts, all kept.

    python -m lab.crowd runs/attention-seed-0 runs/ffn-seed-0 --svg docs/crowd.svg

The facts that are added come from training questions and share no word with the question's own.
"""

from qa.command import command

import argparse
import random
from collections.abc import Iterator
from functools import cache
from math import log10
from pathlib import Path
from statistics import mean

from lab.saved import open_saved, run_arguments
from lab.table import over_seeds
from qa.batches import accuracy, chance, encode
from qa.effects import changed
from qa.questions import Question, read_questions
from qa.retrieval import words

COUNTS = (4, 20, 100, 1000)
COLOURS = {"none": "#57606a", "concat": "#9a3f00", "attention": "#0550ae", "ffn": "#116329"}


@cache  # runs of the same data share them
def training_facts(path: Path) -> dict[str, set[str]]:
    """Every fact of a file of questions, with its words."""
    facts = {fact for q in read_questions(path) for fact in q.facts[0]}
    return {fact: set(words(fact)) for fact in sorted(facts)}


def crowded(q: Question, facts: dict[str, set[str]], count: int, rng: random.Random) -> Question:
    """The question with unrelated facts among its own, `count` in all."""
    own = {word for fact in q.facts[0] for word in words(fact)}
    unrelated = [fact for fact, its_words in facts.items() if own.isdisjoint(its_words)]
    missing = max(0, count - len(q.facts[0]))
    if len(unrelated) < missing:
        raise ValueError(f'"{q.question}": only {len(unrelated):,} facts are unrelated to it')
    added = rng.sample(unrelated, missing)
    return changed(q, lambda own: rng.sample(own + added, len(own) + len(added)))


def drawing(curves: dict[str, list[float]], least: float) -> Iterator[str]:
    """An SVG, line by line: accuracy over the number of facts, a curve for each method."""

    def x(count: float) -> float:
        return 70 + 430 * log10(count / COUNTS[0]) / log10(COUNTS[-1] / COUNTS[0])

    def y(share: float) -> float:
        return 270 - 240 * share

    yield '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 330" role="img"'
    yield '     font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif" font-size="14">'
    yield "  <title>Accuracy over the number of facts in a question, for each method</title>"
    yield '  <rect width="620" height="330" rx="12" fill="#ffffff"/>'
    for share in (0, 0.25, 0.5, 0.75, 1):
        yield f'  <path d="M70 {y(share):.0f} H500" stroke="#d8dee4"/>'
        yield f'  <text x="60" y="{y(share) + 5:.0f}" text-anchor="end">{share:.0%}</text>'
    yield f'  <path d="M70 {y(least):.0f} H500" stroke="#57606a" stroke-dasharray="4 4"/>'
    yield f'  <text x="510" y="{y(least) + 5:.0f}" fill="#57606a">chance</text>'
    for count in COUNTS:
        yield f'  <text x="{x(count):.0f}" y="292" text-anchor="middle">{count:,}</text>'
    yield '  <text x="285" y="316" text-anchor="middle">facts, of which four are about it</text>'
    below = 0.0  # the names of curves that end close together stand below each other
    for inject, curve in sorted(curves.items(), key=lambda item: -item[1][-1]):
        points = " ".join(f"{x(n):.0f},{y(a):.1f}" for n, a in zip(COUNTS, curve, strict=True))
        below = max(y(curve[-1]) + 5, below + 18)
        stroke = f'fill="none" stroke="{COLOURS[inject]}" stroke-width="3"'
        yield f'  <polyline points="{points}" {stroke}/>'
        yield f'  <text x="510" y="{below:.0f}" fill="{COLOURS[inject]}">{inject}</text>'
    yield "</svg>"


@command()
def main() -> None:
    parser = argparse.ArgumentParser(description="Add unrelated facts, and keep all of them.")
    add = parser.add_argument
    add("runs", type=Path, nargs="+", help="folders that train.py saved, of any methods and seeds")
    add("--svg", type=Path, metavar="FILE", help="draw the figure (default: a table alone)")
    args, found = parser.parse_args(), {}
    if args.svg:
        if args.svg.suffix != ".svg":
            raise ValueError(f"--svg {args.svg}: the name must end in .svg")
        args.svg.parent.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        model, tokenizer, questions, dtype = open_saved(run, answers_needed=True)
        facts = training_facts(Path(run_arguments(run)["data"], "train.jsonl"))
        for count in COUNTS:
            rng, model.config.num_facts = random.Random(count), count
            some = [crowded(q, facts, count, rng) for q in questions[:300]]
            data = [encode(q, tokenizer, model.config) for q in some]
            share = accuracy(model, data, dtype)
            found.setdefault(model.config.inject, {}).setdefault(count, []).append(share)
    least = chance(data)
    print("| facts | " + " | ".join(f"{inject} (chance {least:.1%})" for inject in found) + " |")
    print("| --- " * (1 + len(found)) + "|")
    for count in COUNTS:
        print(f"| {count:,} | " + " | ".join(over_seeds(f[count]) for f in found.values()) + " |")
    if args.svg:
        curves = {name: [mean(f[count]) for count in COUNTS] for name, f in found.items()}
        args.svg.write_text("\n".join([*drawing(curves, least), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
