"""Edited facts."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from qa import batches, effects, inside
from qa.questions import Question
from test_kformer import tiny
from tests.common import ask, tiny_tokenizer


def test_the_gold_fact_is_the_only_one_that_names_the_right_choice() -> None:
    facts = ["w5 w8 w6", "w5 W20!", "w88 w5"]
    question = Question("", "w5", ["w8", "w20", "w9", ""], 0, [facts])
    assert effects.gold(question) == "w5 w8 w6"
    assert effects.gold(replace(question, answer=1)) == "w5 W20!"
    for answer in (2, 3, None):  # named by none, without a word, unknown
        assert effects.gold(replace(question, answer=answer)) is None
    assert effects.gold(replace(question, facts=[[*facts, "w8"]])) is None, "two facts name it"
    own = replace(question, answer=1, facts=[["w20"], ["w5 w20"], [], []])
    assert effects.gold(own) == "w5 w20", "of the facts of the right choice"
    part = Question("", "w5", ["w9", "w5 (w6)"], 0, [["w99 ow9 w9s", "w5 w6 w5"]])
    assert effects.gold(part) is effects.gold(replace(part, answer=1)) is None, "whole words"


def test_facts_are_edited_and_removed_in_every_list() -> None:
    question = Question("", "w5", ["w8", "w20"], 1, [["w5 w20", "w8"], ["w6", "w5 w20"]])
    edited = effects.edited(question)
    assert (edited.facts, edited.answer) == ([["w5 w8", "w8"], ["w6", "w5 w8"]], 0)
    assert effects.removed(question).facts == [["w8"], ["w6"]]
    own = replace(question, facts=[["w6"], ["w7", "w5 w20"]])
    assert effects.edited(own).facts == [["w5 w8", "w6"], ["w7", "w5 w8"]]
    assert own.facts == [["w6"], ["w7", "w5 w20"]]
    assert question.facts == [["w5 w20", "w8"], ["w6", "w5 w20"]], "the question is as it was"


def reader(facts_count: bool) -> Callable:
    """Instead of a model: takes the choice in the fact that begins like the question, or the first
    one if there is no such fact, or if it knows nothing of facts.
    """

    def predictions(_: object, data: list[batches.Encoded], dtype: torch.dtype) -> list[int]:
        chosen = []
        for q in data:
            named = [fact[1] for fact in q.fact_ids[0] if fact[0] == q.input_ids[0][1]]
            choices = [row[3] for row in q.input_ids]  # [CLS] question [SEP] choice [SEP]
            known = facts_count and named and named[0] in choices
            chosen.append(choices.index(named[0]) if known else 0)
        return chosen

    return predictions


@pytest.mark.parametrize(
    ("facts_count", "flips", "right"), [(True, 1.0, (0.5, 1.0, 1.0)), (False, 0.0, (0.5, 0.5, 0.5))]
)
def test_effects_tell_who_reads_the_facts(
    facts_count: bool, flips: float, right: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = reader(facts_count)
    monkeypatch.setattr(batches, "predictions", predictions)
    questions = [
        Question("", "w5", ["w8", "w9"], 0, [["w5 w8", "w6 w9"]]),
        Question("", "w7", ["w10", "w11"], 1, [["w12 w10", "w7 w11"]]),
        Question("", "w7", ["w10", "w11"], 1, [["w7 w12"]]),  # no gold fact
    ]
    model, tokenizer = tiny("none"), tiny_tokenizer()
    found = effects.measure(model, tokenizer, questions, torch.float32)
    names = ("removed_accuracy", "shuffled_accuracy", "added_accuracy")
    accuracy = 2 / 3 if facts_count else 1 / 3  # without a fact that it knows it takes choice 0
    expected = {"test_accuracy": accuracy, "chance": 0.5}
    expected |= {"gold_facts": 2, "flip_rate": flips, "gold_fires_most": {}}
    expected |= dict(zip(names, right, strict=True))
    assert found == expected
    without = effects.measure(model, tokenizer, questions[2:], torch.float32)
    assert without == {"test_accuracy": 0.0, "chance": 0.5}


def test_with_the_facts_of_another_question_a_reader_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "predictions", reader(facts_count=True))
    questions = [Question("", f"w{i}", ["w8", "w9"], 1, [[f"w{i} w9"]]) for i in (5, 6, 7, 5)]
    model, tokenizer = tiny("concat"), tiny_tokenizer()
    found = effects.measure(model, tokenizer, questions, torch.float32)
    assert (found["test_accuracy"], found["exchanged_accuracy"]) == (1.0, 0.25)
    assert found["exchanged_differ"] == 3, "the last question and the first are the same"
    bare = [replace(q, facts=[[]]) for q in questions]
    assert "exchanged_accuracy" not in effects.measure(model, tokenizer, bare, torch.float32)
    found = effects.measure(tiny("none"), tokenizer, questions, torch.float32)
    assert "exchanged_accuracy" not in found


def test_the_effects_are_those_of_the_changes_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def predictions(_: object, data: list[batches.Encoded], dtype: torch.dtype) -> list[int]:
        seen.append([[tiny_tokenizer().decode(fact) for fact in q.fact_ids[0]] for q in data])
        return [0] * len(data)

    monkeypatch.setattr(batches, "predictions", predictions)
    facts = [["w5 w8", "w6", "w7", "w10"], ["w11 w8", "w12", "w13"]]
    questions = [Question("", "w5", ["w8", "w9", "w10"], 0, [f]) for f in facts]
    effects.measure(tiny("none"), tiny_tokenizer(), questions, torch.float32)
    plain, edited, elsewhere, removed, shuffled, added = seen
    assert plain == facts
    assert edited == [["w5 w9", *facts[0][1:]], ["w11 w9", *facts[1][1:]]]
    assert elsewhere == [[*facts[0][:3], "w9"], facts[1]]
    assert removed == [facts[0][1:], facts[1][1:]]
    assert shuffled != facts
    assert [sorted(f) for f in shuffled] == [sorted(f) for f in facts]
    assert added == [facts[0] + facts[1], facts[1] + facts[0]]


@pytest.mark.parametrize(("stubborn", "locality"), [(True, 1.0), (False, 0.0)])
def test_locality_is_the_share_that_stays_where_another_fact_was_edited(
    stubborn: bool, locality: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a reader of the gold fact, and one who changes its mind whenever w9 is there."""

    def predictions(_: object, data: list[batches.Encoded], dtype: torch.dtype) -> list[int]:
        w9 = tiny_tokenizer().encode("w9")
        return [0 if stubborn or w9 not in q.fact_ids[0] else 2 for q in data]

    monkeypatch.setattr(batches, "predictions", predictions)
    choices = ["w8", "w9", "w10"]
    questions = [
        Question("", "w5", choices, 0, [["w5 w8", "w10"]]),  # becomes "w9"
        Question("", "w5", choices, 0, [["w5 w8", "w6"]]),  # nothing to edit
        Question("", "w5", choices, 1, [["w5 w9", "w10"]]),  # wrong before
    ]
    found = effects.measure(tiny("none"), tiny_tokenizer(), questions, torch.float32)
    assert found["locality"] == locality


