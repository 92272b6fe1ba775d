"""Commands for a saved run."""

import json
import os
import random
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from lab import ask, crowd, look, measure, predict, silence
from lab.saved import write_new
from load_weights import load_pretrained, load_tokenizer, save_pretrained
from qa.batches import accuracy, encode, predictions
from qa.effects import gold, removed
from qa.inside import answers
from qa.questions import read_questions
from qa.retrieval import words
from test_kformer import HERE, tiny
from tests.common import log_of, run_command, run_train, write_lines


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
    assert said.count("  layer 1 of 0 to 2") == said.count("  layer 2 of 0 to 2") == 2


def test_a_saved_run_is_looked_into_with_a_browser(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "look.html"
    run_command(monkeypatch, look, saved, "--html", path)
    assert "20 questions" in capsys.readouterr().out
    text = path.read_text(encoding="utf-8")
    assert text.count("<section>") == 20
    assert text.count("</html>") == 1
    assert list(tmp_path.iterdir()) == [path]
    for wrong in (path, tmp_path / "no" / "folder.html"):
        with pytest.raises(SystemExit):
            run_command(monkeypatch, look, "not/opened", "--html", wrong)
        assert f"--html {wrong}: " in capsys.readouterr().err
        with pytest.raises(ValueError, match="--html"):
            write_new(wrong, "", "--html")
    assert path.read_text(encoding="utf-8") == text


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
    with pytest.raises(SystemExit):
        run_command(monkeypatch, look, tmp_path / "nothing")
    assert "nothing: no such folder; python train.py" in capsys.readouterr().err
    run_command(monkeypatch, look, bare, small_world / "valid.jsonl", "--show", 1)
    assert "Question 1:" in capsys.readouterr().out


def test_a_saved_run_needs_no_more_of_its_data_than_the_questions(
    saved: Path, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    run, data = Path(shutil.copytree(saved, tmp_path / "run")), tmp_path / "data"
    data.mkdir()
    shutil.copy(small_world / "test.jsonl", data)
    first, *rest = log_of(run)
    first["arguments"]["data"] = str(data)
    write_lines(run / "log.jsonl", first, *rest)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    for command, arguments, said in (
        (look, (), "Question 3:"), (measure, (), "of 40 questions"), (ask, (), "Question 1 of 40"),
        (predict, ("--out", tmp_path / "answers.jsonl"), "40 answers"),
    ):  # fmt: skip
        run_command(monkeypatch, command, run, *arguments)
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_a_fact_silenced_in_all_layers_is_as_good_as_removed(inject: str) -> None:
    tokenizer = load_tokenizer(HERE / "data" / "toy")
    questions = read_questions(HERE / "data" / "toy" / "test.jsonl")
    model = tiny(inject, vocab_size=len(tokenizer.vocab), inject_layers=(0, 2), num_facts=4).float()
    with torch.no_grad():
        for layer in (0, 2):  # so that a random model minds its facts
            model.encoder.layer[layer].Wk.weight.mul_(3)
            model.encoder.layer[layer].Wv.weight.mul_(3)

    silenced = [encode(q, tokenizer, model.config) for q in questions]
    gold_ids = [tokenizer.encode(gold(q)) for q in questions]

    def with_silence(*layers: int) -> float:
        return silence.accuracy_silenced(model, silenced, gold_ids, layers, torch.float32)

    def plain(questions: list) -> float:
        data = [encode(q, tokenizer, model.config) for q in questions]
        return accuracy(model, data, torch.float32)

    assert with_silence(0, 2) == plain([removed(q) for q in questions])
    assert with_silence() == plain(questions), "and afterwards nothing is silent any more"
    for q, choice in zip(silenced, predictions(model, silenced, torch.float32), strict=True):
        q.answer = choice  # so that accuracy is how many answers stay
    assert len({with_silence(), with_silence(0), with_silence(2), with_silence(0, 2)}) == 4


def test_silencing_is_a_table_over_seeds_of_one_method(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_command(monkeypatch, silence, saved, saved)
    said = capsys.readouterr().out
    for row in ("no layer", "layer 1", "layer 2", "layer 1,2"):
        assert f"| {row} | " in said
    assert said.count("± 0.0 %") == 4
    model, tokenizer = load_pretrained(saved, inject="attention")
    save_pretrained(model, tokenizer, tmp_path)
    (tmp_path / "log.jsonl").write_bytes((saved / "log.jsonl").read_bytes())
    with pytest.raises(SystemExit):
        run_command(monkeypatch, silence, saved, tmp_path)
    assert f"{tmp_path}: not of the method" in capsys.readouterr().err


def test_a_crowd_is_unrelated_to_the_question() -> None:
    folder, rng = HERE / "data" / "toy", random.Random(0)
    facts = crowd.training_facts(folder / "train.jsonl")
    for q in read_questions(folder / "test.jsonl")[:20]:
        many = crowd.crowded(q, facts, 1000, rng).facts[0]
        assert len(many) == len(set(many)) == 1000
        added = set(many) - set(q.facts[0])
        assert len(added) == 996
        own = {word for fact in q.facts[0] for word in words(fact)}
        assert not own & {word for fact in added for word in words(fact)}


def test_the_crowd_is_a_table_and_a_drawing(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(crowd, "COUNTS", (4, 6))
    run_command(monkeypatch, crowd, saved, "--svg", tmp_path / "new" / "crowd.svg")
    said = capsys.readouterr().out
    assert "| facts | ffn (chance 25.0%) |" in said
    assert "| 6 | " in said
    svg = ElementTree.parse(tmp_path / "new" / "crowd.svg").getroot()
    [curve] = svg.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(curve.get("points").split()) == 2
    with pytest.raises(SystemExit):
        run_command(monkeypatch, crowd, saved, "--svg", tmp_path / "test.jsonl")
    assert "must end in .svg" in capsys.readouterr().err
