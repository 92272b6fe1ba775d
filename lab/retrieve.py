"""Questions get their facts out of a text file: each fact goes to the choice that it speaks for.

    python -m lab.retrieve data/mine --out data/mine-facts                   by words
    python -m lab.retrieve data/mine --encoder MINILM --out data/mine-facts  by meaning

Reads a folder, or one file, of questions, and facts.txt beside them; writes the same questions in
the format of the Kformer release, with "knowledge" for each choice. Questions that bring facts keep
them. Then: train.py --checkpoint FOLDER --data OUT.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lab.saved import check_new, positive
from qa.errors import command
from qa.questions import LETTERS, Question, read_facts, read_questions, split_paths
from qa.retrieval import BM25, best, words
from qa.sentences import SentenceEncoder

# For each question, the places of some facts, and what speaks for each choice: (choices, places).
Found = Iterator[tuple[list[int], np.ndarray]]


def by_words(questions: list[Question], bm25: BM25) -> Found:
    """What BM25 gives a fact for the question, times what it gives it for those words of the choice
    that the question lacks.
    """
    for q in questions:
        known, speaks = set(words(q.asked)), bm25.scores(q.asked)
        scores = [speaks * bm25.scores(choice, without=known) for choice in q.choices]
        yield list(range(bm25.num_facts)), np.stack(scores)


def by_meaning(
    questions: list[Question], bm25: BM25, facts: list[str], encoder: SentenceEncoder
) -> Found:
    """The cosine of the fact with question and choice. Candidates are the twenty facts that BM25
    ranks first for the question and one of its choices.
    """
    candidates = []
    for q in tqdm(questions, "candidates", unit="question", leave=False, disable=None):
        asked = bm25.scores(q.asked)
        ranked = [best(asked + bm25.scores(choice), 20) for choice in q.choices]
        candidates.append(sorted(set().union(*ranked)))
    needed = sorted(set().union(*candidates))
    vectors = encoder.embed([facts[place] for place in needed])
    asked = encoder.embed([f"{q.asked} {c}".strip() for q in questions for c in q.choices])
    ends = np.cumsum([len(q.choices) for q in questions])
    for places, asked_here in zip(candidates, np.split(asked, ends[:-1]), strict=True):
        yield places, asked_here @ vectors[np.searchsorted(needed, places)].T


def retrieve(questions: list[Question], facts: list[str], n: int, found: Found) -> None:
    """Gives each question the n facts that speak most for one of its choices. Each goes to that
    choice alone, so that what speaks for a choice stands with it; some choices get none.
    """
    bar = tqdm(questions, "retrieving", unit="question", leave=False, disable=None)
    for q, (places, scores) in zip(bar, found, strict=True):
        q.facts = [[] for _ in q.choices]
        for i in best(scores.max(0), n):
            q.facts[scores[:, i].argmax()].append(facts[places[i]])


def row_of(q: Question) -> dict:
    """A line in the format of the release."""
    row = {"context": q.context, "question": q.question}
    if len(q.facts) == 1:
        row |= {"choices": [{"text": text} for text in q.choices], "knowledges": q.facts[0]}
    else:
        pairs = zip(q.choices, q.facts, strict=True)
        row["choices"] = [{"text": text, "knowledge": facts} for text, facts in pairs]
    return row if q.answer is None else row | {"AnswerKey": LETTERS[q.answer]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Look up facts for questions, in facts.txt.")
    add = parser.add_argument
    add("data", type=Path, help="folder of questions, or one file, with facts.txt beside it")
    add("--out", type=Path, required=True, help="a new folder, or file, for questions with facts")
    add("--retrieve", type=positive, default=5, metavar="N", help="facts a question (default: 5)")
    add("--encoder", type=Path, metavar="FOLDER", help="sentence encoder that ranks what words "
        "have found by its meaning (default: words in common count)")  # fmt: skip
    args = parser.parse_args()
    check_new(args.out)
    outs = {args.data: args.out}
    if args.data.is_dir():
        outs = {path: args.out / path.name for path in split_paths(args.data).values()}
    splits = {path: read_questions(path, answers_needed=False) for path in outs}
    # equal facts take one place
    facts = list(dict.fromkeys(read_facts(next(iter(outs)).with_name("facts.txt"))))
    encoder, bm25 = args.encoder and SentenceEncoder(args.encoder), BM25(facts)
    print(f"facts     {len(facts):,}, ranked by {'meaning' if encoder else 'words in common'}")
    if args.data.is_dir():
        args.out.mkdir()
    for path, questions in splits.items():
        bare = [q for q in questions if not any(q.facts)]  # the others keep their own facts
        found = by_words(bare, bm25)
        if encoder and bare:
            found = by_meaning(bare, bm25, facts, encoder)
        retrieve(bare, facts, args.retrieve, found)
        lines = "".join(json.dumps(row_of(q)) + "\n" for q in questions)
        outs[path].write_text(lines, encoding="utf-8")
        missed = sum(not any(q.facts) for q in bare)
        print(f"{outs[path]}: facts for {len(bare):,} of {len(questions):,} questions; nothing was "
              f"found for {missed:,}")  # fmt: skip


if __name__ == "__main__":
    with command():
        main()
