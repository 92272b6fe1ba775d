"""What must hold of the model, and the checks of the exercises in docs/exercises.md.

    python -m pytest                     this file and tests/, in well under two minutes
    python -m pytest -k widened          one thing, by a word of its name

In the order of kformer.py: FFN, attention, facts, the whole model; then what the exercises ask of
the other files. The exercises' checks say in a sentence what is wrong (`attempt`, `compare`).
Nothing here needs a network, a GPU or a download. Small models with random weights will do, since
what is tested holds for any weights.
"""

import itertools
import math
import random
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu
from torch.utils._python_dispatch import TorchDispatchMode

from data import make_toy
from kformer import (
    FFN,
    Kformer,
    KformerConfig,
    KformerForMultipleChoice,
    Knowledge,
    SelfAttention,
    append_facts,
    hide,
    initialize,
    mean_embedding,
    nearest_facts,
)
from load_weights import (
    load_pretrained,
    our_name,
)
from parts.retrieval import BM25, words

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


# --------------------------------------------------------------------------------------------- FFN


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
    choices = x.unsqueeze(1).expand(B, C, T, D)
    shared = attempt("FFN.forward", ffn, choices, (K.unsqueeze(1), V.unsqueeze(1), real[:, None]))
    compare("FFN.forward", shared, torch.stack(widened).unsqueeze(1).expand(B, C, T, D),
            "The same facts, (B, 1, N, D), for each of C equal choices, (B, C, T, D).")  # fmt: skip
    plain = attempt("FFN.forward", ffn, x)
    compare("FFN.forward", plain, ffn.W2(gelu(ffn.W1(x))), "Without knowledge, BERT's FFN.")


def test_fact_scores_of_the_ffn_are_its_activations() -> None:
    model = tiny("ffn", inject_layers=(1,))
    questions, facts = padded_batch()
    model(questions, fact_ids=facts)
    scores = model.encoder.layer[1].ffn.fact_scores
    if not isinstance(scores, Tensor):
        fail("FFN.forward: fact_scores is None, must be gelu(x Kᵀ) of the shape (B, C, T, N).")
    assert scores.shape == (B, C, T, N)
    assert (scores[-1, ..., 2:] == 0).all(), "an empty slot fired"
    assert scores[:-1].amax(2).all(), "a fact fired nowhere"
    model(questions)
    assert model.encoder.layer[1].ffn.fact_scores is None, "scores of an earlier batch were left"


# --------------------------------------------------------------------------------------- attention


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
    out = attempt("SelfAttention.forward", layer, x, x, mask, (K, V, real))
    compare("SelfAttention.forward", out, expected,
            "In each head softmax(q [Kᵀ kᵀ] / sqrt(D/H)) [V; v], then `output`; row 1 has padding "
            "and empty slots, in row 2 all slots are empty.")  # fmt: skip
    compare("SelfAttention.fact_scores", layer.fact_scores, shares,
            "The share of the attention that each fact got, mean of the heads.")  # fmt: skip
    first = attempt("SelfAttention.forward", layer, x[:, :2], x, mask, (K, V, real))
    compare("SelfAttention.forward", first, expected[:, :2],
            "Queries come from x alone, here the first two tokens of the context.")  # fmt: skip
    plain = attempt("SelfAttention.forward", layer, x, x, mask)
    none = [attention_in_loops(layer, x[i], mask[i], K[i, :0], V[i, :0], real[i, :0])[0]
            for i in range(B)]  # fmt: skip
    compare("SelfAttention.forward", plain, torch.stack(none), "Without knowledge, no prefix.")
    choices, seen = x.unsqueeze(1).expand(B, C, T, D), mask.unsqueeze(1).expand(B, C, T)
    knowledge = K.unsqueeze(1), V.unsqueeze(1), real.unsqueeze(1)
    shared = attempt("SelfAttention.forward", layer, choices, choices, seen, knowledge)
    compare("SelfAttention.forward", shared, expected.unsqueeze(1).expand(B, C, T, D),
            "The same facts, (B, 1, N, D), for each of C equal choices, (B, C, T, D).")  # fmt: skip


