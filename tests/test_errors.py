"""What goes wrong is one line."""

import io
import os
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from qa.errors import blaming, command, read_json


def test_an_error_ends_a_command_with_one_line(capsys: pytest.CaptureFixture) -> None:
    ctrl_c = KeyboardInterrupt(), "130", "\ninterrupted: by Ctrl-C\n"
    errors = [(error("no"), "2", "error: no\n") for error in (ValueError, OSError)]
    for error, status, line in (ctrl_c, *errors):
        with pytest.raises(SystemExit, match=status), command():
            raise error
        assert capsys.readouterr().err == line


def test_too_little_memory_is_a_line_and_any_other_mistake_a_stack(
    capsys: pytest.CaptureFixture,
) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")):
        with pytest.raises(SystemExit, match="2"), command():
            raise error
        said = capsys.readouterr().err
        assert said.startswith("error: not enough memory; in training a smaller --batch-size needs")
        assert said.count("\n") == 1
    with pytest.raises(RuntimeError, match="shapes"), command():
        raise RuntimeError("shapes")


def test_no_text_of_others_steers_the_terminal(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit), command():
        raise ValueError(f"\x1b[2J\u202e\rx{'y' * 5000}")
    said = capsys.readouterr().err.removesuffix("\n")
    assert said.isprintable()
    assert said.startswith("error:  [2J  xyyy")
    assert said.endswith("yyy...")
    assert len(said) < 2100


def test_where_nobody_reads_any_more_a_command_ends_silently(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as in "| head"
    with open(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with pytest.raises(SystemExit) as stopped, command():
            print("for nobody")
        pipe.write("what Python writes at its end is no error either")
    assert (stopped.value.code, capsys.readouterr().err) == (1, "")


@pytest.mark.parametrize(
    ("stream", "printed"), [("cp1252", "é \\u591c"), ("ascii", "\\xe9 \\u591c"), (None, "é 夜")]
)
def test_each_line_is_written_at_once_and_a_sign_that_is_lacking_as_its_number(
    stream: str | None, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), stream, newline="") if stream else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    with command():
        print("é 夜")
    assert (out.buffer.getvalue().decode(stream) if stream else out.getvalue()) == f"{printed}\n"


def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    path, lfs = tmp_path / "x.json", b"version https://git-lfs.github.com/spec/v1"
    lines = {b"\xff": "not UTF-8 text", b'{"a" 1}': "not JSON .*at '1}'", lfs: "a pointer of Git",
             b"[]": "must be a JSON object"}  # fmt: skip
    for content, said in lines.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{path}: {said}"):
            read_json(path)
    for error in (SafetensorError("a\tb"), KeyError("a"), ValueError("a\n b"), RuntimeError("\n")):
        with pytest.raises(ValueError, match=rf"^{path}: [^\n]+\Z"), blaming(path):
            raise error
