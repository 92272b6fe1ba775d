"""A table of many runs: all combinations of several --data, --inject, --layers, --facts, --seed.

    python -m lab.table --inject none concat attention ffn --seed 0 1 2
    python -m lab.table --layers bottom top --data FOLDER FOLDER --out runs/layers --steps 300

All other arguments are those of train.py. A folder of lab.folds counts as one: its folds are
trained one by one, and the accuracy is that of all their questions. Given again, the command keeps
the runs that are finished. The figures of all runs go into table.jsonl, a line for each row.

There are two kinds of luck. "±" is the standard deviation over seeds. The intervals are about the
questions: 95 % of samples of as many questions fall into them (bootstrap). Each row is compared
with the first one of the same data, question by question. An interval with 0 in it shows no
difference.
"""

import argparse
import json
from itertools import chain, product
from pathlib import Path
from statistics import fmean

import numpy as np

import train
from kformer import VARIANTS
from lab.saved import over_seeds
from qa.errors import command, printable

HEADINGS = ("data", "inject", "layers", "facts", "accuracy", "chance", "over questions",
            "more than the first row", "edited: follows", "another: stays", "without the gold fact",
            "another question's facts", "questions a second")  # fmt: skip

Seeds = list[list[dict]]  # the results of a row: for each seed the last line of each fold's log


def rows_of(args: argparse.Namespace) -> list[dict]:
    """The values of one row: "none" has no layers and no facts, "concat" has no layers."""
    rows = []
    for data, inject, layers, facts in product(args.data, args.inject, args.layers, args.facts):
        row = {"inject": inject} | ({} if data is None else {"data": data})
        if layers is not None and inject in ("attention", "ffn"):
            row["layers"] = layers
        if facts is not None and inject != "none":
            row["facts"] = facts
        if row not in rows:
            rows.append(row)
    return rows


def run(row: dict, seed: int, folder: Path, others: list[str]) -> list[dict]:
    """Makes the runs of one seed, of each fold if there are some, but those that are finished.
    -> the last lines of their logs, none if one failed
    """
    data, results = Path(row.get("data", "")), []
    folds = sorted(data.glob("fold-?")) if "data" in row else []
    values = {name: value for name, value in row.items() if name != "data"} | {"seed": seed}
    name = "-".join(f"{name}-{value}" for name, value in values.items()).removeprefix("inject-")
    for fold in folds or [data]:
        own = values | ({"data": fold} if "data" in row else {})
        pairs = [word for name, value in own.items() for word in (f"--{name}", str(value))]
        out = folder / data.name / fold.relative_to(data) / name
        print(f"\n{out}")
        try:
            train.main([*pairs, *others, "--out", str(out)])
        except ValueError as error:  # it diverged, for instance: the other runs go on
            print(f"error: {printable(str(error))}")
            return []
        lines = (out / train.LOG).read_text(encoding="utf-8").splitlines()
        results.append(json.loads(lines[-1]))
        if "answered_right" not in results[-1]:
            raise ValueError(f"{out}: an older version made this run; name a new folder with --out")
    return results


def right(seeds: Seeds) -> np.ndarray:
    """(seeds, questions): 1 for each right answer."""
    return np.array([[*chain(*(run["answered_right"] for run in folds))] for folds in seeds])


def interval(shares: np.ndarray) -> str:
    """Where the mean is in 95 % of 2,000 samples, with replacement, of as many questions."""
    random = np.random.default_rng(0)
    means = [shares[random.integers(shares.size, size=shares.size)].mean() for _ in range(2000)]
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    return f"{low:.1f} to {high:.1f}"


def cells(row: dict, seeds: Seeds, first: Seeds | None) -> list[str]:
    """What stands in a row of the table; `first` is the row that it is compared with, if any."""

    def share(key: str) -> str:
        """Mean over seeds and folds, deviation over seeds."""
        values = [[run[key] for run in folds if key in run] for folds in seeds]
        return over_seeds([*map(fmean, values)]) if all(values) else ""

    runs = [*chain(*seeds)]
    answers, against = right(seeds), ""
    if first:
        more = answers.mean(0) - right(first).mean(0)
        against = f"{100 * more.mean():+.1f} ({interval(more)})"
    return [
        Path(row.get("data", "")).name, row["inject"], row.get("layers", ""), row.get("facts", ""),
        over_seeds(answers.mean(1).tolist()), f"{fmean(run['chance'] for run in runs):.1%}",
        interval(answers.mean(0)), against,
        *map(share, ("flip_rate", "locality", "removed_accuracy", "exchanged_accuracy")),
        f"{fmean(run['train_questions_per_second'] for run in runs):,.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train all combinations, and print a table of them.", allow_abbrev=False,
        epilog="Other arguments: see train.py --help.",
    )  # fmt: skip
    add = parser.add_argument
    add("--data", nargs="+", default=[None],
        help="folders of questions, or of their folds (default: data/toy)")
    add("--inject", nargs="+", choices=VARIANTS, default=["ffn"], help="(default: ffn)")
    add("--layers", nargs="+", default=[None], help="(default: as in train.py)")
    add("--facts", nargs="+", type=int, default=[None], help="(default: as in train.py)")
    add("--seed", nargs="+", type=int, default=[0], help="(default: 0)")
    add("--out", type=Path, help="folder for all runs (default: runs, or runs/wrong-facts)")
    args, others = parser.parse_known_args()
    if train.WORLD > 1:
        raise ValueError("lab.table makes its runs in one process, without torchrun")
    args.out = args.out or Path("runs", *["wrong-facts"] * ("--wrong-facts" in others))
    found = []
    for row in rows_of(args):
        seeds = [run(row, seed, args.out, others) for seed in args.seed]
        found += [(row, [*filter(None, seeds)])] if any(seeds) else []
    if not found:
        raise ValueError("no run succeeded")
    print(f"\n| {' | '.join(HEADINGS)} |\n{'| --- ' * len(HEADINGS)}|")
    for row, seeds in found:
        first = next(other for of, other in found if of.get("data") == row.get("data"))
        print(f"| {' | '.join(cells(row, seeds, first if first is not seeds else None))} |")
    lines = [json.dumps(row | {"runs": [*chain(*seeds)]}) + "\n" for row, seeds in found]
    (args.out / "table.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    with command():
        main()
