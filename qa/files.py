"""Files read and written: what is wrong with one becomes a line that names it.

    read_text, read_json, open_tensors    whatever a file may hold, an error of one line
    blaming, must_be                      the same for what is done with the content
    replacing, sweep                      new files take the places of the old ones, each whole
"""

import json
import os
import reprlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError, safe_open


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """What is wrong with a file's content becomes a ValueError of one line that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: not as transformers writes it ({error!r})") from None
    except ValueError as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path}: {line}") from None


def check_file(path: Path) -> None:
    """Raises an error where the file isn't there, or only the pointer that Git LFS has for it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise ValueError(f"{path}: a pointer of Git LFS, not the file: run git lfs pull there")


def read_text(path: Path) -> str:
    """UTF-8, with the line ends that the file has."""
    check_file(path)
    with blaming(path):
        return path.read_bytes().decode("utf-8")


def read_json(path: Path) -> dict:
    text = read_text(path)
    with blaming(path):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("must be a JSON object")
        return content


@contextmanager
def open_tensors(path: Path) -> Iterator[safe_open]:
    """A safetensors file, to read from."""
    check_file(path)
    with blaming(path), safe_open(path, framework="pt") as file:
        yield file


def must_be(content: dict, **known: object) -> None:
    """Raises ValueError for a setting that isn't built here; where it's missing it is the usual.

    `known` are the values that are built: several in a tuple, None where it must be missing.
    """
    for key, value in known.items():
        values = value if isinstance(value, tuple) else (value,)
        if content.get(key) not in (None, *values):
            found = reprlib.repr(content[key])  # it may be long
            if value is None:
                raise ValueError(f'"{key}" is {found}, not built here: take a model without it')
            raise ValueError(f'"{key}" is {found}, only {values[0]!r} is known here')


SCRATCH = ".kformer-writing-"
OURS = {  # all files that are written into a run's folder
    "config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json", "vocab.txt",
    "vocab.json", "merges.txt", "log.jsonl", "training.safetensors", "training.lock",
}  # fmt: skip


def sweep(folder: Path) -> None:
    """Deletes what `replacing` left where it was killed, if nothing else is in it."""
    for left in folder.glob(f"{SCRATCH}*"):
        if left.is_dir() and not left.is_symlink() and {p.name for p in left.iterdir()} <= OURS:
            shutil.rmtree(left)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write files in. At the end they take the places of their old selves in `folder`,
    weights first, and each at once: a crash leaves the old file or the new one, never half of one.
    Raises OSError with one line that names `folder`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=SCRATCH) as new:
            yield Path(new)
            written = sorted(Path(new).iterdir(), key=lambda path: path.suffix != ".safetensors")
            for path in written:
                with open(path, "r+b") as file:
                    os.fsync(file.fileno())
            for path in written:
                os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder}: can't be written ({error})") from None
