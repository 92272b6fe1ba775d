"""Tables."""

import json
import math
from argparse import Namespace
from pathlib import Path

import pytest

import train
from lab import table
from qa import state
from tests.common import change_json, change_tensors, run_command, write_lines


def test_the_runs_of_a_table_are_the_product_each_once() -> None:
    args = Namespace(
        inject=["none", "concat", "ffn"], layers=["top", "0"], facts=[1, 5], seed=[0, 1],
        out=Path("runs"),
    )  # fmt: skip
    names = [str(run.out) for run in table.runs_of(args)]
    assert names[:4] == [str(Path("runs", n)) for n in (
        "none-seed-0", "none-seed-1", "concat-facts-1-seed-0", "concat-facts-1-seed-1",
    )]  # fmt: skip
    assert len(set(names)) == len(names) == 2 + 2 * 2 + 2 * 2 * 2


@pytest.fixture
def table_command(small_world: Path, tmp_path: Path) -> list:
    return [
        "--data", small_world, "--inject", "none", "ffn", "--layers", "all", "--seed", 0, 1,
        "--steps", 4, "--out", tmp_path / "table",
    ]  # fmt: skip


def test_a_table_has_a_row_for_each_setting(
    table_command: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_command(monkeypatch, table, *table_command)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1, "they line up"
    rows = [json.loads(line) for line in (table_command[-1] / "table.jsonl").open()]
    for row, line, inject in zip(rows, lines[2:], ("none", "ffn"), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = []
        for seed, result in enumerate(row["runs"]):
            layers = "-layers-all" if inject == "ffn" else ""
            log = table_command[-1] / f"{inject}{layers}-seed-{seed}" / "log.jsonl"
            assert {"seed": seed, **json.loads(log.read_text().splitlines()[-1])} == result
            found.append(100 * result["test_accuracy"])
        mean, deviation = sum(found) / 2, abs(found[0] - found[1]) / math.sqrt(2)
        assert abs(float(cells[3].split()[0]) - mean) <= 0.051, "to one place"
        assert abs(float(cells[3].split()[2]) - deviation) <= 0.051
        assert abs(100 * row["mean"] - mean) < 1e-9
        assert cells[:3] == ([inject, "", ""] if inject == "none" else ["ffn", "all (0-2)", "5"])
    added = 64 * 16 + 3 * 2 * (16 * 16 + 16)  # a table of fact embeddings; Wk, Wv and biases
    assert lines[3].split("|")[8].strip() == f"{added:,}"
    assert "chance 25.0%" in lines[0]


def test_a_table_with_wrong_facts_is_beside_the_one_with_right_ones(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--data", small_world, "--steps", 1]
    run_command(monkeypatch, table, *command)
    right = Path("runs/table.jsonl").read_bytes()
    run_command(monkeypatch, table, *command, "--wrong-facts")
    assert Path("runs/table.jsonl").read_bytes() == right
    assert Path("runs/wrong-facts/ffn-seed-0/model.safetensors").exists()
    assert Path("runs/wrong-facts/table.jsonl").exists()


def test_an_interrupted_table_goes_on_where_it_stopped(
    table_command: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loop, trained = train.train, []

    def spy(task: train.Task, args: Namespace, *rest: object) -> state.TrainingState:
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append(args.out.name)
        return loop(task, args, *rest)

    monkeypatch.setattr(train, "train", spy)
    stop_at = 3
    with pytest.raises(SystemExit):
        run_command(monkeypatch, table, *table_command)
    assert "interrupted" in capsys.readouterr().err
    log = table_command[-1] / "none-seed-1" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # it didn't finish
    stop_at = None
    trained.clear()
    run_command(monkeypatch, table, *table_command)
    assert trained == ["none-seed-1", "ffn-layers-all-seed-1"]
    first = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    trained.clear()
    run_command(monkeypatch, table, *table_command)
    assert trained == []
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert again == first
    run_command(monkeypatch, table, *table_command, "--lr", 1e-4)
    assert len(trained) == 4, "other arguments, other runs"


def test_a_table_keeps_no_run_with_other_data_weights_or_code(
    own_data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--data", own_data, "--checkpoint", folder, "--steps", 1]
    command += ["--seed", 0, 1, "--out", tmp_path / "table"]
    trained, loop = [], train.train
    monkeypatch.setattr(train, "train", lambda *a: trained.append(1) or loop(*a))
    run_command(monkeypatch, table, *command)
    assert len(trained) == 2
    write_lines(own_data / "facts.txt", "the owl eats rice")
    run_command(monkeypatch, table, *command)
    assert len(trained) == 4
    change_tensors(folder, lambda name, tensor: {name: tensor + 1e-3})
    run_command(monkeypatch, table, *command)
    assert len(trained) == 6
    change_json(folder / "config.json", hidden_dropout_prob=0.2)
    run_command(monkeypatch, table, *command)
    assert len(trained) == 8
    monkeypatch.setattr(state, "CODE", [*state.CODE[:-1], b"other code"])
    run_command(monkeypatch, table, *command)
    assert len(trained) == 10
    run_command(monkeypatch, table, *command)
    assert len(trained) == 10


def test_the_code_of_a_run_is_that_of_the_modules_that_decide_its_result() -> None:
    names = {path.name for path in state.MODULES}
    assert {"kformer.py", "load_weights.py", "train.py", "batches.py", "tokenizer.py"} <= names
    assert not any(name.startswith("test") for name in names)


def test_a_run_that_diverges_is_named_and_the_others_go_on(
    table_command: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    loop = train.train

    def fails(task: train.Task, args: Namespace, *rest: object) -> state.TrainingState:
        if args.out.name == "none-seed-1":
            raise ValueError("step 3: the loss is nan")
        return loop(task, args, *rest)

    monkeypatch.setattr(train, "train", fails)
    with pytest.raises(SystemExit):
        run_command(monkeypatch, table, *table_command)
    out, err = capsys.readouterr()
    assert len([row for row in out.splitlines() if row.startswith("|")]) == 4
    assert "none-seed-1: step 3: the loss is nan" in err
    assert not (table_command[-1] / "table.jsonl").exists(), "what was there would be lost"


def test_what_is_wrong_with_any_run_is_said_before_the_first(
    table_command: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    table_command[table_command.index("all")] = "top"
    monkeypatch.setattr(train, "train", None)
    with pytest.raises(SystemExit):
        run_command(monkeypatch, table, *table_command, "--layers", "top", "7")
    assert "--layers 7: the model has the layers 0 to 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(monkeypatch, table, *table_command, "--facts", 3, 99_999_999)
    assert "error: num_facts is 99999999, must be" in capsys.readouterr().err


def test_a_table_reads_its_questions_once(
    table_command: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, times = train.read_splits, []
    monkeypatch.setattr(train, "read_splits", lambda *a: times.append(1) or read(*a))
    run_command(monkeypatch, table, *table_command)
    assert len(times) == 2, "with facts and without"
