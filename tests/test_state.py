"""Interrupted runs."""

import itertools
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import train
from tests.common import ids, interrupt, run_train


def test_the_first_step_that_was_not_finite_is_named() -> None:
    data = [ids(5, 6, length=n) for n in range(1, 9)]
    fine, bad = torch.tensor(1.0), torch.tensor(math.inf)
    steps = [(n, data[2 * n - 2 : 2 * n], fine, fine) for n in (1, 2, 3, 4)]
    train.check_finite(steps, data)
    steps[1:3] = [(2, data[2:4], fine, bad), (3, data[4:6], bad, fine)]
    with pytest.raises(ValueError, match=r"step 2: the loss is 1, .* inf, .* questions \[3, 4\]"):
        train.check_finite(steps, data)


class Killed(Exception):
    """In the place of SIGKILL: nothing after it is run, and nobody catches it."""


@pytest.mark.parametrize("command", ["the same", "--resume"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    command: str, dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Ctrl-C in step 7, killed in step 13, which is after the state of step 12 was saved."""
    step, calls, whole, parts = train.train_step, itertools.count(1), tmp_path / "1", tmp_path / "2"

    def stops(*arguments: object) -> tuple[Tensor, Tensor]:
        call = next(calls)
        if call == 7:
            os.kill(os.getpid(), signal.SIGINT)
        if call == 13:
            raise Killed
        return step(*arguments)

    arguments = ["--data", dropout_world, "--steps", 20, "--batch-size", 8]
    run_train(monkeypatch, *arguments, "--out", whole)
    monkeypatch.setattr(train, "train_step", stops)
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, *arguments, "--out", parts)
    assert stopped.value.code == 130
    assert f"saved after step 7, the same command or --resume {parts}" in capsys.readouterr().err
    again = ["--resume", parts] if command == "--resume" else [*arguments, "--out", parts]
    with pytest.raises(Killed):
        run_train(monkeypatch, *again)
    assert sorted(path.name for path in parts.iterdir()) == ["log.jsonl", train.STATE]
    run_train(monkeypatch, *again)
    assert next(calls) == 7 + 6 + 8 + 1, "steps 8 to 12 and 13 to 20 were made in the second part"
    assert capsys.readouterr().out.count("  step     20 ") == 1
    for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (parts / train.STATE).exists()
    logs = [[json.loads(row) for row in (run / "log.jsonl").open()] for run in (whole, parts)]
    for log in logs:
        assert len(log) == 1 + 10 + 1
        for key in ("seconds", "train_questions_per_second", "eval_questions_per_second"):
            del log[-1][key]
    assert logs[0] == logs[1]


def test_an_interrupted_run_of_another_kind_is_not_gone_on_with(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    arguments = ["--data", dropout_world, "--steps", 4, "--out", tmp_path / "run"]
    monkeypatch.setattr(train, "save_pretrained", interrupt)
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments)
    (dropout_world / "test.jsonl").unlink()
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, "--resume", tmp_path / "run")
    assert stopped.value.code == 2
    assert "its data, its checkpoint or the code has changed" in capsys.readouterr().err
    monkeypatch.undo()
    step, steps = train.train_step, []
    monkeypatch.setattr(train, "train_step", lambda *a: steps.append(1) or step(*a))
    run_train(monkeypatch, *arguments)
    assert len(steps) == 4, "from the first step on"
    assert "unfinished run of another kind, which this one replaces" in capsys.readouterr().out
    assert "test_accuracy" in (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(SystemExit):
        run_train(monkeypatch, "--resume", tmp_path / "run")
    assert f"{train.STATE}: no such file: that run is finished" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_training(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """In step 4; the state of step 2, the last evaluation, is kept, and the model isn't touched."""
    score, calls, models = train.score, itertools.count(1), []

    def spoiled(model: nn.Module, batch: list, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scores, answers = score(model, batch, dtype)
        models.append({name: t.clone() for name, t in model.state_dict().items()})
        return scores * math.nan if next(calls) == 4 else scores, answers

    monkeypatch.setattr(train, "score", spoiled)
    fit, tasks = train.fit, []

    def spy(task: train.Task, *rest: object) -> dict:
        tasks.append(task)
        return fit(task, *rest)

    monkeypatch.setattr(train, "fit", spy)
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, "--data", dropout_world, "--steps", 20, "--batch-size", 2,
                  "--lr", 1e-3, "--out", tmp_path / "run")  # fmt: skip
    assert stopped.value.code == 2
    data = tasks[0].data["train"]
    batches = train.shuffled(data, 2, 0)
    fourth = [next(batches) for _ in range(4)][3]
    lines = [number for number, q in enumerate(data, 1) if any(q is one for one in fourth)]
    said = capsys.readouterr().err
    assert said.startswith("error: step 4: the loss is nan")
    assert f"training questions {lines}" in said
    assert said.count("\n") == 1
    for name, tensor in tasks[0].model.state_dict().items():
        assert torch.equal(tensor, models[-1][name]), name
    state = load_file(tmp_path / "run" / train.STATE)
    assert state["step.classifier.bias"] == 2
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_where_steps_are_looked_at_later_the_one_that_was_lost_is_named(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """As on a GPU: step 12 is lost, step 14 looked at; Ctrl-C in step 16 stops after step 20."""
    monkeypatch.setitem(train.LOOK_EVERY, "cpu", 7)
    score, calls = train.score, itertools.count(1)

    def spoiled(*arguments: object) -> tuple[Tensor, Tensor]:
        scores, answers = score(*arguments)
        call = next(calls)
        if call == 20:  # step 16, in the second part
            os.kill(os.getpid(), signal.SIGINT)
        return scores * math.nan if call == 12 else scores, answers

    monkeypatch.setattr(train, "score", spoiled)
    arguments = ["--data", dropout_world, "--steps", 100, "--batch-size", 2, "--out", tmp_path]
    for said, saved in (("step 12: the loss is nan", 10), ("saved after step 20", 20)):
        with pytest.raises(SystemExit):
            run_train(monkeypatch, *arguments)
        assert said in capsys.readouterr().err
        assert load_file(tmp_path / train.STATE)["step.classifier.bias"] == saved
