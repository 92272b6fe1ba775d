"""Batches and scores."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from load_weights import (
    load_pretrained,
    load_tokenizer,
)
from qa import batches
from qa.questions import Question
from test_kformer import HERE, REFERENCE, TINY, biggest_change, tiny, tokens
from tests.common import ids


def test_a_question_becomes_one_row_a_choice(toy: dict) -> None:
    tokenizer, question = load_tokenizer(HERE / "data" / "toy"), toy["train"][0]
    encoded = batches.encode(question, tokenizer, TINY)
    for choice, row, segments in zip(
        question.choices, encoded.input_ids, encoded.token_type_ids, strict=True
    ):
        found = " ".join(tokenizer.decode([i]) for i in row)
        text = tokenizer.decode(tokenizer.encode(question.question))
        assert found == f"[CLS] {text} [SEP] {choice.lower()} [SEP]"
        assert segments == [0] * (row.index(tokenizer.sep_token_id) + 1) + [1, 1]


def test_roberta_gets_the_text_of_the_release() -> None:
    """<s> context </s> Q: question </s> A: choice </s>, all in the one segment it knows."""
    model, tokenizer = load_pretrained(REFERENCE / "roberta")
    question = Question("The owl", "hunts?", ["mice", "oaks"], 0, [["owl"]])
    encoded = batches.encode(question, tokenizer, model.config)
    assert tokenizer.decode(encoded.input_ids[1]) == "<s>The owl</s>Q: hunts?</s>A: oaks</s>"
    question.context = ""
    without = batches.encode(question, tokenizer, model.config)
    assert tokenizer.decode(without.input_ids[1]) == "<s>Q: hunts?</s>A: oaks</s>"
    assert not any(map(any, encoded.token_type_ids))
    assert batches.score(model, [encoded, without], torch.float32)[0].isfinite().all()


def test_too_long_a_question_loses_its_beginning_never_the_choice() -> None:
    tokenizer = load_tokenizer(HERE / "data" / "toy")
    question = Question("kites " * 50, "sells ?", ["Mira", "Hugo"], 0, [["kites " * 50]])
    short = replace(TINY, max_position_embeddings=8)
    encoded = batches.encode(question, tokenizer, short)
    assert tokenizer.decode(encoded.input_ids[1]) == "[CLS] kites kites sells ? [SEP] hugo [SEP]"
    assert encoded.shortened
    question.context = "kites kites"
    assert batches.encode(question, tokenizer, short).input_ids == encoded.input_ids
    assert not batches.encode(question, tokenizer, short).shortened


def test_questions_of_different_sizes_share_a_batch() -> None:
    """Of 2 and 3 choices, with facts for all of them and for each one; nothing depends on it."""
    model = tiny("ffn")
    questions = [ids(5, 6, 7), ids(8, 9, length=5), ids(5, 6, 7, facts=3, length=2)]
    inputs, answers = batches.collate(questions, TINY.pad_token_id, torch.device("cpu"))
    assert inputs["input_ids"].shape == (3, 3, 5)
    assert inputs["fact_ids"].shape == (3, 3, 1, 2)
    assert answers.tolist() == [0, 0, 0]
    scores = batches.score(model, questions, torch.float32)[0]
    assert scores[1, 2] == -math.inf, "the choice that isn't there"
    for i, question in enumerate(questions):
        alone = batches.score(model, [question], torch.float32)[0][0]
        assert biggest_change(scores[i, : len(alone)], alone) < 1e-6


def test_a_choice_for_which_no_fact_was_found_has_an_empty_slot() -> None:
    found, none = ids(5, 6, facts=2), ids(7, 8)
    found.fact_ids, none.fact_ids = [[[9, 9], [9]], []], [[]]
    inputs, _ = batches.collate([found, none], 0, torch.device("cpu"))
    empty = [[0, 0], [0, 0]]
    assert inputs["fact_ids"].tolist() == [[[[9, 9], [9, 0]], empty], [empty, empty]]
    assert batches.collate([none], 0, torch.device("cpu"))[0]["fact_ids"].tolist() == [[[[0]]]]


def test_facts_for_all_choices_are_not_repeated() -> None:
    inputs, _ = batches.collate([ids(5, 6), ids(7, 8)], 0, torch.device("cpu"))
    assert inputs["fact_ids"].shape == (2, 1, 1, 2)


def test_batches_for_evaluation_hold_2000_tokens_and_every_question_once() -> None:
    rng = random.Random(0)
    data = [ids(*[5] * rng.choice((2, 2, 5, 300)), length=rng.randint(1, 30)) for _ in range(300)]
    places_of = list(batches.by_length(data, torch.device("cpu")))
    assert sorted(i for batch in places_of for i in batch) == list(range(300))
    sizes = []
    for places in places_of:
        inputs, _ = batches.collate([data[i] for i in places], 0, torch.device("cpu"))
        sizes.append(inputs["input_ids"].numel())
        assert sizes[-1] <= 2000 or len(places) == 1, "too large a question stands alone"
    assert max(sizes) > 2000, "the case is of use only with such a question"
    assert sum(size > 1500 for size in sizes) > 0.9 * len(sizes), "most of them are nearly full"


def test_processes_share_the_questions_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves 0 where others choose, so that the sum over all is what one would choose."""
    segments = [[0] * 20] * 4
    rows = tokens(250, 4, 20).tolist()
    data = [batches.Encoded(input_ids, segments, [[]], 0, False) for input_ids in rows]
    model = tiny("none").float()
    whole = batches.predictions(model, data, torch.float32)
    sums, parts = [], []
    monkeypatch.setattr(batches, "WORLD", 3)
    monkeypatch.setattr(batches, "add_up", sums.extend)
    for rank in range(3):
        monkeypatch.setattr(batches, "RANK", rank)
        parts.append(batches.predictions(model, data, torch.float32))
    assert sum(sums).tolist() == whole
    assert sum(map(bool, whole)) > 100, "the case is of use only if few choose 0"
    assert all(sum(map(bool, part)) < 0.5 * len(data) for part in parts), "none does it all"


def test_each_epoch_has_every_question_once_in_batches_of_similar_lengths() -> None:
    lengths = random.Random(0).choices(range(1, 60), k=1000)
    data = [ids(5, 6, length=n) for n in lengths]
    stream = batches.shuffled(data, 4, seed=0)
    epochs = [list(itertools.islice(stream, 250)) for _ in range(2)]
    for epoch in epochs:
        assert sorted(id(q) for batch in epoch for q in batch) == sorted(map(id, data))
    assert epochs[0] != epochs[1]
    assert next(batches.shuffled(data, 9, seed=0)) != next(batches.shuffled(data, 9, seed=1))
    width = sum(4 * max(map(len, batch)) for batch in epochs[0])
    assert width < 1.05 * sum(lengths), "hardly any padding"
    firsts = [max(map(len, batch)) for batch in epochs[0][:20]]
    assert firsts != sorted(firsts), "but short and long batches alternate"


