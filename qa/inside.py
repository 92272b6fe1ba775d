"""One question looked into: its choices, its facts, and which fired at which token.

    answers       the probabilities of many questions, and the facts that were used
    fact_scores   what the last forward pass left of them in each injected layer
    look_into     one question, choice by choice; nearest_words: what its facts write
    show          the same in lines of text, with pictures
"""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kformer import KformerForMultipleChoice, mean_embedding
from qa.batches import Encoded, encode, scored
from qa.questions import Question, of_choice
from qa.tokenizer import Tokenizer


def answers(
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    questions: list[Question],
    dtype: torch.dtype,
    look: bool = False,
) -> list[tuple[list[float], list[str]]]:
    """For each question the probabilities of its choices, and the facts that the model kept for the
    likeliest one.
    """
    data, found = [encode(q, tokenizer, model.config) for q in questions], {}
    for places, scores in scored(model, data, dtype, look):
        for row, place in enumerate(places):
            q = questions[place]
            probabilities = scores[row, : len(q.choices)].softmax(-1).tolist()
            likeliest = probabilities.index(max(probabilities))
            facts = kept_texts(model, q, data[place], row, likeliest)
            found[place] = probabilities, [fact for fact in facts if fact]
    return [found[place] for place in range(len(questions))]


def kept_texts(
    model: KformerForMultipleChoice, q: Question, data: Encoded, row: int, choice: int
) -> list[str]:
    """The facts that the last forward pass kept for a choice of its question `row`, "" for an empty
    slot.
    """
    if model.kept_facts is None:
        return []
    pad, ids = model.config.pad_token_id, of_choice(data.fact_ids, choice)
    candidates = zip(ids, of_choice(q.facts, choice), strict=True)  # in the order of those kept
    kept = [without(pad, ids) for ids in of_choice(model.kept_facts[row], choice).tolist()]
    return [next(t for c, t in candidates if without(pad, c) == ids) if ids else "" for ids in kept]


def without(value: int, row: list[int]) -> list[int]:
    return [i for i in row if i != value]


def fact_scores(model: KformerForMultipleChoice) -> dict[int, Tensor]:
    """What the last forward pass left in each injected layer, (B, C, T, N): how strongly each fact
    fired at each token, or which share of its attention it got.
    """
    halves = [(i, h) for i, b in enumerate(model.encoder.layer) for h in (b.attention, b.ffn)]
    return {i: half.fact_scores for i, half in halves if half.fact_scores is not None}


def printable(text: str, most: int = 300) -> str:
    """A text as it may be printed: not too long, and without characters that steer a terminal."""
    text = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 3] + "..."


@dataclass
class Seen:
    """One choice of a question, looked into."""

    text: str
    probability: float
    tokens: list[str]
    facts: list[str]  # those that were kept for it
    writes: list[str]  # for each of them the words nearest to its V; "" where nothing is injected
    fired: dict[str, Tensor]  # "layer 1 of 0 to 2", the top one last -> (T, N)


def look_into(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, q: Question, dtype: torch.dtype
) -> list[Seen]:
    """A question's choices, in their order."""
    data, last = encode(q, tokenizer, model.config), model.config.num_hidden_layers - 1
    [(_, scores)] = scored(model, [data], dtype, look=True)
    probabilities, layers, seen = scores[0].softmax(-1).tolist(), fact_scores(model), []
    words = nearest_words(model, tokenizer, max(layers), dtype) if layers else []
    for i, ids in enumerate(data.input_ids):
        tokens, texts = [word(tokenizer, token) for token in ids], kept_texts(model, q, data, 0, i)
        real = [n for n, text in enumerate(texts) if text]
        facts = [texts[n] for n in real]
        writes = [of_choice(words, i)[n] if words else "" for n in real]
        fired = {f"layer {layer} of 0 to {last}": scores[0, i, : len(ids), real].cpu()
                 for layer, scores in layers.items() if real}  # fmt: skip
        seen.append(Seen(q.choices[i], probabilities[i], tokens, facts, writes, fired))
    return seen


@torch.inference_mode()
def nearest_words(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, layer: int, dtype: torch.dtype
) -> list[list[str]]:
    """For each fact that the last forward pass kept for its first question, (1 or C, N), the three
    words whose embeddings have the largest cosine with its V = F Wv + bv. Tokens that are special
    or have no letter or digit aren't words.

    V is what the fact adds, where it fires, to a state that began as a sum of embeddings, and the
    words are a name for it. They aren't a proof: Wv starts on the diagonal, where V consists of
    the fact's own words, or after a checkpoint at 0, which is near no word; and what attention's
    output matrix and the layers above make of V, they don't say.
    """
    kept, table = model.kept_facts[0], model.embeddings.word_embeddings.weight
    F = mean_embedding(model.fact_embeddings, kept, kept != model.config.pad_token_id)
    with torch.autocast(table.device.type, dtype, enabled=dtype != torch.float32):
        V = model.encoder.layer[layer].Wv(F).float()  # (1 or C, N, D)
    words = vocabulary_words(tokenizer)
    ids, names = [*words], [*words.values()]
    cosines = normalize(V, dim=-1) @ normalize(table[ids], dim=-1).T
    nearest = cosines.topk(min(3, len(ids))).indices

    def text(v: Tensor, near: Tensor) -> str:
        return ", ".join(names[i] for i in near) if v.any() else "nothing, V is 0"

    return [list(map(text, *pair)) for pair in zip(V, nearest, strict=True)]