def test_what_is_hidden_gets_no_attention() -> None:
    scores = torch.randn(2, 1, 2, 3)
    real = torch.tensor([[True, False, True], [False, False, False]])
    expected = scores.clone()
    expected[0, ..., 1] = expected[1] = torch.finfo(scores.dtype).min
    compare("hide", attempt("hide", hide, scores, real), expected,
            "What isn't real gets the lowest number there is, not -inf: where nothing is real, as "
            "in row 1, the softmax of -inf is 0/0.")  # fmt: skip
    half, mask = scores.bfloat16().unsqueeze(0), real.unsqueeze(0)
    found = attempt("hide", hide, half, mask).softmax(-1)
    compare("hide", found.isfinite().float(), torch.ones(1, 2, 1, 2, 3),
            "In bfloat16, and with one more dimension, every softmax is finite, too.")  # fmt: skip


# ------------------------------------------------------------------------------------------- facts


def test_a_fact_is_the_mean_of_its_words_and_padding_is_none() -> None:
    table = nn.Embedding(50, D)
    A, owns, B_ = table.weight[5:8]
    ids = torch.tensor([[[5, 6, 7, 0, 0], [7, 6, 5, 0, 0]], [[5, 7, 7, 7, 9], [0, 0, 0, 0, 0]]])
    mask = torch.tensor([[[1, 1, 1, 0, 0]] * 2, [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]]).bool()
    means = [(A + owns + B_) / 3, (A + owns + B_) / 3, (A + 3 * B_) / 4, torch.zeros(D)]
    mean = attempt("mean_embedding", mean_embedding, table, ids, mask)
    compare("mean_embedding", mean, torch.stack(means).unflatten(0, (2, 2)),
            "A fact is the mean of the embeddings that the mask keeps; facts (0, 0) and (0, 1) "
            "have the same words, (1, 1) has none and must be 0, not 0/0.")  # fmt: skip
    if not mean.requires_grad:
        fail("mean_embedding: no gradient reaches the table; leave out .data and .detach().")
    mean.sum().backward()
    used = torch.zeros(50)
    used[5:8] = torch.tensor([1 / 3 + 1 / 3 + 1 / 4, 2 / 3, 2 / 3 + 3 / 4])
    compare("mean_embedding", table.weight.grad[:, 0], used,
            "The gradient of the table is how much a word counts, 0 for others.")  # fmt: skip


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


# --------------------------------------------------------------------------------- the whole model


