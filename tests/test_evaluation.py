"""What answers owe to their facts, and what is right without learning."""

import random
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from types import SimpleNamespace

import pytest

from qa import evaluation
from qa.evaluation import edited, edited_elsewhere, gold, measure, removed, renamed, rules
from qa.questions import Question
from tests.common import tiny_answerer


def test_the_gold_fact_is_the_only_one_that_names_the_right_choice() -> None:
    facts = ["w5 w8 w6", "w5 Owl!", "w88 w5", "w5 w8 w6"]
    question = Question("", "w5", ["w8", "owl", "w9"], 0, [facts])
    assert gold(question) == "w5 w8 w6", "though it's there twice"
    assert gold(replace(question, answer=1)) == "w5 Owl!"
    for answer in (2, None):  # named by none, unknown
        assert gold(replace(question, answer=answer)) is None
    assert gold(replace(question, facts=[[*facts, "w8"]])) is None, "two facts name it"
    assert gold(replace(question, answer=1, facts=[["owl"], ["w5 owl"], []])) == "w5 owl"
    part = Question("", "w5", ["w9", "w5 (w6)"], 0, [["w99 ow9 w9s", "w5 w6 w5"]])
    assert gold(part) is gold(replace(part, answer=1)) is None, "whole words"


def test_facts_are_edited_and_removed_in_every_list() -> None:
    question = Question("", "w5", ["w8", "w20"], 1, [["w5 w20", "w8"], ["w6", "w5 w20"]])
    found = edited(question)
    assert (found.facts, found.answer) == ([["w5 w8", "w8"], ["w6", "w5 w8"]], 0)
    assert removed(question).facts == [["w8"], ["w6"]]
    own = replace(question, facts=[["w6"], ["w7", "w5 w20"]])
    assert edited(own).facts == [["w5 w8", "w6"], ["w7", "w5 w8"]]
    assert own.facts == [["w6"], ["w7", "w5 w20"]], "the question is as it was"
    shared = Question("", "?", ["C++", r"\1 (of 2)"], 0, [["I like C++.", "Rain."]])
    assert edited(shared).facts == [[r"I like \1 (of 2).", "Rain."]], "letter by letter"
    named = Question("", "w5", ["w8", "w9", "w10"], 0, [["w8 w9", "w10"]])  # by gold: w8 and w9
    assert edited_elsewhere(named) == replace(named, facts=[["w8 w9", "w9"]])
    assert edited_elsewhere(replace(named, facts=[["w8 w9", "w6"]])) is None
    two = Question("", "?", ["the sky", "the sea"], 0, [["The sky is blue.", "The sea is deep."]])
    assert edited_elsewhere(two) is None, "there is no other wrong choice"
    assert gold(replace(two, choices=["the sky", "a sea", "A sea"])) is None, "which a sea?"
    each = replace(named, facts=[["w8"], ["w5 w9"], []])  # a choice has facts of its own
    assert edited_elsewhere(each).facts == [["w8"], ["w5 w10"], []]


@pytest.mark.parametrize(
    ("choices", "fact", "becomes"),
    [
        ("Ann/Bob", "Ann's owl (Ann)—ann, “Ann”.", "Bob's owl (Bob)—Bob, “Bob”."),
        ("metal/wood", "Metal is hard", "wood is hard"),
        ("10/7", "10 m, of 10.", "7 m, of 7."),
        ("10/7", "10.5 or 0.10 or 10,000 or 10 000 or 1/10 or .10 or 10:30 or 10% or $10", None),
        ("5/6", "-5 or 5-7 or 3–5 or +5 or 5° or 5 % or x^5 or 1 5 or 5\u202f000 or 5×10", None),
        ("C/D", "C++, C#, c or c.d", None),
        ("US/UK", "He gave us the us.", None),
        ("us/them", "US", None),
        ("T/U", "AT&T and T-shirt, T\u2011shirt, T*", None),
        ("can/clock/Neil", "can't, o'clock, O’Neil", None),
        ("Ann/Ann Lee", "Ann Lee sees Lee Ann", "Ann Lee sees Lee Ann Lee"),
        ("Ann Lee/Bob", "Ann\u00a0Lee or ann  lee", "Bob or Bob"),
        ("York/New York", "New York", None),
        ("New York/York", "New York", "York"),
        ("Zoe/Ann", "Zoe\u0308", None),
        ("राम/Ann", "रामा", None),
        ("Ann/ann/Bob", "Ann sees Bob", None),
    ],
)
def test_a_name_within_a_name_a_number_or_a_sign_is_none(
    choices: str, fact: str, becomes: str | None
) -> None:
    question = Question("", "?", choices.split("/"), 0, [[fact]])
    assert renamed(question, fact, 0, 1) == (becomes or fact)
    assert gold(question) == (fact if becomes else None)


