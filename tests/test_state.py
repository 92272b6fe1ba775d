"""Interrupted runs."""

import itertools
import math
import random
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import train
from qa.batches import shuffled
from qa.state import (
    LOG,
    STATE,
    TrainingState,
    alone_in,
    identity,
    read_state,
    refuse_to_replace,
)
from tests.common import interrupt, log_of, run_train


class Killed(Exception):
    """In the place of SIGKILL: nothing after it is run, and nobody catches it."""


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Ctrl-C in step 7, killed in step 13, which is after the state of step 12 was saved."""
    score, calls, whole, parts = train.score, itertools.count(1), tmp_path / "1", tmp_path / "2"

    def stops(*arguments: object) -> tuple[Tensor, Tensor]:
        call = next(calls)
        if call == 7:
            signal.raise_signal(signal.SIGINT)
        if call == 13:
            raise Killed
        return score(*arguments)

    arguments = ["--data", dropout_world, "--steps", 20, "--batch-size", 8]
    run_train(monkeypatch, *arguments, "--out", whole)
    monkeypatch.setattr(train, "score", stops)
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, *arguments, "--out", parts)
    assert stopped.value.code == 130
    assert "saved after step 7, the same command goes on" in capsys.readouterr().err
    with pytest.raises(Killed):
        run_train(monkeypatch, *arguments, "--out", parts)
    assert {path.name for path in parts.iterdir()} == {STATE}
    run_train(monkeypatch, *arguments, "--out", parts)
    assert next(calls) == 7 + 6 + 8 + 1, "steps 8 to 12 and 13 to 20 were made in the second part"
    assert capsys.readouterr().out.count("  step     20 ") == 1
    for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (parts / STATE).exists()
    logs = [log_of(run) for run in (whole, parts)]
    for log in logs:
        assert len(log) == 1 + 10 + 1
        del log[0]["arguments"]["out"]
        for key in ("seconds", "train_questions_per_second", "eval_questions_per_second"):
            del log[-1][key]
    assert logs[0] == logs[1]


def test_what_decides_the_result_makes_another_run() -> None:
    names = ("steps", "batch_size", "lr", "warmup", "seed", "device", "dtype")
    arguments, model = dict.fromkeys([*names, "out"], 1), nn.Linear(1, 1)
    model.config = None
    run = identity(arguments, model)["sha256"]
    for name in names:
        assert identity(arguments | {name: 2}, model)["sha256"] != run, name
    assert identity(arguments | {"out": 2}, model)["sha256"] == run


def test_an_interrupted_run_of_another_kind_is_not_gone_on_with(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    arguments = ["--data", dropout_world, "--steps", 4, "--out", tmp_path / "run"]
    with monkeypatch.context() as patched:
        patched.setattr(train, "save_pretrained", interrupt)
        with pytest.raises(SystemExit):
            run_train(patched, *arguments)
    (dropout_world / "test.jsonl").unlink()
    score, steps = train.score, []
    monkeypatch.setattr(train, "score", lambda *a: steps.append(1) or score(*a))
    run_train(monkeypatch, *arguments)
    assert len(steps) == 4, "from the first step on"
    assert "unfinished run of other arguments, data or code" in capsys.readouterr().out
    assert "test_accuracy" in log_of(tmp_path / "run")[-1]


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
    run, tasks = train.run, []
    monkeypatch.setattr(train, "run", lambda task, args: tasks.append(task) or run(task, args))
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, "--data", dropout_world, "--steps", 20, "--batch-size", 2,
                  "--lr", 1e-3, "--out", tmp_path / "run")  # fmt: skip
    assert stopped.value.code == 2
    data = tasks[0].data["train"]
    fourth = next(itertools.islice(shuffled(data, 2, 0), 3, None))
    lines = [number for number, q in enumerate(data, 1) if any(q is one for one in fourth)]
    said = capsys.readouterr().err
    assert said.startswith("error: step 4: the loss is nan")
    assert f"training questions {lines}" in said
    assert said.count("\n") == 1
    for name, tensor in tasks[0].model.state_dict().items():
        assert torch.equal(tensor, models[-1][name]), name
    state = load_file(tmp_path / "run" / STATE)
    assert state["step.classifier.bias"] == 2
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_of_equally_good_states_the_last_is_kept(tmp_path: Path) -> None:
    """It has seen more questions, where the validation split has too few to tell."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainingState(tmp_path, {"sha256": ""}, model, optimizer)
    for step, found in enumerate([0.5, 1.0, 1.0, 0.9]):
        nn.init.constant_(model.weight, step)
        state.evaluated({"valid_accuracy": found}, 1)
    assert state.best["weight"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl")
def test_a_second_training_in_one_folder_is_refused(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    arguments = ["--data", small_world, "--steps", 2, "--out", tmp_path / "run"]
    with alone_in(tmp_path / "run"), pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments)
    assert f"{tmp_path / 'run'}: another training is writing there" in capsys.readouterr().err
    run_train(monkeypatch, *arguments)
    assert log_of(tmp_path / "run")


def test_without_fcntl_a_training_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which deletes no file that is open."""
    monkeypatch.setattr("qa.state.fcntl", None)
    with alone_in(tmp_path / "run"):
        assert not list((tmp_path / "run").iterdir())
    assert not list((tmp_path / "run").iterdir())


def test_every_flipped_bit_of_a_saved_state_is_noticed(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """In its header and in its data; then the line says what to do, and that helps."""
    arguments = ["--data", dropout_world, "--steps", 2, "--out", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr(train, "measure", interrupt)
        with pytest.raises(SystemExit):
            run_train(patched, *arguments)
    whole, rng = (tmp_path / STATE).read_bytes(), random.Random(0)
    header = int.from_bytes(whole[:8], "little")
    places = [rng.randrange(8 + header) for _ in range(40)]
    places += [rng.randrange(8 + header, len(whole)) for _ in range(10)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        (tmp_path / STATE).write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged") as error:
            read_state(tmp_path / STATE)
        assert "\n" not in str(error.value)
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments)
    assert "delete it, and the same command starts anew" in capsys.readouterr().err
    (tmp_path / STATE).unlink()
    run_train(monkeypatch, *arguments)
    assert log_of(tmp_path)


def test_only_a_run_is_replaced(tmp_path: Path) -> None:
    for number, (name, text, refused) in enumerate(
        [("model.safetensors", "", True), ("merges.txt", "", True), ("notes.txt", "", False),
         (LOG, '{"mine": 1}', True), (LOG, '{"sha256": ""}', False), (LOG, "", True)]
    ):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match="no run") if refused else nullcontext():
            refuse_to_replace(folder, [tmp_path])
    with pytest.raises(ValueError, match="name a new folder"):
        refuse_to_replace(tmp_path / "0" / "..", [tmp_path])
