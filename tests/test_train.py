"""Arguments, a run, what is saved and how it goes on, torchrun."""

import math
import os
import re
import runpy
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import load_weights
import train
from lab import retrieve
from qa.batches import Answerer, default_dtype, share_out_threads
from qa.evaluation import measure
from qa.questions import read_questions
from test_kformer import HERE, REFERENCE, biggest_change, tiny
from tests.common import FORMATS, change_tensors, interrupt, log_of, run_command, write_lines

Run, Patch, Capsys = Callable[..., str], pytest.MonkeyPatch, pytest.CaptureFixture


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def run(monkeypatch: Patch, capsys: Capsys) -> Run:
    """train.py with some arguments -> what it prints."""
    return lambda *words: run_command(monkeypatch, train, *words) or capsys.readouterr().out


@pytest.fixture
def refusal(run: Run, capsys: Capsys) -> Run:
    """train.py with some arguments -> the one line with which it ends."""

    def refused(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit, match="2"):
            run(*words)
        [line] = capsys.readouterr().err.splitlines()
        return line

    return refused


@pytest.fixture
def steps(monkeypatch: Patch) -> list:
    """Grows by one in each step of a training."""
    loss, made = train.cross_entropy, []
    monkeypatch.setattr(train, "cross_entropy", lambda *a: made.append(1) or loss(*a))
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def end_of(folder: Path) -> tuple:
    """What a run has made: names of files, weights, and the log but for its times."""
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in log_of(folder)]
    return files_of(folder).keys(), (folder / "model.safetensors").read_bytes(), rows


def step_of(folder: Path) -> int:
    """The step of a state that was saved; 0 where none was."""
    path = folder / train.STATE
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        return int(file.metadata()["step"])


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "nowhere"], "error: nowhere"),
    (["--batch-size", "0"], "error: --batch-size: must be 1 or more"),
    (["--lr", "nan"], "--lr nan: must be above 0 and below 1"),
    (["--seed", "1000000"], "--seed 1000000: must be from 0 to 999,999"),
    (["--device", "cuda"], "--device cuda: no GPU is to be seen here"),
    (["--layers", "7"], "--layers 7: no such layers, the model has 0 to 2"),
    (["--layers", "first"], "--layers first: must be bottom, middle, top, all"),
])  # fmt: skip
def test_wrong_arguments_get_one_line(
    arguments: list, message: str, small_world: Path, refusal: Run, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in refusal("--data", small_world, *arguments)


def test_other_files_are_no_run(small_world: Path, tmp_path: Path, refusal: Run) -> None:
    for text in ("another file", "", "{", '{"mine": 1}', "[1]"):
        (tmp_path / ("notes" if text == "another file" else train.LOG)).write_text(text)
        said = refusal("--data", small_world, "--out", tmp_path)
        assert said == f"error: --out {tmp_path}: has files that are no run; name a new folder"


def test_layers_have_names_and_closed_ranges() -> None:
    for text, depth, numbers in (
        ("bottom", 6, (0, 1)), ("middle", 7, (2, 3, 4)), ("top", 6, (4, 5)), ("top", 2, (1,)),
        ("all", 3, (0, 1, 2)), ("3,0-1,1", 6, (0, 1, 3)),
    ):  # fmt: skip
        assert train.layer_numbers(text, depth) == numbers, (text, depth)


def test_the_rate_warms_up_and_cools_down_or_falls_to_the_end_as_in_the_release() -> None:
    assert [train.lr_share(step, 10, None) for step in range(10)] == [0.5, *[1.0] * 8, 0.5]
    assert train.lr_share(0, 1, None) == 1.0, "a single step is made at the full rate"
    assert [train.lr_share(step, 5, 3) for step in range(5)] == [1 / 3, 2 / 3, 1.0, 1.0, 0.5]
    assert [train.lr_share(step, 2, 4) for step in range(2)] == [0.25, 0.5], "or never gets there"


def test_from_scratch_the_checkpoint_gives_sizes_and_words_alone(folder: Path, run: Run) -> None:
    (folder / "model.safetensors").unlink()
    args = train.parse_arguments(["--checkpoint", str(folder), "--from-scratch"])
    models = [train.open_model(args) for _ in range(2)]
    [(first, rates), (second, _)] = models
    assert rates == {}
    assert first.model.config.vocab_size == len(first.tokenizer.vocab)
    weights = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights), "the seed decides"


