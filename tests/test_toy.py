"""The toy world."""

import math
import random
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from data import make_toy
from load_weights import load_tokenizer
from qa.questions import to_question
from test_kformer import HERE


def test_the_toy_world_is_what_its_generator_writes(tmp_path: Path) -> None:
    make_toy.write_world(tmp_path)
    for written in sorted(tmp_path.iterdir()):
        committed = HERE / "data" / "toy" / written.name
        assert written.read_bytes() == committed.read_bytes(), f"data/toy/{written.name}"
    assert len(make_toy.vocabulary("plain")) <= make_toy.CONFIG["hidden_size"], "right angles"


@pytest.mark.parametrize("level", make_toy.LEVELS)
def test_every_word_of_a_level_is_in_its_vocabulary(level: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(make_toy.vocabulary(level)))
    tokenizer, seen, rng = load_tokenizer(tmp_path), set(), random.Random(0)
    for split in [*make_toy.SIZES] * 200:
        q = to_question(make_toy.make_question(rng, split, level))
        for text in (q.question, *q.choices, *q.facts[0]):
            seen |= set(tokenizer.encode(text))
    unused = set(tokenizer.vocab) - {tokenizer.decode([i]) for i in seen}
    assert unused == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def triple(fact: str) -> tuple[str, str, str]:
    """Mira sells kites. -> Mira, sells, kites"""
    return tuple(fact.removesuffix(".").split())


def test_each_question_is_two_verbs_by_two_things(toy: dict) -> None:
    """The right fact differs from the others in verb, in thing, in both; each has a choice."""
    for question in toy["valid"] + toy["test"]:
        facts = [triple(fact) for fact in question.facts[0]]
        assert sorted(who for who, _, _ in facts) == sorted(question.choices)
        asked = [f for f in facts if f[1] in question.question and f[2] in question.question]
        assert [who for who, _, _ in asked] == [question.choices[question.answer]]
        shared = sorted((f[1] == asked[0][1]) + (f[2] == asked[0][2]) for f in facts)
        assert shared == [0, 1, 1, 2]


def test_people_and_things_are_known_but_not_together(toy: dict) -> None:
    pairs = {s: {triple(fact)[::2] for q in toy[s] for fact in q.facts[0]} for s in toy}
    for split in ("valid", "test"):
        assert not pairs[split] & pairs["train"]
        for place in (0, 1):
            assert {p[place] for p in pairs[split]} <= {p[place] for p in pairs["train"]}


def test_two_hops_need_both_facts() -> None:
    rng = random.Random(0)
    for split in [*make_toy.SIZES] * 50:
        q = to_question(make_toy.make_question(rng, split, "two-hops"))
        facts = [triple(fact) for fact in q.facts[0]]
        verb, thing = q.question.removesuffix("?").split()[-2:]
        [who] = [f[0] for f in facts if f[1:] == (verb, thing)]
        [answer] = [f[0] for f in facts if f[1:] == ("knows", who)]
        assert q.choices[q.answer] == answer


def is_chance(share: float, count: int) -> bool:
    return abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)  # four standard deviations


def test_the_facts_of_the_control_belong_to_other_questions() -> None:
    rng = random.Random(0)
    lines = [make_toy.make_question(rng, "test", "control") for _ in range(1000)]
    assert is_chance(make_toy.shortcuts(lines)["... and the fact has both"], len(lines))


def test_without_facts_nothing_tells_the_choices_apart(toy: dict) -> None:
    """Neither how often a choice was right in training beside each word, nor its place."""
    luck, hits = Counter(), []
    for q in toy["train"]:
        for word, choice in product(q.question.split(), q.choices):
            luck[word, choice] += (choice == q.choices[q.answer]) - 0.25
    for q in toy["test"]:
        scores = [sum(luck[word, choice] for word in q.question.split()) for choice in q.choices]
        hits.append(scores.index(max(scores)) == q.answer)
    assert is_chance(fmean(hits), len(hits))
    for questions, place in product(toy.values(), range(4)):
        assert is_chance(fmean(q.answer == place for q in questions), len(questions))
