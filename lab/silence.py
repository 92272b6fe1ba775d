"""In which layer is the answer made? The gold fact silenced in some of the injected layers.

    python -m lab.silence runs/ffn-seed-0 runs/ffn-seed-1

Silenced in a layer, a fact is an empty slot there and does what it did in the others. What fires
most may have nothing to do with the answer; what is missed when it's gone has.
"""

from qa.command import command

import argparse
from itertools import combinations
from pathlib import Path

import torch
from torch import nn

from kformer import KformerForMultipleChoice
from lab.saved import open_saved
from lab.table import over_seeds
from qa.batches import Encoded, by_length, chance, encode, score
from qa.checkpoint import span
from qa.effects import gold, is_gold


@torch.inference_mode()
def accuracy_silenced(
    model: KformerForMultipleChoice,
    data: list[Encoded],
    gold_ids: list[list[int]],
    layers: tuple[int, ...],
    dtype: torch.dtype,
) -> float:
    """The accuracy with the gold fact of each question, whose ids are given, silenced in these
    layers.
    """
    model.eval()
    places: list[int] = []  # of the questions in the batch

    def silence(block: nn.Module, inputs: tuple) -> tuple:
        x, context, mask, (F, fact_mask) = inputs
        golden = is_gold(model, [gold_ids[i] for i in places])
        return x, context, mask, (F, fact_mask & ~golden)

    hooks = [model.encoder.layer[i].register_forward_pre_hook(silence) for i in layers]
    right = 0
    for places in by_length(data, model.classifier.weight.device):
        scores, answers = score(model, [data[i] for i in places], dtype)
        right += int((scores.argmax(-1) == answers).sum())
    for hook in hooks:
        hook.remove()
    return right / len(data)


@command()
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Silence the gold fact in one injected layer, in another, in all of them."
    )
    parser.add_argument("runs", type=Path, nargs="+",
                        help="folders that train.py saved: seeds of one method")  # fmt: skip
    found: dict[tuple[int, ...], list[float]] = {}
    kinds = set()
    for run in parser.parse_args().runs:
        model, tokenizer, questions, dtype = open_saved(run, answers_needed=True)
        injected = model.config.inject_layers
        if model.config.inject not in ("attention", "ffn"):
            raise ValueError(f"{run}: no layer has facts, --inject was {model.config.inject}")
        kinds.add((model.config.inject, injected))
        if len(kinds) > 1:
            raise ValueError(f"{run}: not of the method and the layers of the runs before it")
        questions = [q for q in questions if gold(q)]
        data = [encode(q, tokenizer, model.config) for q in questions]
        gold_ids = [tokenizer.encode(gold(q)) for q in questions]
        for count in sorted({0, 1, len(injected) - 1, len(injected)}):
            for layers in combinations(injected, count):
                accuracy = accuracy_silenced(model, data, gold_ids, layers, dtype)
                found.setdefault(layers, []).append(accuracy)
    print(f"| gold fact silenced in | accuracy (chance {chance(data):.1%}) |\n| --- | --- |")
    for layers, values in found.items():
        where = f"layer {span(set(layers))}" if layers else "no layer"
        print(f"| {where} | {over_seeds(values)} |")


if __name__ == "__main__":
    main()
