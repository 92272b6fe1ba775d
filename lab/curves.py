"""Learning curves of saved runs: validation accuracy over steps, a thin line for each run.

    python -m lab.curves runs/*-seed-* --out curves.svg

One colour for each method; runs on several data sets get a panel each.
"""

import argparse
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path

from lab.saved import check_new, run_arguments
from qa.errors import command
from train import LOG

COLOURS = {"none": "#777777", "concat": "#c4500f", "attention": "#2f6fd0", "ffn": "#1a8a3a"}
WIDTH, HEIGHT, LEFT, TOP = 250, 150, 48, 34  # of a panel's axes, and what stands beside and above

Line = tuple[str, list[tuple[float, float]]]  # a method; points, (0, 0) to (1, 1)


def panel(title: str, ticks: list[str], lines: list[Line]) -> Iterator[str]:
    """A title, the axes with `ticks` at even distances below, and the lines."""
    yield f'<text x="{WIDTH / 2}" y="-10" text-anchor="middle">{escape(title)}</text>'
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = HEIGHT * (1 - share)
        yield f'<path d="M0 {y} H{WIDTH}" stroke="#8884"/>'
        yield f'<text x="-6" y="{y + 4}" text-anchor="end">{share:.0%}</text>'
    for i, tick in enumerate(ticks):
        x = WIDTH * i / (len(ticks) - 1)
        yield f'<text x="{x}" y="{HEIGHT + 16}" text-anchor="middle">{escape(tick)}</text>'
    for method, points in lines:
        path = " ".join(f"{WIDTH * x:.1f},{HEIGHT * (1 - y):.1f}" for x, y in points)
        colour = COLOURS[method]
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity=".7"/>'


def picture(panels: list[tuple[str, list[str], list[Line]]]) -> str:
    """Panels in rows of three, below a line that says which colour is which method."""
    columns = min(3, len(panels))
    wide, high = columns * (WIDTH + LEFT + 20), -(-len(panels) // 3) * (HEIGHT + TOP + 30) + 30
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img" '
             'font-family="Verdana, sans-serif" font-size="11" fill="#808080">']  # fmt: skip
    shown = {method for _, _, some in panels for method, _ in some}
    for i, method in enumerate(m for m in COLOURS if m in shown):
        x, colour = LEFT + 90 * i, COLOURS[method]
        lines.append(f'<text x="{x}" y="16" fill="{colour}">&#8212; {method}</text>')
    for i, content in enumerate(panels):
        x, y = LEFT + i % 3 * (WIDTH + LEFT + 20), 30 + TOP + i // 3 * (HEIGHT + TOP + 30)
        lines += [f'<g transform="translate({x} {y})">', *panel(*content), "</g>"]
    return "\n".join([*lines, "</svg>\n"])


def curve(run: Path) -> tuple[str, int, Line]:
    """The name of the run's data, its steps, its line."""
    arguments = run_arguments(run)
    if not arguments:
        raise ValueError(f"{run}: no run of train.py")
    rows = [json.loads(line) for line in (run / LOG).read_text(encoding="utf-8").splitlines()]
    steps = arguments["steps"]
    points = [(r["step"] / steps, r["valid_accuracy"]) for r in rows if "step" in r]
    data = arguments["data"]
    name = data.parent.name if data.name.startswith("fold-") else data.name  # all folds: one panel
    return name, steps, (arguments["inject"], points)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders that train.py saved")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new SVG file")
    args = parser.parse_args()
    check_new(args.out)
    panels: dict[str, tuple[list[str], list[Line]]] = {}
    for run in args.runs:
        name, steps, line = curve(run)
        ticks = ["0", f"{steps / 2:,.0f}", f"{steps:,} steps"]
        panels.setdefault(f"{name}, {steps:,} steps", (ticks, []))[1].append(line)
    args.out.write_text(picture([(n, *rest) for n, rest in panels.items()]), encoding="utf-8")
    print(f"{args.out}: {len(args.runs)} runs")


if __name__ == "__main__":
    with command():
        main()
