"""What goes wrong becomes one line that says what, and where, and does nothing to the terminal."""

import json
import os
import reprlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def command() -> Iterator[None]:
    """Within, an error ends the program with status 2, Ctrl-C with 130."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook, nor where it is closed
            # Lines come as they are made; what the encoding lacks is written as \\u591c.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:  # nobody reads any more, as in "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        print(f"error: {printable(str(error), 2000)}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:  # torch has no type of its own for a CPU's memory
        if "memory" not in repr(error).lower():
            raise
        what = "not enough memory; in training a smaller --batch-size needs less"
        print(f"error: {what} ({printable(str(error), 100)})", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted: {str(interrupt) or 'by Ctrl-C'}", file=sys.stderr)
        sys.exit(130)


def printable(text: str, most: int = 300) -> str:
    """A text as it may be printed: not too long, and without characters that steer a terminal."""
    text = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


@contextmanager
def blaming(path: Path | str) -> Iterator[None]:
    """Within, an error becomes a ValueError of one line that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        where = error.doc[error.pos :][:20]
        raise ValueError(f"{path}: not JSON ({error.msg} at {where!r})") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: unreadable ({error!r})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


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
        text = path.read_bytes().decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("starts with a byte-order mark; save it without")
        return text


def read_json(path: Path, missing: dict | None = None) -> dict:
    """The object in a file, or `missing`, where that is given, if there is no file."""
    if missing is not None and not path.is_file():
        return missing
    text = read_text(path)
    with blaming(path):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("must be a JSON object")
        return content


def must_be(content: dict, **known: object) -> None:
    """Raises ValueError for a setting that isn't built here. `known` are the values that are, or
    None. Any may be missing.
    """
    for key, value in known.items():
        values = value if isinstance(value, tuple) else (value,)
        if content.get(key) not in (None, *values):
            found = reprlib.repr(content[key])  # it may be long
            if value is None:
                raise ValueError(f'"{key}" is {found}, not built here: take a model without it')
            raise ValueError(f'"{key}" is {found}, only {values[0]!r} is known here')
