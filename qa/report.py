"""What a run says of its data and its model, and of what was measured."""

from collections.abc import Iterator
from pathlib import Path

import torch

from kformer import KformerForMultipleChoice
from qa.batches import Encoded, chance
from qa.checkpoint import in_words
from qa.lookup import baselines
from qa.questions import Question


def lines_of_data(
    folder: Path,
    questions: dict[str, list[Question]],
    data: dict[str, list[Encoded]],
    held_out: str,
) -> Iterator[str]:
    """How many questions there are, and what is right of the split `held_out` without learning."""
    everything = [q for part in data.values() for q in part]
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in data.items())
    choices = sorted({len(q.input_ids) for q in everything})
    here = Path.cwd()
    source = folder.relative_to(here) if folder.is_relative_to(here) else folder
    yield f"data      {source}: {sizes} questions of {' or '.join(map(str, choices))} choices"
    if shortened := sum(q.shortened for q in everything):
        most = max(map(len, everything))
        yield f"          {shortened:,} of them cut at the front to {most} tokens"
    rules = baselines(questions["train"], questions[held_out])
    yield f"chance    {chance(data[held_out]):.1%}; {rules}"


def lines_of_model(model: KformerForMultipleChoice, dtype: torch.dtype) -> Iterator[str]:
    sizes, parameters = in_words(model)
    yield f"model     {sizes}"
    yield f"          {parameters}; products in {str(dtype).removeprefix('torch.')}"


def row_of_report(row: dict) -> str:
    return "  step {step:6,}   loss {loss:.3f}   validation {valid_accuracy:6.1%}".format(**row)


def lines_of_result(name: str, count: int, result: dict) -> Iterator[str]:
    """What `measure` found for `count` questions, in words."""
    test, least = result["test_accuracy"], result["chance"]
    yield f"{name:10}{test:.1%} of {count:,} questions, chance is {least:.1%}"
    if count < 50:
        yield "          too few questions to tell it from chance"
    elif test < least + 2 * (least * (1 - least) / count) ** 0.5:
        yield "          no better than chance: what it learned does not answer new questions"
    if "exchanged_accuracy" in result:
        exchanged = result["exchanged_accuracy"]
        clear = (test - exchanged) * count > 2 * result["exchanged_differ"] ** 0.5
        doubt = "" if clear else ", too close to say that its own help"
        yield f"          with the facts of another question: {exchanged:.1%}{doubt}"
    if "flip_rate" in result:
        yield (
            f"edited    {result['flip_rate']:.1%} of right answers follow when the gold fact names "
            f"another choice ({result['gold_facts']:,} questions have one)"
        )
        if "locality" in result:
            yield f"          {result['locality']:.1%} of them stay when another fact is edited"
        yield (
            f"          right without the gold fact: {result['removed_accuracy']:.1%}; with facts "
            f"shuffled: {result['shuffled_accuracy']:.1%}; with unrelated ones added: "
            f"{result['added_accuracy']:.1%}"
        )
    if layers := result.get("gold_fires_most"):
        shares = ", ".join(f"{share:.1%} in layer {layer}" for layer, share in layers.items())
        yield f"          of all facts the gold one fires most: {shares}"
    if "seconds" in result:
        yield (
            f"time      {result['seconds']:.0f} s of training, "
            f"{result['train_questions_per_second']:,.0f} questions a second; "
            f"{result['padding']:.1%} of the places were padding"
        )