@pytest.mark.parametrize("inject", ["attention", "ffn"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_without_facts_it_is_the_plain_encoder(inject: str, model_type: str) -> None:
    model, plain = tiny(inject, model_type=model_type), tiny("none", model_type=model_type)
    plain.load_state_dict(model.state_dict(), strict=False)
    questions, facts = padded_batch()
    expected = plain(questions)
    assert torch.equal(model(questions), expected), "no facts"
    empty = model(questions, fact_ids=torch.zeros_like(facts))
    assert biggest_change(empty, expected) < 1e-12, "empty slots"
    assert torch.equal(model(questions, fact_ids=facts[:, :0]), expected), "a list of no facts"
    facts[1] = 0
    mixed = model(questions, fact_ids=facts)
    assert biggest_change(mixed[1], expected[1]) < 1e-12, "empty slots beside another's facts"
    assert (mixed[0] - expected[0]).abs().min() > 1e-6


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
    """The prefix as the release has it, put back before our own keys and values.

    multihead_attention.py prepends ones to a mask in which one means "ignore", and reshapes facts
    (B, N, D) as if they were (N, B, D). Only where no row has padding is there no mask.
    """

    def __init__(self, ours: SelfAttention) -> None:
        super().__init__()
        self.ours, self.num_heads = ours, ours.num_heads

    def forward(
        self, x: Tensor, context: Tensor, mask: Tensor, knowledge: Knowledge
    ) -> Tensor:
        (K, V, _), ours = knowledge, self.ours
        rows = context.flatten(0, -3)  # (B C, T, D)
        K, V = (f.expand(*x.shape[:-2], -1, -1).flatten(0, -3) for f in (K, V))  # (B C, N, D)
        K, V = (f.reshape(f.shape[1], f.shape[0], D).transpose(0, 1) for f in (K, V))
        keys = ours.heads(torch.cat([K, ours.key(rows)], 1))
        values = ours.heads(torch.cat([V, ours.value(rows)], 1))
        q = ours.heads(ours.query(x.flatten(0, -3)))
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
def test_scores_of_cls_alone_are_the_same_with_the_same_gradients(inject: str) -> None:
    model, (questions, facts), found = tiny(inject, inject_layers=(0, 2)), padded_batch(), []
    for cls_only in (False, True):
        model.zero_grad()
        scores = model(questions, fact_ids=facts, cls_only=cls_only)
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


def test_words_start_at_right_angles_where_there_is_room() -> None:
    """So that the overlap of two texts counts their common words."""
    words = Kformer(KformerConfig(16, 16, 2, 2)).embeddings.word_embeddings.weight
    assert torch.allclose(words @ words.T, 16 * torch.eye(16), atol=1e-4)
    many = Kformer(KformerConfig(40, 16, 2, 2)).embeddings.word_embeddings.weight
    assert torch.allclose(many.norm(dim=-1), torch.full((40,), 4.0), atol=1e-4)


@pytest.mark.parametrize(("inject", "Wk", "Wv"), [("ffn", 1, 0), ("attention", 4, 1)])
def test_wk_and_wv_from_scratch(inject: str, Wk: float, Wv: float) -> None:
    """In ffn no fact has a say yet, in attention each gets its share of the softmax at once."""
    for block in Kformer(KformerConfig(40, 16, 3, 2, inject=inject)).encoder.layer[1:]:
        assert torch.equal(block.Wk.weight, Wk * torch.eye(16))
        assert torch.equal(block.Wv.weight, Wv * torch.eye(16))
        assert not block.Wk.bias.any()
        assert not block.Wv.bias.any()


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
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"inject_layers": (1, 3)}, "between 0 and 2"),
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


# ------------------------------------------------------------------ a checkpoint, and retrieval


