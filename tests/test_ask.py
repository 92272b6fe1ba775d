"""The conversation with a saved run."""

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lab import ask, predict
from load_weights import load_pretrained, save_pretrained
from qa.inside import answers
from qa.questions import Question
from test_kformer import tiny
from tests.common import REFERENCE, run_command, tiny_tokenizer, write_lines

WORLD = Question("", "w5 w6", ["w7", "w8", "w9"], 1, [["w5 w7", "w6 w8", "w10"]])
OWN = replace(WORLD, facts=[["w5 w7", "w6"], ["w6", "w8"], ["w9 w9"]])
CHANGES = {  # what is typed, one after the other -> what the question is then
    "2 w6 w9": (first := replace(WORLD, facts=[["w5 w7", "w6 w9", "w10"]])),
    "+ w11": (second := replace(first, facts=[["w5 w7", "w6 w9", "w10", "w11"]])),
    "- 1": (third := replace(second, facts=[["w6 w9", "w10", "w11"]])),
    "? w12 w13": (fourth := replace(third, question="w12 w13")),
    "C w14": replace(fourth, choices=["w7", "w8", "w14"]),
}


def row(q: Question) -> dict:
    choices = [{"text": choice} for choice in q.choices]
    found = {"question": q.question, "context": q.context, "choices": choices, "AnswerKey": "B"}
    if len(q.facts) == 1:
        return found | {"knowledges": q.facts[0]}
    pairs = zip(choices, q.facts, strict=True)
    return found | {"choices": [choice | {"knowledge": own} for choice, own in pairs]}


@pytest.fixture
def save(tmp_path: Path) -> Callable:
    """Saves a tiny random model."""

    def save(inject: str = "ffn", **fields: object) -> Path:
        model = tiny(inject, inject_layers=(0, 2), **fields).float()
        save_pretrained(model, tiny_tokenizer(), tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.fixture
def talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable:
    """Types lines through a pipe. The screens, or what is said instead; the first one, before
    anything is typed, is left out if anything is.
    """

    def talk(model: Path, text: str, *questions: Question) -> list[str]:
        path = write_lines(tmp_path / "questions.jsonl", *map(row, questions or (WORLD,)))
        typed = text.encode(errors="surrogateescape")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), "utf-8"))
        run_command(monkeypatch, ask, model, path)
        first, how, rest = capsys.readouterr().out.partition(f"{ask.HOW}\n")
        assert how, "one is told what can be typed"
        said = re.split(r"\n(?=\nQuestion|Type|There)", rest) if text else [first]
        return [screen.strip() for screen in said]

    return talk


def shares(screen: str) -> list[list[str]]:
    """The percentages of each choice."""
    lines = [re.findall(r"[\d.]+%", line) for line in screen.split("\n")]
    return [found for found in lines if found]


def test_what_is_typed_changes_the_question() -> None:
    q = WORLD
    for line, expected in CHANGES.items():
        assert ask.edit(q, line) == expected, line
        q = ask.edit(q, line)
    assert ask.edit(WORLD, "?Who?") == ask.edit(WORLD, "?  Who?")
    assert ask.edit(WORLD, "+A + B") == ask.edit(WORLD, "+ A + B"), "signs within a text stay"
    assert ask.edit(WORLD, "-2") == ask.edit(WORLD, "-  2")
    assert WORLD.facts == [["w5 w7", "w6 w8", "w10"]], "the question is as it was"


def test_where_choices_have_facts_of_their_own_all_that_have_it_get_the_change() -> None:
    assert ask.facts_of(OWN) == ["w5 w7", "w6", "w8", "w9 w9"]
    assert ask.edit(OWN, "2: w13") == ask.edit(OWN, "2 w13")
    assert ask.edit(OWN, "2 w13").facts == [["w5 w7", "w13"], ["w13", "w8"], ["w9 w9"]]
    assert ask.edit(OWN, "- 2").facts == [["w5 w7"], ["w8"], ["w9 w9"]]
    assert ask.edit(OWN, "- 4").facts == [["w5 w7", "w6"], ["w6", "w8"], []]
    added = [["w5 w7", "w6", "w1"], ["w6", "w8", "w1"], ["w9 w9", "w1"]]
    assert ask.edit(OWN, "+ w1").facts == added


