"""A table of many runs: all combinations of several values of --inject, --layers, --facts, --seed.

    python -m lab.table --inject none concat attention ffn --seed 0 1 2

Given again, the command keeps the runs that are finished. The figures of all runs go into
table.jsonl, a line for each row of the table.
"""

from qa.command import command

import json
from argparse import Namespace
from itertools import groupby, product
from pathlib import Path
from statistics import mean, stdev

from tqdm import tqdm

from qa.arguments import runs_folder
from qa.batches import chance
from qa.checkpoint import span
from qa.files import replacing
from qa.processes import RANK, join
from qa.state import alone_in
from train import Task, describe, make_parser, prepare, resolve, run

HEADINGS = ("inject   ", "layers      ", "facts", "accuracy (chance {:.1%})", "edited: follows",
            "another: stays", "seconds a step", "parameters added")  # fmt: skip


def runs_of(args: Namespace) -> list[Namespace]:
    """One Namespace for each run, a seed after the other. What makes no difference is run once:
    "none" has no layers and no facts, "concat" has no layers.
    """
    runs = {}
    values = args.inject or ["ffn"], args.layers or [None], args.facts or [None], args.seed
    for inject, layers, facts, seed in product(*values):
        row = {
            "inject": inject,
            "layers": layers if inject in ("attention", "ffn") else None,
            "facts": facts if inject != "none" else None,
        }
        which = row | {"seed": seed}
        name = "-".join(f"{k}-{v}" for k, v in which.items() if v is not None)
        out = args.out / name.removeprefix("inject-")
        runs[name] = Namespace(**(vars(args) | which | {"out": out, "row": tuple(row.values())}))
    return list(runs.values())


def table(runs: list[Namespace], folder: Path) -> None:
    """Makes all runs that aren't finished yet, and prints a row as soon as its seeds are done."""
    task = prepare(runs[0])
    describe(task, runs[0])
    print(f"runs      {len(runs)}, into {folder}; those that are finished there are kept\n")
    headings = [h.format(chance(task.data[task.held_out])) for h in HEADINGS]
    print(line(headings, headings))
    print(line(["-" * len(heading) for heading in headings], headings))
    rows, failed = [], []
    for _, same in groupby(runs, lambda args: args.row):
        results = []
        for args in same:
            task = prepare(args, say=lambda _: None)
            try:
                results.append({"seed": args.seed} | run(task, args, say=lambda _: None))
            except ValueError as error:  # it diverged
                failed.append(f"{args.out.name}: {error}")
        if results:
            values, cells = summary(task, args, results)
            rows.append(json.dumps(values | {"runs": results}))
            tqdm.write(line(cells, headings))
    if failed:
        raise ValueError("; ".join(failed))
    if RANK == 0:
        with replacing(folder) as new:
            (new / "table.jsonl").write_text("\n".join([*rows, ""]), encoding="utf-8")


def summary(task: Task, args: Namespace, results: list[dict]) -> tuple[dict, list[str]]:
    """What the runs of a row have in common and their mean: for the file, and for the table."""
    config, added = task.model.config, results[0]["parameters_added"]
    layers = span(set(config.inject_layers)) if added else ""
    facts = config.num_facts if config.inject != "none" else ""
    found = [result["test_accuracy"] for result in results]
    effects = [[r[key] for r in results if key in r] for key in ("flip_rate", "locality")]
    rate = mean(result["train_questions_per_second"] for result in results)
    seconds = args.batch_size / rate if rate else 0.0
    values = {
        "inject": config.inject, "layers": layers, "facts": facts, "mean": mean(found),
        "stdev": stdev(found) if len(found) > 1 else None, "seconds_a_step": seconds,
    }  # fmt: skip
    said = args.row[1]  # "top" or "all", or numbers
    layers = f"{said} ({layers})" if said and not said[0].isdigit() else layers
    follow, stay = (over_seeds(values) if values else "" for values in effects)
    return values, [
        config.inject, layers, str(facts), over_seeds(found), follow, stay,
        f"{seconds:.3f}", f"{added:,}",
    ]  # fmt: skip


def over_seeds(values: list[float]) -> str:
    """Mean and, of more than one, standard deviation."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"


def line(cells: list[str], headings: list[str]) -> str:
    """A line of a Markdown table, as wide as its headings."""
    padded = (f"{cell:{len(heading)}}" for cell, heading in zip(cells, headings, strict=True))
    return "| " + " | ".join(padded) + " |"


@command()
def main() -> None:
    parser = make_parser(several=True)
    parser.description, parser.epilog = "Train all combinations, and print a table of them.", None
    args = parser.parse_args()
    args.out = args.out or runs_folder(args.wrong_facts)
    runs = [resolve(one) for one in runs_of(args)]  # what is wrong with any is said at once
    join(args.device)
    with alone_in(args.out):
        table(runs, args.out)


if __name__ == "__main__":
    main()