def test_the_gold_fact_is_not_edited_in_place_of_another() -> None:
    choices = ["w8", "w9", "w10"]  # the gold fact names w8, the answer, and w9
    changed = effects.edited_elsewhere(Question("", "w5", choices, 0, [["w8 w9", "w10"]]))
    assert changed.facts == [["w8 w9", "w9"]]
    assert effects.edited_elsewhere(Question("", "w5", choices, 0, [["w8 w9", "w6"]])) is None


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_which_fact_fires_most_does_not_depend_on_the_batch(inject: str) -> None:
    """Against one question at a time, token by token."""
    model, tokenizer = tiny(inject, inject_layers=(0, 2)).float(), tiny_tokenizer()
    rng = random.Random(0)
    questions = []
    for number in range(100):  # of different lengths, the gold fact at any place
        sizes = [number % 4 + 1] * 3
        facts = [" ".join(f"w{rng.randrange(10, 50)}" for _ in range(size)) for size in sizes]
        facts[number % 3] += " w5"
        text = " ".join(f"w{rng.randrange(10, 50)}" for _ in range(number % 7 + 1))
        shared = number % 2
        lists = [facts] if shared else [facts, facts[::-1], facts]
        questions.append(Question("", text, ["w6", "w5", "w7"], 1, lists))
    hits = {0: 0, 2: 0}
    for q in questions:
        [(probabilities, facts)] = inside.answers(model, tokenizer, [q], torch.float32, look=True)
        taken = probabilities.index(max(probabilities))
        for layer, fired in inside.fact_scores(model).items():
            tokens_of = fired[0, taken, : len(ask(q).input_ids[taken])]
            strongest = max(range(3), key=lambda n, rows=tokens_of: max(row[n] for row in rows))
            hits[layer] += facts[strongest] == effects.gold(q)
    found = effects.gold_fires_most(model, tokenizer, questions, torch.float32)
    assert found == {layer: count / len(questions) for layer, count in hits.items()}
    assert all(0 < share < 1 for share in found.values()), "otherwise it's a poor test"
