"""What must hold, in the order of the files: kformer.py, load_weights.py, data/, train.py.

    python -m pytest                     all of it, in well under a minute
    python -m pytest -k widened          one thing, by a word of its name

The checks of the README's exercises say in a sentence what is wrong (`attempt`, `compare`).
Nothing here needs a network, a GPU or a download. Small models with random weights will do, since
what is tested holds for any weights.
"""

import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import traceback
import unicodedata
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

import evaluate
import load_weights
import train
from data import make_toy
from kformer import (
    FFN,
    Dropout,
    Kformer,
    KformerConfig,
    KformerForMultipleChoice,
    SelfAttention,
    append_facts,
    hide,
    mean_embedding,
    nearest_facts,
)
from load_weights import (
    grouped,
    load_config,
    load_pretrained,
    load_tokenizer,
    open_folder,
    our_name,
    save_pretrained,
)
from questions import (
    BM25,
    Question,
    best,
    read_facts,
    read_questions,
    release,
    retrieve,
    words,
)
from tokenizer import ByteLevelBPE, Tokenizer, WordPiece, byte_symbols, word_pattern

torch.set_num_threads(1)  # the models are too small to be shared out
HERE = Path(__file__).resolve().parent
TINY = KformerConfig(
    vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=64, type_vocab_size=3, sep_token_id=3,
)  # fmt: skip
B, C, T, N, L, D = 3, 2, 7, 4, 5, TINY.hidden_size


def tiny(inject: str, **fields: object) -> KformerForMultipleChoice:
    """A tiny model in evaluation mode, the same weights at every call; double precision, so that
    a difference of 1e-9 is a fault and not rounding.
    """
    torch.manual_seed(0)
    model = KformerForMultipleChoice(replace(TINY, inject=inject, **fields)).eval()
    for name, parameter in model.named_parameters():  # away from the tidy start, biases too
        parameter.data.normal_(std=0.3)
        if name.endswith("norm.weight"):
            parameter.data += 1
    return model.double()


def tokens(*shape: int, lengths: Tensor | None = None, seed: int = 1) -> Tensor:
    """Random ids above the special ones, in the last dimension padded behind `lengths`."""
    ids = torch.randint(5, 50, shape, generator=torch.Generator().manual_seed(seed))
    if lengths is not None:
        ids[torch.arange(shape[-1]).expand(shape) >= lengths.unsqueeze(-1)] = TINY.pad_token_id
    return ids


