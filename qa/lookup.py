"""The questions of a folder, and the facts that are looked up for them.

    read_splits    a folder -> the questions of each split, with their facts
    look_up        gives questions facts out of a file
    retrieve       decides which
    baselines      what is right by rules that learn nothing
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from qa.questions import Question, of_choice, read_facts, read_lines, read_questions
from qa.retrieval import BM25, best, words

Embed = Callable[[list[str]], np.ndarray]  # n texts -> (n, D), each of length 1

# -------------------------------------------------------------------------------------- splits

# Name of a file -> what its questions are for. Of several files for the same, the last one is read.
SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}


def read_splits(
    folder: Path, candidates: int | None, always: bool = False, wrong: bool = False,
    embed: Embed | None = None, say: Callable[[str], None] = print,
) -> dict[str, list[Question]]:
    """The questions of "train", of "valid" and, last, of "test" if there is one.

    Those that bring no facts, or all if `always`, get as many `candidates` out of facts.txt; none
    are looked up where that is None. In the end, if `wrong`, each gets the facts of another.
    """
    files = [(split, folder / f"{name}.jsonl") for name, split in SPLITS.items()]
    paths = {split: path for split, path in files if path.exists()}
    if not {"train", "valid"} <= paths.keys():
        raise FileNotFoundError(
            f"{folder}: needs train.jsonl and one of valid.jsonl, dev.jsonl and validation.jsonl, "
            "and may have test.jsonl and facts.txt"
        )
    splits = {split: read_questions(path, split != "test") for split, path in paths.items()}
    for path in paths.values():
        if blank := read_lines(path).count(""):
            say(f"skipped   {blank:,} blank lines in {path}")
    everything = [q for part in splits.values() for q in part]
    bare = [q for q in everything if always or not any(q.facts)]
    if own := len(everything) - len(bare):
        say(f"facts     {own:,} questions bring their own")
    if bare and candidates is not None:
        say(f"facts     {look_up(bare, folder / 'facts.txt', candidates, embed)}")
    if wrong:
        splits = {split: exchanged(part) for split, part in splits.items()}
        say("facts     each question gets those of another")
    return splits


def exchanged(questions: list[Question]) -> list[Question]:
    """Each with the facts of the next one: its first choice has those of that one's first."""
    found, lists = [], [q.facts for q in questions]
    for q, other in zip(questions, lists[1:] + lists[:1], strict=True):
        needed = 1 if len(other) == 1 else len(q.choices)
        found.append(replace(q, facts=[other[i % len(other)] for i in range(needed)]))
    return found


# -------------------------------------------------------------------------------------- looking up


def look_up(questions: list[Question], path: Path, n: int, embed: Embed | None = None) -> str:
    """Each question gets n facts out of this file. Returns what there is to say about it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, but {len(questions):,} questions need facts from it; "
            "--inject none needs no facts"
        )
    lines = read_facts(path)
    facts = [line for line in lines if line]
    retrieve(questions, facts, n, embed)
    blank, missed = len(lines) - len(facts), sum(not any(q.facts) for q in questions)
    return (
        f"{len(questions):,} questions get theirs out of {len(facts):,} in {path}"
        + (f"; blank lines skipped: {blank:,}" if blank else "")
        + (f"; nothing was found for {missed:,}" if missed else "")
    )


def retrieve(
    questions: list[Question], facts: list[str], n: int, embed: Embed | None = None
) -> None:
    """Gives each question the n facts that speak most for one of its choices. Each goes to that
    choice alone, so that what speaks for a choice stands with it; some choices get none.

    With `embed` what counts is how alike the fact is to question and choice, otherwise the words
    that it has of both.
    """
    facts = list(dict.fromkeys(facts))  # equal ones take one place
    found = by_meaning(questions, facts, embed) if embed else by_words(questions, facts)
    for q, (places, scores) in zip(questions, found, strict=True):
        q.facts = [[] for _ in q.choices]
        for i in best(scores.max(0), n):
            q.facts[scores[:, i].argmax()].append(facts[places[i]])


def by_words(
    questions: list[Question], facts: list[str]
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """For each question, the places of the facts and, (choices, places), what BM25 gives them for
    the question, times what it gives them for those words of the choice that the question lacks.
    """
    bm25 = BM25(facts)
    for q in tqdm(questions, "retrieving", unit="question", leave=False, disable=None):
        known, speaks = set(words(q.asked)), bm25.scores(q.asked)
        scores = [speaks * bm25.scores(choice, without=known) for choice in q.choices]
        yield range(len(facts)), np.stack(scores)


def by_meaning(
    questions: list[Question], facts: list[str], embed: Embed, candidates: int = 20
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """For each question, the places of the candidates that BM25 ranks first for it and one of its
    choices and, (choices, places), the cosines of question and choice with each of them.
    """
    bm25, found = BM25(facts), []
    for q in tqdm(questions, "retrieving", unit="question", leave=False, disable=None):
        asked = bm25.scores(q.asked)
        ranked = [best(asked + bm25.scores(choice), candidates) for choice in q.choices]
        found.append(sorted(set().union(*ranked)))
    needed = sorted(set().union(*found))
    vectors = embed([facts[place] for place in needed])
    asked = embed([f"{q.asked} {c}".strip() for q in questions for c in q.choices])
    ends = np.cumsum([len(q.choices) for q in questions])
    for places, asked_here in zip(found, np.split(asked, ends[:-1]), strict=True):
        yield places, asked_here @ vectors[np.searchsorted(needed, places)].T


# ------------------------------------------------------------------------------ without learning


def baselines(train: list[Question], held_out: list[Question]) -> str:
    """The accuracy of rules that learn nothing: the place that is most often right in training, the
    choice with the most words in common with its facts, or with the question without facts, and,
    where choices have facts of their own, the choice with the most of them.
    """
    place = Counter(q.answer for q in train).most_common(1)[0][0]
    rules = {f"always choice {place + 1}": lambda q: place, "most common words": most_common_words}
    if any(len(q.facts) > 1 for q in held_out):
        rules["most facts"] = most_facts
    right = {name: sum(rule(q) == q.answer for q in held_out) for name, rule in rules.items()}
    return ", ".join(f"{name}: {count / len(held_out):.1%}" for name, count in right.items())


def most_common_words(q: Question) -> int:
    known = [set(words(" ".join(facts) or q.asked)) for facts in q.facts]
    common = [len(of_choice(known, i) & set(words(c))) for i, c in enumerate(q.choices)]
    return common.index(max(common))


def most_facts(q: Question) -> int:
    counts = [len(of_choice(q.facts, i)) for i in range(len(q.choices))]
    return counts.index(max(counts))
