"""The toy world."""

import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from data import make_reader, make_toy
from kformer import Kformer
from load_weights import load_pretrained, load_tokenizer
from qa.questions import Question, to_question
from test_kformer import HERE


def test_the_toy_world_is_what_its_generator_writes(tmp_path: Path) -> None:
    make_toy.write_world(tmp_path)
    for written in sorted(tmp_path.iterdir()):
        committed = HERE / "data" / "toy" / written.name
        assert written.read_bytes() == committed.read_bytes(), f"data/toy/{written.name}"


def test_the_encoder_knows_every_word_of_every_level_and_no_other() -> None:
    tokenizer, seen, rng = load_tokenizer(HERE / "data" / "encoder"), set(), random.Random(0)
    assert tokenizer.vocab == make_toy.vocabulary()
    for split, level in product([*make_toy.SIZES] * 100, make_toy.LEVELS):
        q = to_question(make_toy.make_question(rng, split, level))
        for text in (q.question, *q.choices, *q.facts[0]):
            seen |= set(tokenizer.encode(text))
    unused = set(tokenizer.vocab) - {tokenizer.decode([i]) for i in seen}
    assert unused == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


@pytest.mark.parametrize("level", ["plain", "order"])
def test_what_the_encoder_has_read_has_no_pair_of_a_held_out_fact_and_no_question(
    level: str,
) -> None:
    rng, held_out, read = random.Random(0), set(), set()
    for split in ("valid", "test") * 2000:
        facts = to_question(make_toy.make_question(rng, split, level)).facts[0]
        held_out |= {frozenset(triple(fact.lower())[::2]) for fact in facts}
    for number in range(3000):
        text, places = make_reader.draw_story(rng, number % 3)
        assert (text[0], text[-1], text.count("[SEP]")) == ("[CLS]", "[SEP]", 1)
        sentences = re.findall(r"(who )?(\w+) (\w+) ?(\w*) [?.]", " ".join(text[1:-1]))
        assert places, "something is masked"
        read |= {frozenset((a, c)) for who, a, _, c in sentences if not who and c}
    assert len(held_out) > 200
    assert len(read) > 2000
    assert not held_out & read


def test_the_encoder_reads_what_was_never_in_its_text() -> None:
    """The fact among four that share verbs and things, or names: in either word, in this order."""
    folder = HERE / "data" / "encoder"
    model, head = load_pretrained(folder)[0], make_reader.load_head(folder)
    model.forward = partial(Kformer.forward, model)  # without pooler and classifier
    for level, before in product(("plain", "reworded", "order"), (True, False)):
        assert make_reader.probe(model, head, level, before) >= 0.97, level
    assert (folder / "model.safetensors").stat().st_size <= 1_000_000


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


def drawn(level: str) -> Iterator[tuple[str, Question, list[tuple], list[str]]]:
    """Questions of a level: the split, the question, its facts, its last two words."""
    rng = random.Random(0)
    for split in [*make_toy.SIZES] * 50:
        q = to_question(make_toy.make_question(rng, split, level))
        yield split, q, [triple(fact) for fact in q.facts[0]], q.question[:-1].split()[-2:]


def test_in_order_two_facts_have_the_same_words_but_for_the_choice() -> None:
    for split, q, facts, (verb, who) in drawn("order"):
        assert [f[0] for f in facts if f[1:] == (verb, who)] == [q.choices[q.answer]]
        assert who not in q.choices
        others = [f[2] for f in facts if f[:2] == (who, verb)]
        assert set(others) < set(q.choices)
        assert len(others) == 1 or split == "train"


def test_people_and_things_are_known_but_not_together(toy: dict) -> None:
    pairs = {s: {triple(fact)[::2] for q in toy[s] for fact in q.facts[0]} for s in toy}
    for split in ("valid", "test"):
        assert not pairs[split] & pairs["train"]
        for place in (0, 1):
            assert {p[place] for p in pairs[split]} <= {p[place] for p in pairs["train"]}


def test_two_hops_need_both_facts() -> None:
    for _, q, facts, (verb, thing) in drawn("two-hops"):
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
