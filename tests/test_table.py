"""Tables."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

import train
from lab import table
from tests.common import interrupt, log_of, run_command


@pytest.fixture
def words(small_world: Path, tmp_path: Path) -> list:
    of_table = ["--inject", "none", "ffn", "--layers", "all", "--seed", 0, 1]
    return [*of_table, "--data", small_world, "--steps", 4, "--out", tmp_path / "table"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loop, names = train.train, []
    monkeypatch.setattr(train, "train", lambda *a: names.append(a[3].out.name) or loop(*a))
    return names


def table_in(said: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")]
            for line in said.splitlines() if line.startswith("|")]  # fmt: skip


def test_the_rows_of_a_table_are_the_product_each_once() -> None:
    args = Namespace(data=["a", "b/c"], inject=["none", "concat", "ffn"], layers=["top", "0"],
                     facts=["1", "5"])  # fmt: skip
    rows = ", ".join(" ".join(row.values()) for row in table.rows_of(args))
    a = "none a, concat a 1, concat a 5, ffn a top 1, ffn a top 5, ffn a 0 1, ffn a 0 5"
    assert rows == f"{a}, {a.replace(' a', ' b/c')}"


def test_a_row_has_means_over_seeds() -> None:
    same = {"chance": 0.25, "flip_rate": 0.5, "locality": 1.0, "parameters_added": 1234}
    rates = [{"test_accuracy": a, "train_questions_per_second": 4000 * a} for a in (0.25, 0.75)]
    row = table.cells({"inject": "ffn", "facts": "3"}, [r | same for r in rates])
    assert row[:6] == ["", "ffn", "", "3", "50.0 ± 35.4 %", "25.0%"]
    assert row[6:] == ["50.0 ± 0.0 %", "100.0 ± 0.0 %", "2,000", "1,234"]


def test_a_table_has_a_row_for_each_setting_and_passes_on_what_is_train_s(
    words: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_command(monkeypatch, table, *words, "--lr", 3e-3)
    _, _, *rows = table_in(capsys.readouterr().out)
    saved = [json.loads(line) for line in (words[-1] / "table.jsonl").open()]
    data = words[words.index("--data") + 1].name
    for row, line, name in zip(rows, saved, ("none", "ffn-layers-all"), strict=True):
        logs = [log_of(words[-1] / data / f"{name}-seed-{seed}") for seed in (0, 1)]
        assert [log[0]["arguments"]["lr"] for log in logs] == [3e-3] * 2
        assert line["runs"] == [log[-1] for log in logs]
        assert row == table.cells(line, line["runs"])


def test_a_table_goes_on_where_it_stopped_without_the_runs_that_fail(
    words: list, trained: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(train, "save_pretrained", interrupt)
        with pytest.raises(SystemExit):
            run_command(patched, table, *words)
    assert trained == ["none-seed-0"]
    for _ in range(2):
        run_command(monkeypatch, table, *words)
    *_, once, again = capsys.readouterr().out.split("| data")
    assert table_in(once) == table_in(again) != []
    assert len(trained) == 1 + 4, "nothing twice, but what was stopped"
    run_command(monkeypatch, table, *words, "--seed", 0, 1, 2, "--layers", "all", 7)
    said = capsys.readouterr().out
    assert said.count("\nerror: --layers 7: no such layers, the model has 0 to 2\n") == 3
    assert [row[2] for row in table_in(said)[2:]] == ["", "all"]
    with pytest.raises(SystemExit):
        run_command(monkeypatch, table, *words, "--steps", 5)
    out, error = capsys.readouterr()
    assert out.count("has another run, of other steps: name a new folder with --out") == 4
    assert error == "error: no run succeeded\n"
