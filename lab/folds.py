"""Questions cut into five folds, each with other test questions, for lab.table.

    python -m lab.folds qasc/questions.jsonl --out folds/qasc
    python -m lab.folds qasc/questions.jsonl --wrong 4 --out folds/qasc-4-wrong
    python -m lab.table --data folds/qasc --inject none ffn --checkpoint MINILM

The questions of all files are shuffled, and cut into six parts. Fold K tests the K-th part, and
learns from the four others. The last part chooses: it has the validation questions of all folds,
and is never reported. With --wrong, each question gets facts of other questions among its own:
those that BM25 finds for the question with all its choices.
"""

import argparse
import json
import random
from pathlib import Path

from tqdm import tqdm

from lab.retrieve import row_of
from lab.saved import check_new, positive
from qa.errors import command
from qa.inside import facts_of
from qa.questions import Question, read_questions
from qa.retrieval import BM25, best

FOLDS = 5


def parts_of_fold(questions: list[Question], k: int) -> dict[str, list[Question]]:
    parts = [questions[i :: FOLDS + 1] for i in range(FOLDS + 1)]
    learned = [q for i in range(FOLDS) if i != k for q in parts[i]]
    return {"train": learned, "valid": parts[FOLDS], "test": parts[k]}


def add_wrong_facts(questions: list[Question], count: int) -> None:
    facts = list(dict.fromkeys(fact for q in questions for fact in facts_of(q)))
    bm25, rng = BM25(facts), random.Random(0)
    for q in tqdm(questions, "wrong facts", unit="question", leave=False, disable=None):
        own = facts_of(q)
        found = best(bm25.scores(" ".join([q.asked, *q.choices])), count + len(own))
        wrong = [facts[i] for i in found if facts[i] not in own][:count]
        q.facts = [rng.sample(some + wrong, len(some + wrong)) for some in q.facts]


def main() -> None:
    parser = argparse.ArgumentParser(description="Cut questions into five folds.")
    parser.add_argument("files", type=Path, nargs="+", help="questions whose answers are known")
    parser.add_argument("--wrong", type=positive, metavar="N", help="wrong facts (default: none)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the folds")
    args = parser.parse_args()
    check_new(args.out)
    questions = [q for path in args.files for q in read_questions(path)]
    if len(questions) <= FOLDS:
        raise ValueError(f"{len(questions)} questions are too few for {FOLDS} folds")
    if args.wrong:
        add_wrong_facts(questions, args.wrong)
    random.Random(0).shuffle(questions)
    for k in range(FOLDS):
        folder = args.out / f"fold-{k}"
        folder.mkdir(parents=True)
        for name, part in parts_of_fold(questions, k).items():
            lines = "".join(json.dumps(row_of(q)) + "\n" for q in part)
            (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in parts_of_fold(questions, 0).items())
    print(f"{args.out}: {FOLDS} folds of {sizes} questions")


if __name__ == "__main__":
    with command():
        main()