REFERENCE = HERE / "data" / "reference"  # written by transformers, see data/make_reference.py
KINDS = ["bert", "roberta"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_zero_gate_of_ffn_is_the_plain_encoder_and_can_learn(kind: str) -> None:
    plain, _ = attempt("initialize", load_pretrained, REFERENCE / kind)
    model, _ = attempt("initialize", load_pretrained, REFERENCE / kind, inject="ffn")
    block, words = model.encoder.layer[2], plain.embeddings.word_embeddings.weight
    compare("initialize", block.Wv.weight, torch.zeros(16, 16), "In a checkpoint's ffn Wv = 0.")
    compare("initialize", block.Wk.weight, torch.eye(16), "Wk = I: a key is the fact itself.")
    compare("initialize", model.fact_embeddings.weight, words, "Facts are embedded like words.")
    model.classifier.load_state_dict(plain.classifier.state_dict())
    questions, facts = tokens(B, C, T), tokens(B, N, L, seed=2)
    scores = model(questions, fact_ids=facts)
    compare("initialize", scores, plain(questions),
            "Scores at the start: with Wv = 0 and bv = 0 every fact's value is 0, so that facts "
            "change nothing yet.", limit=0)  # fmt: skip
    cross_entropy(scores, torch.tensor([0, 1, 1])).backward()
    if not block.ffn.fact_scores.all() or not block.Wv.weight.grad.any():
        fail("initialize: no fact fires, or no gradient reaches Wv: the gate can't open.")


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
    for query in ("Who sells kites?", "Does the owl eat owls?", "of the", ""):
        expected = [bm25_in_loops(query, fact, facts, k1, b) for fact in facts]
        found = attempt("BM25.scores", index.scores, query)
        found = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
        compare("BM25.scores", found, torch.tensor(expected),
                f'One for each fact, {k1=}, {b=}, "{query}": the formula is in the docstring, fact '
                "0 is empty, fact 1 has a word three times.")  # fmt: skip


# ------------------------------------------------------------------------------- the exercises


def mean_with_padding(table: nn.Embedding, ids: Tensor, mask: Tensor) -> Tensor:
    return table(ids).mean(-2)


def hide_with_infinity(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask[..., None, None, :], -math.inf)


def attention_without_prefix(layer: SelfAttention, x: Tensor, *_: object) -> Tensor:
    return layer.output(layer.value(x))


def ffn_with_empty_slots(ffn: FFN, x: Tensor, knowledge: Knowledge) -> Tensor:
    K, V, _ = knowledge
    return ffn.W2(gelu(ffn.W1(x))) + gelu(x @ K.mT) @ V


def zero_keys(model: Kformer, missing: list[str], right: Callable = initialize) -> None:
    right(model, missing)
    for name, parameter in model.named_parameters():
        if ".Wk." in name:
            parameter.data.zero_()


def empty_index(bm25: BM25, facts: list[str], k1: float, b: float) -> None:
    bm25.num_facts, bm25.index = len(facts), {}


@pytest.mark.parametrize(
    ("where", "wrong", "why", "check", "given"),
    [
        ("kformer.mean_embedding", mean_with_padding, "entry (0, 0, 0)",
         test_a_fact_is_the_mean_of_its_words_and_padding_is_none, {}),
        ("kformer.hide", hide_with_infinity, "is -inf",
         test_what_is_hidden_gets_no_attention, {}),
        ("kformer.SelfAttention.forward", attention_without_prefix, "entry (0, 0, 0)",
         test_attention_with_a_prefix_equals_plain_loops, {}),
        ("kformer.FFN.forward", ffn_with_empty_slots, "entry (1, 0, 0)",
         test_ffn_injection_is_an_ordinary_ffn_that_was_widened, {}),
        ("load_weights.our_name", str.lower, 'must be "encoder.layer.1.ffn_norm.weight"',
         test_names_in_a_checkpoint_become_ours, {}),
        ("load_weights.initialize", zero_keys, "a key is the fact itself",
         test_the_zero_gate_of_ffn_is_the_plain_encoder_and_can_learn,
         {"kind": "bert"}),
        ("parts.retrieval.BM25.__init__", empty_index, "entry (2,)",
         test_bm25_equals_plain_loops, {"k1": 1.2, "b": 0.75}),
    ],
    ids="1235678",
)  # fmt: skip
def test_a_wrong_exercise_is_told_in_one_sentence(
    where: str, wrong: Callable, why: str, check: Callable, given: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Left blank, with an error in it, or another formula: the check fails, and says so."""
    module, name = re.match(r"((?:parts\.)?\w+)\.(\w+)", where).groups()
    for version, said in (
        (lambda *_, **__: None, name),
        (lambda *_, **__: [][0], "IndexError"),
        (wrong, why),
    ):
        monkeypatch.setattr(where, version)
        monkeypatch.setitem(globals(), name, getattr(sys.modules[module], name))
        with pytest.raises(pytest.fail.Exception) as failure:
            check(**given)
        sentence = str(failure.value)
        assert name in sentence
        assert said in sentence
        assert "\n" not in sentence
        assert len(sentence) < 400


def test_kformer_as_a_program_shows_one_fact_at_work() -> None:
    done = subprocess.run([sys.executable, HERE / "kformer.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "with the fact that owls eat mice" in done.stdout
    assert done.stdout.count("in layer 1 it fired") == 8, "at each of the tokens"
