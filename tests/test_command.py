"""What every command does alike."""

from qa.command import command

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_kformer import HERE

OF_LAB = [path for path in (HERE / "lab").glob("*.py") if "@command()" in path.read_text("utf-8")]


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own, to which the modules in a folder come before the packages."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    words = [sys.executable, *arguments]
    return subprocess.run(words, env=environment, cwd=HERE, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments", ["train.py", "load_weights.py", *(f"-m lab.{path.stem}" for path in OF_LAB)]
)
def test_ctrl_c_while_torch_is_imported_is_one_line(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    ended = run(tmp_path, *arguments.split())
    assert ended.stderr.strip() == "interrupted: by Ctrl-C"
    assert ended.returncode == 130


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "RuntimeError"])
def test_a_program_that_is_no_command_is_ended_as_ever(error: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"import qa.command; raise {error}('of its own')")
    ended = run(HERE, str(program))
    assert f"Traceback (most recent call last):\n  File \"{program}\"" in ended.stderr
    assert f"{error}: of its own" in ended.stderr


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [("utf-8", "Kᵀ ░█ é 夜"), ("cp1252", "KT .# é \\u591c"), ("ascii", "KT .# \\xe9 \\u591c")],
)
def test_an_encoding_that_lacks_a_sign_gets_one_that_stands_for_it(
    encoding: str, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    with command():
        print("Kᵀ ░█ é 夜")
    assert written.getvalue().decode(encoding).strip() == printed