@cache  # a page looks into sixty questions, with one vocabulary
def vocabulary_words(tokenizer: Tokenizer) -> dict[int, str]:
    """Id -> text, of the tokens that are words."""
    special = [tokenizer.ids.get(token) for token in tokenizer.special]
    names = [(i, word(tokenizer, i)) for i in range(len(tokenizer.vocab)) if i not in special]
    return {i: name for i, name in names if any(map(str.isalnum, name))}


def word(tokenizer: Tokenizer, i: int) -> str:
    return printable(tokenizer.decode([i])).strip() or tokenizer.vocab[i]


def number(score: float) -> str:
    return f"{round(score, 2) + 0.0:.2f}"  # 0.00, never -0.00


MEANING = {  # of a cell that is dark
    "ffn": "the more strongly the fact fired at that token",
    "attention": "the more attention that token gave the fact",
}


def show(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, q: Question, dtype: torch.dtype
) -> Iterator[str]:
    """Lines: a question, its choices with their probabilities, its facts with the words nearest to
    what they write, and for each injected layer what fired where, for the choice that was taken and
    for the runner-up. Of a layer that doesn't tell facts apart there is one line, which says so.
    """
    terminal = sys.stdout.isatty()
    shades = " ░▒▓█" if terminal else " .:*#"
    width = shutil.get_terminal_size().columns if terminal else 100
    seen = look_into(model, tokenizer, q, dtype)
    order = sorted(range(len(seen)), key=lambda i: -seen[i].probability)
    two = [seen[i] for i in order[:2]]
    yield printable(f"{q.context} {q.question}").strip()
    for i, choice in enumerate(seen):
        taken, right = ">" if i == order[0] else " ", "  <- right" if i == q.answer else ""
        yield f"  {taken} {printable(choice.text):<24}{choice.probability:7.1%}{right}"
    facts = {fact: words for c in two for fact, words in zip(c.facts, c.writes, strict=True)}
    if not facts:  # nothing was injected
        facts = dict.fromkeys(of_choice(q.facts, order[0])[:10], "")
    for fact, words in facts.items():
        yield f"    {printable(fact):<28}  -> {words}" if words else f"    {printable(fact)}"
    layers = {name: None for choice in two for name in choice.fired}
    if layers:
        yield f"  Behind -> are the words nearest to V, what a fact writes in {[*layers][-1]}."
        yield f"  The darker a cell, {MEANING[model.config.inject]}; the number: its row's most."
    for layer in layers:
        some = [choice for choice in two if choice.fired]
        most = max(float(choice.fired[layer].max()) for choice in some)
        if all(alike(choice.fired[layer], most) for choice in some):
            yield f"  {layer}: left out, at each token all facts do alike (at most {number(most)})"
            continue
        yield f"  {layer}"
        for choice in some:
            title = f"  {'>' if choice is two[0] else ' '} {printable(choice.text)}"
            facts = [printable(fact) for fact in choice.facts]
            lines = picture(choice.fired[layer], choice.tokens, facts, shades, width, title, most)
            yield from map(str.rstrip, lines)


def alike(fired: Tensor, most: float) -> bool:
    """Whether several facts, (T, N), differ at no token by as much as a shade, `most` / 4."""
    spread = float((fired.amax(-1) - fired.amin(-1)).max())
    return fired.shape[-1] > 1 and spread < max(most / 4, 1e-9)


def picture(
    fired: Tensor, tokens: list[str], facts: list[str], shades: str, width: int,
    title: str = "", most: float = 0.0,
) -> Iterator[str]:  # fmt: skip
    """(T, N) -> lines: for each fact the largest of its scores, and a cell under each token, the
    darker the nearer to `most` or the largest of all. What is too wide goes on below.
    """
    levels, most = len(shades) - 1, max(most, float(fired.max()), 1e-9)
    depth = (fired / most * levels).round().clamp(min=0).int().tolist()
    strongest = fired.amax(0).tolist()
    names = [f"  {number(strongest[n]):>6}  {fact:<28.28}  " for n, fact in enumerate(facts)]
    while tokens:
        fits = 1
        while fits < len(tokens) and 40 + len(" ".join(tokens[: fits + 1])) <= width:
            fits += 1
        yield f"{title:<38.38}  " + " ".join(tokens[:fits])
        for n, name in enumerate(names):
            cells = (shades[depth[t][n]] * len(tokens[t]) for t in range(fits))
            yield name + " ".join(cells)
        tokens, depth = tokens[fits:], depth[fits:]
