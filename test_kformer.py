"""What must hold of the model, and the checks of the exercises in docs/exercises.md.

    python -m pytest                     this file and tests/, in well under two minutes
    python -m pytest -k widened          one thing, by a word of its name
    python -m pytest -m exercise3        the checks of one exercise; -m exercises has all

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

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, pad

from data import make_toy
from kformer import (
    FFN,
    Block,
    Kformer,
    KformerConfig,
    KformerForMultipleChoice,
    SelfAttention,
    append_facts,
    hide,
    mean_embedding,
    nearest_facts,
)
from lab.released import MendedAttention, ReleasedAttention
from load_weights import load_pretrained, our_name, their_name
from qa.retrieval import BM25, words

torch.set_num_threads(1)  # the models are too small to be shared out
HERE = Path(__file__).resolve().parent
REFERENCE = HERE / "data" / "reference"  # written by transformers, see data/make_reference.py
KINDS = ["bert", "roberta"]
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


def padded_batch() -> tuple[Tensor, Tensor]:
    """Questions (B, C, T) and facts (B, N, L), both with padding; the last question has 2 facts."""
    questions = tokens(B, C, T, lengths=torch.tensor([[7, 4], [5, 7], [3, 6]]))
    lengths = torch.tensor([[5, 1, 3, 2], [2, 4, 5, 1], [3, 2, 0, 0]])
    return questions, tokens(B, N, L, lengths=lengths, seed=2)


def full_batch() -> tuple[Tensor, Tensor]:
    return tokens(B, C, T), tokens(B, N, L, seed=2)


def biggest_change(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def exercise(number: int) -> Callable:
    """Marks a test as a check of this exercise, for `pytest -m exercise3` and `-m exercises`."""
    marks = pytest.mark.exercises, getattr(pytest.mark, f"exercise{number}")
    return lambda test: marks[0](marks[1](test))


def fail(sentence: str) -> None:
    pytest.fail(sentence, pytrace=False)


def attempt(name: str, function: Callable, *args: object, **kwargs: object) -> object:
    """function(...). Where it raises an error, the test fails with that error and its place."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        frames, ours = traceback.extract_tb(error.__traceback__), ("", "qa", "lab")
        place = [f for f in frames if Path(f.filename).parent in [HERE / one for one in ours]][-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
    return fail(f"{name}: {said:.150} ({Path(place.filename).name}, line {place.lineno})")


def compare(name: str, found: object, expected: Tensor, why: str, limit: float = 1e-5) -> None:
    """Fails, because of `why`, unless `found`, which `name` gave, is `expected` up to `limit`."""
    shape = tuple(expected.shape)
    if not isinstance(found, Tensor):
        fail(f"{name}: gives {found!r:.50}, must give a tensor of shape {shape}. {why}")
    if found.shape != shape:
        fail(f"{name}: gives the shape {tuple(found.shape)}, must be {shape}. {why}")
    if found.dtype != expected.dtype:
        fail(f"{name}: gives {found.dtype}, must be {expected.dtype}. {why}")
    wrong = ~((found - expected).abs() <= limit)  # so that nan is wrong too
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        fail(
            f"{name}: entry {at} is {found[at].item():.4g}, must be {expected[at].item():.4g} "
            f"({wrong.sum()} of {wrong.numel()} entries are wrong). {why}"
        )


# --------------------------------------------------------------------------------------------- FFN


@exercise(5)
@pytest.mark.parametrize(("T", "N"), [(7, 4), (3, 5)])
def test_ffn_injection_is_an_ordinary_ffn_that_was_widened(T: int, N: int) -> None:
    """The paper's claim: gelu(x W1 + b1) W2 + b2 + gelu(x Kᵀ) V is one FFN with M + N neurons."""
    torch.manual_seed(N)
    ffn, x = FFN(TINY).double(), torch.randn(B, T, D).double()
    K, V = torch.randn(2, B, N, D).double().requires_grad_()
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])[:, :N].bool()
    widened = []
    for row in range(B):
        W1 = torch.cat([ffn.W1.weight.T, K[row, real[row]].T], dim=1)  # the columns of Kᵀ
        b1 = nn.functional.pad(ffn.W1.bias, (0, len(W1.T) - len(ffn.W1.bias)))
        W2 = torch.cat([ffn.W2.weight.T, V[row, real[row]]], dim=0)  # the rows of V
        widened.append(gelu(x[row] @ W1 + b1) @ W2 + ffn.W2.bias)
    widened = torch.stack(widened)
    facts, name = (K, V, real), "FFN.forward"
    injected = attempt(name, ffn, x, facts)
    compare(name, injected, widened,
            "gelu(x W1 + b1) W2 + b2 + gelu(x K^T) V is an FFN with M + N neurons; row 1 has an "
            "empty slot, row 2 nothing else, and an empty slot adds nothing.")  # fmt: skip
    learn = {"K": K, "V": V, **dict(ffn.named_parameters())}
    if not injected.requires_grad:
        fail(f"{name}: no gradient reaches K, V, W1 and W2.")
    right = torch.autograd.grad(widened.square().sum(), [*learn.values()])
    found = torch.autograd.grad(injected.square().sum(), [*learn.values()], allow_unused=True)
    for what, gradient, expected in zip(learn, found, right, strict=True):
        compare(f"{name}, gradient of {what}", gradient, expected, "It must learn, too.")
    choices = x[:, None].expand(B, C, T, D)
    shared = attempt(name, ffn, choices, tuple(part[:, None] for part in facts))
    compare(name, shared, widened[:, None].expand_as(choices),
            "The same facts, (B, 1, N, D), for each of C equal choices, (B, C, T, D).")  # fmt: skip
    own = attempt(name, ffn, x[None], tuple(part[None] for part in facts))
    compare(name, own, widened[None], "Facts (B, C, N, D), of each choice.")
    plain = attempt(name, ffn, x)
    compare(name, plain, ffn.W2(gelu(ffn.W1(x))), "Without knowledge, BERT's FFN.")


