"""A student's copy of the project: blank functions to be written again, and no answers.

    python -m lab.exercises --out FOLDER        all exercises that are functions
    python -m lab.exercises 3 5 --out FOLDER    these two; the others keep their answers
"""

import argparse
import ast
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from qa.errors import command, read_text

ROOT = Path(__file__).resolve().parent.parent

EXERCISES = {  # docs/exercises.md -> the file, its functions
    1: ("kformer.py", ["mean_embedding"]),
    2: ("kformer.py", ["hide"]),
    3: ("kformer.py", ["SelfAttention.forward"]),
    4: ("lab/released.py", ["MendedAttention.prefix", "MendedAttention.ignored"]),
    5: ("kformer.py", ["FFN.forward"]),
    6: ("load_weights.py", ["our_name"]),
    7: ("kformer.py", ["initialize_projections"]),
    8: ("qa/retrieval.py", ["BM25.__init__"]),
}
COPIED = [  # nothing else that lies in the folder: runs, notes, a history
    "README.md", "LICENSE", ".gitignore", ".gitattributes", "pyproject.toml", "requirements.txt",
    "kformer.py", "train.py", "load_weights.py", "test_kformer.py", "data", "docs", "lab", "qa",
    "tests",
]  # fmt: skip
WORKFLOW = "docs/classroom.yml"
FOR_TEACHERS = {"docs/teachers.md", "lab/exercises.py", "tests/test_exercises.py", WORKFLOW}


def blanked(source: str, function: str, number: int) -> str:
    """The source with a line in the place of the function's body, below its docstring."""
    nodes = ast.parse(source).body
    for name in function.split("."):
        [node] = [n for n in nodes if getattr(n, "name", None) == name]
        nodes = node.body
    start = nodes[0].end_lineno if ast.get_docstring(node) else nodes[0].lineno - 1
    blank = f'raise NotImplementedError("exercise {number}: write {function}")'
    if number == 7:  # without it models are still built, with anything in their Wk and Wv
        blank = "..."
    lines = source.split("\n")
    lines[start : node.end_lineno] = [" " * nodes[0].col_offset + blank]
    return "\n".join(lines)


def files() -> list[str]:
    """What a student gets, as paths below the project's folder."""
    paths = [p for name in COPIED for p in (ROOT / name, *sorted((ROOT / name).rglob("*")))]
    names = [p.relative_to(ROOT).as_posix() for p in paths if p.is_file()]
    return [n for n in names if "__pycache__" not in n and n not in FOR_TEACHERS]


def write_copy(folder: Path, numbers: list[int]) -> None:
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    for number in numbers:
        name, functions = EXERCISES[number]
        for function in functions:
            source = blanked(read_text(folder / name), function, number)
            (folder / name).write_bytes(source.encode("utf-8"))
    (folder / ".github" / "workflows").mkdir(parents=True)
    shutil.copyfile(ROOT / WORKFLOW, folder / ".github" / "workflows" / "classroom.yml")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a student's copy, its exercises blank.")
    parser.add_argument("exercises", type=int, nargs="*", metavar="N",
                        help="exercises to be blank: 1 to 8 (default: all)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    args = parser.parse_args()
    numbers = sorted(set(args.exercises)) or list(EXERCISES)
    if strange := set(numbers) - set(EXERCISES):
        raise ValueError(f"exercise {min(strange)}: no function to be blank, must be 1 to 8")
    if os.path.lexists(args.out):
        raise ValueError(f"--out {args.out}: is there already; name a new folder")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=args.out.parent, prefix=".writing-") as new:
        write_copy(Path(new, "copy"), numbers)
        os.rename(Path(new, "copy"), args.out)  # at once, when all is there
    which = " ".join(map(str, numbers))
    print(f"{args.out}: a copy, blank: {which}; there: python -m pytest -m exercises")


if __name__ == "__main__":
    with command():
        main()
