"""One question looked into: its choices, its facts, and which fired at which token."""

import shutil
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from kformer import KformerForMultipleChoice
from parts.batches import encode, scored
from parts.questions import Question, of_choice
from parts.tokenizer import Tokenizer


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
            q, ids = questions[place], data[place].fact_ids
            probabilities = scores[row, : len(q.choices)].softmax(-1).tolist()
            likeliest = probabilities.index(max(probabilities))
            facts = []
            if model.kept_facts is not None:
                kept = model.kept_facts.expand(-1, scores.shape[1], -1, -1)[row, likeliest].tolist()
                kept = [without(tokenizer.pad_token_id, fact) for fact in kept]
                all_ids = [without(tokenizer.pad_token_id, i) for i in of_choice(ids, likeliest)]
                texts = of_choice(q.facts, likeliest)
                facts = [texts[all_ids.index(fact)] for fact in kept if fact]
            found[place] = probabilities, facts
    return [found[place] for place in range(len(questions))]


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


def show(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, q: Question, dtype: torch.dtype
) -> Iterator[str]:
    """Lines: a question, its choices with their probabilities, its facts, and for each injected
    layer what fired where, for the choice that was taken.
    """
    terminal = sys.stdout.isatty()
    shades = " ░▒▓█" if terminal else " .:*#"
    width = shutil.get_terminal_size().columns if terminal else 100
    [(probabilities, facts)] = answers(model, tokenizer, [q], dtype, look=True)
    chosen = probabilities.index(max(probabilities))
    yield printable(f"{q.context} {q.question}").strip()
    for i, choice in enumerate(q.choices):
        taken, right = ">" if i == chosen else " ", "  <- right" if i == q.answer else ""
        yield f"  {taken} {printable(choice):<24}{probabilities[i]:7.1%}{right}"
    scores = fact_scores(model)
    if not scores or any(len(fact) > 28 for fact in facts):  # below, they are cut
        for fact in facts or of_choice(q.facts, chosen)[:10]:  # or: nothing was injected
            yield f"    {printable(fact)}"
    ids = encode(q, tokenizer, model.config).input_ids[chosen]
    tokens = [printable(tokenizer.decode([i])).strip() or tokenizer.vocab[i] for i in ids]
    facts = [printable(fact) for fact in facts]
    for layer, fired in scores.items():
        yield f"  layer {layer}"
        for line in picture(fired[0, chosen, : len(ids)], tokens, facts, shades, width):
            yield line.rstrip()


def picture(
    fired: Tensor, tokens: list[str], facts: list[str], shades: str, width: int
) -> Iterator[str]:
    """(T, N) -> lines: for each fact the largest of its scores, and a cell under each token, the
    darker the stronger. What is too wide goes on below.
    """
    levels = len(shades) - 1
    depth = (fired / fired.max().clamp(min=1e-9) * levels).round().clamp(min=0).int().tolist()
    most = [round(score, 2) + 0.0 for score in fired.amax(0).tolist()]  # 0.00, never -0.00
    names = [f"  {most[n]:6.2f}  {fact:<28.28}  " for n, fact in enumerate(facts)]
    while tokens:
        fits = 1
        while fits < len(tokens) and 40 + len(" ".join(tokens[: fits + 1])) <= width:
            fits += 1
        yield " " * 40 + " ".join(tokens[:fits])
        for n, name in enumerate(names):
            cells = (shades[depth[t][n]] * len(tokens[t]) for t in range(fits))
            yield name + " ".join(cells)
        tokens, depth = tokens[fits:], depth[fits:]