def test_the_rate_is_that_of_the_model_s_width(folder: Path) -> None:
    for checkpoint, rate in ((folder, 0.004), (HERE / "data" / "encoder", 0.001)):
        args = train.parse_arguments(["--checkpoint", str(checkpoint)])
        train.open_model(args)
        assert args.lr == rate


def test_the_groups_of_parameters_have_their_rates_and_decay() -> None:
    model = tiny("ffn")
    rates = {"classifier.weight": 10.0, "classifier.bias": 10.0, "pooler.weight": 0.1}
    groups = train.parameter_groups(model, rates, lr=0.5)
    found = {id(p): (g["full_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        decay = 0.0 if name.endswith(("bias", "norm.weight")) else 0.01
        assert found[id(parameter)] == (0.5 * rates.get(name, 1.0), decay), name


def test_a_new_head_learns_faster_and_wv_as_fast_as_in_a_small_encoder(folder: Path) -> None:
    """Not what starts as a copy of the word embeddings, nor Wk."""
    change_tensors(folder, lambda name, tensor: {} if "classifier" in name else {name: tensor})
    args = train.parse_arguments(["--checkpoint", str(folder), "--layers", "2"])
    rates = {"classifier": 10.0, "encoder.layer.2.Wv": 16 / 64}
    new = {f"{name}.{kind}": rate for name, rate in rates.items() for kind in ("weight", "bias")}
    assert train.open_model(args)[1] == new


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_one_command_trains_reports_and_saves(
    inject: str, small_world: Path, out: Path, run: Run, steps: list
) -> None:
    command = ["--inject", inject, "--steps", 12, "--batch-size", 8, "--data", small_world]
    said = run(*command, "--out", out)
    assert "40 train, 40 valid, 40 test questions\nfacts     120 quest" in said
    assert "questions bring theirs\nchance    25.0%; always" in said
    assert f"injection: {inject}" in said[: said.index(f"saved     {out}, ")]
    first, *rows, last = log_of(out)
    assert [row["step"] for row in rows] == [1, 2, 4, 5, 6, 7, 8, 10, 11, 12]
    assert (said.count("  step "), len(steps), first["arguments"]["inject"]) == (10, 12, inject)
    assert rows[-1]["questions"] == 10 * 8, "the first two steps aren't timed"
    answerer = Answerer(*load_weights.load_pretrained(out), "float32")
    found = measure(answerer, read_questions(small_world / "test.jsonl"))
    assert last.items() >= found.items()
    assert last["valid_accuracy"] == max(row["valid_accuracy"] for row in rows)
    added = {"none": 0, "concat": 0}.get(inject, 126 * 64 + 2 * 64 * 65)
    assert last["parameters_added"] == added, "a table of facts, Wk and Wv of a layer"
    assert all(0 < last[key] < math.inf for key in last if "second" in key)


def test_every_product_of_a_run_has_its_dtype(
    small_world: Path, out: Path, run: Run, monkeypatch: Patch
) -> None:
    linear, seen = functional.linear, []
    monkeypatch.setattr(functional, "linear", lambda *a: seen.append(linear(*a)) or seen[-1])
    for dtype in ("float32", "bfloat16"):
        seen.clear()
        command = ["--data", small_world, "--steps", 1, "--out", out / dtype, "--dtype", dtype]
        assert f"products in {dtype}; training on cpu\n" in run(*command)
        assert {str(product.dtype) for product in seen} == {f"torch.{dtype}"}


def test_small_models_run_on_one_thread_unless_it_is_said_otherwise(monkeypatch: Patch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for said, expected in ((None, [1]), ("2", [])):
        asked.clear()
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if said:
            monkeypatch.setenv("OMP_NUM_THREADS", said)
        share_out_threads(64)
        share_out_threads(256)
        assert asked == expected


def test_bfloat16_is_the_default_for_large_models_where_it_is_native(monkeypatch: Patch) -> None:
    for native in ("avx512_bf16", "amx_bf16", "avx512_f"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda n=native: {n: 1}, raising=False)
        found = [default_dtype(size, "cpu") for size in (255, 256)]
        assert found == ["float32", "bfloat16" if "bf16" in native else "float32"], native


@pytest.mark.parametrize("inject", ["concat", "ffn"])
def test_whatever_texts_may_hold_it_trains(
    inject: str, dropout_world: Path, out: Path, run: Run
) -> None:
    signs = "".join(map(chr, range(32))) + "\x7f\x85\u2028\u202e\u200f\u2066\ufeff"
    texts = [signs, "\u202e\u05d0", "", "x" * 4_000, "x " * 2_000]
    wild = [(text, [f"{text}x", "x"], [text, f"{text} x"]) for text in texts]
    wild.append(("who?", [f"x{i}" for i in range(100)], [f"fact {i}" for i in range(300)]))
    rows = [{"question": text, "choices": [{"text": choice} for choice in choices],
             "AnswerKey": "A", "knowledges": facts} for text, choices, facts in wild]
    for path in (dropout_world / "train.jsonl", dropout_world / "test.jsonl"):
        write_lines(path, *rows, *path.read_text(encoding="utf-8").splitlines()[:5])
    run("--inject", inject, "--data", dropout_world, "--checkpoint", dropout_world,
        "--batch-size", 6, "--steps", 2, "--out", out)  # fmt: skip
    *rows, last = log_of(out)[1:]
    assert [*(row["loss"] < math.inf for row in rows), "test_accuracy" in last] == [True] * 3
    assert all(t.isfinite().all() for t in load_file(out / "model.safetensors").values())


def test_a_checkpoint_public_questions_and_facts_that_were_looked_up(
    own_data: Path, out: Path, run: Run, refusal: Run, monkeypatch: Patch
) -> None:
    command = ["--checkpoint", REFERENCE / "roberta", "--out", out, "--batch-size", 4, "--inject"]
    said = refusal(*command, "attention", "--data", own_data)
    assert f"{own_data}: no question brings facts; python -m lab.retrieve" in said
    run_command(monkeypatch, retrieve, own_data, "--out", own_data / "found")
    said = run(*command, "attention", "--data", own_data / "found")
    assert "weights   newly initialised: encoder.layer.*.Wk, enc" in said
    assert "chance    33.3%; always choice 1: 50.0%" in said
    assert "\nvalid     " in said
    assert log_of(out)[-2]["step"] == 4 * 2, "four epochs of two batches"
    rows = [FORMATS["social_iqa"] | {"label": label} for label in ("2", None, "1")]  # in part
    write_lines(own_data / "test.jsonl", *rows)
    command[3] = out.with_name("other")
    said = run(*command, "none", "--steps", 1, "--data", own_data)
    assert re.search(r"\ntest .*% of 2 questions", said)


def test_wrong_facts_are_those_of_another_question_and_a_seed_draws_others(
    small_world: Path, tmp_path: Path, run: Run, monkeypatch: Patch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--inject", "attention", "--data", small_world, "--steps", 1]
    assert "and get others" not in run(*command)
    assert "questions bring theirs, and get others\n" in run(*command, "--wrong-facts")
    run(*command, "--seed", 1)
    runs = ("attention-seed-0", "attention-seed-1", "wrong-facts/attention-seed-0")
    assert len({log_of(Path("runs", name))[1]["loss"] for name in runs}) == 3


def test_of_the_best_states_the_last_is_kept(
    small_world: Path, out: Path, run: Run, monkeypatch: Patch
) -> None:
    weights, write, found = [], train.write_state, iter([0.5, 1.0, 1.0, 0.9])
    monkeypatch.setattr(train, "write_state", lambda *a: (
        weights.append(a[2].pooler.weight.detach().clone()), write(*a)))  # fmt: skip
    monkeypatch.setattr(train, "fmean", lambda _: next(found))
    run("--data", small_world, "--steps", 4, "--out", out)
    saved = load_weights.load_pretrained(out)[0].pooler.weight
    assert [torch.equal(saved, weight) for weight in weights] == [False, False, True, False]


def test_a_run_that_was_killed_anywhere_ends_as_if_it_had_not_been(
    dropout_world: Path, tmp_path: Path, out: Path, run: Run, steps: list, monkeypatch: Patch
) -> None:
    """Copies are what it leaves: before a file is moved or removed, and while one is written."""
    (dropout_world / "test.jsonl").unlink()
    monkeypatch.setattr(train, "measure", lambda *_: {"test_accuracy": 0.5, "chance": 0.25})
    command = ["--data", dropout_world, "--checkpoint", dropout_world, "--steps", 3, "--lr", 0.03]
    copies = []

    def copied_at(owner: object, name: str, written: int | None) -> None:
        def spy(*words: object, **others: object) -> object:
            copies.append(Path(shutil.copytree(out, tmp_path / f"copy-{len(copies)}")))
            if written is not None:  # anything may stand in it
                shutil.copy(__file__, copies[-1] / Path(words[written]).name)
            return real(*words, **others)

        real = getattr(owner, name)
        patched.setattr(owner, name, spy)

    with monkeypatch.context() as patched:
        for name, written in {"write_text": 0, "write_bytes": 0, "unlink": None}.items():
            copied_at(Path, name, written)
        copied_at(load_weights, "save_file", 1)
        copied_at(os, "replace", None)
        run(*command, "--out", out)
    assert len(copies) == 2 + 3 * (2 + 2) + (2 + 3) + 2 + 1, "log, evaluations, model, log, state"
    whole, (*_, last_row, last) = end_of(out), log_of(out)
    assert last_row["valid_accuracy"] < last["valid_accuracy"], "of use only if the best was before"
    for copy in copies:
        made = len(steps) + (0 if copy == copies[-1] else 3 - step_of(copy))
        run(*command, "--out", copy)
        assert len(steps) == made, copy.name
        assert end_of(copy) == whole, copy.name


def test_ctrl_c_or_a_loss_of_nan_loses_what_came_after_the_last_evaluation(
    dropout_world: Path, tmp_path: Path, out: Path, run: Run, steps: list, monkeypatch: Patch,
    capsys: Capsys,
) -> None:  # fmt: skip
    """In step 8 of 20, after an evaluation in step 6; and once more, the same two steps later."""
    command = ["--data", dropout_world, "--checkpoint", dropout_world, "--steps", 20,
               "--batch-size", 4, "--out"]  # fmt: skip
    spoiled = {8: lambda: signal.raise_signal(signal.SIGINT), 10: lambda: math.nan}
    factor, loss = lambda: spoiled.get(len(steps), lambda: 1)(), train.cross_entropy
    monkeypatch.setattr(train, "cross_entropy", lambda *a: loss(*a) * factor())
    for status, said in (("130", "interrupted: by Ctrl-C"), ("2", "error: step 8: the loss is na")):
        with pytest.raises(SystemExit, match=status):
            run(*command, out)
        assert re.fullmatch(f"\n?{said}.*\n", capsys.readouterr().err)
        assert step_of(out) == 6
    goes_on, whole = run(*command, out), run(*command, tmp_path / "whole")
    assert len(steps) == 8 + 2 + 14 + 20
    assert goes_on.count("  step ") == whole.count("  step ") == 10, "those of before once more"
    assert end_of(out) == end_of(tmp_path / "whole")


def test_the_same_run_is_found_wherever_its_files_lie_and_another_one_is_refused(
    own_data: Path, out: Path, run: Run, refusal: Run, steps: list, monkeypatch: Patch
) -> None:
    command = ["--inject", "none", "--steps", 2, "--out", out, "--data", own_data, "--checkpoint"]
    checkpoint = Path(shutil.copytree(REFERENCE / "bert", own_data / "bert"))
    with monkeypatch.context() as patched:
        patched.setattr(train, "save_pretrained", interrupt)
        with pytest.raises(SystemExit):
            run(*command, checkpoint)
    before = files_of(out)
    again = f"error: {out} has another run, of other {{}}: name a new folder with --out, or delete"
    for name, value in {"seed": 1, "steps": 3, "lr": 1e-4}.items():
        assert refusal(*command, checkpoint, f"--{name}", value).startswith(again.format(name))
    for path in (own_data / "train.jsonl", own_data / "dev-labels.lst",
                 checkpoint / "model.safetensors", checkpoint / "config.json"):  # fmt: skip
        content = path.read_bytes()
        changed = content[:-1] + bytes([content[-1] ^ 1])  # the last bit of the last weight
        path.write_bytes(changed if path.suffix == ".safetensors" else content + b"\n")
        what = "data" if path.parent == own_data else "checkpoint"
        assert refusal(*command, checkpoint).startswith(again.format(what)), path
        path.write_bytes(content)
    assert files_of(out) == before
    moved = Path(shutil.copytree(own_data, own_data / "moved"))
    said = [run(*command, moved / "bert", "--data", moved) for _ in range(2)]
    assert ["nothing is left to train" in text for text in said] == [False, True]
    first, second = (text[text.index("\nvalid  ") :] for text in said)
    assert first == second, "the same report"
    assert len(steps) == 2
    assert refusal(*command, checkpoint, "--seed", 1).startswith(again.format("seed"))


@pytest.mark.parametrize(("kept", "row"), [(3, ""), (99, "5"), (99, "[1]"), (99, '{"step": "5"}')])
def test_a_log_that_does_not_fit_its_state_is_refused(
    kept: int, row: str, small_world: Path, out: Path, run: Run, refusal: Run,
    monkeypatch: Patch
) -> None:  # fmt: skip
    command = ["--data", small_world, "--steps", 10, "--out", out]
    with monkeypatch.context() as patched:
        patched.setattr(train, "save_pretrained", interrupt)
        with pytest.raises(SystemExit):
            run(*command)
    lines = (out / train.LOG).read_text().splitlines()[:kept]
    write_lines(out / train.LOG, *lines, *([row] if row else []))
    message = "--out {}: has files that are no run" if row else "{}: log.jsonl and training.safe"
    assert message.format(out) in refusal(*command)


def be(rank: int, all_reduce: Callable, monkeypatch: Patch) -> None:
    """Makes this process that one of torchrun's two; nobody is there to be met."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # so that it comes back
    monkeypatch.setattr(train, "WORLD", 2)
    monkeypatch.setattr(train, "RANK", rank)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)


def test_only_torchrun_says_how_many_processes_there_are(monkeypatch: Patch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name, expected in (("SLURM_JOB_ID", (1, 0)), ("TORCHELASTIC_RUN_ID", (2, 1))):
        monkeypatch.setenv(name, "x")
        module = runpy.run_path(str(HERE / "train.py"))
        assert (module["WORLD"], module["RANK"]) == expected


@pytest.mark.parametrize("batch_size", [13, 1])
def test_two_processes_make_the_step_of_one_and_the_first_alone_evaluates_prints_and_saves(
    batch_size: int, small_world: Path, tmp_path: Path, run: Run, monkeypatch: Patch
) -> None:
    """In a batch of one question, the second process has none. Each draws dropout of its own."""
    clip, seed, gradients, sent, seeds = train.clip_grad_norm_, torch.manual_seed, [], [], []

    def spy(parameters: Iterator, most: float) -> Tensor:
        parameters = list(parameters)
        gradients.append([p.grad.clone() for p in parameters])
        return clip(parameters, most)

    monkeypatch.setattr(train, "clip_grad_norm_", spy)
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
    command = ["--data", small_world, "--steps", 1, "--batch-size", batch_size, "--out"]
    run(*command, tmp_path / "one")
    with monkeypatch.context() as patched:
        be(1, lambda tensor: sent.append(tensor.clone()), patched)
        patched.setattr(Answerer, "answered_right", None)
        assert run(*command, tmp_path / "two") == ""
    assert not (tmp_path / "two").exists()
    be(0, lambda tensor: tensor.add_(sent.pop(0)), monkeypatch)
    run(*command, tmp_path / "two")
    assert (sent, seeds) == ([], [0, 1_000_000, 0, 3_000_000, 0, 2_000_000])
    one, _, two = gradients
    assert max(map(biggest_change, one, two)) < 1e-6, "float32"
    losses = [log_of(tmp_path / out)[1]["loss"] for out in ("one", "two")]
    assert abs(losses[0] - losses[1]) < 1e-6, "float32"