@pytest.mark.parametrize(
    ("line", "message"),
    [("w5 w6", ask.HOW), ("2", ask.HOW), ("B", ask.HOW), ("?", ask.HOW), ("help", ask.HOW),
     ("2nd w5", ask.HOW), ("b w5", ask.HOW), ("Bw5", ask.HOW),
     ("4 w5", "There is no 4."), ("0 w5", "There is no 0."), ("- 4", "There is no 4."),
     ("- w5", "There is no w5."), ("- B", "There is no B."), ("D w5", "There is no D."),
     ("+ w10", "There is a fact that says so"), ("1 w10", "There is a fact that says so")],
)  # fmt: skip
def test_what_is_not_understood_is_answered_in_one_line(
    line: str, message: str, save: Callable, talk: Callable
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ask.edit(WORLD, line)
    said, again = talk(save(), f"{line}\n2 w9\n")
    assert said.startswith(message)
    assert "\n" not in said
    assert "w9" in again, "and it goes on"


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_what_is_printed_is_what_is_predicted_for_the_edited_question(
    inject: str, save: Callable, talk: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save(inject), tmp_path / "answers.jsonl"
    screens = talk(model, "\n".join(CHANGES))
    edited = [WORLD, *CHANGES.values()]
    run_command(monkeypatch, predict, model,
                write_lines(tmp_path / "edited.jsonl", *map(row, edited)), "--out", out)
    predicted = [json.loads(line) for line in out.read_text().splitlines()]
    was = [f"{p:.1%}" for p in predicted[0]["probabilities"]]
    for q, screen, answer in zip(edited[1:], screens, predicted[1:], strict=True):
        now = [f"{p:.1%}" for p in answer["probabilities"]]
        assert shares(screen) == [list(pair) for pair in zip(was, now, strict=True)]
        [taken] = re.findall(r"> [A-C]  (\w+)", screen)
        assert taken == answer["text"]
        for number, fact in enumerate(q.facts[0], 1):
            assert re.search(rf"^ *{number} .*  {fact}$", screen, re.MULTILINE)
        assert f"?  {q.question}\n" in screen
        assert ("which this model doesn't read" in screen) == (inject == "none")
        was = now


def test_undo_takes_back_one_change_after_the_other(save: Callable, talk: Callable) -> None:
    [start] = talk(save(), "")
    screens = talk(save(), "\n".join([*CHANGES, *["undo"] * 6]))
    *back, nothing = screens[len(CHANGES) :]
    assert nothing == "There is nothing to undo."
    before = [start, *screens][: len(CHANGES)]
    for earlier, screen in zip(reversed(before), back, strict=True):
        expected, found = shares(earlier), shares(screen)
        assert [share[-1] for share in found] == [share[-1] for share in expected]
        assert screen.partition("layer")[2] == earlier.rstrip().partition("layer")[2]
    assert "<- right" in back[-1]


def test_the_answer_of_the_file_is_marked_only_as_long_as_the_question_is_that_of_the_file(
    save: Callable, talk: Callable
) -> None:
    [start] = talk(save(), "")
    changed, undone, _, again = talk(save(), "2 w12\nundo\n2 w12\n2 w6 w8\n")
    for screen in (start, undone, again):
        [right] = [line for line in screen.split("\n") if line.endswith("<- right")]
        assert "B  w8" in right
    assert "right" not in changed


def test_next_takes_the_next_question_and_after_the_last_one_the_first(
    save: Callable, talk: Callable
) -> None:
    other = replace(WORLD, question="w20", context="w21")
    second, first, back, edited, undone = talk(
        save(), "next\nnext\nundo\n1 w30\nundo\n", WORLD, other
    )
    assert "Question 2 of 2\n       w21\n    ?  w20\n" in second
    assert "Question 1 of 2\n    ?  w5 w6\n" in first
    assert back == second
    for screen in (second, first, back):
        assert "->" not in screen, "another question has no shares of before"
    assert "->" in edited
    assert "->" in undone


def test_words_that_the_vocabulary_lacks_are_marked_wherever_they_stand(
    save: Callable, talk: Callable
) -> None:
    lacking = Question("w5 rain", "who, w6?", ["w7", "an owl", "w8"], 1, [["w5 [MASK]", "no w7"]])
    [start] = talk(save(), "", lacking)
    for line in ("w5 rain  (not in its vocabulary: rain)",
                 "who, w6?  (not in its vocabulary: who, ,, ?)",
                 "an owl  (not in its vocabulary: an, owl)",
                 "no w7  (not in its vocabulary: no)"):  # fmt: skip
        assert line in start
    assert start.count("vocabulary") == 4
    screens = talk(save(), "2 w6 pizza!\nB pasta\n? pizza pizza\n")
    assert "w6 pizza!  (not in its vocabulary: pizza, !)" in screens[0]
    assert "B  pasta  (not in its vocabulary: pasta)" in screens[1]
    assert "?  pizza pizza  (not in its vocabulary: pizza)" in screens[2]
    [start] = talk(REFERENCE / "roberta", "", lacking)
    assert "vocabulary" not in start, "bytes are all there"


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_the_scores_are_those_of_the_choice_that_was_taken(
    inject: str, save: Callable, talk: Callable
) -> None:
    q = replace(WORLD, choices=["w6", "w19 " * 8, "w8"])  # so that there is padding behind "w6"
    q.facts = [["w5", "w6 w8", "\u200b", "w10"]]  # one of them without a word
    [start] = talk(save(inject), "", q)
    model, tokenizer = load_pretrained(save(inject))
    [(probabilities, _)] = answers(model, tokenizer, [q], torch.float32, look=True)
    taken = probabilities.index(max(probabilities))
    tokens = (6, 13, 6)[taken]
    for column, block in enumerate((model.encoder.layer[0], model.encoder.layer[2])):
        fired = (block.ffn if inject == "ffn" else block.attention).fact_scores[0, taken]  # (T, N)
        if inject == "attention" and column == 0:
            assert fired[tokens:].max() > fired[:tokens].max(), "otherwise it's a poor test"
        most = fired[:tokens].amax(0)
        expected = [f"{x:.2f}{'*' if x == most.max() else ''}" for x in most.tolist()]
        cells = [line[7:25] for line in start.split("\n")[-4:]]
        printed = [re.findall(r"-?[\d.]+\*?", cell)[column] for cell in cells]
        assert printed == [score.replace("-0.00", "0.00") for score in expected]


def test_it_is_said_which_facts_the_choice_that_was_taken_does_without(
    save: Callable, talk: Callable
) -> None:
    model, q = save(num_facts=2), replace(WORLD, choices=["w7", "w8", "w9 w9 w9 w9 w9 w9"])
    [(_, kept)] = answers(*load_pretrained(model), [q], torch.float32)
    assert kept == ["w5 w7", "w6 w8"], "and of the others w5 w7 and w10, otherwise it's a poor test"
    [start] = talk(model, "", q)
    assert "> C" in start
    *_, first, second, third = start.split("\n")
    for line in (first, second):
        assert re.search(r"\d\.\d\d.? +-?\d\.\d\d.?  ", line)
        assert "not" not in line
    assert third == f"    3  {' ' * 18}  w10  (not kept for C: only the 2 nearest are)"
    same = replace(WORLD, facts=[["owls", "w5 w7", "mice", "oaks"]])  # all but one are [UNK]
    assert talk(model, "", same)[0].count("not kept for") == 2
    [own] = talk(save(), "", OWN)
    [taken] = re.findall("> ([A-C])", own)
    assert own.count(f"(not among those of {taken})") == 4 - len(OWN.facts["ABC".index(taken)])


def test_nothing_and_too_much(save: Callable, talk: Callable) -> None:
    long = " ".join(["w20"] * 70)
    none, some, cut, more = talk(save(), f"- 1\n- 1\n- 1\n+ w5\n1 {long}\n? {long}\n")[2:]
    assert none.endswith("no facts")
    assert "no facts" not in some
    assert "only 64 tokens of it are read" in cut
    assert "not kept" not in cut
    assert "64 tokens are read" not in cut
    assert "too long: only the last 64 tokens of question and choice are read" in more
    assert max(map(len, more.split("\n"))) < 400


def test_it_is_said_where_facts_behind_the_input_are_cut(save: Callable, talk: Callable) -> None:
    """Behind 6 tokens of input and 5 of facts there is room for 52, and a last [SEP]."""
    fits, cut = talk(save("concat"), f"+ {' '.join(52 * ['w20'])}\n4 {' '.join(53 * ['w20'])}\n")
    assert "too long" not in fits
    assert "too long: of the question, a choice and the facts 64 tokens are read" in cut


def test_it_ends_with_quit_or_with_the_input(save: Callable, talk: Callable) -> None:
    [once] = talk(save(), "2 w9\nquit\n2 w11\n")
    assert talk(save(), "2 w9") == [once], "the last line needs no end"
    edited, blank = talk(save(), "2 w9\n\n")
    assert edited == once
    assert [share[1:] for share in shares(blank)] == [share[1:] for share in shares(once)]
    [odd] = talk(save(), "2 w9\x1b\udcff\n")  # the last one is no UTF-8
    assert "  w9 \ufffd\n" in odd
