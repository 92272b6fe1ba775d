"""One run."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import train
from lab import predict
from load_weights import load_pretrained
from qa import batches, sentences
from qa.questions import read_questions
from qa.sentences import embed
from qa.state import STATE
from test_kformer import HERE, KINDS, REFERENCE, biggest_change, tiny
from tests.common import (
    OWL,
    change_tensors,
    interrupt,
    log_of,
    run_command,
    run_train,
    sentence_encoder_of,
    write_lines,
)


def test_the_groups_of_parameters_have_their_rates_and_decay() -> None:
    model = tiny("ffn")
    rates = {"classifier.weight": 10.0, "classifier.bias": 10.0, "pooler.weight": 0.1}
    groups = train.parameter_groups(model, rates, lr=1.0)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        decay = 0.0 if name.endswith(("bias", "norm.weight")) else 0.01
        assert found[id(parameter)] == (rates.get(name, 1.0), decay), name


def read_and_encode(path: Path, *args: object) -> list[batches.Encoded]:
    return [batches.encode(q, *args) for q in read_questions(path)]


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_one_command_trains_reports_and_saves(
    inject: str, small_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, HERE / "train.py", "--inject", inject, "--steps", "12"]
    command += ["--data", small_world, "--out", out]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=one_thread)
    assert done.returncode == 0, done.stderr
    last = json.loads((out / "log.jsonl").read_text().strip().split("\n")[-1])
    assert last["chance"] == 0.25
    model, tokenizer = load_pretrained(out)
    data = read_and_encode(small_world / "train.jsonl", tokenizer, model.config)
    steps = itertools.islice(batches.shuffled(data, 32, 0), 12)
    padded = [batches.collate(batch, 0, torch.device("cpu"))[0]["input_ids"] for batch in steps]
    empty, places = sum(int((i == 0).sum()) for i in padded), sum(i.numel() for i in padded)
    assert abs(last["padding"] - empty / places) < 1e-9
    assert f"{empty / places:.1%} of the places were padding" in done.stdout
    data = read_and_encode(small_world / "test.jsonl", tokenizer, model.config)
    assert batches.accuracy(model, data, torch.float32) == last["test_accuracy"]
    for part in ("25.0%", f"injection: {inject}", "40 train", str(out), "its gold fact edited"):
        assert part in done.stdout
    assert ("layer 2\n" in done.stdout) == (inject in ("attention", "ffn"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "error: nowhere"),
        (["--inject", "fnn"], "invalid choice: 'fnn'"),
        (["--batch-size", "0"], "argument --batch-size: invalid positive value: '0'"),
        (["--steps", "0"], "argument --steps: invalid positive value: '0'"),
        (["--lr", "nan"], "--lr nan: must be above 0 and below 1"),
        (["--lr", "0"], "--lr 0.0: must be above 0"),
        (["--seed", str(2**64)], "must be from 0 to 2**63 - 1"),
        (["--out", ""], "--out .: has files that are no run"),
        (["--out", str(HERE / "data/toy")], "data/toy: has files that are no run"),
        (["--checkpoint", str(REFERENCE / "bert"), "--out", str(REFERENCE / "bert")],
         "reference/bert: has files that are no run"),
        (["--checkpoint", "nowhere"], "error: nowhere: no such folder"),
        (["--layers", "7"], "--layers 7: the model has the layers 0 to 2"),
        (["--layers", "2-0"], "--layers 2-0: the model has the layers 0 to 2"),
        (["--layers", "first"], "--layers first: must be bottom, middle, top, all"),
        (["--seed", "0", "1"], "unrecognized arguments: 1"),
        (["--facts", "0"], "argument --facts: invalid positive value: '0'"),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]


def test_ctrl_c_says_so_and_exits_with_130(
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(train, "cross_entropy", interrupt)
    arguments = ["train.py", "--data", str(small_world), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("native", "hidden_size", "expected"),
    [("avx512_bf16", 256, "bfloat16"), ("amx_bf16", 768, "bfloat16"),
     ("avx512_bf16", 255, "float32"), ("avx512_f", 256, "float32")],
)  # fmt: skip
def test_bfloat16_is_the_default_for_large_models_where_it_is_native(
    native: str, hidden_size: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {native: True}, raising=False)
    assert train.default_dtype(hidden_size, "cpu") == getattr(torch, expected)


@pytest.mark.parametrize("flags", [[], ["--dtype", "float32"]])
def test_every_product_of_a_run_has_its_dtype(
    flags: list[str], small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(train, "default_dtype", lambda *_: torch.bfloat16)
    linear, seen = torch.nn.functional.linear, set()

    def spy(*arguments: Tensor) -> Tensor:
        product = linear(*arguments)
        seen.add(product.dtype)
        return product

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    run_train(monkeypatch, "--data", small_world, "--steps", 1, "--out", tmp_path, *flags)
    expected = "float32" if flags else "bfloat16"
    assert seen == {getattr(torch, expected)}
    assert f"products in {expected}\n" in capsys.readouterr().out


def test_two_processes_make_the_steps_of_one(small_world: Path, tmp_path: Path) -> None:
    """40 questions in batches of 13: of the last batch, one question, one process has none.

    Biases that softmax takes out again get gradients of rounding alone, which AdamW makes large.
    """
    arguments = [HERE / "train.py", "--data", small_world, "--batch-size", 13, "--lr", 1e-3]
    torchrun, outputs = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"], []
    for command, out in (([], "one"), (torchrun, "two")):
        command = [sys.executable, *command, *arguments, "--steps", 8, "--out", tmp_path / out]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=100, env=one_thread
        )
        assert done.returncode == 0, done.stderr
        outputs.append([line for line in done.stdout.splitlines() if line.startswith("  step")])
    assert len(outputs[0]) == 8
    assert outputs[0] == outputs[1], "the same report, and once"
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    for name, tensor in one.items():
        if not name.endswith(("key.bias", "classifier.bias")):
            assert biggest_change(tensor, two[name]) < 1e-4, f"{name}: a tenth of a step"
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize("inject", ["concat", "ffn"])
def test_whatever_texts_may_hold_it_trains(
    inject: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs that steer terminals and directions, 100,000 characters, nothing; many facts, choices.

    Each comes in the training and in the test questions, beside usual ones.
    """
    data = Path(shutil.copytree(small_world, tmp_path / "wild"))
    signs = "".join(map(chr, range(32))) + "\x7f\x85\u2028\u202e\u200f\u2066\ufeff"
    texts = [signs, "\u202e\u05d0", "", "x" * 100_000, "x " * 50_000]
    wild = [(text, [text, "x"], [text, f"{text} x"]) for text in texts]
    wild.append(("who?", ["x", "y"], [f"fact {i}" for i in range(10_000)]))
    wild.append(("who?", [f"x{i}" for i in range(100)], ["x1 x2"]))
    rows = [
        {"question": question, "choices": [{"text": choice} for choice in choices],
         "AnswerKey": "A", "knowledges": facts}
        for question, choices, facts in wild
    ]  # fmt: skip
    for split in ("train", "test"):
        usual = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:5]
        write_lines(data / f"{split}.jsonl", *rows, *usual)
    arguments = ("--inject", inject, "--data", data, "--batch-size", 4, "--out", tmp_path / "run")
    run_train(monkeypatch, *arguments, "--steps", 3)
    _, *steps, last = [json.loads(row) for row in (tmp_path / "run" / "log.jsonl").open()]
    assert [math.isfinite(row["loss"]) for row in steps] == [True, True, True]
    assert "test_accuracy" in last
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_public_questions_and_a_file_of_facts(
    kind: str, own_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Trained on what people have; then the saved run predicts."""
    out, data = own_data / "run", ("--data", own_data, "--facts", 1, "--retrieve", 2)
    run_train(
        monkeypatch, *data, "--checkpoint", REFERENCE / kind, "--inject", "attention",
        "--steps", 3, "--batch-size", 2, "--out", out,
    )  # fmt: skip
    said = capsys.readouterr().out
    facts_file = own_data / "facts.txt"
    assert f"13 questions get theirs out of 3 in {facts_file}; blank lines skipped: 1" in said
    assert "new       encoder.layer.1,2.Wk.bias/weight" in said
    assert "chance    33.3%; always choice 1: 50.0%" in said
    last = json.loads((out / "log.jsonl").read_text().strip().split("\n")[-1])
    assert last["test_accuracy"] == last["valid_accuracy"], "the test split has no answers"
    run_command(monkeypatch, predict, out, "--out", own_data / "answers.jsonl")
    rows = [json.loads(line) for line in (own_data / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert abs(sum(row["probabilities"]) - 1) < 1e-6
        assert row["choice"] == row["probabilities"].index(max(row["probabilities"]))
        assert row["text"] == OWL[1][row["choice"]]
        assert row["facts"] == [["the owl eats mice"], [], []][row["choice"]]


def test_what_starts_at_random_or_at_0_learns_faster(
    own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what starts as a copy of the word embeddings, or as I."""
    groups, seen = train.parameter_groups, {}

    def spy(model: nn.Module, rates: dict[str, float], lr: float) -> list[dict]:
        seen.update(rates)
        return groups(model, rates, lr)

    monkeypatch.setattr(train, "parameter_groups", spy)
    folder = shutil.copytree(REFERENCE / "bert", tmp_path / "bert")
    change_tensors(folder, lambda name, tensor: {} if "classifier" in name else {name: tensor})
    command = ["--data", own_data, "--checkpoint", folder, "--layers", 2, "--steps", 1]
    run_train(monkeypatch, *command, "--out", own_data / "run")
    head, values = ("classifier.weight", "classifier.bias"), "encoder.layer.2.Wv."
    assert seen == dict.fromkeys([f"{values}weight", f"{values}bias", *head], 10.0)


def test_facts_are_looked_up_by_a_sentence_encoder(
    own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the checkpoint, if it is one, or another one that is named; afterwards, too."""
    folder, other = (shutil.copytree(REFERENCE / kind, tmp_path / kind) for kind in KINDS)
    asked = []

    def spy(texts: list[str], model: nn.Module, **others: object) -> object:
        asked.append(model.config.model_type)
        return embed(texts, model, **others)

    sentences.sentence_encoder.cache_clear()
    monkeypatch.setattr(sentences, "embed", spy)
    command = ["--data", own_data, "--checkpoint", folder, "--steps", 1, "--out", tmp_path / "run"]
    run_train(monkeypatch, *command)
    assert not asked
    run_train(monkeypatch, *command, "--retriever", sentence_encoder_of(other))
    assert asked == ["roberta"] * 2, "the facts, and the questions with their choices"
    sentence_encoder_of(folder)
    run_train(monkeypatch, *command)
    run_command(monkeypatch, predict, tmp_path / "run", "--out", tmp_path / "answers.jsonl")
    assert asked == ["roberta"] * 2 + ["bert"] * 4


def test_wrong_facts_are_those_of_another_question(
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    seen = []
    loop = train.train
    monkeypatch.setattr(train, "train", lambda task, *a: seen.append(task) or loop(task, *a))
    command = ["--data", small_world, "--steps", 1]
    monkeypatch.chdir(tmp_path)
    run_train(monkeypatch, *command)
    assert "those of another" not in capsys.readouterr().out
    run_train(monkeypatch, *command, "--wrong-facts")
    assert "facts     each question gets those of another" in capsys.readouterr().out
    right, wrong = ([q.facts for q in task.questions["train"]] for task in seen)
    assert wrong == right[1:] + right[:1] != right
    assert log_of(tmp_path / "runs" / "ffn-seed-0") != log_of(Path("runs/wrong-facts/ffn-seed-0"))


def test_questions_without_facts_need_a_file_of_facts(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (own_data / "facts.txt").unlink()
    arguments = ["--data", own_data, "--checkpoint", REFERENCE / "bert", "--out", own_data / "run"]
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, *arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {own_data / 'facts.txt'}: no such file, but 13 questions need")
    run_train(monkeypatch, *arguments, "--inject", "none")
    said = capsys.readouterr().out
    assert "step      4 " in said, "four epochs of one batch are the default"
    assert "saved" in said


def train_a_little(
    monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, seed: int, lr: float = 1e-3
) -> tuple[list[dict], float]:
    """Ten steps -> the rows of the log, and the accuracy of the model that was saved."""
    run_train(monkeypatch, "--data", data, "--steps", 10, "--batch-size", 8, "--seed", seed,
              "--lr", lr, "--out", out)  # fmt: skip
    model, tokenizer = load_pretrained(out)
    valid = read_and_encode(data / "valid.jsonl", tokenizer, model.config)
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in log_of(out)[1:]]
    return rows, batches.accuracy(model, valid, torch.float32)


def test_two_runs_of_a_seed_are_alike_and_another_seed_is_not(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [train_a_little(monkeypatch, dropout_world, tmp_path / str(i), seed)
            for i, seed in enumerate((0, 0, 1))]  # fmt: skip
    assert runs[0] == runs[1] != runs[2]


def test_the_rate_warms_up_and_cools_down() -> None:
    assert [train.lr_share(step, 10, None) for step in range(10)] == [0.5, *[1.0] * 8, 0.5]
    assert train.lr_share(0, 1, None) == 1.0, "a single step is made at the full rate"


def test_with_a_warmup_the_rate_falls_to_the_end_as_in_the_release() -> None:
    assert [train.lr_share(step, 5, 3) for step in range(5)] == [1 / 3, 2 / 3, 1.0, 1.0, 0.5]
    assert [train.lr_share(step, 2, 4) for step in range(2)] == [0.25, 0.5], "or never gets there"


def test_the_best_state_is_kept_and_measured_without_dropout(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, saved = train_a_little(monkeypatch, dropout_world, tmp_path / "run", 3, lr=0.03)
    *rows, last = rows
    found = [row["valid_accuracy"] for row in rows]
    assert found[-1] < max(found), "the case is of use only if the last state isn't the best"
    assert saved == max(found) == last["valid_accuracy"]


@pytest.mark.parametrize(
    ("text", "depth", "numbers"),
    [
        ("bottom", 6, (0, 1)), ("middle", 6, (2, 3)), ("top", 6, (4, 5)), ("all", 3, (0, 1, 2)),
        ("bottom", 2, (0,)), ("top", 2, (1,)), ("middle", 7, (2, 3, 4)), ("0-2", 6, (0, 1, 2)),
        ("4", 6, (4,)), ("3,0-1,1", 6, (0, 1, 3)),
    ],
)  # fmt: skip
def test_layers_have_names_and_closed_ranges(text: str, depth: int, numbers: tuple) -> None:
    assert train.layer_numbers(text, depth) == numbers


def test_a_finished_run_is_not_trained_again(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    arguments = ["--data", small_world, "--steps", 2, "--out", tmp_path / "run"]
    run_train(monkeypatch, *arguments)
    first = capsys.readouterr().out
    log, steps = (tmp_path / "run" / "log.jsonl").read_bytes(), []
    monkeypatch.setattr(train, "train", lambda *_: steps.append(1))
    run_train(monkeypatch, *arguments)
    again = capsys.readouterr().out
    assert steps == []
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == log
    assert "finished: nothing is left to train" in again
    assert first[first.index("test  ") :] == again[again.index("test  ") :], "the same report"


def test_what_a_failing_run_would_replace_is_kept(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run in the folder of a finished one, stopped in its last step."""
    arguments = ["--data", small_world, "--steps", 2, "--out", tmp_path / "run"]
    run_train(monkeypatch, *arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(train, "measure", interrupt)
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments, "--seed", 1)
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert after.pop(STATE)
    assert after == before


def test_a_world_is_checked_as_a_checkpoint_is(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """The [SEP] that closes the facts is the vocabulary's, and the vocabulary must fit."""
    world = Path(shutil.copytree(small_world, tmp_path / "world"))
    config = json.loads((world / "config.json").read_text())
    del config["sep_token_id"]
    (world / "config.json").write_text(json.dumps(config))
    arguments = ["--data", world, "--inject", "concat", "--steps", 1, "--out", tmp_path / "run"]
    run_train(monkeypatch, *arguments)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sep_token_id"] == 3
    (world / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments)
    assert "the vocabulary has 64 tokens, but vocab_size" in capsys.readouterr().err
