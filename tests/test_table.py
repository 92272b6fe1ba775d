"""Tables."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

import train
from lab import folds, table
from qa.questions import Question, read_questions
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


def test_a_row_has_means_over_seeds_and_folds() -> None:
    same = {"chance": 0.25, "flip_rate": 0.5, "locality": 1.0, "removed_accuracy": 0.0,
            "exchanged_accuracy": 0.125}  # fmt: skip

    def folds(*answered: str) -> list[dict]:
        return [same | {"answered_right": [*map(int, text)], "train_questions_per_second": 4000.4}
                for text in answered]  # fmt: skip

    first = [folds("1000", "0")]
    row = table.cells(
        {"inject": "ffn", "facts": "3"}, [folds("1000", "1"), folds("1111", "0")], first
    )
    assert row[:6] == ["", "ffn", "", "3", "60.0 ± 28.3 %", "25.0%"], "4 and 1 questions"
    assert row[7].startswith("+40.0 (")
    rest = ["50.0 ± 0.0 %", "100.0 ± 0.0 %", "0.0 ± 0.0 %", "12.5 ± 0.0 %", "4,000"]
    assert row[8:] == rest
    assert table.cells({"inject": "none"}, first, None)[7] == ""


def test_intervals_are_those_of_a_normal_distribution_where_questions_are_many() -> None:
    rng = np.random.default_rng(1)
    one, other = (rng.random(2000) < share for share in (0.5, 0.6))
    for values in (one, one * 1.0 - other):
        error = values.std() / len(values) ** 0.5
        low, high = (float(text) / 100 for text in table.interval(values).split(" to "))
        assert (low, high) == pytest.approx(
            (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
        )
    same = [[{"answered_right": [*map(int, one)]}]]
    more = table.right(same).mean(0) - table.right(same).mean(0)
    assert table.interval(more) == "0.0 to 0.0", "question by question"


def test_folds_report_five_parts_of_six_once_and_choose_by_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    rows = [{"question": f"w{n}", "choices": [{"text": "w8"}, {"text": "w9"}], "AnswerKey": "B",
             "knowledges": [f"w{n} w9"]} for n in range(20)]  # fmt: skip
    for name, some in (("a", rows[:13]), ("b", rows[13:])):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    run_command(monkeypatch, folds, *files, "--out", tmp_path / "of")
    assert capsys.readouterr().out.endswith("5 folds of 13 train, 3 valid, 4 test questions\n")

    def questions(fold: Path, name: str) -> list[Question]:
        return read_questions(fold / f"{name}.jsonl")

    written = sorted((tmp_path / "of").iterdir())
    assert [path.name for path in written] == [f"fold-{k}" for k in range(5)]
    everything = {q.question: q for path in files for q in read_questions(path)}
    tested = [q.question for fold in written for q in questions(fold, "test")]
    valid = [q.question for q in questions(written[0], "valid")]
    assert sorted(tested + valid) == sorted(everything)
    for fold in written:
        parts = [questions(fold, name) for name in ("train", "valid", "test")]
        names = [q.question for part in parts for q in part]
        assert sorted(names) == sorted(everything), "each question in one part of each fold"
        assert [q.question for q in parts[1]] == valid
        assert all(q == everything[q.question] for part in parts for q in part)


def test_wrong_facts_are_those_of_other_questions_that_bm25_finds(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = small_world / "train.jsonl"
    run_command(monkeypatch, folds, path, "--wrong", 2, "--out", tmp_path / "of")
    before = {q.question + q.choices[0]: q.facts[0] for q in read_questions(path)}
    everything, places = {fact for facts in before.values() for fact in facts}, set()
    names = [tmp_path / "of" / f"fold-{k}" / "test.jsonl" for k in range(5)]
    for q in [q for name in names for q in read_questions(name)]:
        own = before[q.question + q.choices[0]]
        wrong = [fact for fact in q.facts[0] if fact not in own]
        assert sorted(own) == sorted(fact for fact in q.facts[0] if fact in own)
        assert len(wrong) == len({*wrong} & everything) == 2
        text = f"{q.question} {' '.join(q.choices)}".lower()
        assert all(any(word in text for word in fact[:-1].lower().split()) for fact in wrong)
        places.add(q.facts[0].index(own[0]))
    assert len(places) > 2, "among its own, not behind them"


def test_a_table_makes_one_row_of_all_folds(
    words: list, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    data = words[words.index("--data") + 1]
    run_command(monkeypatch, folds, data / "train.jsonl", "--out", tmp_path / "folded")
    of_folds = [tmp_path / "folded" if word == data else word for word in words]
    run_command(monkeypatch, table, *of_folds, "--inject", "none")
    *_, row = table_in(capsys.readouterr().out)
    assert trained == ["none-seed-0"] * 5 + ["none-seed-1"] * 5
    logs = [[log_of(tmp_path / "table" / "folded" / f"fold-{k}" / f"none-seed-{seed}")
             for k in range(5)] for seed in (0, 1)]  # fmt: skip
    seeds = [[log[-1] for log in of_seed] for of_seed in logs]
    assert row == table.cells({"data": "folded", "inject": "none"}, seeds, None)


def test_a_table_has_a_row_for_each_setting_and_passes_on_what_is_train_s(
    words: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_command(monkeypatch, table, *words, "--lr", 3e-3)
    _, _, *rows = table_in(capsys.readouterr().out)
    saved = [json.loads(line) for line in (words[-1] / "table.jsonl").open()]
    data = words[words.index("--data") + 1].name
    none = [[run] for run in saved[0]["runs"]]
    names, firsts = ("none", "ffn-layers-all"), (None, none)
    for row, line, name, first in zip(rows, saved, names, firsts, strict=True):
        logs = [log_of(words[-1] / data / f"{name}-seed-{seed}") for seed in (0, 1)]
        assert [log[0]["arguments"]["lr"] for log in logs] == [3e-3] * 2
        assert line["runs"] == [log[-1] for log in logs]
        assert row == table.cells(line, [[run] for run in line["runs"]], first)


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
    log = next(words[-1].glob("*/none-seed-0/log.jsonl"))
    text = log.read_text().replace('"answered_right"', '"before"')
    log.write_text(text)
    with pytest.raises(SystemExit):
        run_command(monkeypatch, table, *words)
    assert f"{log.parent}: an older version made this run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command(monkeypatch, table, *words, "--steps", 5)
    out, error = capsys.readouterr()
    assert out.count("has another run, of other steps: name a new folder with --out") == 4
    assert error == "error: no run succeeded\n"
