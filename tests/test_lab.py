"""The commands for a saved run, and what they show of it."""

import io
import json
import random
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

import train
from kformer import mean_embedding
from lab import ask, curves, facts, look, measure, predict
from lab.saved import open_saved
from load_weights import load_pretrained
from qa.batches import Answerer, collate
from qa.evaluation import exchanged, removed
from qa.inside import answers, fact_scores, look_into, screen
from qa.questions import NO_FACTS, Question, read_questions
from test_kformer import HERE
from tests.common import (
    change_json,
    change_tensors,
    log_of,
    run_command,
    tiny_answerer,
    write_lines,
)

WORLD = Question("w5", "w6", ["w7", "w8", "w9"], 1, [["w5 w7", "w6 w8", "w10"]])
OWN = replace(WORLD, facts=[["w5 w7", "w6"], ["w6", "w8"], ["w9 w9"]])
WILD = "\x1b[2J\u202e\u200f\0 <script>alert('\"&')</script> http://example.org\n"
CHANGES = {  # what is typed, one after the other -> what the question is then
    "2 w6 w9": (first := replace(WORLD, facts=[["w5 w7", "w6 w9", "w10"]])),
    "+ w11": (second := replace(first, facts=[["w5 w7", "w6 w9", "w10", "w11"]])),
    "-1": (third := replace(second, facts=[["w6 w9", "w10", "w11"]])),
    "?w12 ?": (fourth := replace(third, question="w12 ?")),
    "C: w14": replace(fourth, choices=["w7", "w8", "w14"]),
}


@pytest.fixture(scope="module")
def saved(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_command(monkeypatch, train, "--data", small_world, "--layers", "1,2", "--steps", 2,
                    "--out", out)  # fmt: skip
    return out


def changed(run: Path, tmp_path: Path, **arguments: object) -> Path:
    copy, [first, *_] = Path(shutil.copytree(run, tmp_path / "changed")), log_of(run)
    first["arguments"] |= arguments
    (copy / "log.jsonl").write_text(json.dumps(first))
    return copy


def said(module: object, *arguments: object, typed: str = "") -> str:
    """What a command says; where it fails, its one line."""
    out, error = io.StringIO(), io.StringIO()
    with suppress(SystemExit), redirect_stdout(out), redirect_stderr(error):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO(typed))
            run_command(patch, module, *arguments)
    failed = error.getvalue().startswith("error: ")
    return error.getvalue() if failed else out.getvalue()