class Operations(TorchDispatchMode):
    """Within, collects all operations of torch that run, each with its result."""

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(
        self, operation: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.found.append((operation, operation(*args, **kwargs or {})))
        return self.found[-1][1]


def padded_batch() -> tuple[Tensor, Tensor]:
    """Questions (B, C, T) and facts (B, N, L), both with padding; the last question has 2 facts."""
    questions = tokens(B, C, T, lengths=torch.tensor([[7, 4], [5, 7], [3, 6]]))
    lengths = torch.tensor([[5, 1, 3, 2], [2, 4, 5, 1], [3, 2, 0, 0]])
    return questions, tokens(B, N, L, lengths=lengths, seed=2)


def full_batch() -> tuple[Tensor, Tensor]:
    """The same without any padding."""
    return tokens(B, C, T), tokens(B, N, L, seed=2)


def biggest_change(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def fail(sentence: str) -> None:
    pytest.fail(sentence, pytrace=False)


def attempt(name: str, function: Callable, *args: object, **kwargs: object) -> object:
    """function(...). Where it raises an error, the test fails with that error and its place."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = [frame for frame in frames if Path(frame.filename).parent == HERE][-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
    return fail(f"{name}: {said:.150} ({Path(place.filename).name}, line {place.lineno})")


def compare(name: str, found: object, expected: Tensor, why: str, limit: float = 1e-5) -> None:
    """Fails, because of `why`, unless `found`, which `name` gave, is `expected` up to `limit`."""
    shape = tuple(expected.shape)
    if not isinstance(found, Tensor):
        fail(f"{name}: gives {found!r:.50}, must give a tensor of shape {shape}. {why}")
    if found.shape != shape:
        fail(f"{name}: gives the shape {tuple(found.shape)}, must be {shape}. {why}")
    wrong = ~((found - expected).abs() <= limit)  # so that nan is wrong too
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        many = f"{wrong.sum()} of {wrong.numel()}"
        fail(
            f"{name}: entry {at} is {found[at].item():.4g}, must be {expected[at].item():.4g} "
            f"({many} entries are wrong). {why}"
        )


# ---------------------------------------------------------------------------- kformer.py: FFN


def test_ffn_injection_is_an_ordinary_ffn_that_was_widened() -> None:
    """The paper's claim: gelu(x W1 + b1) W2 + b2 + gelu(x Kᵀ) V is one FFN with M + N neurons."""
    torch.manual_seed(0)
    ffn, x = FFN(TINY), torch.randn(B, T, D)
    K, V = torch.randn(B, N, D), torch.randn(B, N, D)
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    widened = []
    for row in range(B):
        W1 = torch.cat([ffn.W1.weight.T, K[row, real[row]].T], dim=1)  # the columns of Kᵀ
        b1 = torch.cat([ffn.W1.bias, torch.zeros(len(W1.T) - len(ffn.W1.bias))])  # zeros
        W2 = torch.cat([ffn.W2.weight.T, V[row, real[row]]], dim=0)  # the rows of V
        widened.append(gelu(x[row] @ W1 + b1) @ W2 + ffn.W2.bias)
    injected = attempt("FFN.forward", ffn, x, (K, V, real))
    compare("FFN.forward", injected, torch.stack(widened),
            "gelu(x W1 + b1) W2 + b2 + gelu(x Kᵀ) V is an FFN with M + N neurons; row 1 has an "
            "empty slot, row 2 nothing else, and an empty slot adds nothing.")  # fmt: skip


def test_fact_scores_of_the_ffn_are_its_activations() -> None:
    model = tiny("ffn", inject_layers=(1,))
    questions, facts = padded_batch()
    model(questions, fact_ids=facts)
    scores = model.encoder.layer[1].ffn.fact_scores
    assert scores.shape == (B, C, T, N)
    assert (scores[-1, ..., 2:] == 0).all(), "an empty slot fired"
    assert scores[:-1].amax(2).all(), "a fact fired nowhere"
    model(questions)
    assert model.encoder.layer[1].ffn.fact_scores is None, "scores of an earlier batch were left"


# ---------------------------------------------------------------------- kformer.py: attention


def attention_in_loops(
    layer: SelfAttention, x: Tensor, mask: Tensor, K: Tensor, V: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """The specification: for one row, K and V stand in front of the keys and values, and each
    token takes the softmax over both. Returns the output (T, D) and the shares of the facts (T, N).
    """
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    keys, values = torch.cat([K, k]), torch.cat([V, v])
    seen = torch.cat([real, mask]).tolist()
    out, shares = torch.zeros_like(q), torch.zeros(len(x), len(K))
    size = D // layer.num_heads
    for head, t in itertools.product(range(layer.num_heads), range(len(x))):
        part = slice(head * size, (head + 1) * size)
        weights = [
            math.exp(q[t, part] @ keys[s, part] / math.sqrt(size)) if seen[s] else 0.0
            for s in range(len(keys))
        ]
        for s, weight in enumerate(weights):
            out[t, part] += weight / sum(weights) * values[s, part]
            if s < len(K):
                shares[t, s] += weight / sum(weights) / layer.num_heads
    return layer.output(out), shares


@torch.no_grad()
def test_attention_with_a_prefix_equals_plain_loops() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(TINY).eval(), torch.randn(B, T, D)
    K, V = torch.randn(B, N, D), torch.randn(B, N, D)
    mask = torch.arange(T) < torch.tensor([[7], [4], [1]])
    real = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    rows = [attention_in_loops(layer, x[i], mask[i], K[i], V[i], real[i]) for i in range(B)]
    expected, shares = map(torch.stack, zip(*rows, strict=True))
    out = attempt("SelfAttention.forward", layer, x, mask, (K, V, real))
    compare("SelfAttention.forward", out, expected,
            "In each head softmax(q [Kᵀ kᵀ] / sqrt(D/H)) [V; v], then `output`; row 1 has padding "
            "and empty slots, in row 2 all slots are empty.")  # fmt: skip
    compare("SelfAttention.fact_scores", layer.fact_scores, shares,
            "The share of the attention that each fact got, mean of the heads.")  # fmt: skip
    first = attempt("SelfAttention.forward", layer, x, mask, (K, V, real), wanted=2)
    compare("SelfAttention.forward", first, expected[:, :2],
            "With wanted=2 only the results of the first two tokens.")  # fmt: skip


def test_a_prefix_costs_no_precision_in_bfloat16() -> None:
    """The shares of tokens and facts add up to 1 even when the log-sum-exp is rounded to 8 bits."""
    torch.manual_seed(0)
    layer, errors = SelfAttention(KformerConfig(hidden_size=384)).eval(), []
    x, mask, real = torch.randn(2, 30, 384), torch.ones(2, 30).bool(), torch.ones(2, 5).bool()
    for prefix in (None, (torch.randn(2, 5, 384), torch.randn(2, 5, 384), real)):
        exact = layer(x, mask, prefix)
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((layer(x, mask, prefix) - exact).norm() / exact.norm())
    assert errors[1] < 1.5 * errors[0], "twice as large where the shares don't add up"


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_its_share_each_entry_for_itself(p: float) -> None:
    torch.manual_seed(0)
    dropout, x = Dropout(p), torch.ones(501, 999, requires_grad=True)
    y = dropout(x)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    y.sum().backward()
    assert torch.equal(x.grad, y), "the gradient passes where the entry did"
    kept = (y > 0).flatten().float()
    for apart in (0, 1, 2, 3, 4, 999):  # four neighbours share one random number
        both = kept[apart:] * kept[: len(kept) - apart]
        share = (1 - p) ** (2 if apart else 1)
        assert abs(both.mean() - share) < 5 * math.sqrt(share * (1 - share) / len(kept)), apart
    assert not torch.equal(dropout(x), y), "each call throws anew"
    assert dropout.eval()(x) is x
    assert not Dropout(1.0)(x).any()
    assert torch.equal(Dropout(0.0)(x), x)


def test_what_is_hidden_gets_no_attention() -> None:
    scores = torch.randn(2, 1, 2, 3)
    real = torch.tensor([[True, False, True], [False, False, False]])
    expected = scores.clone()
    expected[0, ..., 1] = expected[1] = torch.finfo(scores.dtype).min
    compare("hide", attempt("hide", hide, scores, real), expected,
            "What isn't real gets the lowest number there is, not -inf: where nothing is real, as "
            "in row 1, the softmax of -inf is 0/0.")  # fmt: skip


# -------------------------------------------------------------------------- kformer.py: facts


def test_a_fact_is_the_mean_of_its_words_and_padding_is_none() -> None:
    table = nn.Embedding(50, D)
    A, owns, B_ = table.weight[5:8]
    ids = torch.tensor([[5, 6, 7, 0, 0], [7, 6, 5, 0, 0], [5, 7, 7, 7, 0], [0, 0, 0, 0, 0]])
    means = [(A + owns + B_) / 3, (A + owns + B_) / 3, (A + 3 * B_) / 4, torch.zeros(D)]
    mean = attempt("mean_embedding", mean_embedding, table, ids, ids != 0)
    compare("mean_embedding", mean, torch.stack(means),
            "A fact is the mean of the embeddings of its real tokens; rows 0 and 1 have the same "
            "words, row 3 has none and must be 0, not 0/0.")  # fmt: skip


def nearest_in_loops(fact_ids: list, table: Tensor, question: Tensor, num_facts: int) -> list:
    """The specification for one row: the best, of equals the first ones, in their old order."""
    ranked = []
    for place, fact in enumerate(fact_ids):
        words = [table[i] for i in fact if i != TINY.pad_token_id]
        relevance = (sum(words) / len(words) @ question).item() if words else -math.inf
        ranked.append((-relevance, place))
    return [fact_ids[place] for place in sorted(place for _, place in sorted(ranked)[:num_facts])]


@pytest.mark.parametrize("num_facts", [1, 3, 6])
def test_the_nearest_facts_are_kept(num_facts: int) -> None:
    """Whole numbers in the table make exact ties; one candidate is there twice, one is empty."""
    whole = torch.randint(-2, 3, (50, D), generator=torch.Generator().manual_seed(3))
    table = nn.Embedding.from_pretrained(whole.float())
    facts = tokens(B, 8, 4, lengths=torch.tensor([4, 2, 4, 1, 2, 4, 1, 2]).expand(B, 8))
    facts[:, 5], facts[:, 2] = facts[:, 0], 0
    question = torch.randint(-2, 3, (B, D), generator=torch.Generator().manual_seed(4)).float()
    kept = nearest_facts(facts, table, question, replace(TINY, num_facts=num_facts))
    for row in range(B):
        expected = nearest_in_loops(facts[row].tolist(), table.weight, question[row], num_facts)
        assert kept[row].tolist() == expected


def test_candidates_are_never_embedded_all_at_once() -> None:
    """Or 10,000 of them for one question would fill gigabytes: every fact is padded with words."""
    facts, table = tokens(B, 100, L), nn.Embedding(50, D)
    with Operations() as done:
        nearest_facts(facts, table, torch.ones(B, D), TINY)
    made = [result for _, result in done.found if isinstance(result, Tensor)]
    assert max(tensor.numel() for tensor in made) == facts.numel()


@pytest.mark.parametrize("inject", ["concat", "attention", "ffn"])
def test_more_candidates_than_num_facts_are_chosen_from(inject: str) -> None:
    """Each choice keeps its own nearest; fewer candidates than num_facts are all kept."""
    questions, _ = padded_batch()
    facts = tokens(B, 6, L, seed=5)
    model = tiny(inject, num_facts=2)
    words = model.embeddings.word_embeddings
    table = model.fact_embeddings if inject != "concat" else words
    query = mean_embedding(words, questions, questions != 0)
    kept = nearest_facts(facts.unsqueeze(1), table, query, model.config)
    assert kept.shape == (B, C, 2, L)
    assert biggest_change(model(questions, fact_ids=facts), model(questions, fact_ids=kept)) < 1e-9
    all_kept = tiny(inject, num_facts=6)(questions, fact_ids=facts)
    assert torch.equal(all_kept, tiny(inject, num_facts=9)(questions, fact_ids=facts))
    assert biggest_change(model(questions, fact_ids=facts), all_kept) > 1e-6


def test_concat_appends_the_facts_and_moves_padding_behind() -> None:
    ids = torch.tensor([[2, 10, 3, 11, 3, 0], [2, 12, 13, 3, 14, 3]])
    facts = torch.tensor([[[20, 21, 0], [22, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]])
    ids, mask, segments = append_facts(ids, ids != 0, segments, facts, TINY)
    assert ids.tolist() == [
        [2, 10, 3, 11, 3, 20, 21, 22, 3],
        [2, 12, 13, 3, 14, 3, 0, 0, 0],
    ]
    assert mask.tolist() == [[True] * 9, [True] * 6 + [False] * 3]
    assert segments[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert segments[1, :6].tolist() == [0, 0, 0, 0, 1, 1]


def test_concat_cuts_what_does_not_fit() -> None:
    questions, facts = padded_batch()
    model = tiny("concat", max_position_embeddings=12)
    assert model(questions, fact_ids=facts).isfinite().all()
    with pytest.raises(ValueError, match="max_position_embeddings 12"):
        model(tokens(B, C, 13))


# ------------------------------------------------------------------ kformer.py: the whole model


@pytest.mark.parametrize("inject", ["attention", "ffn"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_without_facts_it_is_the_plain_encoder_bit_for_bit(inject: str, model_type: str) -> None:
    model, plain = tiny(inject, model_type=model_type), tiny("none", model_type=model_type)
    plain.load_state_dict(model.state_dict(), strict=False)
    questions, facts = padded_batch()
    expected = plain(questions)
    assert torch.equal(model(questions), expected), "no facts"
    assert torch.equal(model(questions, fact_ids=torch.zeros_like(facts)), expected), "empty slots"
    assert torch.equal(model(questions, fact_ids=facts[:, :0]), expected), "a list of no facts"
    facts[1] = 0
    mixed = model(questions, fact_ids=facts)
    assert torch.equal(mixed[1], expected[1]), "empty slots beside another question's facts"
    assert (mixed[0] != expected[0]).all()


def depends_on_its_own_alone(model: nn.Module) -> None:
    """Asserts that neither other questions nor more padding change a question's scores."""
    for questions, facts in (padded_batch(), full_batch()):
        scores = model(questions, fact_ids=facts)
        others = facts.clone()
        others[1:] = tokens(B - 1, N, L, seed=9)
        change = biggest_change(model(questions, fact_ids=others)[0], scores[0])
        assert change < 1e-9, f"another question's facts changed a score by {change:.1e}"
        change = biggest_change(model(questions[:1], fact_ids=facts[:1]), scores[:1])
        assert change < 1e-9, f"being alone in the batch changed a score by {change:.1e}"

        more_tokens = torch.cat([questions, torch.zeros(B, C, 3).long()], -1)
        more_words = torch.cat([facts, torch.zeros(B, N, 2).long()], -1)
        more_slots = torch.cat([facts, torch.zeros(B, 1, L).long()], -2)
        for what, q, f in (
            ("question", more_tokens, facts),
            ("fact", questions, more_words),
            ("list of facts", questions, more_slots),
        ):
            change = biggest_change(model(q, fact_ids=f), scores)
            assert change < 1e-9, f"padding behind the {what} changed a score by {change:.1e}"


def every_fact_counts(model: nn.Module) -> None:
    """Asserts that changing any one fact that isn't empty changes its question's scores."""
    for padding, (questions, facts) in ((True, padded_batch()), (False, full_batch())):
        scores = model(questions, fact_ids=facts)
        for row, n in facts.any(-1).nonzero().tolist():
            changed = facts.clone()
            changed[row, n, 0] = 5 + (changed[row, n, 0] - 4) % 45
            change = biggest_change(model(questions, fact_ids=changed)[row], scores[row])
            assert change > 1e-6, f"fact {n} of question {row} doesn't count, {padding=}"


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_scores_depend_on_the_own_question_and_facts_alone(inject: str, model_type: str) -> None:
    depends_on_its_own_alone(tiny(inject, model_type=model_type))


@pytest.mark.parametrize("inject", ["attention", "ffn"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_every_fact_counts_in_every_layer(inject: str, layer: int) -> None:
    every_fact_counts(tiny(inject, inject_layers=(layer,)))


def test_every_fact_counts_in_concat() -> None:
    every_fact_counts(tiny("concat"))


class ReleasedAttention(nn.Module):
    """The prefix as the release has it, put back in front of our own keys and values.

    multihead_attention.py prepends ones to a mask in which one means "ignore", and reshapes facts
    (B, N, D) as if they were (N, B, D). Only where no row has padding is there no mask.
    """

    def __init__(self, ours: SelfAttention) -> None:
        super().__init__()
        self.ours, self.num_heads = ours, ours.num_heads

    def forward(
        self, x: Tensor, mask: Tensor, prefix: tuple[Tensor, Tensor, Tensor],
        wanted: int | None = None,
    ) -> Tensor:  # fmt: skip
        (K, V, _), ours = prefix, self.ours
        rows = x.flatten(0, -3)  # (B C, T, D)
        K, V = (f.expand(*x.shape[:-2], -1, -1).flatten(0, -3) for f in (K, V))  # (B C, N, D)
        K, V = (f.reshape(f.shape[1], f.shape[0], D).transpose(0, 1) for f in (K, V))
        keys = ours.heads(torch.cat([K, ours.key(rows)], 1))
        values = ours.heads(torch.cat([V, ours.value(rows)], 1))
        q = ours.heads(ours.query(rows[:, :wanted]))
        scores = q @ keys.mT / math.sqrt(q.shape[-1])
        if not mask.all():
            ones = torch.ones(len(rows), K.shape[1], dtype=torch.bool)
            ignore = torch.cat([ones, ~mask.flatten(0, -2)], 1)
            scores = scores.masked_fill(ignore[:, None, None], -math.inf)
        out = scores.softmax(-1) @ values
        return ours.output(out.transpose(-3, -2).flatten(-2)).unflatten(0, x.shape[:-2])


def complaint(check: Callable, model: nn.Module) -> str:
    try:
        check(model)
    except AssertionError as error:
        return str(error).split("\n")[0]
    return "nothing"


def test_the_released_attention_baseline_fails_these_checks() -> None:
    model = tiny("attention", inject_layers=(2,))
    model.encoder.layer[2].attention = ReleasedAttention(model.encoder.layer[2].attention)
    for check, fault in (
        (depends_on_its_own_alone, "another question's facts changed a score"),  # they leak in
        (every_fact_counts, "doesn't count, padding=True"),  # with padding, no fact is seen at all
    ):
        if fault not in (said := complaint(check, model)):
            fail(f"{check.__name__} says {said}, and not that {fault}: that fault is mended.")
    questions, facts = padded_batch()
    others = tokens(B, N, L, seed=9)
    assert torch.equal(model(questions, fact_ids=facts), model(questions, fact_ids=others))


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_the_order_of_the_facts_does_not_matter(inject: str) -> None:
    model, (questions, facts) = tiny(inject), padded_batch()
    scores = model(questions, fact_ids=facts)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        assert biggest_change(model(questions, fact_ids=facts[:, order]), scores) < 1e-9


@pytest.mark.parametrize("inject", ["concat", "attention", "ffn"])
def test_shared_facts_equal_the_same_facts_for_each_choice(inject: str) -> None:
    model, (questions, facts) = tiny(inject), padded_batch()
    repeated = facts.unsqueeze(1).expand(B, C, N, L)
    shared = model(questions, fact_ids=facts)
    assert biggest_change(shared, model(questions, fact_ids=repeated)) < 1e-9
    own = repeated.clone()
    own[:, 1] = tokens(B, N, L, seed=9)
    change = (model(questions, fact_ids=own) - shared).abs()
    assert change[:, 0].max() < 1e-9, "choice 0 kept its facts"
    assert change[:, 1].min() > 1e-5, "choice 1 got others"


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_scores_alone_are_the_same_scores_with_the_same_gradients(inject: str) -> None:
    model, (questions, facts), found = tiny(inject, inject_layers=(0, 2)), padded_batch(), []
    for scores_only in (False, True):
        model.zero_grad()
        scores = model(questions, fact_ids=facts, scores_only=scores_only)
        cross_entropy(scores, torch.tensor([0, 1, 1])).backward()
        fired = [b.attention.fact_scores if inject == "attention" else b.ffn.fact_scores
                 for b in model.encoder.layer]  # fmt: skip
        found.append((scores, [p.grad for p in model.parameters()], fired))
    (full, gradients, fired), (alone, same_gradients, fired_alone) = found
    assert biggest_change(alone, full) < 1e-9
    for gradient, same in zip(gradients, same_gradients, strict=True):
        assert (gradient is None and same is None) or biggest_change(gradient, same) < 1e-9
    if inject in ("attention", "ffn"):
        assert biggest_change(fired_alone[0], fired[0]) < 1e-9
        assert fired_alone[2].shape == (B, C, 1, N), "above, nothing but [CLS] is worked out"
        assert biggest_change(fired_alone[2], fired[2][..., :1, :]) < 1e-9


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_gradients_reach_the_facts_and_their_projections(inject: str) -> None:
    model, (questions, facts) = tiny(inject, inject_layers=(0, 2)), padded_batch()
    cross_entropy(model(questions, fact_ids=facts), torch.tensor([0, 1, 1])).backward()
    for layer in (0, 2):
        for name in ("Wk.weight", "Wk.bias", "Wv.weight", "Wv.bias"):
            gradient = model.encoder.layer[layer].get_parameter(name).grad
            assert gradient is not None, f"layer {layer}, {name}"
            assert gradient.any(), f"layer {layer}, {name}"
    used = model.fact_embeddings.weight.grad.any(-1)
    expected = torch.zeros_like(used)
    expected[facts[facts != 0]] = True
    assert torch.equal(used, expected), "exactly the words of the facts get a gradient"


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_gradcheck(inject: str) -> None:
    """Analytic against numeric gradients in double precision, through the whole model."""
    sizes = {"hidden_size": 4, "num_hidden_layers": 2, "intermediate_size": 3}
    model = tiny(inject, inject_layers=(0, 1), **sizes)
    questions, facts = tokens(1, 2, 3), tokens(1, 2, 2, seed=2)
    names = [name for name, _ in model.named_parameters()]

    def scores(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, parameters, (questions, None, None, facts))

    values = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(scores, values, fast_mode=True)


def test_fact_embeddings_start_as_a_copy_with_a_life_of_its_own() -> None:
    model = Kformer(replace(TINY, inject="ffn"))
    words, facts = model.embeddings.word_embeddings.weight, model.fact_embeddings.weight
    assert torch.equal(words, facts)
    assert words.data_ptr() != facts.data_ptr()


def test_roberta_counts_positions_behind_the_padding_id() -> None:
    embeddings = Kformer(replace(TINY, model_type="roberta", pad_token_id=1)).embeddings
    ids = torch.tensor([[10, 11, 12, 1, 1]])
    assert embeddings.positions(ids).tolist() == [[2, 3, 4, 1, 1]]
    embeddings = Kformer(TINY).embeddings
    assert embeddings.positions(ids).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inject": "fnn"}, 'inject is "fnn"'),
        ({"model_type": "gpt2"}, 'model_type is "gpt2"'),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"pad_token_id": 50}, "pad_token_id 50 must be below vocab_size 50"),
        ({"max_position_embeddings": 1, "model_type": "roberta"}, "leaves no room for a token"),
        ({"inject_layers": (1, 3)}, "between 0 and 2"),
        ({"num_facts": 0}, "num_facts is 0"),
    ],
)
def test_a_config_that_cannot_work_says_why(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **fields)


def test_default_layers_are_the_top_ones() -> None:
    for layers, expected in ((1, (0,)), (2, (1,)), (3, (1, 2)), (12, (9, 10, 11))):
        assert KformerConfig(num_hidden_layers=layers).inject_layers == expected


def test_facts_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fact_ids \(3, 5\) must have one dimension more"):
        Kformer(replace(TINY, inject="ffn"))(tokens(B, T), fact_ids=tokens(B, L))


# ------------------------------------------------------------------ load_weights.py: the weights

REFERENCE = HERE / "data" / "reference"  # written by transformers, see data/make_reference.py
KINDS = ["bert", "roberta"]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a reference folder, to be changed."""
    return Path(shutil.copytree(REFERENCE / request.param, tmp_path / request.param))


def change_tensors(folder: Path, change: Callable[[str, Tensor], dict[str, Tensor]]) -> None:
    """Each tensor of the folder is replaced by those that `change` makes of its name and itself."""
    path, changed = folder / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        changed |= change(name, tensor)
    save_file(changed, path)


def change_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields))


def hidden_states(model: Kformer, *inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    """What comes out of the embeddings and of each layer, and the scores."""
    states, modules = [], [model.embeddings, *model.encoder.layer]
    hooks = [m.register_forward_hook(lambda _, __, out: states.append(out)) for m in modules]
    with torch.no_grad():
        scores = model(*inputs)
    for hook in hooks:
        hook.remove()
    return states, scores


def same_as_transformers(folder: Path, tolerance: float = 2e-5) -> None:
    """Asserts that hidden states and scores are those of expected.safetensors, layer by layer."""
    expected = load_file(folder / "expected.safetensors")
    inputs = [expected.get(n) for n in ("input_ids", "attention_mask", "token_type_ids")]
    states, scores = hidden_states(load_pretrained(folder)[0], *inputs)
    for i, state in enumerate(states):
        where = f"layer {i - 1}" if i else "the embeddings"
        change = biggest_change(state, expected[f"hidden.{i}"])
        assert change < tolerance, f"first to differ: {where}, by {change:.1e}"
    change = biggest_change(scores, expected["scores"])
    assert change < tolerance, f"hidden states agree, but the scores differ by {change:.1e}"


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_scores_are_those_of_transformers(kind: str) -> None:
    assert not load_file(REFERENCE / kind / "expected.safetensors")["attention_mask"].all()
    same_as_transformers(REFERENCE / kind)


def test_the_first_layer_to_differ_is_named(folder: Path) -> None:
    change_tensors(folder, lambda n, t: {n: t.sin() if "layer.1.output.dense.bias" in n else t})
    with pytest.raises(AssertionError, match="first to differ: layer 1, by"):
        same_as_transformers(folder)


LAYOUTS = {
    "no prefix": lambda name, t: {re.sub(r"^(bert|roberta)\.", "", name): t},
    "the other prefix": lambda name, t: {re.sub(r"^bert\.", "roberta.", name): t},
    "gamma and beta": lambda name, t: {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
    },
    "extras": lambda name, t: {
        name: t,
        "bert.embeddings.position_ids": torch.arange(40).unsqueeze(0),
        "cls.predictions.transform.LayerNorm.gamma": torch.zeros(16),
        "bert.encoder.layer.0.gamma": torch.zeros(1),
        "classifier.dense.weight": torch.zeros(16, 16),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(layout: str, folder: Path) -> None:
    change_tensors(folder, LAYOUTS[layout])
    same_as_transformers(folder)


def test_shards_are_put_together(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    shards = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    places = {name: shards[i % 2] for i, name in enumerate(tensors)}
    for shard in shards:
        save_file({n: t for n, t in tensors.items() if places[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    same_as_transformers(folder)
    (folder / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"the shard '{shards[1]}' is missing"):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_load_as_float32(dtype: torch.dtype, folder: Path) -> None:
    plain = load_pretrained(folder)[0].state_dict()
    change_tensors(folder, lambda name, tensor: {name: tensor.to(dtype)})
    for name, tensor in load_pretrained(folder)[0].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, plain[name].to(dtype).float()), name


def test_every_tensor_is_in_one_of_three_lists(folder: Path) -> None:
    """A folder with extras, without a pooler, and with a head for three classes."""
    change_tensors(folder, LAYOUTS["extras"])
    change_tensors(folder, lambda n, t: {} if "pooler" in n else {n: t})
    three = {"classifier.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)}
    change_tensors(folder, lambda n, t: {n: three.get(n, t)})
    model, tokenizer, report = open_folder(folder, inject="ffn", inject_layers=(0, 2))
    assert model.config.sep_token_id == tokenizer.sep_token_id
    modules = ["encoder.layer.0.Wk", "encoder.layer.0.Wv", "encoder.layer.2.Wk"]
    modules += ["encoder.layer.2.Wv", "pooler", "classifier"]
    new = {f"{module}.{parameter}" for module in modules for parameter in ("weight", "bias")}
    assert set(report.new) == new | {"fact_embeddings.weight"}
    assert sorted(report.loaded + report.new) == sorted(model.state_dict())
    assert set(report.unused) == {
        "bert.embeddings.position_ids", "cls.predictions.transform.LayerNorm.gamma",
        "bert.encoder.layer.0.gamma", "classifier.dense.weight", *three,
    }  # fmt: skip


def test_long_lists_are_grouped_by_layer() -> None:
    names = [f"encoder.layer.{i}.ffn.W1.{p}" for i in (0, 1, 10, 2) for p in ("weight", "bias")]
    assert grouped(names) == ["encoder.layer.0,1,2,10.ffn.W1.bias/weight"]
    names = [f"encoder.layer.{i}.Wk.bias" for i in (3, 4, 5)]
    assert grouped([*names, "pooler.bias"]) == ["encoder.layer.3-5.Wk.bias", "pooler.bias"]


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_facts_injected_into_a_checkpoint_start_from_its_words(inject: str, folder: Path) -> None:
    plain, model = load_pretrained(folder)[0], load_pretrained(folder, inject=inject)[0]
    assert torch.equal(model.fact_embeddings.weight, plain.embeddings.word_embeddings.weight)
    assert model.fact_embeddings.weight is not model.embeddings.word_embeddings.weight
    facts = torch.randn(N, 16)
    assert torch.equal(model.encoder.layer[2].Wk(facts), facts), "a key starts as the fact itself"


def test_the_zero_gate_of_ffn_is_the_plain_encoder_and_can_learn(folder: Path) -> None:
    plain, config = load_pretrained(folder)[0], load_config(folder, inject="ffn")
    values = attempt("fresh", load_weights.fresh, "encoder.layer.2.Wv.weight", (16, 16), {}, config)
    compare("fresh", values, torch.zeros(16, 16), "Wv = 0 is how the ffn of a checkpoint starts.")
    model, _ = attempt("fresh", load_pretrained, folder, inject="ffn")
    model.classifier.load_state_dict(plain.classifier.state_dict())
    questions, facts = tokens(B, C, T), tokens(B, N, L, seed=2)
    scores, block = model(questions, fact_ids=facts), model.encoder.layer[2]
    compare("fresh", scores, plain(questions),
            "Scores at the start: with Wv = 0 and bv = 0 every fact's value is 0, so that facts "
            "change nothing yet.", limit=0)  # fmt: skip
    cross_entropy(scores, torch.tensor([0, 1, 1])).backward()
    if not block.ffn.fact_scores.all() or not block.Wv.weight.grad.any():
        fail("fresh: no fact fires, or no gradient reaches Wv: where Wk is 0 as well, x Kᵀ is 0, "
             "and the gate can't open.")  # fmt: skip


def tiny_tokenizer() -> WordPiece:
    words = [f"w{i}" for i in range(5, TINY.vocab_size)]
    return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_what_is_saved_is_loaded_bit_for_bit(inject: str, tmp_path: Path) -> None:
    model, tokenizer, (questions, facts) = tiny(inject).float(), tiny_tokenizer(), padded_batch()
    save_pretrained(model, tokenizer, tmp_path)
    loaded, again = load_pretrained(tmp_path)
    assert loaded.config == model.config
    assert again.vocab == tokenizer.vocab
    assert torch.equal(loaded(questions, fact_ids=facts), model(questions, fact_ids=facts))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip


def test_a_saved_folder_is_the_one_it_was(folder: Path, tmp_path: Path) -> None:
    """Scores and ids as transformers has them, after going through our own files."""
    save_pretrained(*load_pretrained(folder), tmp_path / "saved")
    for name in ("expected.safetensors", "texts.jsonl"):
        shutil.copy(folder / name, tmp_path / "saved")
    same_as_transformers(tmp_path / "saved")
    same_ids_as_transformers(tmp_path / "saved")


def test_who_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    save_pretrained(tiny("none"), tiny_tokenizer(), tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_saving_over_another_folder_leaves_nothing_of_its_tokenizer(tmp_path: Path) -> None:
    for kind in KINDS:
        shutil.copytree(REFERENCE / kind, tmp_path / kind)
    save_pretrained(*load_pretrained(tmp_path / "bert"), tmp_path / "roberta")
    assert load_pretrained(tmp_path / "roberta")[1].vocab == load_tokenizer(tmp_path / "bert").vocab


@pytest.mark.parametrize("failing", [1, 2, 3, 4, "save_file"])
def test_a_crash_while_writing_leaves_the_folder_readable(
    failing: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new state of the same model is written over the old one, and something fails."""
    old, new, tokenizer = tiny("ffn").float(), tiny("ffn").float(), tiny_tokenizer()
    new.classifier.bias.data += 1
    save_pretrained(old, tokenizer, tmp_path)
    calls, replace_file = itertools.count(1), os.replace

    def crash(*arguments: object, **_: object) -> None:
        if failing == "save_file":
            raise SafetensorError("disk full")
        if failing == next(calls):
            raise OSError("disk full")
        replace_file(*arguments)

    place = "load_weights.save_file" if failing == "save_file" else "os.replace"
    monkeypatch.setattr(place, crash)
    (tmp_path / "writing-of-one-who-was-killed").mkdir()
    with pytest.raises(OSError, match=f"{tmp_path}: can't be written .*disk full"):
        save_pretrained(new, tokenizer, tmp_path)
    bias = load_pretrained(tmp_path)[0].classifier.bias
    assert torch.equal(bias, (old if failing in (1, "save_file") else new).classifier.bias)
    assert len(list(tmp_path.iterdir())) == 4, "what was half written is gone"


def test_tensors_have_the_names_of_transformers(tmp_path: Path) -> None:
    """So that BertForMultipleChoice opens what is written here, and the other way round."""
    model = tiny("none", num_hidden_layers=1, inject_layers=(0,)).float()
    save_pretrained(model, tiny_tokenizer(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    block = model.encoder.layer[0]
    expected = {
        "bert.embeddings.word_embeddings": model.embeddings.word_embeddings,
        "bert.embeddings.position_embeddings": model.embeddings.position_embeddings,
        "bert.embeddings.token_type_embeddings": model.embeddings.token_type_embeddings,
        "bert.embeddings.LayerNorm": model.embeddings.norm,
        "bert.encoder.layer.0.attention.self.query": block.attention.query,
        "bert.encoder.layer.0.attention.self.key": block.attention.key,
        "bert.encoder.layer.0.attention.self.value": block.attention.value,
        "bert.encoder.layer.0.attention.output.dense": block.attention.output,
        "bert.encoder.layer.0.attention.output.LayerNorm": block.attention_norm,
        "bert.encoder.layer.0.intermediate.dense": block.ffn.W1,
        "bert.encoder.layer.0.output.dense": block.ffn.W2,
        "bert.encoder.layer.0.output.LayerNorm": block.ffn_norm,
        "bert.pooler.dense": model.pooler,
        "classifier": model.classifier,
    }
    assert {name.rsplit(".", 1)[0] for name in tensors} == set(expected)
    for name, module in expected.items():
        for parameter, value in module.named_parameters():
            assert torch.equal(tensors[f"{name}.{parameter}"], value), name


def test_names_in_a_checkpoint_become_ours() -> None:
    """With or without a prefix; of gamma and beta only those of a LayerNorm."""
    for theirs, ours in {
        "bert.encoder.layer.1.output.LayerNorm.gamma": "encoder.layer.1.ffn_norm.weight",
        "encoder.layer.1.attention.output.LayerNorm.weight":
            "encoder.layer.1.attention_norm.weight",
        "roberta.encoder.layer.0.attention.self.query.bias": "encoder.layer.0.attention.query.bias",
        "roberta.encoder.layer.11.attention.output.dense.bias":
            "encoder.layer.11.attention.output.bias",
        "encoder.layer.0.intermediate.dense.weight": "encoder.layer.0.ffn.W1.weight",
        "bert.encoder.layer.0.output.dense.weight": "encoder.layer.0.ffn.W2.weight",
        "embeddings.LayerNorm.beta": "embeddings.norm.bias",
        "bert.embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
        "bert.pooler.dense.weight": "pooler.weight",
        "classifier.weight": "classifier.weight",
        "encoder.layer.0.gamma": "encoder.layer.0.gamma",
        "scaler.beta": "scaler.beta",
        "LayerNorm.gamma.scale": "LayerNorm.gamma.scale",
    }.items():  # fmt: skip
        found = attempt("our_name", our_name, theirs)
        if found != ours:
            fail(f'our_name: "{theirs}" became {found!r}, must be "{ours}".')


# --------------------------------------------------------------- load_weights.py: the tokenizers


def same_ids_as_transformers(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        text, ids = json.loads(line).values()
        found = [tokenizer.vocab[i] for i in tokenizer.encode(text)]
        assert found == [tokenizer.vocab[i] for i in ids], f"{text!r} is split otherwise"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str) -> None:
    same_ids_as_transformers(REFERENCE / kind)


def test_every_form_of_a_vocabulary_is_read(folder: Path) -> None:
    """vocab.txt or vocab.json with merges.txt as saved here, and tokenizer.json made of them."""
    tokenizer = load_tokenizer(folder)
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    for name, text in tokenizer.files().items():
        (folder / name).write_text(text, encoding="utf-8")
    same_ids_as_transformers(folder)
    for name in tokenizer.files():
        (folder / name).unlink()
    (folder / "tokenizer.json").write_text(json.dumps(whole_tokenizer(tokenizer)))
    same_ids_as_transformers(folder)


def whole_tokenizer(tokenizer: Tokenizer) -> dict:
    """What transformers writes as tokenizer.json, as far as it's read."""
    added = [{"id": tokenizer.ids[token["content"]]} | token for token in tokenizer.added]
    model = {"type": "WordPiece", "vocab": tokenizer.ids}
    normalizer = {"type": "BertNormalizer", "lowercase": True, "strip_accents": None}
    splitter = {"type": "BertPreTokenizer"}
    if isinstance(tokenizer, ByteLevelBPE):
        pairs = [pair.split(" ") for pair in tokenizer.merges]
        model = {"type": "BPE", "vocab": tokenizer.ids, "merges": pairs}
        normalizer, splitter = None, {"type": "ByteLevel", "add_prefix_space": False}
    steps = {"normalizer": normalizer, "pre_tokenizer": splitter}
    return {"model": model, "added_tokens": added} | steps


def test_lower_case_is_what_the_folder_says(tmp_path: Path) -> None:
    """tokenizer_config.json before tokenizer.json, lower case where neither says anything."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ete", "Ete", "été", "Été"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")

    def pieces() -> list[str]:
        return [vocab[i] for i in load_tokenizer(tmp_path).encode("Été")]

    assert pieces() == ["ete"]
    config = tmp_path / "tokenizer_config.json"
    for settings, expected in (
        ({"do_lower_case": False}, "Été"),
        ({"do_lower_case": True}, "ete"),
        ({"do_lower_case": True, "strip_accents": False}, "été"),
        ({"do_lower_case": False, "strip_accents": True}, "Ete"),
    ):
        config.write_text(json.dumps(settings))
        assert pieces() == [expected]
        save_pretrained(tiny("none"), load_tokenizer(tmp_path), tmp_path / "saved")
        assert load_tokenizer(tmp_path / "saved").encode("Été") == [vocab.index(expected)]
    config.unlink()
    whole = whole_tokenizer(WordPiece(vocab))
    whole["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert pieces() == ["Été"]
    config.write_text('{"do_lower_case": true}')
    assert pieces() == ["ete"]


def test_wordpiece_cleans_splits_and_takes_the_longest_piece() -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##happi", "##ly", "##h", "cafe", "!", "犬"]
    encode = WordPiece(vocab).encode
    assert encode("Unhappily") == [4, 5, 6]
    assert encode("CAFÉ!\tcafe\u200b犬") == [8, 9, 8, 10]
    assert encode("unhappy café" + "!" * 2) == [1, 8, 9, 9]
    assert encode("un" + "ly" * 49) == [4] + [6] * 49, "100 characters"
    assert encode("un" + "ly" * 49 + "h") == [1], "over 100 characters"
    assert encode("un[SEP]ly") == [4, 3, 1], "a special token in the text is that token"
    assert WordPiece(vocab).decode([4, 5, 6, 9]) == "unhappily !"
    assert WordPiece(vocab, lower=False).encode("Cafe cafe") == [1, 8]


def byte_level(*merges: str, **options: bool) -> ByteLevelBPE:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merged = [pair.replace(" ", "") for pair in merges]
    return ByteLevelBPE([*special, *byte_symbols(), *merged], list(merges), **options)


def bpe_pieces(text: str, *merges: str, **options: bool) -> list[str]:
    tokenizer = byte_level(*merges, **options)
    return [tokenizer.vocab[i] for i in tokenizer.encode(text)]


def test_bpe_merges_in_the_order_that_was_learned() -> None:
    assert bpe_pieces("abc", "a b", "b c") == ["ab", "c"]
    assert bpe_pieces("abc", "b c", "a b") == ["a", "bc"]
    assert bpe_pieces("abcab", "a b", "ab c", "abc ab") == ["abcab"]
    assert bpe_pieces("aaaaa", "a a", "aa aa") == ["aaaa", "a"], "from the left"


def test_bpe_splits_as_gpt_2_does() -> None:
    """At spaces, which stay with the word behind them, and between letters, digits and the rest."""
    words = word_pattern().findall
    assert words("I'll say: it's 3rd") == ["I", "'ll", " say", ":", " it", "'s", " 3", "rd"]
    assert words("a  b\n\n c ") == ["a", " ", " b", "\n\n", " c", " "]
    assert words("naïve夜²٣!?") == ["naïve夜", "²٣", "!?"]
    assert words("a\x1cb\u2003c") == ["a", "\x1c", "b", "\u2003", "c"], "U+001C is no space"


def test_a_leading_space_counts_in_bpe() -> None:
    merges = ("o w", "ow l", "Ġ owl")
    assert bpe_pieces("owl owl", *merges) == ["owl", "Ġowl"]
    assert bpe_pieces("owl owl", *merges, add_prefix_space=True) == ["Ġowl", "Ġowl"]
    assert bpe_pieces("\towl", *merges, add_prefix_space=True) == ["Ġ", "ĉ", "owl"]
    assert bpe_pieces("owl <mask>", *merges) == ["owl", "<mask>"], "<mask> takes the space along"


def test_bpe_brings_every_text_back() -> None:
    tokenizer = load_tokenizer(REFERENCE / "roberta")
    rng, codes = random.Random(0), [*range(0xD800), *range(0xE000, 0x110000)]
    for _ in range(300):
        text = "".join(map(chr, rng.sample(codes, 5))) + " the owls"
        assert tokenizer.decode(tokenizer.encode(text)) == text


def merged_in_loops(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The specification: as long as there is one, merge the leftmost pair of the lowest rank."""
    while pairs := [(ranks[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in ranks]:
        _, i = min(pairs)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return parts


def test_bpe_equals_plain_loops() -> None:
    tokenizer, rng = load_tokenizer(REFERENCE / "roberta"), random.Random(0)
    for length in range(1, 200):
        word = "".join(rng.choice("owlmiceatsh") for _ in range(length))
        expected = merged_in_loops(list(word), tokenizer.ranks)
        assert [tokenizer.vocab[i] for i in tokenizer.word_ids(word)] == expected


# ------------------------------------------------------------------ load_weights.py: bad folders


def tokenizer_of_kind(folder: Path) -> None:
    model = {"type": "Unigram", "vocab": [["a", -1.0]]}
    content = {"model": model, "normalizer": None, "pre_tokenizer": {"type": "Metaspace"}}
    (folder / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": []}))


def with_a_gap(tokenizer: WordPiece) -> dict:
    del tokenizer.ids["w7"]
    return whole_tokenizer(tokenizer)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change_bert(**fields: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **fields)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda n, t: {} if n == name else {n: t})


BAD_FOLDERS = {
    "bert: no such folder": lambda f: shutil.rmtree(f),
    "config.json: no such file": lambda f: (f / "config.json").unlink(),
    "config.json: not JSON": lambda f: (f / "config.json").write_text("{"),
    "config.json: must be a JSON object": lambda f: (f / "config.json").write_text("[]"),
    "config.json: not UTF-8": lambda f: (f / "config.json").write_bytes(b"\xff"),
    'config.json: model_type is "gpt2", must be "bert" or "r': change_bert(model_type="gpt2"),
    'config.json: model_type is "a b", must be': change_bert(model_type="a\nb"),
    'config.json: "hidden_act" is \'relu\', only \'gelu\' is known': change_bert(hidden_act="relu"),
    "config.json: hidden_size is '16', must be a whole number": change_bert(hidden_size="16"),
    "config.json: hidden_size 16 can't be divided among num_attention_heads 3": change_bert(
        num_attention_heads=3
    ),
    "config.json: num_hidden_layers is 10000, must be": change_bert(num_hidden_layers=10000),
    "config.json: hidden_dropout_prob is 2, must be at least 0": change_bert(hidden_dropout_prob=2),
    "config.json: inject_layers ('n', 'o') must lie between": change_bert(inject_layers="no"),
    "model.safetensors: no such file": lambda f: (f / "model.safetensors").unlink(),
    "pytorch_model.bin is a pickle, which isn't read here. To convert it": only_a_pickle,
    "model.safetensors: not a whole safetensors file": lambda f: cut(f / "model.safetensors"),
    "model.safetensors: not a whole": lambda f: (f / "model.safetensors").write_bytes(b""),
    "bert: bert.encoder.layer.2.attention.self.key.bias is missing": without(
        "bert.encoder.layer.2.attention.self.key.bias"
    ),
    "bert: bert.encoder.layer.3.attention.self.query.weight is missing": change_bert(
        num_hidden_layers=4
    ),
    "bert.encoder.layer.0.intermediate.dense.bias has shape (24,), but config.json asks for (25,): "
    "intermediate_size 25": change_bert(intermediate_size=25),
    "position_embeddings.weight has shape (40, 16), but config.json asks for (41, 16): "
    "max_position_embeddings 41": change_bert(max_position_embeddings=41),
    "holds torch.int64, must hold floating-point numbers": lambda f: change_tensors(
        f, lambda n, t: {n: t.long()}
    ),
    "is there twice": lambda f: change_tensors(f, lambda n, t: {n: t, n[5:]: t.clone()}),
    "bert: no tokenizer.json, vocab.txt or vocab.json": lambda f: (f / "vocab.txt").unlink(),
    "vocab.txt: the token [PAD] is missing": lambda f: (f / "vocab.txt").write_text("a\nb\n"),
    "the vocabulary has 96 tokens, but vocab_size in config.json is 95": lambda f: (
        (f / "vocab.txt").open("a").write("more\n")
    ),
    "the vocabulary has 92 tokens, but": lambda f: cut(f / "vocab.txt"),
    "[PAD] has the id 0, but pad_token_id in config.json is 1": change_bert(pad_token_id=1),
    "tokenizer.json: a tokenizer of the kind Unigram + Metaspace; read are": tokenizer_of_kind,
    "tokenizer.json: the ids of the tokens must be 0, 1, 2, ... without gaps": lambda f: (
        (f / "tokenizer.json").write_text(json.dumps(with_a_gap(tiny_tokenizer())))
    ),
    "tokenizer.json: not as transformers writes it (KeyError('model'))": lambda f: (
        (f / "tokenizer.json").write_text("{}")
    ),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_a_broken_folder_gets_one_line(message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE / "bert", tmp_path / "bert"))
    BAD_FOLDERS[message](folder)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as error:
        load_pretrained(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_flipped_bytes_give_a_model_or_one_line(folder: Path) -> None:
    """400 times a byte or two of a random file; half of the flips hit the first 4,000 bytes."""
    rng, refused = random.Random(0), []
    files = sorted(p for p in folder.iterdir() if "expected" not in p.name and p.suffix != ".jsonl")
    for _ in range(400):
        path = rng.choice(files)
        whole = path.read_bytes()
        flipped, end = bytearray(whole), rng.choice((4000, len(whole)))
        for _ in range(rng.randint(1, 2)):
            flipped[rng.randrange(min(end, len(whole)))] = rng.randrange(256)
        path.write_bytes(flipped)
        try:
            model, tokenizer = load_pretrained(folder)
            model(torch.tensor([[tokenizer.encode("the owl's nest")]]))
        except ValueError as error:
            refused.append(str(error))
        path.write_bytes(whole)
    assert 40 < len(refused) < 360, "of use only if some flips are noticed and some are harmless"
    for message in refused:
        assert message.startswith(str(folder))
        assert len(message.splitlines()) == 1, message


def test_the_report_says_what_is_in_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["load_weights.py", str(folder), "--inject", "ffn"])
    load_weights.main()
    said = capsys.readouterr().out
    for part in (
        f"{folder.name}, injection ffn: 3 layers, hidden size 16",
        "loaded     57\n",
        "unused     0\n",
        "new        9\n             encoder.layer.1,2.Wk.bias/weight\n",
    ):
        assert part in said
    (folder / "config.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        load_weights.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {folder / 'config.json'}: no such file\n"


# ------------------------------------------- load_weights.py beside transformers and tokenizers


@pytest.fixture
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="the references above hold without it")


RANDOM_SHAPES = [
    {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 7},
    {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 96},
]


@pytest.mark.parametrize("shape", RANDOM_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_random_models_agree_both_ways(
    kind: str, shape: dict, transformers: ModuleType, tmp_path: Path
) -> None:
    """What transformers writes opens here, what is written here opens there; the same scores."""
    shutil.copytree(REFERENCE / kind, tmp_path / "theirs")
    name, size = kind.capitalize(), load_tokenizer(REFERENCE / kind)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(size.vocab), initializer_range=0.2, max_position_embeddings=40, **shape
    )
    theirs = getattr(transformers, f"{name}ForMultipleChoice")(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours, tokenizer = load_pretrained(tmp_path / "theirs")
    save_pretrained(ours, tokenizer, tmp_path / "ours")
    reopened = type(theirs).from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(5, len(tokenizer.vocab), (3, 2, 9))
    ids[0, 1, 4:] = ids[2, 0, 7:] = tokenizer.pad_token_id
    inputs = {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}
    with torch.no_grad():
        scores = theirs(**inputs).logits
        assert biggest_change(ours(**inputs), scores) < 2e-5
        assert biggest_change(reopened(**inputs).logits, scores) < 1e-6  # rounding alone
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for line in (REFERENCE / kind / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        text, expected = json.loads(line).values()
        assert opened.encode(text, add_special_tokens=False) == expected, text


@pytest.fixture(scope="module")
def characters() -> list[str]:
    """All that Unicode has a name for, less what tokenizers and Python have from different years:
    marks, punctuation and format characters that are newer than Unicode 3.2 or changed since.
    """

    def may_differ(c: str) -> bool:
        now, then = unicodedata.category(c), unicodedata.ucd_3_2_0.category(c)
        return now != then and any(k in ("Mn", "Mc", "Cf") or k[0] == "P" for k in (now, then))

    everything = (chr(i) for i in range(sys.maxunicode + 1))
    known = [c for c in everything if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    return [c for c in known if not may_differ(c)]


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece_treats_every_character_as_tokenizers_does(
    lower: bool, characters: list[str]
) -> None:
    """With a vocabulary of all characters, alone, between letters, and in random strings."""
    lib = pytest.importorskip("tokenizers", reason="the references above hold without it")
    ours = WordPiece([*WordPiece.special, *characters, *(f"##{c}" for c in characters)], lower)
    theirs = lib.Tokenizer(lib.models.WordPiece(ours.ids, unk_token="[UNK]"))
    theirs.normalizer = lib.normalizers.BertNormalizer(lowercase=lower)
    theirs.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
    texts = [f"{c} a{c}B" for c in characters]
    rng, often = random.Random(0), [*" aÉΣςİ\u0301\u200d犬!", *characters[:800]]
    for _ in range(5000):
        pool = rng.choice((often, characters))
        texts.append("".join(rng.choice(pool) for _ in range(rng.randrange(20))))
    for text, expected in zip(texts, theirs.encode_batch(texts), strict=True):
        found = [ours.vocab[i] for i in ours.encode(text)]
        assert found == expected.tokens, f"{text!r} is split otherwise"


def test_bpe_splits_every_character_as_tokenizers_does(characters: list[str]) -> None:
    lib = pytest.importorskip("tokenizers", reason="the references above hold without it")
    split = lib.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    ours = byte_level()
    for c in characters:
        text = f"a{c}1 {c}'s"
        words = ["".join(ours.symbols[b] for b in w.encode()) for w in word_pattern().findall(text)]
        assert words == [word for word, _ in split(text)], f"{text!r} is split otherwise"


# ---------------------------------------------------------------------------------------- data/


@pytest.fixture(scope="module")
def toy() -> dict[str, list[Question]]:
    return {s: read_questions(HERE / "data/toy" / f"{s}.jsonl") for s in make_toy.SIZES}


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
            question = release(json.loads(line), None)
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


# ---------------------------------------------------------------------------------- questions.py

OWL = ("What eats mice?", ["the owl", "the oak", "rain"])
FORMATS = {
    "release": {
        "question": OWL[0], "choices": [{"text": c} for c in OWL[1]], "AnswerKey": "A",
        "knowledges": ["Owls eat mice."],
    },
    "release, facts of each choice": {
        "context": "", "question": OWL[0], "answer_idx": "A",
        "choices": [{"text": c, "knowledge": [f"About {c}."]} for c in OWL[1]],
    },
    "social_iqa": {"context": "", "question": OWL[0]}
    | {f"answer{letter}": choice for letter, choice in zip("ABC", OWL[1], strict=True)},
    "stem": {
        "question": {
            "stem": OWL[0],
            "choices": [{"label": str(i), "text": c} for i, c in enumerate(OWL[1], 1)],
        },
        "answerKey": "1",
    },
    "medqa": {
        "question": OWL[0], "options": dict(zip("ABC", OWL[1], strict=True)), "answer_idx": "A"
    },
}  # fmt: skip


def write_lines(path: Path, *rows: dict | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_by_its_keys(name: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS[name])
    if name == "social_iqa":
        write_lines(tmp_path / "train-labels.lst", "1")
    facts = {"release": [["Owls eat mice."]]}.get(name, [[]])
    if "each choice" in name:
        facts = [["About the owl."], ["About the oak."], ["About rain."]]
    assert read_questions(path) == [Question("", *OWL, 0, facts)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_test_set_needs_no_answers_but_training_does(name: str, tmp_path: Path) -> None:
    keys = ("AnswerKey", "answerKey", "answer_idx")
    row = {key: value for key, value in FORMATS[name].items() if key not in keys}
    path = write_lines(tmp_path / "test.jsonl", row)
    assert read_questions(path, answers_needed=False)[0].answer is None
    with pytest.raises(ValueError, match=r"test.jsonl, line 1: the answer is missing"):
        read_questions(path)


BAD_LINES = {
    "line 2: not JSON": "{",
    "line 2: must be a JSON object": "[]",
    'line 2: has neither "choices" nor "question.stem", "options" or "answerA"': {"question": "?"},
    'line 2: "text" is missing or not a text': {"question": "?", "choices": [{"text": 1}] * 2},
    'line 2: "choices" is missing or not a list': {"question": "?", "choices": "ab"},
    'line 2: "context" is missing or not a text': FORMATS["release"] | {"context": 1},
    'line 2: "knowledges" must be a list of texts': FORMATS["release"] | {"knowledges": [1]},
    "line 2: needs at least two choices, has 1": {
        "question": "?", "choices": [{"text": "a"}], "AnswerKey": "A"
    },
    "line 2: needs at least two choices, has 0": {"question": "?", "choices": []},
    "line 2: the answer must be one of A, B, C, not 'D'": FORMATS["release"] | {"AnswerKey": "D"},
    "line 2: the answer must be one of A, B, C, not 1": FORMATS["release"] | {"AnswerKey": 1},
    "line 2: the answer is missing": FORMATS["release"] | {"AnswerKey": ""},
    "line 2: in another format than the lines before": FORMATS["medqa"],
    "surrogates not allowed": FORMATS["release"] | {"question": "\ud83e"},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_LINES)
def test_a_bad_line_is_named(message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS["release"], BAD_LINES[message])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(FileNotFoundError, match=r"train.jsonl: no such file"):
        read_questions(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train.jsonl: is empty"):
        read_questions(path)
    path.write_bytes(json.dumps(FORMATS["release"]).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: not UTF-8 text"):
        read_questions(path)
    write_lines(path, FORMATS["social_iqa"])
    write_lines(tmp_path / "train-labels.lst", "1", "2")
    with pytest.raises(ValueError, match=r"train-labels.lst: 2 labels for 1 questions"):
        read_questions(path)
    write_lines(tmp_path / "facts.txt", " ", "")
    with pytest.raises(ValueError, match=r"facts.txt: no facts in it"):
        read_facts(tmp_path / "facts.txt")


def bm25_in_loops(query: str, fact: str, facts: list[str], k1: float, b: float) -> float:
    """The specification: Robertson and Zaragoza's formula, word by word."""
    split = [words(f) for f in facts]
    mean, score = sum(map(len, split)) / len(split), 0.0
    for word in words(query):
        n, having = words(fact).count(word), sum(word in f for f in split)
        idf = math.log(1 + (len(facts) - having + 0.5) / (having + 0.5))
        damping = k1 * (1 - b + b * len(words(fact)) / mean)
        score += idf * n * (k1 + 1) / (n + damping) if n else 0
    return score


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_bm25_equals_plain_loops(k1: float, b: float) -> None:
    drawn, facts = random.Random(0), ["", "Owls owls owls eat."]
    for _ in range(30):
        facts += make_toy.make_question(drawn, "test", "plain")["knowledges"]
    index = attempt("BM25", BM25, facts, k1, b)
    for query in ("Where is Mira's school?", "Does the owl eat owls?", "of the", ""):
        expected = [bm25_in_loops(query, fact, facts, k1, b) for fact in facts]
        found = attempt("BM25.scores", index.scores, query)
        found = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        compare("BM25.scores", found, torch.tensor(expected),
                f'One for each fact, {k1=}, {b=}, "{query}": the formula is in the docstring, fact '
                "0 is empty, fact 1 has a word three times.")  # fmt: skip


def test_the_best_facts_come_first_and_of_equals_the_first() -> None:
    scores = np.array([0, 2, 1, 3, 1, 1, 0], np.float32)
    assert best(scores, 3) == [3, 1, 2]
    assert best(scores, 4) == [3, 1, 2, 4]
    assert best(scores, 99) == [3, 1, 2, 4, 5], "a fact without a common word is none"
    many = np.tile(np.array([1, 2], np.float32), 500)
    assert best(many, 600) == [*range(1, 1000, 2), *range(0, 200, 2)]


def test_each_choice_gets_the_facts_for_it_and_the_question() -> None:
    facts = ["Owls eat mice.", "Oaks are trees.", "Rain falls.", "Mice eat oaks."]
    question = Question("", *OWL, 0, [[]])
    retrieve([question], facts, 2)
    assert question.facts == [
        ["Owls eat mice.", "Mice eat oaks."],
        ["Mice eat oaks.", "Owls eat mice."],
        ["Rain falls.", "Owls eat mice."],
    ]


def test_words_lose_endings_and_the_common_ones_are_left_out() -> None:
    assert words("The owls were hunting, isn't it?") == ["owl", "hunt", "isn", "t"]
    assert words("ing is us") == ["ing", "us"], "short words keep theirs"


# ----------------------------------------------------------------------------------- evaluate.py


def test_a_question_becomes_one_row_a_choice(toy: dict) -> None:
    tokenizer, question = load_tokenizer(HERE / "data" / "toy"), toy["train"][0]
    encoded = evaluate.encode(question, tokenizer, TINY)
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
    encoded = evaluate.encode(question, tokenizer, model.config)
    assert tokenizer.decode(encoded.input_ids[1]) == "<s>The owl</s>Q: hunts?</s>A: oaks</s>"
    question.context = ""
    without = evaluate.encode(question, tokenizer, model.config)
    assert tokenizer.decode(without.input_ids[1]) == "<s>Q: hunts?</s>A: oaks</s>"
    assert not any(map(any, encoded.token_type_ids))
    assert evaluate.score(model, [encoded, without], torch.float32)[0].isfinite().all()


def test_too_long_a_question_loses_its_beginning_never_the_choice() -> None:
    tokenizer = load_tokenizer(HERE / "data" / "toy")
    question = Question("red " * 50, "hat ?", ["Norwick", "Oakham"], 0, [["red " * 50]])
    short = replace(TINY, max_position_embeddings=8)
    encoded = evaluate.encode(question, tokenizer, short)
    assert tokenizer.decode(encoded.input_ids[1]) == "[CLS] red red hat ? [SEP] oakham [SEP]"
    assert encoded.shortened
    question.context = "red red"
    assert evaluate.encode(question, tokenizer, short).input_ids == encoded.input_ids
    assert not evaluate.encode(question, tokenizer, short).shortened


def ids(*choices: int, facts: int = 1, length: int = 3) -> evaluate.Encoded:
    """A question with one choice for each id, the id repeated `length` times."""
    rows = [[i] * length for i in choices]
    return evaluate.Encoded(rows, [[0] * length for _ in rows], [[[9, 9]]] * facts, 0, False)


def test_questions_of_different_sizes_share_a_batch() -> None:
    """Of 2 and 3 choices, with facts for all of them and for each one; nothing depends on it."""
    model = tiny("ffn")
    questions = [ids(5, 6, 7), ids(8, 9, length=5), ids(5, 6, 7, facts=3, length=2)]
    inputs, answers = evaluate.collate(questions, TINY.pad_token_id, torch.device("cpu"))
    assert inputs["input_ids"].shape == (3, 3, 5)
    assert inputs["fact_ids"].shape == (3, 3, 1, 2)
    assert answers.tolist() == [0, 0, 0]
    scores = evaluate.score(model, questions, torch.float32)[0]
    assert scores[1, 2] == -math.inf, "the choice that isn't there"
    for i, question in enumerate(questions):
        alone = evaluate.score(model, [question], torch.float32)[0][0]
        assert biggest_change(scores[i, : len(alone)], alone) < 1e-6


def test_a_choice_for_which_no_fact_was_found_has_an_empty_slot() -> None:
    found, none = ids(5, 6, facts=2), ids(7, 8)
    found.fact_ids, none.fact_ids = [[[9, 9], [9]], []], [[]]
    inputs, _ = evaluate.collate([found, none], 0, torch.device("cpu"))
    empty = [[0, 0], [0, 0]]
    assert inputs["fact_ids"].tolist() == [[[[9, 9], [9, 0]], empty], [empty, empty]]
    assert evaluate.collate([none], 0, torch.device("cpu"))[0]["fact_ids"].tolist() == [[[[0]]]]


def test_facts_for_all_choices_are_not_repeated() -> None:
    inputs, _ = evaluate.collate([ids(5, 6), ids(7, 8)], 0, torch.device("cpu"))
    assert inputs["fact_ids"].shape == (2, 1, 1, 2)


def test_batches_for_evaluation_hold_2000_tokens_and_every_question_once() -> None:
    rng = random.Random(0)
    data = [ids(*[5] * rng.choice((2, 2, 5, 300)), length=rng.randint(1, 30)) for _ in range(300)]
    batches = list(evaluate.by_length(data, torch.device("cpu")))
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    sizes = []
    for places in batches:
        inputs, _ = evaluate.collate([data[i] for i in places], 0, torch.device("cpu"))
        sizes.append(inputs["input_ids"].numel())
        assert sizes[-1] <= 2000 or len(places) == 1, "too large a question stands alone"
    assert max(sizes) > 2000, "the case is of use only with such a question"
    assert sum(size > 1500 for size in sizes) > 0.9 * len(sizes), "most of them are nearly full"


def test_processes_share_the_questions_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves 0 where others choose, so that the sum over all is what one would choose."""
    segments = [[0] * 20] * 4
    rows = tokens(250, 4, 20).tolist()
    data = [evaluate.Encoded(input_ids, segments, [[]], 0, False) for input_ids in rows]
    model = tiny("none").float()
    whole = evaluate.predictions(model, data, torch.float32)
    sums, parts = [], []
    monkeypatch.setattr(evaluate, "WORLD", 3)
    monkeypatch.setattr(evaluate, "add_up", sums.extend)
    for rank in range(3):
        monkeypatch.setattr(evaluate, "RANK", rank)
        parts.append(evaluate.predictions(model, data, torch.float32))
    assert sum(sums).tolist() == whole
    assert sum(map(bool, whole)) > 100, "the case is of use only if few choose 0"
    assert all(sum(map(bool, part)) < 0.5 * len(data) for part in parts), "none does it all"


def test_baselines_are_what_rules_without_learning_reach() -> None:
    facts = [["the coat is blue"]]
    coat = Question("", "?", ["red hat", "blue coat"], 1, facts)
    coats = [coat, coat, replace(coat, answer=0)]
    hat = Question("a hat", "red?", ["coat", "red hat"], 1, [[]])
    assert evaluate.baselines([coat], coats) == "always choice 2: 66.7%, most common words: 66.7%"
    assert evaluate.baselines(coats, [hat]) == "always choice 2: 100.0%, most common words: 100.0%"


def test_the_facts_that_were_kept_are_named() -> None:
    tokenizer = tiny_tokenizer()
    facts = [[f"w{i} w{i + 1}" for i in range(5, 12)], [f"w{i}" for i in range(20, 22)]]
    question = Question("", "w5 w6 w7", ["w8", "w20"], 0, facts)
    for inject, kept in (("none", 0), ("ffn", 3), ("concat", 3)):
        model = tiny(inject, num_facts=3).float()
        probabilities, used = evaluate.answer(model, tokenizer, question, torch.float32)
        likeliest = probabilities.index(max(probabilities))
        assert len(used) == min(kept, len(facts[likeliest]))
        assert set(used) <= set(facts[likeliest])


def test_a_fact_with_padding_in_its_text_is_still_named() -> None:
    question = Question("", "w5", ["w8", "w20"], 0, [["w5 [PAD] w6", "w7"]])
    model = tiny("ffn").float()
    used = evaluate.answer(model, tiny_tokenizer(), question, torch.float32)[1]
    assert used == ["w5 [PAD] w6", "w7"]


def ask(q: Question) -> evaluate.Encoded:
    return evaluate.encode(q, tiny_tokenizer(), TINY)


def test_the_gold_fact_is_the_only_one_that_names_the_right_choice() -> None:
    facts = ["w5 w8 w6", "w5 W20!", "w88 w5"]
    question = Question("", "w5", ["w8", "w20", "w9", ""], 0, [facts])
    assert evaluate.gold(question) == "w5 w8 w6"
    assert evaluate.gold(replace(question, answer=1)) == "w5 W20!"
    for answer in (2, 3, None):  # named by none, without a word, unknown
        assert evaluate.gold(replace(question, answer=answer)) is None
    assert evaluate.gold(replace(question, facts=[[*facts, "w8"]])) is None, "two facts name it"
    own = replace(question, answer=1, facts=[["w20"], ["w5 w20"], [], []])
    assert evaluate.gold(own) == "w5 w20", "of the facts of the right choice"
    part = Question("", "w5", ["w9", "w5 (w6)"], 0, [["w99 ow9 w9s", "w5 w6 w5"]])
    assert evaluate.gold(part) is evaluate.gold(replace(part, answer=1)) is None, "whole words"


def test_facts_are_edited_and_removed_in_every_list() -> None:
    question = Question("", "w5", ["w8", "w20"], 1, [["w5 w20", "w8"], ["w6", "w5 w20"]])
    edited = evaluate.edited(question)
    assert (edited.facts, edited.answer) == ([["w5 w8", "w8"], ["w6", "w5 w8"]], 0)
    assert evaluate.removed(question).facts == [["w8"], ["w6"]]
    own = replace(question, facts=[["w6"], ["w7", "w5 w20"]])
    assert evaluate.edited(own).facts == [["w5 w8", "w6"], ["w7", "w5 w8"]]
    assert own.facts == [["w6"], ["w7", "w5 w20"]]
    assert question.facts == [["w5 w20", "w8"], ["w6", "w5 w20"]], "the question is as it was"


def reader(facts_count: bool) -> Callable:
    """Instead of a model: takes the choice in the fact that begins like the question, or the first
    one if there is no such fact, or if it knows nothing of facts.
    """

    def predictions(_: object, data: list[evaluate.Encoded], dtype: torch.dtype) -> list[int]:
        chosen = []
        for q in data:
            named = [fact[1] for fact in q.fact_ids[0] if fact[0] == q.input_ids[0][1]]
            choices = [row[3] for row in q.input_ids]  # [CLS] question [SEP] choice [SEP]
            chosen.append(choices.index(named[0]) if named and facts_count else 0)
        return chosen

    return predictions


@pytest.mark.parametrize(
    ("facts_count", "flips", "right"), [(True, 1.0, (0.5, 1.0, 1.0)), (False, 0.0, (0.5, 0.5, 0.5))]
)
def test_effects_tell_who_reads_the_facts(
    facts_count: bool, flips: float, right: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = reader(facts_count)
    monkeypatch.setattr(evaluate, "predictions", predictions)
    questions = [
        Question("", "w5", ["w8", "w9"], 0, [["w5 w8", "w6 w9"]]),
        Question("", "w7", ["w10", "w11"], 1, [["w12 w10", "w7 w11"]]),
        Question("", "w7", ["w10", "w11"], 1, [["w7 w12"]]),  # no gold fact
    ]
    model, tokenizer = tiny("none"), tiny_tokenizer()
    data = [evaluate.encode(q, tokenizer, model.config) for q in questions[:2]]
    chosen = [*predictions(model, data, torch.float32), 1]
    found = evaluate.effects(model, tokenizer, questions, chosen, torch.float32)
    names = ("removed_accuracy", "shuffled_accuracy", "added_accuracy")
    expected = {"gold_facts": 2, "flip_rate": flips, "gold_fires_most": {}}
    expected |= dict(zip(names, right, strict=True))
    assert found == expected
    without = evaluate.effects(model, tokenizer, questions[2:], chosen[2:], torch.float32)
    assert without == {}


def test_the_effects_are_those_of_the_changes_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def predictions(_: object, data: list[evaluate.Encoded], dtype: torch.dtype) -> list[int]:
        seen.append([[tiny_tokenizer().decode(fact) for fact in q.fact_ids[0]] for q in data])
        return [0] * len(data)

    monkeypatch.setattr(evaluate, "predictions", predictions)
    facts = [["w5 w8", "w6", "w7", "w10"], ["w11 w8", "w12", "w13"]]
    questions = [Question("", "w5", ["w8", "w9"], 0, [f]) for f in facts]
    evaluate.effects(tiny("none"), tiny_tokenizer(), questions, [0, 0], torch.float32)
    edited, removed, shuffled, added = seen
    assert edited == [["w5 w9", *facts[0][1:]], ["w11 w9", *facts[1][1:]]]
    assert removed == [facts[0][1:], facts[1][1:]]
    assert shuffled != facts
    assert [sorted(f) for f in shuffled] == [sorted(f) for f in facts]
    assert added == [facts[0] + facts[1], facts[1] + facts[0]]


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
        probabilities, facts = evaluate.answer(model, tokenizer, q, torch.float32)
        taken = probabilities.index(max(probabilities))
        for layer, fired in evaluate.fact_scores(model).items():
            tokens_of = fired[0, taken, : len(ask(q).input_ids[taken])]
            strongest = max(range(3), key=lambda n, rows=tokens_of: max(row[n] for row in rows))
            hits[layer] += facts[strongest] == evaluate.gold(q)
    found = evaluate.gold_fires_most(model, tokenizer, questions, torch.float32)
    assert found == {layer: count / len(questions) for layer, count in hits.items()}
    assert all(0 < share < 1 for share in found.values()), "otherwise it's a poor test"


def test_a_picture_has_a_cell_for_each_fact_and_token() -> None:
    fired = torch.tensor([[4.0, 0.0], [-0.1, 1.0], [2.0, 0.4]])
    lines = list(evaluate.picture(fired, ["[CLS]", "owl", "?"], ["an owl", "mice"], " .:*#", 100))
    name = " " * 40
    assert lines == [
        name + "[CLS] owl ?",
        "    4.00  an owl                        #####     :",
        "    1.00  mice                                ...  ",
    ]
    narrow = list(evaluate.picture(fired, ["[CLS]", "owl", "?"], ["an owl", "mice"], " .:*#", 49))
    assert [line[40:] for line in narrow] == ["[CLS] owl", "#####    ", "      ...", "?", ":", " "]


def test_a_question_is_shown_with_what_fired_for_the_choice_that_was_taken(
    capsys: pytest.CaptureFixture,
) -> None:
    model, tokenizer = tiny("ffn", inject_layers=(1,)).float(), tiny_tokenizer()
    long = "w5 " * 10 + "w6"
    question = Question("w9", "w10", ["w15", "w12 w13 w14", "w11"], None, [[long, "w7"]])
    probabilities, _ = evaluate.answer(model, tokenizer, question, torch.float32)
    taken = probabilities.index(max(probabilities))
    assert taken, "the first choice would be a poor test"
    fired = model.encoder.layer[1].ffn.fact_scores[0, taken, : len(ask(question).input_ids[taken])]
    for answer in (taken - 1, taken):
        evaluate.show(model, tokenizer, replace(question, answer=answer), torch.float32)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "w9 w10"
        rows = lines[1:4]
        assert [row.startswith("  > ") for row in rows] == [i == taken for i in range(3)]
        assert [row.endswith("<- right") for row in rows] == [i == answer for i in range(3)]
        assert all(f"{p:.1%}" in row for p, row in zip(probabilities, rows, strict=True))
        assert lines[4:7] == [f"    {long}", "    w7", "  layer 1"], "facts that the rows cut"
        assert lines[7].split()[4] == question.choices[taken].split()[0]
        most = [f"{n:.2f}".replace("-0.00", "0.00") for n in fired.amax(0).tolist()]
        assert [row[:10].strip() for row in lines[8:]] == most
    evaluate.show(model, tokenizer, replace(question, facts=[["w6", "w7"]]), torch.float32)
    assert capsys.readouterr().out.splitlines()[4] == "  layer 1", "short facts stand in the rows"
    wild = replace(question, question="\x1b[2J\u202e" + 500 * "w", facts=[["w6\x07\x1b w7"]])
    evaluate.show(model, tokenizer, wild, torch.float32)
    said = capsys.readouterr().out
    assert said.replace("\n", "").isprintable()
    assert max(map(len, said.splitlines())) <= 300


# -------------------------------------------------------------------------------------- train.py


def test_each_epoch_has_every_question_once_in_batches_of_similar_lengths() -> None:
    lengths = random.Random(0).choices(range(1, 60), k=1000)
    data = [ids(5, 6, length=n) for n in lengths]
    batches = train.shuffled(data, 4, seed=0)
    epochs = [list(itertools.islice(batches, 250)) for _ in range(2)]
    for epoch in epochs:
        assert sorted(id(q) for batch in epoch for q in batch) == sorted(map(id, data))
    assert epochs[0] != epochs[1]
    assert next(train.shuffled(data, 9, seed=0)) != next(train.shuffled(data, 9, seed=1))
    width = sum(4 * max(map(len, batch)) for batch in epochs[0])
    assert width < 1.05 * sum(lengths), "hardly any padding"
    firsts = [max(map(len, batch)) for batch in epochs[0][:20]]
    assert firsts != sorted(firsts), "but short and long batches alternate"


def test_the_groups_of_parameters_have_their_rates_and_decay() -> None:
    model = tiny("ffn")
    new = ["classifier.weight", "classifier.bias"]
    groups = train.parameter_groups(model, new, lr=1.0)
    found = {id(p): (g["full_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        decay = 0.0 if name.endswith(("bias", "norm.weight")) else 0.01
        assert found[id(parameter)] == (10.0 if name in new else 1.0, decay), name


def test_adamw_makes_the_steps_of_torch_and_skips_where_it_must() -> None:
    models = [tiny("ffn", inject_layers=(0,)).float() for _ in range(2)]
    groups = [train.parameter_groups(model, ["classifier.weight"], lr=0.1) for model in models]
    ours, theirs = train.AdamW(groups[0]), torch.optim.AdamW(groups[1], fused=True)

    def step(lr_share: float, skip: float) -> None:
        for one, two in zip(*(model.parameters() for model in models), strict=True):
            one.grad = two.grad = None if one.shape == (2,) else torch.randn_like(one)
        ours.step(lr_share, torch.tensor(skip))

    for lr_share in (0.5, 1.0, 0.3):
        step(lr_share, skip=0.0)
        for group in theirs.param_groups:
            group["lr"] = lr_share * group["full_lr"]
        theirs.step()
        step(1.0, skip=1.0)
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two), name
        for key, value in theirs.state[two].items():
            assert torch.equal(ours.state[one][key], value), f"{key} of {name}"


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_a_step_waits_for_no_result_but_concat_for_its_length(inject: str) -> None:
    model = tiny(inject, num_facts=1).float()
    batch = [ids(5, 6, 7, facts=3), ids(8, 9, length=5)]
    batch[1].fact_ids[0].append([9, 10])  # two candidates, of which the nearest is kept
    optimizer = train.AdamW(train.parameter_groups(model, [], lr=0.1))
    with Operations() as done:
        train.train_step(model, batch, optimizer, 1.0, torch.float32)
    for_a_result = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    waiting = [str(operation) for operation, _ in done.found if for_a_result & {*operation.tags}]
    assert waiting == ["aten._local_scalar_dense.default"] * (inject == "concat")


def test_the_first_step_that_was_not_finite_is_named() -> None:
    data = [ids(5, 6, length=n) for n in range(1, 9)]
    fine, bad = torch.tensor(1.0), torch.tensor(math.inf)
    steps = [(n, data[2 * n - 2 : 2 * n], fine, fine) for n in (1, 2, 3, 4)]
    train.check_finite(steps, data)
    steps[1:3] = [(2, data[2:4], fine, bad), (3, data[4:6], bad, fine)]
    with pytest.raises(ValueError, match=r"step 2: the loss is 1, .* inf, .* questions \[3, 4\]"):
        train.check_finite(steps, data)


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first lines of the toy world, and a smaller model."""
    folder = tmp_path_factory.mktemp("small")
    for split in make_toy.SIZES:
        lines = (HERE / "data/toy" / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_bytes((HERE / "data/toy/vocab.txt").read_bytes())
    config = json.loads((HERE / "data/toy/config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 16}))
    return folder


def read_and_encode(path: Path, *args: object) -> list[evaluate.Encoded]:
    return [evaluate.encode(q, *args) for q in read_questions(path)]


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_one_command_trains_reports_and_saves(
    inject: str, small_world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, HERE / "train.py", "--inject", inject, "--steps", "12"]
    command += ["--data", small_world, "--out", out]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=one_thread)
    assert done.returncode == 0, done.stderr
    last = json.loads((out / "log.jsonl").read_text().strip().split("\n")[-1])
    assert last["chance"] == 0.25
    model, tokenizer = load_pretrained(out)
    data = read_and_encode(small_world / "train.jsonl", tokenizer, model.config)
    batches = itertools.islice(train.shuffled(data, 32, 0), 12)
    padded = [evaluate.collate(batch, 0, torch.device("cpu"))[0]["input_ids"] for batch in batches]
    empty, places = sum(int((i == 0).sum()) for i in padded), sum(i.numel() for i in padded)
    assert abs(last["padding"] - empty / places) < 1e-9
    assert f"{empty / places:.1%} of the places were padding" in done.stdout
    data = read_and_encode(small_world / "test.jsonl", tokenizer, model.config)
    assert evaluate.accuracy(model, data, torch.float32) == last["test_accuracy"]
    for part in ("25.0%", f"injection: {inject}", "40 train", str(out), "its gold fact edited"):
        assert part in done.stdout
    assert ("layer 2\n" in done.stdout) == (inject in ("attention", "ffn"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "error: nowhere"),
        (["--inject", "fnn"], "invalid choice: 'fnn'"),
        (["--batch-size", "0"], "argument --batch-size: invalid positive value: '0'"),
        (["--steps", "-1"], "argument --steps: must be at least 0, not -1"),
        (["--steps", "0"], "argument --steps: 0 needs a --checkpoint"),
        (["--checkpoint", "nowhere"], "error: nowhere: no such folder"),
        (["--layers", "7"], "inject_layers (7,) must lie between 0 and 2"),
        (["--layers", "2-0"], "--layers 2-0: there are none such among 3 layers"),
        (["--layers", "first"], "argument --layers: invalid layers value: 'first'"),
        (["--seed", "0", "1", "--show", "2"], "these are for one model alone"),
        (["--facts", "0"], "num_facts is 0, must be a whole number from 1"),
    ],
)
def test_wrong_arguments_get_one_line_and_status_2(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_says_so_and_exits_with_130(
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(train, "cross_entropy", interrupt)
    arguments = ["train.py", "--data", str(small_world), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("native", "hidden_size", "expected"),
    [("avx512_bf16", 256, "bfloat16"), ("amx_bf16", 768, "bfloat16"),
     ("avx512_bf16", 255, "float32"), ("avx512_f", 256, "float32")],
)  # fmt: skip
def test_bfloat16_is_the_default_for_large_models_where_it_is_native(
    native: str, hidden_size: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {native: True})
    assert train.default_dtype(hidden_size, "cpu") == getattr(torch, expected)


@pytest.mark.parametrize("flags", [[], ["--dtype", "float32"]])
def test_every_product_of_a_run_has_its_dtype(
    flags: list[str], small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(train, "default_dtype", lambda *_: torch.bfloat16)
    linear, seen = torch.nn.functional.linear, set()

    def spy(*arguments: Tensor) -> Tensor:
        product = linear(*arguments)
        seen.add(product.dtype)
        return product

    monkeypatch.setattr(torch.nn.functional, "linear", spy)
    run_train(monkeypatch, "--data", small_world, "--steps", 1, "--out", tmp_path, *flags)
    expected = "float32" if flags else "bfloat16"
    assert seen == {getattr(torch, expected)}
    assert f"products in {expected}\n" in capsys.readouterr().out


def test_two_processes_make_the_steps_of_one(small_world: Path, tmp_path: Path) -> None:
    """40 questions in batches of 13: of the last batch, one question, one process has none.

    Biases that softmax takes out again get gradients of rounding alone, which AdamW makes large.
    """
    arguments = [HERE / "train.py", "--data", small_world, "--batch-size", 13, "--lr", 1e-3]
    torchrun, outputs = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"], []
    for command, out in (([], "one"), (torchrun, "two")):
        command = [sys.executable, *command, *arguments, "--steps", 8, "--out", tmp_path / out]
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=100, env=one_thread
        )
        assert done.returncode == 0, done.stderr
        outputs.append([line for line in done.stdout.splitlines() if line.startswith("  step")])
    assert len(outputs[0]) == 8
    assert outputs[0] == outputs[1], "the same report, and once"
    one, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "two"))
    for name, tensor in one.items():
        if not name.endswith(("key.bias", "classifier.bias")):
            assert biggest_change(tensor, two[name]) < 1e-4, f"{name}: a tenth of a step"
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {path.name for path in (tmp_path / "one").iterdir()}


class Killed(Exception):
    """In the place of SIGKILL: nothing after it is run, and nobody catches it."""


@pytest.fixture
def dropout_world(small_world: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(small_world, tmp_path / "world"))
    change_json(folder / "config.json", hidden_dropout_prob=0.1)
    return folder


@pytest.mark.parametrize("command", ["the same", "--resume"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    command: str, dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Ctrl-C in step 7, killed in step 13, which is after the state of step 12 was saved."""
    step, calls, whole, parts = train.train_step, itertools.count(1), tmp_path / "1", tmp_path / "2"

    def stops(*arguments: object) -> tuple[Tensor, Tensor]:
        call = next(calls)
        if call == 7:
            os.kill(os.getpid(), signal.SIGINT)
        if call == 13:
            raise Killed
        return step(*arguments)

    arguments = ["--data", dropout_world, "--steps", 20, "--batch-size", 8]
    run_train(monkeypatch, *arguments, "--out", whole)
    monkeypatch.setattr(train, "train_step", stops)
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, *arguments, "--out", parts)
    assert stopped.value.code == 130
    assert f"saved after step 7, the same command or --resume {parts}" in capsys.readouterr().err
    again = ["--resume", parts] if command == "--resume" else [*arguments, "--out", parts]
    with pytest.raises(Killed):
        run_train(monkeypatch, *again)
    assert sorted(path.name for path in parts.iterdir()) == ["log.jsonl", train.STATE]
    run_train(monkeypatch, *again)
    assert next(calls) == 7 + 6 + 8 + 1, "steps 8 to 12 and 13 to 20 were made in the second part"
    assert capsys.readouterr().out.count("  step     20 ") == 1
    for name in ("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (parts / train.STATE).exists()
    logs = [[json.loads(row) for row in (run / "log.jsonl").open()] for run in (whole, parts)]
    for log in logs:
        assert len(log) == 1 + 10 + 1
        for key in ("seconds", "train_questions_per_second", "eval_questions_per_second"):
            del log[-1][key]
    assert logs[0] == logs[1]


def test_an_interrupted_run_of_another_kind_is_not_gone_on_with(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    arguments = ["--data", dropout_world, "--steps", 4, "--out", tmp_path / "run"]
    monkeypatch.setattr(train, "save_pretrained", interrupt)
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments)
    (dropout_world / "test.jsonl").unlink()
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, "--resume", tmp_path / "run")
    assert stopped.value.code == 2
    assert "its data, its checkpoint or the code has changed" in capsys.readouterr().err
    monkeypatch.undo()
    step, steps = train.train_step, []
    monkeypatch.setattr(train, "train_step", lambda *a: steps.append(1) or step(*a))
    run_train(monkeypatch, *arguments)
    assert len(steps) == 4, "from the first step on"
    assert "unfinished run of another kind, which this one replaces" in capsys.readouterr().out
    assert "test_accuracy" in (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(SystemExit):
        run_train(monkeypatch, "--resume", tmp_path / "run")
    assert f"{train.STATE}: no such file: that run is finished" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_training(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """In step 4; the state of step 2, the last evaluation, is kept, and the model isn't touched."""
    score, calls, models = train.score, itertools.count(1), []

    def spoiled(model: nn.Module, batch: list, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scores, answers = score(model, batch, dtype)
        models.append({name: t.clone() for name, t in model.state_dict().items()})
        return scores * math.nan if next(calls) == 4 else scores, answers

    monkeypatch.setattr(train, "score", spoiled)
    fit, tasks = train.fit, []

    def spy(task: train.Task, *rest: object) -> dict:
        tasks.append(task)
        return fit(task, *rest)

    monkeypatch.setattr(train, "fit", spy)
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, "--data", dropout_world, "--steps", 20, "--batch-size", 2,
                  "--lr", 1e-3, "--out", tmp_path / "run")  # fmt: skip
    assert stopped.value.code == 2
    data = tasks[0].data["train"]
    batches = train.shuffled(data, 2, 0)
    fourth = [next(batches) for _ in range(4)][3]
    lines = [number for number, q in enumerate(data, 1) if any(q is one for one in fourth)]
    said = capsys.readouterr().err
    assert said.startswith("error: step 4: the loss is nan")
    assert f"training questions {lines}" in said
    assert said.count("\n") == 1
    for name, tensor in tasks[0].model.state_dict().items():
        assert torch.equal(tensor, models[-1][name]), name
    state = load_file(tmp_path / "run" / train.STATE)
    assert state["step.classifier.bias"] == 2
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_where_steps_are_looked_at_later_the_one_that_was_lost_is_named(
    dropout_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """As on a GPU: step 12 is lost, step 14 looked at; Ctrl-C in step 16 stops after step 20."""
    monkeypatch.setitem(train.LOOK_EVERY, "cpu", 7)
    score, calls = train.score, itertools.count(1)

    def spoiled(*arguments: object) -> tuple[Tensor, Tensor]:
        scores, answers = score(*arguments)
        call = next(calls)
        if call == 20:  # step 16, in the second part
            os.kill(os.getpid(), signal.SIGINT)
        return scores * math.nan if call == 12 else scores, answers

    monkeypatch.setattr(train, "score", spoiled)
    arguments = ["--data", dropout_world, "--steps", 100, "--batch-size", 2, "--out", tmp_path]
    for said, saved in (("step 12: the loss is nan", 10), ("saved after step 20", 20)):
        with pytest.raises(SystemExit):
            run_train(monkeypatch, *arguments)
        assert said in capsys.readouterr().err
        assert load_file(tmp_path / train.STATE)["step.classifier.bias"] == saved


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Social IQA as it comes: labels in files of their own, "dev", a test split without answers;
    and facts that no question refers to.
    """
    for split, answers in (("train", "123121"), ("dev", "1231"), ("test", "")):
        count = len(answers) or 3
        write_lines(tmp_path / f"{split}.jsonl", *[FORMATS["social_iqa"]] * count)
        if answers:
            write_lines(tmp_path / f"{split}-labels.lst", *answers)
    write_lines(tmp_path / "facts.txt", "the owl eats mice", "the oak is old", "", "rain at night")
    return tmp_path


def run_train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    train.main()


@pytest.mark.parametrize("inject", ["concat", "ffn"])
def test_whatever_texts_may_hold_it_trains(
    inject: str, small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs that steer terminals and directions, 100,000 characters, nothing; many facts, choices.

    Each comes in the training and in the test questions, beside usual ones.
    """
    data = Path(shutil.copytree(small_world, tmp_path / "wild"))
    signs = "".join(map(chr, range(32))) + "\x7f\x85\u2028\u202e\u200f\u2066\ufeff"
    texts = [signs, "\u202e\u05d0", "", "x" * 100_000, "x " * 50_000]
    wild = [(text, [text, "x"], [text, f"{text} x"]) for text in texts]
    wild.append(("who?", ["x", "y"], [f"fact {i}" for i in range(10_000)]))
    wild.append(("who?", [f"x{i}" for i in range(100)], ["x1 x2"]))
    rows = [
        {"question": question, "choices": [{"text": choice} for choice in choices],
         "AnswerKey": "A", "knowledges": facts}
        for question, choices, facts in wild
    ]  # fmt: skip
    for split in ("train", "test"):
        usual = (data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:5]
        write_lines(data / f"{split}.jsonl", *rows, *usual)
    arguments = ("--inject", inject, "--data", data, "--batch-size", 4, "--out", tmp_path / "run")
    run_train(monkeypatch, *arguments, "--steps", 3)
    _, *steps, last = [json.loads(row) for row in (tmp_path / "run" / "log.jsonl").open()]
    assert [math.isfinite(row["loss"]) for row in steps] == [True, True, True]
    assert "test_accuracy" in last
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_public_questions_and_a_file_of_facts(
    kind: str, own_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Trained on what people have; then the saved run, as it stands, predicts the same again."""
    files = {name: own_data / f"{name}.jsonl" for name in ("first", "again")}
    out, data = own_data / "run", ("--data", own_data, "--facts", 1, "--retrieve", 2)
    run_train(
        monkeypatch, *data, "--checkpoint", REFERENCE / kind, "--inject", "attention",
        "--steps", 3, "--batch-size", 2, "--out", out, "--predict", files["first"],
    )  # fmt: skip
    said = capsys.readouterr().out
    facts_file = own_data / "facts.txt"
    assert f"13 questions get theirs out of 3 in {facts_file}; blank lines skipped: 1" in said
    assert "new       encoder.layer.1,2.Wk.bias/weight" in said
    assert "chance    33.3%; always choice 1: 50.0%" in said
    last = json.loads((out / "log.jsonl").read_text().strip().split("\n")[-1])
    assert last["test_accuracy"] == last["valid_accuracy"], "the test split has no answers"
    log = (out / "log.jsonl").read_text()
    run_train(
        monkeypatch, *data, "--checkpoint", out, "--steps", 0, "--predict", files["again"],
        "--out", out,
    )  # fmt: skip
    assert "injection: attention" in capsys.readouterr().out
    assert (out / "log.jsonl").read_text() == log, "nothing was trained, nothing is overwritten"
    assert files["first"].read_text() == files["again"].read_text()
    rows = [json.loads(line) for line in files["first"].read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert abs(sum(row["probabilities"]) - 1) < 1e-6
        assert row["choice"] == row["probabilities"].index(max(row["probabilities"]))
        assert row["text"] == OWL[1][row["choice"]]
        assert len(row["facts"]) == 1
        assert row["facts"][0] in (own_data / "facts.txt").read_text()


def test_what_a_checkpoint_lacks_is_what_learns_faster(
    own_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, seen = train.parameter_groups, []

    def spy(model: nn.Module, new: list[str], lr: float) -> list[dict]:
        seen.extend(new)
        return groups(model, new, lr)

    monkeypatch.setattr(train, "parameter_groups", spy)
    arguments = ["--data", own_data, "--checkpoint", REFERENCE / "bert", "--out", own_data / "run"]
    run_train(monkeypatch, *arguments, "--steps", 1)
    assert "fact_embeddings.weight" in seen
    assert "encoder.layer.2.Wv.weight" in seen
    assert "classifier.weight" not in seen, "the folder brings a head"


def test_questions_without_facts_need_a_file_of_facts(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (own_data / "facts.txt").unlink()
    arguments = ["--data", own_data, "--checkpoint", REFERENCE / "bert", "--out", own_data / "run"]
    with pytest.raises(SystemExit) as stopped:
        run_train(monkeypatch, *arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {own_data / 'facts.txt'}: no such file, but 13 questions need")
    run_train(monkeypatch, *arguments, "--inject", "none")
    said = capsys.readouterr().out
    assert "step      4 " in said, "four epochs of one batch are the default"
    assert "saved" in said


def train_a_little(folder: Path, seed: int, lr: float = 1e-3) -> tuple[list[dict], float, float]:
    """Ten steps -> the log, the best accuracy by the report, the accuracy of the model it left."""
    config = load_config(folder, inject="ffn", hidden_dropout_prob=0.3)
    tokenizer = load_tokenizer(folder)
    data = read_and_encode(folder / "train.jsonl", tokenizer, config)
    torch.manual_seed(seed)
    model, log = KformerForMultipleChoice(config), []
    args = Namespace(lr=lr, steps=10, batch_size=8, seed=seed, dtype=torch.float32)
    splits = {"train": data, "valid": data}
    with TemporaryDirectory() as out:
        args.out = Path(out)
        result = train.train(model, splits, [], args, {}, log.append, tqdm(disable=True))
    return log, result["valid_accuracy"], evaluate.accuracy(model, data, torch.float32)


def test_two_runs_of_a_seed_are_alike_and_another_seed_is_not(small_world: Path) -> None:
    assert train_a_little(small_world, 0) == train_a_little(small_world, 0)
    assert train_a_little(small_world, 0) != train_a_little(small_world, 1)


def test_the_best_state_is_kept_and_measured_without_dropout(small_world: Path) -> None:
    log, best, left = train_a_little(small_world, 0, lr=0.03)
    found = [row["valid_accuracy"] for row in log]
    assert found[-1] < max(found), "the case is of use only if the last state isn't the best"
    assert best == max(found) == left


@pytest.mark.parametrize(
    ("text", "depth", "numbers"),
    [
        ("bottom", 6, (0, 1)), ("middle", 6, (2, 3)), ("top", 6, (4, 5)), ("all", 3, (0, 1, 2)),
        ("bottom", 2, (0,)), ("top", 2, (1,)), ("middle", 7, (2, 3, 4)), ("0-2", 6, (0, 1, 2)),
        ("4", 6, (4,)), ("3,0-1,1", 6, (0, 1, 3)),
    ],
)  # fmt: skip
def test_layers_have_names_and_closed_ranges(text: str, depth: int, numbers: tuple) -> None:
    assert train.layer_numbers(text, depth) == numbers


def test_the_runs_of_a_table_are_the_product_each_once() -> None:
    args = Namespace(
        inject=["none", "concat", "ffn"], layers=["top", "0"], facts=[1, 5], seed=[0, 1], out=None
    )
    names = [str(run.out) for run in train.runs_of(args)]
    assert names[:4] == [str(Path("runs", n)) for n in (
        "none-seed-0", "none-seed-1", "concat-facts-1-seed-0", "concat-facts-1-seed-1",
    )]  # fmt: skip
    assert len(set(names)) == len(names) == 2 + 2 * 2 + 2 * 2 * 2


@pytest.fixture
def table_command(small_world: Path, tmp_path: Path) -> list:
    return [
        "--data", small_world, "--inject", "none", "ffn", "--layers", "all", "--seed", 0, 1,
        "--steps", 4, "--out", tmp_path / "table",
    ]  # fmt: skip


def test_a_table_has_a_row_for_each_setting(
    table_command: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run_train(monkeypatch, *table_command)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1, "they line up"
    rows = [json.loads(line) for line in (table_command[-1] / "table.jsonl").open()]
    for row, line, inject in zip(rows, lines[2:], ("none", "ffn"), strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        found = []
        for seed, result in enumerate(row["runs"]):
            layers = "-layers-all" if inject == "ffn" else ""
            log = table_command[-1] / f"{inject}{layers}-seed-{seed}" / "log.jsonl"
            assert {"seed": seed, **json.loads(log.read_text().splitlines()[-1])} == result
            found.append(100 * result["test_accuracy"])
        mean, deviation = sum(found) / 2, abs(found[0] - found[1]) / math.sqrt(2)
        assert abs(float(cells[3].split()[0]) - mean) <= 0.051, "to one place"
        assert abs(float(cells[3].split()[2]) - deviation) <= 0.051
        assert abs(100 * row["mean"] - mean) < 1e-9
        assert cells[:3] == ([inject, "", ""] if inject == "none" else ["ffn", "all (0-2)", "5"])
    added = 228 * 16 + 3 * 2 * (16 * 16 + 16)  # a table of fact embeddings; Wk, Wv and biases
    assert lines[3].split("|")[7].strip() == f"{added:,}"
    assert "chance 25.0%" in lines[0]


def test_an_interrupted_table_goes_on_where_it_stopped(
    table_command: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fit, trained = train.fit, []

    def spy(task: train.Task, args: Namespace, *rest: object, **options: object) -> dict:
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append(args.out.name)
        return fit(task, args, *rest, **options)

    monkeypatch.setattr(train, "fit", spy)
    stop_at = 3
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *table_command)
    assert "the same command goes on" in capsys.readouterr().err
    log = table_command[-1] / "none-seed-1" / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))  # it didn't finish
    stop_at = None
    trained.clear()
    run_train(monkeypatch, *table_command)
    assert trained == ["none-seed-1", "ffn-layers-all-seed-1"]
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    trained.clear()
    run_train(monkeypatch, *table_command)
    assert trained == []
    again = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert again == table
    run_train(monkeypatch, *table_command, "--lr", 1e-4)
    assert len(trained) == 4, "other arguments, other runs"


def test_a_table_keeps_no_run_with_other_data_weights_or_code(
    own_data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--data", own_data, "--checkpoint", folder, "--steps", 1]
    command += ["--seed", 0, 1, "--out", tmp_path / "table"]
    trained, fit = [], train.fit
    monkeypatch.setattr(train, "fit", lambda *a, **k: trained.append(1) or fit(*a, **k))
    run_train(monkeypatch, *command)
    assert len(trained) == 2
    write_lines(own_data / "facts.txt", "the owl eats rice")
    run_train(monkeypatch, *command)
    assert len(trained) == 4
    change_tensors(folder, lambda name, tensor: {name: tensor + 1e-3})
    run_train(monkeypatch, *command)
    assert len(trained) == 6
    (tmp_path / "kformer.py").touch()
    monkeypatch.setattr(train, "__file__", str(tmp_path / "train.py"))
    run_train(monkeypatch, *command)
    assert len(trained) == 8
    (tmp_path / "test_kformer.py").touch()
    run_train(monkeypatch, *command)
    assert len(trained) == 8, "tests change no result"


def test_a_saved_run_is_looked_into_without_training(
    small_world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "run"
    run_train(monkeypatch, "--data", small_world, "--steps", 2, "--out", out)
    capsys.readouterr()
    run_train(monkeypatch, "--data", small_world, "--checkpoint", out, "--show", 2)
    said = capsys.readouterr().out
    assert "step" not in said
    assert "Question 2: " in said
    assert "Question 3: " not in said
    assert said.count("  layer 1\n") == said.count("  layer 2\n") == 2
    assert "gold one fires most" in said


# ------------------------------------------------------------------------------- the exercises


def mean_with_padding(table: nn.Embedding, ids: Tensor, real: Tensor) -> Tensor:
    return table(ids).mean(-2)


def hide_with_infinity(scores: Tensor, real: Tensor) -> Tensor:
    return scores.masked_fill(~real[..., None, None, :], -math.inf)


def attention_without_prefix(layer: SelfAttention, x: Tensor, mask: Tensor, _: object) -> Tensor:
    return layer.output(layer.value(x))


def ffn_with_empty_slots(ffn: FFN, x: Tensor, neurons: tuple) -> Tensor:
    K, V, _ = neurons
    return ffn.W2(gelu(ffn.W1(x))) + gelu(x @ K.mT) @ V


def zero_keys(
    name: str, *rest: object, fresh: Callable[..., Tensor] = load_weights.fresh
) -> Tensor:
    return torch.zeros_like(fresh(name, *rest)) if ".W" in name else fresh(name, *rest)


def empty_index(bm25: BM25, facts: list[str], k1: float, b: float) -> None:
    bm25.num_facts, bm25.index = len(facts), {}


@pytest.mark.parametrize(
    ("where", "wrong", "why", "check", "given"),
    [
        ("kformer.mean_embedding", mean_with_padding, "entry (0, 0)",
         test_a_fact_is_the_mean_of_its_words_and_padding_is_none, {}),
        ("kformer.hide", hide_with_infinity, "is -inf",
         test_what_is_hidden_gets_no_attention, {}),
        ("kformer.SelfAttention.forward", attention_without_prefix, "entry (0, 0, 0)",
         test_attention_with_a_prefix_equals_plain_loops, {}),
        ("kformer.FFN.forward", ffn_with_empty_slots, "entry (1, 0, 0)",
         test_ffn_injection_is_an_ordinary_ffn_that_was_widened, {}),
        ("load_weights.our_name", str.lower, 'must be "encoder.layer.1.ffn_norm.weight"',
         test_names_in_a_checkpoint_become_ours, {}),
        ("load_weights.fresh", zero_keys, "x Kᵀ is 0",
         test_the_zero_gate_of_ffn_is_the_plain_encoder_and_can_learn,
         {"folder": REFERENCE / "bert"}),
        ("questions.BM25.__init__", empty_index, "entry (2,)",
         test_bm25_equals_plain_loops, {"k1": 1.2, "b": 0.75}),
    ],
    ids="1235678",
)  # fmt: skip
def test_a_wrong_exercise_is_told_in_one_sentence(
    where: str, wrong: Callable, why: str, check: Callable, given: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Left blank, with an error in it, or another formula: the check fails, and says so."""
    name = where.split(".")[1]
    for version, said in (
        (lambda *_, **__: None, name),
        (lambda *_, **__: [][0], "IndexError"),
        (wrong, why),
    ):
        monkeypatch.setattr(where, version)
        monkeypatch.setitem(globals(), name, getattr(sys.modules[where.split(".")[0]], name))
        with pytest.raises(pytest.fail.Exception) as failure:
            check(**given)
        sentence = str(failure.value)
        assert name in sentence
        assert said in sentence
        assert "\n" not in sentence
        assert len(sentence) < 400
