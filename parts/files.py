"""Files read and written: what is wrong with one becomes a line that names it.

    read_text, read_json, blaming    whatever a file may hold, an error of one line
    replacing                        new files take the places of the old ones, whole or not at all
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError


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


def read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with blaming(path):
        return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict:
    text = read_text(path)
    with blaming(path):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("must be a JSON object")
        return content


def must_be(content: dict, **known: object) -> None:
    """Raises ValueError for a setting that isn't built here; where it's missing it is the usual."""
    for key, value in known.items():
        if content.get(key) not in (None, value):
            raise ValueError(f'"{key}" is {content[key]!r}, only {value!r} is known here')


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write files in. At the end they take the places of their old selves in `folder`,
    weights first, and each at once: a crash leaves the old file or the new one, never half of one.
    Raises OSError with one line that names `folder`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("writing-*"):  # by somebody who was killed
            shutil.rmtree(left)
        with TemporaryDirectory(dir=folder, prefix="writing-") as new:
            yield Path(new)
            written = sorted(Path(new).iterdir(), key=lambda path: path.suffix != ".safetensors")
            for path in written:
                with open(path, "r+b") as file:
                    os.fsync(file.fileno())
            for path in written:
                os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder}: can't be written ({error})") from None
