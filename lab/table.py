"""A table of many runs: all combinations of several --data, --inject, --layers, --facts, --seed.

    python -m lab.table --inject none concat attention ffn --seed 0 1 2
    python -m lab.table --layers bottom top --data FOLDER FOLDER --out runs/layers --steps 300

All other arguments are those of train.py. Given again, the command keeps the runs that are
finished. The figures of all runs go into table.jsonl, a line for each row of the table.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import mean

import train
from kformer import VARIANTS
from lab.saved import over_seeds
from qa.errors import command, printable

HEADINGS = ("data", "inject", "layers", "facts", "accuracy", "chance", "edited: follows",
            "another: stays", "questions a second", "parameters added")  # fmt: skip


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


def run(row: dict, seed: int, folder: Path, others: list[str]) -> dict:
    """Makes one run, if it isn't finished yet. -> the last line of its log, {} if it failed"""
    values = row | {"seed": seed}
    name = "-".join(f"{name}-{value}" for name, value in values.items() if name != "data")
    out = folder / Path(row.get("data", "")).name / name.removeprefix("inject-")
    pairs = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    print(f"\n{out}")
    try:
        train.main([*pairs, *others, "--out", str(out)])
    except ValueError as error:  # it diverged, for instance: the other runs go on
        print(f"error: {printable(str(error))}")
        return {}
    return json.loads((out / train.LOG).read_text(encoding="utf-8").splitlines()[-1])


def cells(row: dict, results: list[dict]) -> list[str]:
    """What stands in a row of the table: means over the seeds."""

    def share(key: str) -> str:
        values = [r[key] for r in results if key in r]
        return over_seeds(values) if values else ""

    rate = mean(r["train_questions_per_second"] for r in results)
    data, chance = Path(row.get("data", "")).name, f"{results[0]['chance']:.1%}"
    return [
        data, row["inject"], row.get("layers", ""), row.get("facts", ""), share("test_accuracy"),
        chance, share("flip_rate"), share("locality"), f"{rate:,.0f}",
        f"{results[0]['parameters_added']:,}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train all combinations, and print a table of them.", allow_abbrev=False,
        epilog="Other arguments: see train.py --help.",
    )  # fmt: skip
    add = parser.add_argument
    add("--data", nargs="+", default=[None], help="folders of questions (default: data/toy)")
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
        results = [run(row, seed, args.out, others) for seed in args.seed]
        found += [(row, [*filter(None, results)])] if any(results) else []
    if not found:
        raise ValueError("no run succeeded")
    print(f"\n| {' | '.join(HEADINGS)} |\n{'| --- ' * len(HEADINGS)}|")
    for row, results in found:
        print(f"| {' | '.join(cells(row, results))} |")
    lines = [json.dumps(row | {"runs": results}) + "\n" for row, results in found]
    (args.out / "table.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    with command():
        main()
