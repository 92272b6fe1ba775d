"""The toy world."""

import json
import math
import random
from pathlib import Path

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


@pytest.mark.parametrize("level", make_toy.LEVELS)
def test_every_word_of_a_level_is_in_its_vocabulary(level: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(make_toy.vocabulary(level)))
    tokenizer, seen = load_tokenizer(tmp_path), set()
    for split, rng in ((split, random.Random(0)) for split in make_toy.SIZES):
        for _ in range(300):
            line = json.dumps(make_toy.make_question(rng, split, level))
            question = to_question(json.loads(line))
            for text in (question.question, *question.choices, *question.facts[0]):
                seen |= set(tokenizer.encode(text))
    assert tokenizer.unk_token_id not in seen
    unused = set(tokenizer.vocab) - {tokenizer.decode([i]) for i in seen}
    assert unused == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_the_words_of_the_plain_level_have_room_for_right_angles() -> None:
    assert len(make_toy.vocabulary("plain")) <= make_toy.CONFIG["hidden_size"]


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
    pairs = {
        split: {(who, thing) for q in questions for who, _, thing in map(triple, q.facts[0])}
        for split, questions in toy.items()
    }
    for split in ("valid", "test"):
        assert not pairs[split] & pairs["train"]
        for place in (0, 1):
            assert {p[place] for p in pairs[split]} <= {p[place] for p in pairs["train"]}


def test_two_hops_need_both_facts() -> None:
    """Whoever knows the one of the right fact is the answer; one fact leads to the other."""
    rng = random.Random(0)
    for split in make_toy.SIZES:
        for _ in range(50):
            q = make_toy.make_question(rng, split, "two-hops")
            facts = [triple(fact) for fact in q["knowledges"]]
            verb, thing = q["question"].removesuffix("?").split()[-2:]
            [who] = [f[0] for f in facts if f[1:] == (verb, thing)]
            [answer] = [f[0] for f in facts if f[1:] == ("knows", who)]
            assert q["choices"]["ABCD".index(q["AnswerKey"])]["text"] == answer


def test_the_facts_of_the_control_belong_to_other_questions() -> None:
    rng = random.Random(0)
    lines = [make_toy.make_question(rng, "test", "control") for _ in range(1000)]
    answered = make_toy.shortcuts(lines)["... and the fact has both"]
    assert abs(answered - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)


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
