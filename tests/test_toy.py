"""The toy world."""

import json
import math
import random
from pathlib import Path

import pytest

from data import make_toy
from load_weights import (
    load_tokenizer,
)
from parts.questions import to_question
from test_kformer import HERE


def test_the_toy_world_is_what_its_generator_writes(tmp_path: Path) -> None:
    make_toy.write_world(tmp_path)
    for written in sorted(tmp_path.iterdir()):
        committed = HERE / "data" / "toy" / written.name
        assert written.read_bytes() == committed.read_bytes(), f"data/toy/{written.name}"


@pytest.mark.parametrize("level", make_toy.LEVELS)
def test_every_word_of_every_level_is_in_the_vocabulary(level: str) -> None:
    tokenizer = load_tokenizer(HERE / "data" / "toy")
    for split, rng in ((split, random.Random(0)) for split in make_toy.SIZES):
        for _ in range(300):
            line = json.dumps(make_toy.make_question(rng, split, level))
            question, _ = to_question(json.loads(line))
            for text in (question.question, *question.choices, *question.facts[0]):
                assert tokenizer.unk_token_id not in tokenizer.encode(text), text


def triple(fact: str) -> tuple[str, str, str]:
    """Mira's school is in Norwick. -> Mira, school, Norwick"""
    words = fact.removesuffix(".").split()
    return words[0].removesuffix("'s"), words[1], words[-1]


def test_each_question_is_two_people_by_two_relations(toy: dict) -> None:
    """The right fact differs from the others in person, in relation, in both; each has a choice."""
    for question in toy["valid"] + toy["test"]:
        facts = [triple(fact) for fact in question.facts[0]]
        assert sorted(value for _, _, value in facts) == sorted(question.choices)
        asked = [f for f in facts if f[0] in question.question and f[1] in question.question]
        assert [value for _, _, value in asked] == [question.choices[question.answer]]
        shared = sorted((f[0] == asked[0][0]) + (f[1] == asked[0][1]) for f in facts)
        assert shared == [0, 1, 1, 2]


def test_people_and_values_are_known_but_not_together(toy: dict) -> None:
    pairs = {
        split: {(who, value) for q in questions for who, _, value in map(triple, q.facts[0])}
        for split, questions in toy.items()
    }
    for split in ("valid", "test"):
        assert not pairs[split] & pairs["train"]
        for place in (0, 1):
            assert {p[place] for p in pairs[split]} <= {p[place] for p in pairs["train"]}


def test_without_facts_nothing_tells_the_choices_apart(toy: dict) -> None:
    """A table of how often each word pair was right in training does no better than chance."""
    right, seen = {}, {}
    for q in toy["train"]:
        for i, choice in enumerate(q.choices):
            for clue in (*q.question.split(), f"place {i}"):
                seen[clue, choice] = seen.get((clue, choice), 0) + 1
                right[clue, choice] = right.get((clue, choice), 0) + (i == q.answer)
    hits = 0
    for q in toy["test"]:
        scores = [
            sum(right.get(c, 0) / seen.get(c, 1) for c in ((w, choice) for w in q.question.split()))
            for choice in q.choices
        ]
        hits += scores.index(max(scores)) == q.answer
    for split in toy:
        for place in range(4):
            share = sum(q.answer == place for q in toy[split]) / len(toy[split])
            assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(toy[split]))
    assert abs(hits / len(toy["test"]) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(toy["test"]))
