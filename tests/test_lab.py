"""Commands for a saved run."""

import json
from pathlib import Path

import pytest
import torch

from lab import look, measure, predict
from load_weights import load_pretrained
from parts.inside import answers
from parts.questions import read_questions
from tests.common import log_of, run_command, run_train


@pytest.fixture(scope="module")
def saved(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_train(monkeypatch, "--data", small_world, "--steps", 2, "--out", out)
    return out


def test_a_saved_run_is_looked_into(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_command(monkeypatch, look, saved, "--show", 2)
    said = capsys.readouterr().out
    assert "Question 2:" in said
    assert "Question 3:" not in said
    assert said.count("  layer 1\n") == said.count("  layer 2\n") == 2


def test_a_saved_run_is_measured_as_it_was_after_training(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_command(monkeypatch, measure, saved)
    said, last = capsys.readouterr().out, log_of(saved)[-1]
    assert f"test      {last['test_accuracy']:.1%} of 40 questions, chance is 25.0%" in said
    assert f"edited    {last['flip_rate']:.1%} of right answers" in said
    assert "gold one fires most" in said


def test_predictions_are_those_of_the_model_in_the_order_of_the_file(
    saved: Path, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    questions = read_questions(small_world / "test.jsonl")
    run_command(monkeypatch, predict, saved, "--out", tmp_path / "answers.jsonl")
    assert "40 answers" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    model, tokenizer = load_pretrained(saved)
    for q, row in zip(questions, rows, strict=True):
        [(probabilities, facts)] = answers(model, tokenizer, [q], torch.float32)
        assert row["text"] == q.choices[row["choice"]]
        assert row["probabilities"] == pytest.approx(probabilities, abs=1e-5)
        assert sorted(row["facts"]) == sorted(facts) == sorted(q.facts[0])
    with pytest.raises(SystemExit):
        run_command(monkeypatch, predict, saved, "--out", tmp_path / "answers.jsonl")
    assert "answers.jsonl" in capsys.readouterr().err


def test_a_checkpoint_from_elsewhere_needs_a_file_of_questions(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture, saved: Path,
) -> None:  # fmt: skip
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in saved.iterdir():
        if path.name != "log.jsonl":
            (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit):
        run_command(monkeypatch, look, bare)
    assert "name a file of questions" in capsys.readouterr().err
    run_command(monkeypatch, look, bare, small_world / "valid.jsonl", "--show", 1)
    assert "Question 1:" in capsys.readouterr().out