def test_wrong_facts_are_those_of_the_next_question_that_shares_none() -> None:
    facts = [[["a"], ["b"]], [["c"]], [["d"], ["e"], ["f"]]]
    part = [Question("", "?", list("xyz")[:n], 0, f) for n, f in zip((2, 3, 3), facts, strict=True)]
    wrong = [[["c"]], [["d"], ["e"], ["f"]], [["a"], ["b"], ["a"]]]
    assert [q.facts for q in evaluation.exchanged(part)] == wrong
    assert [q.facts for q in part] == facts, "the questions are as they were"
    passages = [[["a", "b"]], [["b", "a"]], [[]], [["c"]], [["c", "a"]]]  # two about one text
    part = [Question("", "?", ["x", "y"], 0, f) for f in passages]
    wrong = [[["c"]], [["c"]], [["c"]], [["a", "b"]], [[]]]
    assert [q.facts for q in evaluation.exchanged(part)] == wrong
    assert [q.facts for q in evaluation.exchanged(part[:1])] == [[[]]], "one alone has no control"
    far = [Question("", "?", ["x", "y"], 0, f) for f in [[["a"]]] * 501 + [[["b"]]]]
    assert [q.facts for q in evaluation.exchanged(far)][:3] == [[[]], [[]], [["b"]]], "500 at most"
    assert "exchanged_accuracy" not in measure(stub(lambda q: 0), part[:1])
    assert measure(stub(lambda q: 0), part)["exchanged_none"] == 1


def stub(takes: Callable[[Question], int], inject: str = "ffn") -> SimpleNamespace:
    """An answerer that takes what a function of the question says."""
    model = SimpleNamespace(config=SimpleNamespace(inject=inject))
    return SimpleNamespace(
        model=model, encode=list, answered_right=lambda data: [takes(q) == q.answer for q in data]
    )


def reads(q: Question) -> int:
    """Takes the choice in the fact that begins as the question does, else the first choice."""
    named = [name for who, name in map(str.split, q.facts[0]) if who == q.question]
    return q.choices.index(named[0]) if named and named[0] in q.choices else 0


def test_a_reader_follows_its_facts_and_is_lost_without_them() -> None:
    questions = [
        Question("", "w5", ["w8", "w9"], 0, [["w5 w8", "w6 w9"]]),
        Question("", "w7", ["w10", "w11"], 1, [["w12 w10", "w7 w11"]]),
        Question("", "w7", ["w10", "w11"], 1, [["w7 w12"]]),  # no gold fact
    ]
    of_gold = {"gold_facts": 2, "flip_rate": 1.0, "removed_accuracy": 0.5}
    exchanged = {"exchanged_accuracy": 1 / 3, "exchanged_differ": 1, "exchanged_none": 0}
    right = {"test_accuracy": 2 / 3, "answered_right": [1, 1, 0], "chance": 0.5}
    # no locality: there is one wrong choice
    assert measure(stub(reads), questions) == right | exchanged | of_gold
    right |= {"test_accuracy": 1 / 3, "answered_right": [1, 0, 0]}
    of_gold["flip_rate"] = 0.0
    assert measure(stub(lambda q: 0, inject="none"), questions) == right | of_gold
    assert measure(stub(reads), [replace(q, facts=[[]]) for q in questions]) == right
    assert measure(stub(lambda q: 1 - q.answer), questions)["flip_rate"] == 0.0, "none is right"


