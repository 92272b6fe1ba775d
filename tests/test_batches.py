"""Batches and scores."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from load_weights import load_pretrained, load_tokenizer
from qa.batches import Answerer, by_length, collate, encode, lines_of_unread, shuffled
from qa.questions import Question
from test_kformer import HERE, REFERENCE, TINY, biggest_change, tiny
from tests.common import ids, tiny_answerer, tiny_tokenizer


def test_a_question_becomes_one_row_a_choice(toy: dict) -> None:
    tokenizer, question = load_tokenizer(HERE / "data" / "encoder"), toy["train"][0]
    encoded = encode(question, tokenizer, TINY)
    rows, text = encoded.input_ids, tokenizer.decode(tokenizer.encode(question.question))
    for choice, row, segments in zip(question.choices, rows, encoded.token_type_ids, strict=True):
        found = " ".join(tokenizer.decode([i]) for i in row)
        assert found == f"[CLS] {text} [SEP] {choice.lower()} [SEP]"
        assert segments == [0] * (row.index(tokenizer.sep_token_id) + 1) + [1, 1]


def test_roberta_gets_the_text_of_the_release() -> None:
    """<s> context </s> Q: question </s> A: choice </s>, all in the one segment it knows."""
    answerer = Answerer(*load_pretrained(REFERENCE / "roberta"), "float32")
    question = Question("The owl", "hunts?", ["mice", "oaks"], 0, [["owl"]])
    whole, short = answerer.encode([question, replace(question, context="")])
    decode = answerer.tokenizer.decode
    assert decode(whole.input_ids[1]) == "<s>The owl</s>Q: hunts?</s>A: oaks</s>"
    assert decode(short.input_ids[1]) == "<s>Q: hunts?</s>A: oaks</s>"
    assert not any(map(any, whole.token_type_ids))
    assert answerer.scores([whole, short]).isfinite().all()


def test_too_long_a_question_loses_its_beginning_never_the_choice() -> None:
    tokenizer, most = load_tokenizer(HERE / "data" / "encoder"), 8
    question = Question("kites " * 50, "sells ?", ["Mira", "Hugo"], 0, [["kites " * 50]])
    short = replace(TINY, max_position_embeddings=most)
    encoded = encode(question, tokenizer, short)
    assert tokenizer.decode(encoded.input_ids[1]) == "[CLS] kites kites sells ? [SEP] hugo [SEP]"
    assert encoded.shortened
    assert len(encoded.fact_ids[0][0]) == most
    fitting = encode(replace(question, context="kites kites"), tokenizer, short)
    assert (fitting.input_ids, fitting.shortened) == (encoded.input_ids, False)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_in_concat_the_context_makes_room_for_facts_and_what_is_not_read_is_said(kind: str) -> None:
    model, tokenizer = load_pretrained(REFERENCE / kind, inject="concat", num_facts=2)
    answerer, most = Answerer(model, tokenizer, "float32"), model.config.max_tokens
    facts = [["owls owls mice"], ["oaks", "owls", "oaks oaks"]]
    own = Question("mice " * 99, "owls ?", ["mice", "oaks"], 0, facts)
    shared, few = replace(own, facts=facts[1:]), replace(own, facts=[facts[1][:2]])
    lengths = [[len(tokenizer.encode(fact)) for fact in some] for some in facts]
    room = [lengths[0][0] + 1, lengths[1][0] + lengths[1][2] + 1]  # [SEP], too
    data = answerer.encode([own, shared, few, replace(few, question="owls " * 99)])
    assert [most - len(row) for row in data[0].input_ids] == room
    assert [most - len(row) for row in data[1].input_ids] == [room[1]] * 2
    assert [q.shortened for q in data] == [True] * 4
    assert [q.cut for q in data] == [False, False, False, True]
    answerer.scores(data[2:])
    read = (model.kept_facts != model.config.pad_token_id).sum(-1)  # (2, choices, facts)
    assert read.tolist() == [[lengths[1][:2]] * 2, [[0, 0]] * 2]
    assert [*lines_of_unread(data, model.config)] == [
        "4 are too long: the beginning of a context isn't read, or a choice's end",
        "for 1 there may be no room for all facts: the last words aren't read then",
        "2 have up to 3 facts; the 2 nearest are read",
    ]
    [choice] = answerer.encode([Question("", "", ["owls", "mice " * 99], 0, [[]])])
    assert (choice.shortened, len(choice)) == (True, most), "the end of a choice"
    model.config.inject, model.config.num_facts = "ffn", 3
    data = answerer.encode([own, replace(own, context="", facts=[["owls"], ["owls " * 99]])])
    assert (len(data[0]), [q.cut for q in data]) == (most, [False, True])


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_scores_of_a_question_depend_on_no_other_in_its_batch(inject: str) -> None:
    answerer = Answerer(tiny(inject), tiny_tokenizer(), "float32")
    batch = [ids(5, 6, 7), ids(8, 9, length=5), ids(5, 6, 7, facts=3, length=2), ids(5, 9)]
    batch[2].fact_ids[1:], batch[3].fact_ids = [[[8, 9, 7], [7]], []], [[]]
    scores = answerer.scores(batch)
    assert scores.dtype == torch.float32
    assert scores[1, 2] == scores[3, 2] == -math.inf, "the choice that isn't there"
    for question, found in zip(batch, scores, strict=True):
        alone = answerer.scores([question])[0]
        assert biggest_change(found[: len(alone)], alone) < 1e-6, "float32 at the end"


def test_choices_and_facts_of_each_kind_are_padded() -> None:
    shared, own, none = ids(5, 6, 7), ids(7, 8, facts=2, length=2), ids(7, 8)
    own.fact_ids, none.fact_ids = [[[9, 9], [9]], []], [[]]
    inputs = collate([shared, own, none], pad_id=0)
    assert inputs["input_ids"][1].tolist() == [[7, 7, 0], [8, 8, 0], [0, 0, 0]]
    assert inputs["token_type_ids"].shape == inputs["input_ids"].shape == (3, 3, 3)
    empty, one = [[0, 0], [0, 0]], [[9, 9], [0, 0]]
    found = [[[9, 9], [9, 0]], empty, empty]
    assert inputs["fact_ids"].tolist() == [[one] * 3, found, [empty] * 3]
    assert collate([shared, none], 0)["fact_ids"].tolist() == [[[[9, 9]]], [[[0, 0]]]], "once each"
    assert collate([none], 0)["fact_ids"].tolist() == [[[[0]]]]


def test_batches_for_evaluation_hold_2000_tokens_and_every_question_once() -> None:
    rng = random.Random(0)
    data = [ids(*[5] * rng.choice((2, 2, 5, 300)), length=rng.randint(1, 30)) for _ in range(300)]
    places_of = list(by_length(data, 2_000))
    assert sorted(i for batch in places_of for i in batch) == list(range(300))
    sizes = [collate([data[i] for i in batch], 0)["input_ids"].numel() for batch in places_of]
    too_large = [len(b) for b, size in zip(places_of, sizes, strict=True) if size > 2_000]
    assert set(too_large) == {1}, "too large a question stands alone, and there are such"
    assert sum(size > 1500 for size in sizes) > 0.9 * len(sizes), "most of them are nearly full"


def test_right_answers_are_told_in_the_order_of_the_questions_and_without_dropout() -> None:
    answerer = tiny_answerer("ffn")
    data = [ids(*range(5 + i, 9 + i), length=1 + 17 * i % 30) for i in range(40)]
    for i, question in enumerate(data):
        question.answer = (int(answerer.scores([question]).argmax()) + i % 2) % 4
    answerer.model.train()
    assert answerer.answered_right(data) == [True, False] * 20
    answerer.model.encoder.layer[0].ffn.W1.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="the scores aren't finite numbers"):
        answerer.answered_right(data)


def test_each_epoch_has_every_question_once_in_batches_of_similar_lengths() -> None:
    lengths = random.Random(0).choices(range(1, 60), k=1000)
    data = [ids(5, 6, length=n) for n in lengths]
    stream = shuffled(data, 4, seed=0)
    epochs = [list(itertools.islice(stream, 250)) for _ in range(2)]
    for epoch in epochs:
        assert sorted(id(q) for batch in epoch for q in batch) == sorted(map(id, data))
    assert epochs[0] != epochs[1]
    assert next(shuffled(data, 9, seed=0)) != next(shuffled(data, 9, seed=1))
    longest = [max(map(len, batch)) for batch in epochs[0]]
    assert 4 * sum(longest) < 1.05 * sum(lengths), "hardly any padding"
    assert longest[:20] != sorted(longest[:20]), "but short and long batches alternate"