@exercise(5)
def test_fact_scores_of_the_ffn_are_its_activations() -> None:
    torch.manual_seed(0)
    ffn, x, real = FFN(TINY), torch.randn(B, C, T, D), torch.rand(B, 1, N) < 0.7
    K, V = torch.randn(2, B, 1, N, D)
    attempt("FFN.forward", ffn, x, (K, V, real))
    expected = gelu(torch.einsum("bctd,bnd->bctn", x, K[:, 0])) * real.unsqueeze(-2)
    compare("FFN.fact_scores", ffn.fact_scores, expected,
            "gelu(x K^T), how strongly each fact fired at each token; 0 in an empty slot.")
    ffn(x)
    if ffn.fact_scores is not None:
        fail("FFN.forward: without knowledge fact_scores must be None, not of an earlier batch.")


# --------------------------------------------------------------------------------------- attention


def attention_in_loops(
    layer: SelfAttention, x: Tensor, mask: Tensor, K: Tensor, V: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """The specification for one row: K and V stand in front of the keys and values.
    -> the output (T, D), and the shares of the attention that the facts got (T, N).
    """
    q, k, v = layer.query(x), layer.key(x), layer.value(x)
    keys, values = torch.cat([K, k]), torch.cat([V, v])
    seen = torch.cat([real, mask]).tolist()
    out, shares = torch.zeros_like(q), x.new_zeros(len(x), len(K))
    size = D // layer.num_heads
    for head, t in itertools.product(range(layer.num_heads), range(len(x))):
        part = slice(head * size, (head + 1) * size)
        weights = x.new_tensor([
            math.exp((q[t, part] @ keys[s, part]).item() / math.sqrt(size)) if seen[s] else 0.0
            for s in range(len(keys))
        ])  # fmt: skip
        weights /= weights.sum()
        out[t, part] = weights @ values[:, part]
        shares[t] += weights[: len(K)] / layer.num_heads
    return layer.output(out), shares


@exercise(3)
@pytest.mark.parametrize(("heads", "T", "N"), [(2, 7, 4), (4, 5, 6)])
def test_attention_with_a_prefix_equals_plain_loops(heads: int, T: int, N: int) -> None:
    torch.manual_seed(N)
    name, layer = "SelfAttention.forward", SelfAttention(replace(TINY, num_attention_heads=heads))
    layer, x = layer.double().eval(), torch.randn(B, T, D).double()
    K, V = torch.randn(2, B, N, D).double()
    mask = torch.arange(T) < torch.tensor([[T], [4], [1]])
    real = torch.tensor([[1, 1, 1, 1, 0, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]])[:, :N].bool()
    with torch.no_grad():
        rows = [attention_in_loops(layer, x[i], mask[i], K[i], V[i], real[i]) for i in range(B)]
        none = [attention_in_loops(layer, x[i], mask[i], K[i, :0], V[i, :0], real[i, :0])[0]
                for i in range(B)]  # fmt: skip
    expected, shares = map(torch.stack, zip(*rows, strict=True))
    facts = K, V, real
    compare(name, attempt(name, layer, x, x, mask, facts), expected,
            "In each head softmax(q [K^T k^T] / sqrt(D/H)) [V; v], then `output`; row 1 has "
            "padding and empty slots, in row 2 all slots are empty.")  # fmt: skip
    compare("SelfAttention.fact_scores", layer.fact_scores, shares,
            "The share of the attention that each fact got, mean of the heads.")  # fmt: skip
    compare(name, attempt(name, layer, x[:, :2], x, mask, facts), expected[:, :2],
            "Queries come from x alone, here the first two tokens of the context.")  # fmt: skip
    compare(name, attempt(name, layer, x, x, mask), torch.stack(none),
            "Without knowledge, no prefix.")  # fmt: skip
    if layer.fact_scores is not None:
        fail(f"{name}: without knowledge fact_scores must be None, not of an earlier batch.")
    choices = x[:, None].expand(B, C, T, D)
    shared = attempt(name, layer, choices, choices, mask[:, None].expand(B, C, T),
                     tuple(part[:, None] for part in facts))  # fmt: skip
    compare(name, shared, expected[:, None].expand(B, C, T, D),
            "The same facts, (B, 1, N, D), for each of C equal choices, (B, C, T, D).")  # fmt: skip
    own = attempt(name, layer, x[None], x[None], mask[None], tuple(part[None] for part in facts))
    compare(name, own, expected[None], "Facts (B, C, N, D), of each choice.")


@exercise(3)
def test_attention_with_a_prefix_learns_and_has_dropout() -> None:
    torch.manual_seed(0)
    name, layer, x = "SelfAttention.forward", SelfAttention(TINY).eval(), torch.randn(B, T, D)
    (K, V), mask = torch.randn(2, B, N, D).requires_grad_(), torch.ones(B, T).bool()
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]).bool()
    mask[2] = False  # as in a choice that other questions have
    for dtype in (torch.bfloat16, torch.float32):
        given, facts = x.to(dtype), (K.to(dtype), V.to(dtype), real)
        out = attempt(name, layer.to(dtype), given, given, mask, facts)
        compare(f"{name} in {dtype}", out.isfinite().to(dtype), torch.ones(B, T, D, dtype=dtype),
                "In row 2 nothing is to be seen: use `hide`, so that it isn't 0/0.")  # fmt: skip
    if not out.requires_grad:
        fail(f"{name}: no gradient reaches the facts and the four matrices.")
    learn = {"K": K, "V": V, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(out[:2].square().sum(), [*learn.values()], allow_unused=True)
    for what, grad in zip(learn, grads, strict=True):
        if grad is None or not grad.isfinite().all() or not grad.any():
            fail(f"{name}: no gradient, or nan, reaches {what}.")
    got, right = torch.stack(grads[:2]).any(-1).float(), real.expand(2, B, N).float()
    compare(f"{name}, gradient", got, right, "It reaches each fact, and no empty slot.")
    layer.train().dropout.p = 0.5
    with torch.no_grad():  # all values are 1, so that the output is the sum of the shares
        for module in (layer.value, layer.output):
            module.weight.zero_(), module.bias.zero_()
        layer.value.bias.fill_(1), layer.output.weight.fill_diagonal_(1)
        out = layer(x, x, mask, (K, torch.ones_like(V), real)).unflatten(-1, (layer.num_heads, -1))
    if (out - 1).abs().max() < 1e-5 or (out - out[..., :1]).abs().max() > 1e-5:
        fail(f"{name}: `dropout` must take shares away after the softmax, before the values are "
             "added up, and only in training.")  # fmt: skip
    dropped = layer.fact_scores
    layer.eval()(x, x, mask, (K, V, real))
    compare("SelfAttention.fact_scores", dropped, layer.fact_scores, "Before dropout.")


@exercise(2)
@pytest.mark.parametrize(
    ("dtype", "batch"),
    [(torch.float32, (2,)), (torch.float64, (2, 3)), (torch.bfloat16, (3, 4)), (torch.float16, ())],
)
def test_what_is_hidden_gets_no_attention(dtype: torch.dtype, batch: tuple) -> None:
    torch.manual_seed(0)
    scores, real = torch.randn(*batch, 2, 3, 5).to(dtype), torch.rand(*batch, 5) < 0.5
    scores *= torch.finfo(dtype).max / 8  # so large that one more addition may be too much
    real[:1] = False
    before, expected = scores.clone(), scores.clone()
    for *row, key in (~real).nonzero().tolist():
        expected[(*row, ..., key)] = torch.finfo(dtype).min
    compare("hide", attempt("hide", hide, scores, real), expected,
            "What isn't real gets the lowest number that its dtype has, not -inf: where nothing "
            "is real, as in row 0, the softmax of -inf is 0/0.", limit=0)  # fmt: skip
    compare("hide", scores, before, "The scores that were given stay as they are.", limit=0)


# ------------------------------------------------------------------------------------------- facts


@exercise(1)
@pytest.mark.parametrize("shape", [(2, 2, 5), (6,), (4, 3)])
def test_a_fact_is_the_mean_of_its_words_and_padding_is_none(shape: tuple) -> None:
    torch.manual_seed(0)
    name, table = "mean_embedding", nn.Embedding(50, D)
    ids, mask, means = torch.randint(3, shape), torch.rand(shape) < 0.5, []
    mask.view(-1, shape[-1])[3:] = False
    for row, kept in zip(ids.view(-1, shape[-1]), mask.view(-1, shape[-1]), strict=True):
        words = [table.weight[i] for i in row[kept]]
        means.append(sum(words) / len(words) if words else torch.zeros(D))
    expected = torch.stack(means).view(*shape[:-1], D)
    mean = attempt(name, mean_embedding, table, ids, mask)
    compare(name, mean, expected,
            "It is the mean of the embeddings. The mask alone says what is kept, whatever the ids "
            "are (padding is 0 in BERT, 1 in RoBERTa); of shape (2, 2, 5), fact (1, 1) has none "
            "and must be 0, not 0/0.")  # fmt: skip
    if not mean.requires_grad:
        fail(f"{name}: no gradient reaches the table; leave out .data and .detach().")
    grads = [torch.autograd.grad(out.square().sum(), table.weight)[0] for out in (mean, expected)]
    compare(f"{name}, gradient of the table", *grads, "Only words that are kept have one.")


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
    kept, places = nearest_facts(facts, table, question, replace(TINY, num_facts=num_facts))
    assert torch.equal(kept, torch.stack([facts[i, row] for i, row in enumerate(places)]))
    for row in range(B):
        expected = nearest_in_loops(facts[row].tolist(), table.weight, question[row], num_facts)
        assert kept[row].tolist() == expected


@pytest.mark.parametrize("inject", ["concat", "attention", "ffn"])
def test_each_choice_keeps_the_facts_that_are_nearest_to_it(inject: str) -> None:
    questions, _ = padded_batch()
    facts = tokens(B, 6, L, seed=5)
    model = tiny(inject, num_facts=2)
    words = model.embeddings.word_embeddings
    table = model.fact_embeddings if inject != "concat" else words
    query = mean_embedding(words, questions, questions != 0)
    kept, _ = nearest_facts(facts.unsqueeze(1), table, query, model.config)
    assert kept.shape == (B, C, 2, L)
    assert biggest_change(model(questions, fact_ids=facts), model(questions, fact_ids=kept)) < 1e-9
    all_kept = tiny(inject, num_facts=6)(questions, fact_ids=facts)
    assert biggest_change(model(questions, fact_ids=facts), all_kept) > 1e-6


@pytest.mark.parametrize("inject", ["concat", "attention", "ffn"])
def test_bfloat16_and_int32_keep_the_same_facts(inject: str) -> None:
    model, questions = tiny(inject, num_facts=2).float(), tokens(400, C, T)
    facts = tokens(400, 20, L, seed=5)
    model(questions, fact_ids=facts)
    kept = model.kept_facts
    with torch.autocast("cpu", torch.bfloat16):
        model(questions.int(), fact_ids=facts.int())
    assert torch.equal(model.kept_facts, kept)


def test_concat_appends_facts_that_have_room_and_moves_padding_behind() -> None:
    ids = torch.tensor([[2, 10, 3, 11, 3, 0], [2, 12, 13, 3, 14, 3]])
    facts = torch.tensor([[[20, 21, 0], [22, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]])
    questions = ids, ids != 0, segments
    ids, mask, segments, read = append_facts(*questions, facts, TINY)
    assert torch.equal(read, facts)
    assert ids.tolist() == [[2, 10, 3, 11, 3, 20, 21, 22, 3], [2, 12, 13, 3, 14, 3, 0, 0, 0]]
    assert mask.tolist() == [[True] * 9, [True] * 6 + [False] * 3]
    assert segments[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert segments[1, :6].tolist() == [0, 0, 0, 0, 1, 1]
    cut, *_, read = append_facts(*questions, facts, replace(TINY, max_position_embeddings=7))
    assert cut.tolist() == [[2, 10, 3, 11, 3, 20, 3], ids[1, :7].tolist()], "as there is room"
    assert read.tolist() == [[[20, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]


# --------------------------------------------------------------------------------- the whole model


@pytest.mark.parametrize("inject", ["attention", "ffn"])
@pytest.mark.parametrize("model_type", KINDS)
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

        for what, q, f in (
            ("question", pad(questions, (0, 3)), facts),
            ("fact", questions, pad(facts, (0, 2))),
            ("list of facts", questions, pad(facts, (0, 0, 0, 1))),
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
@pytest.mark.parametrize("model_type", KINDS)
def test_scores_depend_on_the_own_question_and_facts_alone(inject: str, model_type: str) -> None:
    depends_on_its_own_alone(tiny(inject, model_type=model_type))


@pytest.mark.parametrize(
    ("inject", "layer"), [("concat", 0), *itertools.product(("attention", "ffn"), (0, 1, 2))]
)
def test_every_fact_counts_in_every_layer(inject: str, layer: int) -> None:
    every_fact_counts(tiny(inject, inject_layers=(layer,)))


def complaint(check: Callable, model: nn.Module) -> str:
    try:
        check(model)
    except AssertionError as error:
        return str(error).split("\n")[0]
    return "nothing"


CHECKS = (depends_on_its_own_alone, every_fact_counts)


@exercise(4)
def test_the_released_attention_baseline_fails_these_checks() -> None:
    model = tiny("attention", inject_layers=(2,))
    model.encoder.layer[2].attention = ReleasedAttention(model.encoder.layer[2].attention)
    leak, unseen = (attempt("ReleasedAttention", complaint, check, model) for check in CHECKS)
    assert "another question's facts changed a score" in leak
    assert "doesn't count, padding=True" in unseen
    questions, facts = padded_batch()  # with padding, no fact is seen at all
    others = tokens(B, N, L, seed=9)
    assert torch.equal(model(questions, fact_ids=facts), model(questions, fact_ids=others))


@exercise(4)
def test_the_mended_attention_passes_them_and_equals_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forward = tiny("attention", inject_layers=(2,)), SelfAttention.forward
    layer, batches = model.encoder.layer[2], (padded_batch(), full_batch())
    expected = [attempt("the model", model, q, fact_ids=f) for q, f in batches]
    layer.attention = mended = MendedAttention(layer.attention)

    def of_other_layers(attention: SelfAttention, *arguments: object) -> Tensor:
        if attention is mended.ours:
            raise ValueError("calls SelfAttention, must mend the released code")
        return forward(attention, *arguments)

    monkeypatch.setattr(SelfAttention, "forward", of_other_layers)
    found = [attempt("MendedAttention", model, q, fact_ids=f) for q, f in batches]
    said = [f"{check.__name__} says {complaint(check, model)}" for check in CHECKS]
    away = [biggest_change(a, b) for a, b in zip(found, expected, strict=True)]
    if not all(one.endswith("says nothing") for one in said) or not max(away) < 1e-9:
        fail(f"MendedAttention: {'; '.join(said)}; away from ours by {away[0]:.1e} with padding, "
             f"by {away[1]:.1e} without.")  # fmt: skip


@pytest.mark.parametrize("inject", ["concat", "attention", "ffn"])
def test_facts_of_each_choice_equal_shared_ones_and_only_concat_has_an_order(inject: str) -> None:
    model, (questions, facts) = tiny(inject), padded_batch()
    repeated = facts.unsqueeze(1).expand(B, C, N, L)
    shared = model(questions, fact_ids=facts)
    assert biggest_change(shared, model(questions, fact_ids=repeated)) < 1e-9
    away = biggest_change(model(questions, fact_ids=facts[:, [1, 3, 0, 2]]), shared)
    assert away > 1e-5 if inject == "concat" else away < 1e-9
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
        assert fired_alone[2].shape == (B, C, 1, N), "above, nothing but [CLS] is worked out"
        assert biggest_change(fired_alone[2], fired[2][..., :1, :]) < 1e-9


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_gradients_through_the_whole_model_are_the_numeric_ones(inject: str) -> None:
    model = tiny(inject, inject_layers=(0, 1), num_hidden_layers=2, hidden_size=4)
    questions, facts = tokens(1, 2, 3), tokens(1, 2, 2, seed=2)
    names = [name for name, _ in model.named_parameters()]

    def scores(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, parameters, (questions, None, None, facts))

    values = [model.get_parameter(name).detach().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(scores, values, fast_mode=True)


@pytest.mark.parametrize("size", [16, 40])
def test_words_start_at_right_angles_where_there_is_room_and_facts_as_their_copy(size: int) -> None:
    model = Kformer(KformerConfig(size, 16, 2, 2, inject="ffn"))
    words, facts = model.embeddings.word_embeddings.weight, model.fact_embeddings.weight
    angles = words @ words.T
    angles = angles if size == 16 else angles.diagonal().diag()
    assert torch.allclose(angles, 16 * torch.eye(size), atol=1e-4)
    assert torch.equal(words, facts)
    assert words.data_ptr() != facts.data_ptr()


@exercise(7)
@pytest.mark.parametrize("inject", ["ffn", "attention"])
def test_wk_and_wv_start_near_the_words(inject: str) -> None:
    name, config = "initialize_projections", KformerConfig(40, 12, 4, 2, inject=inject)
    for block in attempt(name, Kformer, config).encoder.layer[1:]:
        start_is(block, 1.0, f"{inject} from scratch")  # all words have the length of the states
    for kind in KINDS:
        model, _ = attempt(name, load_pretrained, REFERENCE / kind, inject=inject)
        words = model.embeddings.word_embeddings.weight.detach()
        states = (model.embeddings.norm.weight.detach() ** 2).sum().sqrt()
        gain = states / words.square().sum(-1).sqrt().mean()
        start_is(model.encoder.layer[2], gain, f"{inject} after a checkpoint")
        compare(name, model.fact_embeddings.weight, words, "Facts are embedded like words.", 0)


def start_is(block: Block, gain: float | Tensor, where: str) -> None:
    query, value = block.attention.query, block.attention.value
    for name, own, kind in (("Wk", query, "query"), ("Wv", value, "value")):
        found, right = getattr(block, name), own.weight.detach() * 4 * gain
        told = f"4 gain times the {kind} matrix"
        if block.inject == "ffn":
            right, told = torch.eye(len(right)), "I"
        least, why = 1e-5 * float(right.abs().max()), f"In {where}: {name} = {told}, and no bias."
        compare(f"initialize_projections, {name}.weight", found.weight, right, why, least)
        compare(f"initialize_projections, {name}.bias", found.bias, 0 * right[0], why, limit=0)


def test_roberta_counts_positions_behind_the_padding_id() -> None:
    for kind, expected in (("bert", [0, 1, 2, 3, 4]), ("roberta", [[2, 3, 4, 1, 1]])):
        embeddings = Kformer(replace(TINY, model_type=kind, pad_token_id=1)).embeddings
        assert embeddings.positions(torch.tensor([[10, 11, 12, 1, 1]])).tolist() == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inject": "fnn"}, 'inject is "fnn"'),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
        ({"inject_layers": (1, 3)}, "must be numbers from 0 to 2"),
        ({"inject_layers": 2}, "must be numbers from 0 to 2"),
        ({"inject_layers": ()}, "must be numbers from 0 to 2"),
        ({"inject_layers": [[1]]}, "must be numbers from 0 to 2"),
        ({"num_facts": 0}, "num_facts is 0, must be a whole number from 1 to 1,000,000"),
        ({"num_attention_heads": 2.0}, "num_attention_heads is 2.0, must be a whole number"),
        ({"hidden_dropout_prob": 1}, "hidden_dropout_prob is 1, must be at least 0 and below 1"),
        ({"max_position_embeddings": 6}, "max_position_embeddings 6 there is room for 6"),
        ({"inject": "ffn"}, r"fact_ids \(3, 5\) must have one dimension more"),
    ],
)
def test_what_cannot_work_says_why(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Kformer(replace(TINY, **fields))(tokens(B, T), fact_ids=tokens(B, L))


@pytest.mark.parametrize("hidden", [-1e4, -torch.inf, 2])
def test_a_mask_that_is_added_to_scores_is_refused(hidden: float) -> None:
    with pytest.raises(ValueError, match="attention_mask must be 1 for tokens and 0 for padding"):
        Kformer(TINY)(tokens(B, 2), torch.tensor([0, hidden]))


def test_default_layers_are_the_top_ones() -> None:
    for layers, expected in ((1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (12, (9, 10, 11))):
        assert KformerConfig(num_hidden_layers=layers).inject_layers == expected


# ------------------------------------------------------------------ a checkpoint, and retrieval


@exercise(6)
def test_names_in_a_checkpoint_become_ours() -> None:
    ours = list(tiny("none", num_hidden_layers=11).state_dict())
    names = {their_name(name, kind): name for name in ours for kind in KINDS}
    names |= {
        "bert.encoder.layer.1.output.LayerNorm.gamma": "encoder.layer.1.ffn_norm.weight",
        "embeddings.LayerNorm.beta": "embeddings.norm.bias",
        "module.bert.embeddings.word_embeddings.weight": "embeddings.word_embeddings.weight",
        "module.embeddings.LayerNorm.weight": "embeddings.norm.weight",
        "encoder.layer.0.gamma": "encoder.layer.0.gamma",
        "scaler.beta": "scaler.beta",
        "LayerNorm.gamma.scale": "LayerNorm.gamma.scale",
        "cls.bert.weight": "cls.bert.weight",
        "bertha.weight": "bertha.weight",
        "encoder.layer.0.output.dense.lora.weight": "encoder.layer.0.output.dense.lora.weight",
    }  # fmt: skip
    for theirs, ours in names.items():
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


@exercise(8)
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.5, 0.0), (2.0, 1.0)])
def test_bm25_equals_plain_loops(k1: float, b: float) -> None:
    drawn, facts = random.Random(k1), ["", "Owls owls owls eat."]
    for _ in range(30):
        facts += make_toy.make_question(drawn, "test", "plain")["knowledges"]
    bm25 = attempt("BM25", BM25, facts, k1, b)
    for query in ("Who sells kites?", "Does the owl eat owls?", "of the", ""):
        expected = [bm25_in_loops(query, fact, facts, k1, b) for fact in facts]
        found = torch.as_tensor(attempt("BM25.scores", bm25.scores, query))
        compare("BM25.scores", found, torch.tensor(expected),
                f'One for each fact, {k1=}, {b=}, "{query}": the formula is in the docstring, fact '
                "0 is empty, fact 1 has a word three times.")  # fmt: skip
    having = {word: [i for i, f in enumerate(facts) if word in words(f)]
              for fact in facts for word in words(fact)}  # fmt: skip
    index = {word: sorted(map(int, at)) for word, (at, _) in bm25.index.items()}
    if index != having:
        fail("BM25.index: must have each word of the facts, no other, with the facts that have it.")
    empty = attempt("BM25", BM25, ["", ""], k1, b).scores("owl")
    compare("BM25.scores", torch.from_numpy(empty), torch.zeros(2), "Where all facts are empty.")


class Counted(str):
    """A word that counts how often one is looked for, in a dict or a list."""

    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return super().__eq__(other)


@exercise(8)
def test_bm25_goes_through_its_facts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [f"a{i} b{i} c{i} owl" for i in range(300)]
    monkeypatch.setattr("qa.retrieval.words", lambda text: [Counted(w) for w in words(text)])
    monkeypatch.setattr(Counted, "looks", 0)
    attempt("BM25", BM25, facts).scores("owl")
    if Counted.looks > 40_000:
        fail(f"BM25.__init__: 1,200 words are looked for {Counted.looks:,} times, must be a few "
             "times each: go through the facts once, and not again for each word.")  # fmt: skip


def test_kformer_as_a_program_learns_to_read_a_fact() -> None:
    done = subprocess.run([sys.executable, HERE / "kformer.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    right, chance = (float(share) for share in re.findall(r"([\d.]+)%", done.stdout))
    assert right > 90
    assert 45 < chance < 55