def test_figures_are_those_of_a_model_that_is_asked_one_question_at_a_time() -> None:
    answerer, rng = tiny_answerer("ffn", inject_layers=(0, 1, 2)), random.Random(0)
    questions = []
    for _ in range(60):  # some have facts of each choice
        facts = [[f"w{rng.randrange(5, 13)}" for _ in range(5)] for _ in range(rng.choice([1, 3]))]
        questions.append(Question("", "w13", ["w5", "w6", "w7"], rng.randrange(3), facts))

    def right(q: Question) -> bool:
        return answerer.scores(answerer.encode([q])).argmax().item() == q.answer

    before = [right(q) for q in questions]
    instead = [right(q) for q in evaluation.exchanged(questions)]
    golden = [q for q in questions if gold(q)]
    known = [q for q, was in zip(questions, before, strict=True) if was and gold(q)]
    expected = {
        "test_accuracy": fmean(before), "chance": 1 / 3, "gold_facts": len(golden),
        "exchanged_accuracy": fmean(instead),
        "exchanged_none": sum(not any(q.facts) for q in evaluation.exchanged(questions)),
        "exchanged_differ": sum(was != now for was, now in zip(before, instead, strict=True)),
        "flip_rate": fmean(right(edited(q)) for q in known),
        "locality": fmean(right(e) for q in known if (e := edited_elsewhere(q))),
        "removed_accuracy": fmean(right(removed(q)) for q in golden),
    }  # fmt: skip
    found = measure(answerer, questions)
    assert found.pop("answered_right") == before
    assert found == pytest.approx(expected)
    assert len({*expected.values(), 1}) == 10, "or it's a poor test"


def said(count: int, **result: float) -> list[str]:
    result = {"test_accuracy": 0.6, "chance": 0.25} | result
    return list(evaluation.lines_of_result("test", count, result))


def test_what_was_measured_is_said_in_words() -> None:
    found = {"exchanged_accuracy": 0.3, "exchanged_differ": 900, "flip_rate": 0.9}
    found |= {"gold_facts": 1500, "removed_accuracy": 0.24, "exchanged_none": 7}
    lines = [
        "test      60.0% of 2,000 questions, chance is 25.0%",
        "          with the facts of another question: 30.0% (none for 7)",
        "edited    90.0% of right answers follow when the gold fact names another choice "
        "(1,500 questions have one)",
        "          80.0% of them stay when another fact is edited",
        "          right without the gold fact: 24.0%",
    ]
    assert said(2000, locality=0.8, **found) == lines
    assert said(2000, **found) == lines[:3] + lines[4:]
    assert said(2000) == lines[:1]


def test_luck_is_said_to_be_possible() -> None:
    for count, right in ((1, 0.0), (49, 0.25), (49, 1.0)):
        assert "too few questions to tell" in said(count, test_accuracy=right)[1]
    for right in (0.25, 0.37):
        assert "no better than chance" in said(50, test_accuracy=right)[1]
    assert len(said(50, test_accuracy=0.38)) == len(said(2000, test_accuracy=0.28)) == 1
    # of 100 answers 10 fewer are right: 17 lost and 7 gained is no luck, to one in twenty
    for instead, differ, close in ((50, 24, False), (50, 25, True), (70, 10, True)):
        line = said(100, exchanged_accuracy=instead / 100, exchanged_differ=differ)[1]
        doubt = ", too close to say that its own help" if close else ""
        assert line == f"          with the facts of another question: {instead}.0%{doubt}"


def test_rules_are_right_without_learning() -> None:
    coat = Question("", "?", ["red hat", "blue coat"], 1, [["the coat is blue"]])
    coats = [coat, coat, replace(coat, answer=0)]
    hat = Question("a hat", "red?", ["coat", "red hat", "cap", "scarf"], 1, [[]])
    assert evaluation.chance([coat, hat, hat]) == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert rules([coat], coats) == "always choice 2: 66.7%, most common words: 66.7%"
    assert rules(coats[2:], [hat]) == "always choice 1: 0.0%, most common words: 100.0%"


def test_most_common_words_are_taken() -> None:
    for choices, facts, taken in (
        (["snow", "a trainer"], [["It was TRAINING."]], 1),  # the first five letters count
        (["snow", "an ox"], [["It is an ox."]], 0),  # words of two letters don't
        (["snow", "rain"], [["Rain, snow."]], 0),  # of equals the first
        (["owls", "mice"], [["Mice eat."], ["Owls eat mice."]], 1),  # its own facts alone
        (["rain", "mice"], [[], ["Rain."]], 0),  # without facts the question
    ):
        q = Question("After rain.", "What falls?", choices, None, facts)
        assert evaluation.most_common_words(q) == taken, choices