def talk(answerer: Answerer, lines: list[str], *questions: Question) -> list[str]:
    """Types lines. The screens, from the first one on, or what is said instead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "open_saved", lambda *_: (answerer, questions))
        first, _, rest = said(ask, "run", typed="\n".join(lines)).partition(f"{ask.HOW}\n")
    return [s.strip() for s in re.split(r"\n(?=\nQuestion|Type|There)", f"{first}\n{rest}")]


def test_a_fact_is_changed_for_every_choice_that_has_it_and_added_for_all() -> None:
    assert ask.edit(OWN, "2: w13").facts == [["w5 w7", "w13"], ["w13", "w8"], ["w9 w9"]]
    assert ask.edit(OWN, "- 4").facts == [["w5 w7", "w6"], ["w6", "w8"], []]
    assert [own[-1] for own in ask.edit(OWN, "+ w1 + 2").facts] == ["w1 + 2"] * 3


def test_what_is_not_understood_is_answered_in_one_line_and_it_goes_on() -> None:
    lines = dict.fromkeys(("w5 w6", "2", "2:", "?", "2nd w5", "Bw5"), ask.HOW)
    lines |= {f"{name} w5": f"There is no {name}. {ask.HOW}" for name in ("4", "0", "b", "D")}
    lines |= {"- w5": f"There is no w5. {ask.HOW}", "undo": "There is nothing to undo."}
    lines |= dict.fromkeys(("+ w10", "1 w10"), "There is a fact that says so already.")
    lacking = replace(WORLD, context="w5 rain", question="who?", choices=["w7", "an w6 owl"])
    typed = [*lines, "2 w9 rain no [MASK]", "quit", "2 w8"]
    _, *answered, again = talk(tiny_answerer("ffn"), typed, lacking)
    assert answered == [*lines.values()]
    assert again.endswith("\n       not in its vocabulary: rain, who, ?, an, owl, no")


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_what_is_printed_is_what_the_model_says_of_the_edited_question(inject: str) -> None:
    answerer, was = tiny_answerer(inject, inject_layers=(0, 2)), [""] * 3
    screens = talk(answerer, [*CHANGES, *["undo"] * 5], WORLD)
    plain = [re.sub(r"[\d.]+% ->| {2,}", "", screen) for screen in screens]
    assert plain[6:] == plain[4::-1], "but for the shares of before"
    for q, found in zip([WORLD, *CHANGES.values()], screens[:6], strict=True):
        [(now, used)], width = answers(answerer, [q]), max(map(len, q.choices))
        rows = [f"{' >'[p == max(now)]} {'ABC'[i]}  {q.choices[i]:<{width}}{was[i]}{p:8.1%}  "
                f"{'#' * round(20 * p)}" for i, p in enumerate(now)]  # fmt: skip
        rows[1] += "  <- right" * (q is WORLD)  # the file's answer, of no other question
        assert [line[2:] for line in found.split("\n")[2:5]] == [row.rstrip() for row in rows]
        assert f"\n    ?  {q.asked}\n" in found
        assert re.findall(r"(?m)^ +\d+  .*  (w.*)", found) == q.facts[0]
        assert ("which this model doesn't read" in found) == (inject == "none") == (not used[0])
        was = [f"{p:9.1%} ->" for p in now]


def test_next_goes_around() -> None:
    questions, typed = (WORLD, replace(WORLD, question="w20")), ["next", "next", "undo", "1 w30"]
    one, two, again, back, change = talk(tiny_answerer("ffn"), typed, *questions)
    assert two.startswith("Question 2 of 2\n    ?  w5 w20\n")
    assert (again, back) == (one, two), "another question has no shares of before"
    assert change.count("->") == 3


def screen_of(answerer: Answerer, q: Question) -> list[str]:
    return [*screen(answerer.model.config.inject, q, look_into(answerer, q))]


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_what_fired_is_what_the_model_has_but_for_padding_and_empty_slots(inject: str) -> None:
    answerer, slots = tiny_answerer(inject, inject_layers=(0, 2)), [[0, 1], [0], [1]]
    own = [["w5", "w6 w8", "\u200b"], ["w7", "\u200b"], ["\u200b", "w8"]]  # one has no word
    q = replace(WORLD, choices=["w19", "w8 " * 3, "w9"], facts=own)
    choices = look_into(answerer, q)
    assert " ".join(choices[1].tokens) == "[CLS] w5 w6 [SEP] w8 w8 w8 [SEP]"
    for layer, scores in fact_scores(answerer.model).items():
        for i, choice in enumerate(choices):
            assert choice.facts == [own[i][n] for n in slots[i]]
            assert choice.fired[layer].equal(scores[0, i][: len(choice.tokens), slots[i]])
    taken = max(choices, key=lambda choice: choice.probability)
    name, lines = "ABC"[choices.index(taken)], screen_of(answerer, q)[5:]
    for fact, line in zip(["w5", "w6 w8", "\u200b", "w7", "w8"], lines, strict=True):
        most = [(fired.max(0).values[taken.facts.index(fact)].item(), fired.max().item())
                for fired in taken.fired.values() if fact in taken.facts]  # fmt: skip
        shown = [f"{round(x, 2) + 0.0:.2f}" + "*" * (x == top) for x, top in most]
        assert re.findall(r"-?\d+\.\d\d\*?", line) == shown
        assert line.endswith(f"  (not a fact of {name})") == (fact not in own["ABC".index(name)])
        assert line.endswith(f"  (not kept for {name})") == (not most and "not a fact" not in line)


def test_the_facts_that_were_kept_are_named_to_the_letter() -> None:
    few, many = ["w5 [PAD] w6", "w5 owls", "w5 mice"], [f"w{i}" for i in range(20, 27)]
    questions = [replace(WORLD, facts=[some]) for some in (few, many, [])]
    for answerer in map(tiny_answerer, ("concat", "attention", "ffn")):
        [(_, used), (_, best), (_, none)] = answers(answerer, questions)
        assert (used, none, [*map(len, best)]) == ([few] * 3, [[]] * 3, [5] * 3)
        assert screen_of(answerer, questions[2])[-1].strip() == "no facts"
        cut = replace(WORLD, facts=[["w5 w7 w8", "w5 w7"]])  # the second one is nearer to "w5 w7"
        answerer.model.config.num_facts = 1
        for q in (cut, replace(cut, facts=[cut.facts[0][::-1]])):
            [(_, kept)] = answers(answerer, [q])
            ids = answerer.model.kept_facts[0].flatten(1).tolist()
            assert [sum(map(bool, row)) for row in ids] * (3 // len(ids)) == [
                len(fact.split()) for [fact] in kept]  # fmt: skip
        if answerer.model.config.inject == "concat":  # one word of the nearest fact has room
            most = answerer.model.config.max_tokens
            long = Question("", "w20 " * (most - 6), cut.choices, 0, [["w5 w8", "w5 w20"]])
            [(_, kept)] = answers(answerer, [long])
            assert kept == [["w5 w20"]] * 3
            assert [int((ids != 0).sum()) for ids in answerer.model.kept_facts[0]] == [1] * 3
        answerer.model.config.num_facts = 5
        wild = Question("", WILD + 500 * "w", [WILD, "w7"], None, [[f"w6 {WILD}"]])
        assert all(line.isprintable() and len(line) < 400 for line in screen_of(answerer, wild))


def test_a_saved_run_is_looked_into_and_nothing_is_overwritten(saved: Path, tmp_path: Path) -> None:
    two, path = said(look, saved, "--show", 2), tmp_path / "new.html"
    assert two.count("Question") == two.count(" layer 1  layer 2   how strongly") == 2
    assert "--beside is for a page" in said(look, saved, "--beside", saved)
    both = said(look, saved, "--html", path, "--beside", saved)
    assert both == f"{path}: 20 questions, for a browser\n"
    assert path.read_text(encoding="utf-8").count('"name": "run"') == 2
    text, no = path.read_text(encoding="utf-8"), tmp_path / "no" / "folder"
    for module, option in ((look, "--html"), (predict, "--out")):
        assert f"{path} is there already" in said(module, "not/opened", option, path)
        assert f"{no.parent}: no folder that" in said(module, "not/opened", option, no)
    assert [path.read_text(encoding="utf-8") for path in tmp_path.iterdir()] == [text]


def test_a_saved_run_is_measured_and_answers_as_before(saved: Path, tmp_path: Path) -> None:
    lines, last = said(measure, saved), log_of(saved)[-1]
    assert f"accuracy  {last['test_accuracy']:.1%} of 40 questions, chance is 25.0%\n" in lines
    out, (answerer, questions) = tmp_path / "answers.jsonl", open_saved(saved)
    assert said(predict, saved, "--out", out) == f"{out}: 40 answers, a line each\n"
    for q, line in zip(questions, out.read_text().splitlines(), strict=True):
        [(scores, kept)], found = answers(answerer, [q]), json.loads(line)
        assert found.pop("probabilities") == pytest.approx(scores, abs=1e-5)
        choice = scores.index(max(scores))
        assert found == {"choice": choice, "text": q.choices[choice], "facts": kept}
        assert list(map(set, kept)) == [set(q.facts[0])] * 4


def test_a_run_is_opened_with_its_own_dtype_and_questions_or_one_line_says_why_not(
    saved: Path, small_world: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(small_world, tmp_path / "data"))
    test, valid = (read_questions(data / f"{split}.jsonl") for split in ("test", "valid"))
    (data / "test.jsonl").unlink()
    other = changed(saved, tmp_path, dtype="bfloat16", data=str(data), wrong_facts=True)
    opened = [open_saved(saved), open_saved(other), open_saved(other, data / "valid.jsonl")]
    assert [answerer.dtype for answerer, _ in opened] == ["float32", "bfloat16", "bfloat16"]
    assert [questions for _, questions in opened] == [test, exchanged(valid), valid]
    lines = (small_world / "test.jsonl").read_text(encoding="utf-8").splitlines()
    write_lines(data / "test.jsonl", *(re.sub('"AnswerKey": ".", ', "", x) for x in lines[::2]),
                *lines[1::2])  # fmt: skip
    _, found = open_saved(other, answers_needed=True)
    everything = read_questions(data / "test.jsonl", answers_needed=False)
    assert found == exchanged(everything)[20:], "as in training, those without an answer too"
    (data / "test.jsonl").unlink()
    note = f"note      {data}: the files have changed since the run was made\n"
    assert note in said(look, other), "test.jsonl is gone"
    assert note not in said(look, other, data / "valid.jsonl")
    for odd in ("", "[]", '{"arguments": 3}', "\x1b[2J", '{"arguments": {}, "files": {"data": 1}}'):
        (other / "log.jsonl").write_text(odd)
        assert re.fullmatch(rf"error: {other}/log.jsonl: .+\n", said(look, other)), odd
    (other / "log.jsonl").unlink()
    assert f"{other} is no run of train.py: name a file of questions" in said(look, other)
    assert "no such folder; python train.py" in said(measure, tmp_path / "nothing")
    (data / "test.jsonl").write_text('{"question": "?", "choices": [{"text": "a"}, {"text": "b"}]}')
    without = said(look, other, data / "test.jsonl")
    assert re.fullmatch(rf"facts  .*test.jsonl: {NO_FACTS}\n(.*\n){{5}} +no facts\n", without)
    change_json(other / "config.json", inject="none")
    assert NO_FACTS not in said(look, other, data / "test.jsonl"), "it reads none"


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_a_fact_silenced_in_a_layer_is_an_empty_slot_there(inject: str, saved: Path) -> None:
    model, tokenizer = load_pretrained(saved, inject=inject, num_facts=4)
    answerer, (_, questions) = Answerer(model, tokenizer, "float32"), open_saved(saved)
    for name, parameter in model.named_parameters():  # so that it minds its facts
        parameter.data *= 20 if name.endswith(("Wk.weight", "Wv.weight")) else 1
    ids = collate(answerer.encode([removed(q) for q in questions]), 0)["fact_ids"]
    others = mean_embedding(model.fact_embeddings, ids, ids != 0), (ids != 0).any(-1)
    known, taken = {i: model.encoder.layer[i].project(others) for i in (1, 2)}, set()
    for layers in ((), (1,), (2,), (1, 2)):
        with pytest.MonkeyPatch.context() as patch:
            for i in layers:
                patch.setattr(model.encoder.layer[i], "project", lambda _, i=i: known[i])
            best = answerer.scores(answerer.encode(questions)).argmax(-1).tolist()
        right = sum(q.answer == choice for q, choice in zip(questions, best, strict=True))
        assert facts.accuracy_silenced(answerer, questions, layers) == right / len(questions)
        taken.add(tuple(best))
    assert len(taken) == 4, "otherwise it's a poor test"


def test_silencing_and_crowding_are_tables_over_seeds(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = f"{100 * log_of(saved)[-1]['test_accuracy']:.1f}"
    rows, other = said(facts, "silence", saved, saved).splitlines(), changed(saved, tmp_path)
    assert rows[2] == f"| no layer | {accuracy} ± 0.0 % |"
    assert [row.split(" | ")[0] for row in rows[3:]] == ["| 1", "| 2", "| 1, 2"]
    change_json(other / "config.json", inject="attention")
    assert f"{other}: needs runs of one method" in said(facts, "silence", saved, other)
    monkeypatch.setattr(facts, "COUNTS", (4, 6))
    rows = said(facts, "crowd", saved, other).splitlines()
    assert rows[0] == "| facts | ffn (chance 25.0%) | attention (chance 25.0%) |"
    assert rows[2].startswith(f"| 4 | {accuracy} %, ")
    assert re.fullmatch(r"\| 6( \| [\d.]+ %, [\d,]+ a second){2} \|", rows[3])
    change_json(other / "config.json", inject="concat", max_position_embeddings=32)
    change_tensors(other, lambda name, t: {name: t[:32] if "position" in name else t})
    rows = said(facts, "crowd", other, "--svg", svg := tmp_path / "crowd.svg").splitlines()
    assert rows[3].endswith("| no room in the input |")
    assert rows[2] != rows[3]
    assert svg.read_text().count("<polyline ") == 1
    assert "is there already" in said(facts, "crowd", other, "--svg", svg)


def test_a_curve_is_the_validation_accuracy_of_each_row(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "curves.svg"
    assert said(curves, saved, saved, "--out", out) == f"{out}: 2 runs\n"
    tree = ElementTree.parse(out)
    lines = [e.attrib["points"] for e in tree.iter("{http://www.w3.org/2000/svg}polyline")]
    points = [(curves.WIDTH * row["step"] / 2, curves.HEIGHT * (1 - row["valid_accuracy"]))
              for row in log_of(saved)[1:-1]]  # fmt: skip
    assert lines == [" ".join(f"{x:.1f},{y:.1f}" for x, y in points)] * 2
    assert "is there already" in said(curves, saved, "--out", out)
    fold = changed(saved, tmp_path, data=str(tmp_path / "qasc" / "fold-3"))
    assert said(curves, saved, fold, "--out", two := tmp_path / "two.svg") == f"{two}: 2 runs\n"
    assert ">qasc, 2 steps<" in two.read_text(encoding="utf-8")
    assert "no run of train.py" in said(curves, tmp_path, "--out", tmp_path / "other.svg")


def test_before_training_the_choice_whose_facts_fire_most_is_taken(
    saved: Path, small_world: Path
) -> None:
    path = small_world / "test.jsonl"
    rows = said(facts, "start", HERE / "data" / "encoder", "--questions", path).splitlines()
    model, tokenizer = load_pretrained(HERE / "data" / "encoder", inject="ffn", inject_layers=(2,))
    answerer, questions = Answerer(model, tokenizer, "float32"), read_questions(path)
    answerer.scores(answerer.encode(questions), look=True)
    fired = model.encoder.layer[2].ffn.fact_scores.mean(2).amax(2).argmax(-1).tolist()
    right = sum(q.answer == most for q, most in zip(questions, fired, strict=True))
    assert rows[0] == "| layer | fires most, untrained (chance 25.0%) |"
    assert rows[4] == f"| 2 | {100 * right / len(questions):.1f} % |"
    assert "start needs --questions FILE" in said(facts, "start", saved)


def test_a_crowd_has_exactly_so_many_facts_and_no_word_of_the_question_s_own(toy: dict) -> None:
    known = {fact: facts.words(fact) for q in toy["train"] for fact in q.facts[0]}
    for q in toy["test"][:5]:
        [many] = facts.crowded(q, known, 1000, random.Random(0)).facts
        others = {*many} - {*q.facts[0]}
        assert (len(many), len(others)) == (1000, 996)
        own = re.findall(r"\w\w\w+", " ".join(q.facts[0]).lower())
        assert {*own}.isdisjoint(re.findall(r"\w+", " ".join(others).lower()))
