"""One question looked into: its choices, its facts, and which fired at which token."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from kformer import KformerForMultipleChoice
from parts.batches import encode, score
from parts.questions import Question, of_choice
from parts.tokenizer import Tokenizer

# ------------------------------------------------------------------------------------- answers


@torch.inference_mode()
def answer(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, q: Question, dtype: torch.dtype
) -> tuple[list[float], list[str]]:
    """One question -> the probabilities of its choices, and the facts that the model kept for the
    likeliest one.
    """
    model.eval()
    encoded = encode(q, tokenizer, model.config)
    probabilities = score(model, [encoded], dtype, look=True)[0].softmax(-1)[0].tolist()
    if model.kept_facts is None:
        return probabilities, []
    likeliest = probabilities.index(max(probabilities))
    facts, rows = of_choice(q.facts, likeliest), of_choice(encoded.fact_ids, likeliest)
    kept = model.kept_facts.expand(-1, len(q.choices), -1, -1)[0, likeliest].tolist()
    kept = [without(tokenizer.pad_token_id, row) for row in kept]
    ids = [without(tokenizer.pad_token_id, row) for row in rows]
    return probabilities, [facts[ids.index(row)] for row in kept if row]


def without(value: int, row: list[int]) -> list[int]:
    return [i for i in row if i != value]


def write_predictions(
    path: Path,
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    questions: list[Question],
    dtype: torch.dtype,
) -> None:
    """One JSON object a line: the choice (from 0), its text, all probabilities, the facts used."""
    with open(path, "w", encoding="utf-8") as file:
        for q in tqdm(questions, "predicting", unit="question", leave=False, disable=None):
            probabilities, facts = answer(model, tokenizer, q, dtype)
            choice = probabilities.index(max(probabilities))
            row = {"choice": choice, "text": q.choices[choice], "probabilities": probabilities}
            print(json.dumps(row | {"facts": facts}), file=file)


# ------------------------------------------------------------------------------ looking inside


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
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    q: Question,
    dtype: torch.dtype,
    shades: str = " .:*#",
    width: int = 100,
) -> None:
    """Prints a question, its choices with their probabilities, its facts, and for each injected
    layer what fired where, for the choice that was taken.
    """
    probabilities, facts = answer(model, tokenizer, q, dtype)
    chosen = probabilities.index(max(probabilities))
    print(printable(f"{q.context} {q.question}").strip())
    for i, choice in enumerate(q.choices):
        taken, right = ">" if i == chosen else " ", "  <- right" if i == q.answer else ""
        print(f"  {taken} {printable(choice):<24}{probabilities[i]:7.1%}{right}")
    scores = fact_scores(model)
    if not scores or any(len(fact) > 28 for fact in facts):  # below, they are cut
        for fact in facts or of_choice(q.facts, chosen)[:10]:  # or: nothing was injected
            print(f"    {printable(fact)}")
    ids = encode(q, tokenizer, model.config).input_ids[chosen]
    tokens = [printable(tokenizer.decode([i])).strip() or tokenizer.vocab[i] for i in ids]
    facts = [printable(fact) for fact in facts]
    for layer, fired in scores.items():
        print(f"  layer {layer}")
        for line in picture(fired[0, chosen, : len(ids)], tokens, facts, shades, width):
            print(line.rstrip())


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
