"""What becomes of a trained model's accuracy when its facts are silenced, or crowded? And what do
they say before anything is trained?

    python -m lab.facts silence runs/ffn-seed-0 runs/ffn-seed-1
    python -m lab.facts crowd runs/attention-seed-0 runs/ffn-seed-0 --svg crowd.svg
    python -m lab.facts start data/encoder --questions data/toy/test.jsonl

"silence": in which layer is the answer made? The gold fact is an empty slot in some of the injected
layers, and does what it did in the others. What fires most may have nothing to do with the answer;
what is missed when it's gone has. "crowd": how many unrelated facts does a method bear? Those that
are added come from training questions and share no word with the question's own. "start": how much
of the answer is in an encoder and in the start of Wk alone? The rule takes the choice whose best
fact fires most, on average over its tokens, in one layer, with `ffn` untrained.
"""

import argparse
import math
import random
import re
import time
from itertools import combinations
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from tqdm import tqdm

from lab.curves import Line, picture
from lab.saved import check_new, open_saved, over_seeds, run_arguments
from load_weights import load_config, open_folder
from qa.batches import Answerer, by_length
from qa.errors import command
from qa.evaluation import chance, gold, with_facts
from qa.inside import facts_of, look_into
from qa.questions import Question, read_questions, split_paths

# --------------------------------------------------------------------------------------- silence


@torch.inference_mode()
def accuracy_silenced(
    answerer: Answerer, questions: list[Question], layers: tuple[int, ...]
) -> float:
    """The accuracy with the gold fact of each question silenced in these layers."""
    model, data, right = answerer.model.eval(), answerer.encode(questions), 0
    golden = [answerer.tokenizer.encode(gold(q)) for q in questions]

    def silence(block: nn.Module, inputs: tuple) -> tuple:
        """`model.kept_facts` (B, 1 or C, N, L) says which of the facts F (..., N, D) is golden."""
        x, context, mask, (F, fact_mask) = inputs
        kept, pad = model.kept_facts, model.config.pad_token_id
        rows = [(golden[i] + [pad] * kept.shape[-1])[: kept.shape[-1]] for i in places]
        is_gold = (kept == kept.new_tensor(rows)[:, None, None]).all(-1)
        return x, context, mask, (F, fact_mask & ~is_gold)

    hooks = [model.encoder.layer[i].register_forward_pre_hook(silence) for i in layers]
    for places in by_length(data, 2_000):
        taken = answerer.scores([data[i] for i in places]).argmax(-1).tolist()
        right += sum(choice == data[i].answer for choice, i in zip(taken, places, strict=True))
    for hook in hooks:
        hook.remove()
    return right / len(data)


def silence(runs: list[Path]) -> None:
    """A table: layers in which the gold fact is silenced, accuracy."""
    found: dict[tuple[int, ...], list[float]] = {}
    kinds = set()
    for run in runs:
        answerer, questions = open_saved(run, answers_needed=True)
        config, questions = answerer.model.config, [q for q in questions if gold(q)]
        kinds.add((config.inject, config.inject_layers))
        if config.inject not in ("attention", "ffn") or len(kinds) > 1 or not questions:
            raise ValueError(
                f"{run}: needs runs of one method, attention or ffn, and of the same layers, and "
                "questions with a gold fact"
            )
        injected = config.inject_layers
        for count in sorted({0, 1, len(injected) - 1, len(injected)}):
            for layers in combinations(injected, count):
                accuracy = accuracy_silenced(answerer, questions, layers)
                found.setdefault(layers, []).append(accuracy)
    print(f"| gold fact silenced in | accuracy (chance {chance(questions):.1%}) |\n| --- | --- |")
    for layers, values in found.items():
        print(f"| {', '.join(map(str, layers)) or 'no layer'} | {over_seeds(values)} |")


# ----------------------------------------------------------------------------------------- crowd

COUNTS = (4, 20, 100, 1000)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w{3,}", text.lower()))


def crowded(q: Question, facts: dict[str, set[str]], count: int, rng: random.Random) -> Question:
    """The question with unrelated facts among its own, `count` in all."""
    own = words(" ".join(facts_of(q)))
    unrelated = [fact for fact, its_words in facts.items() if own.isdisjoint(its_words)]

    def crowd(own: list[str]) -> list[str]:
        missing = max(0, count - len(own))
        if len(unrelated) < missing:
            raise ValueError(f'"{q.question}": only {len(unrelated):,} facts are unrelated to it')
        own = own + rng.sample(unrelated, missing)
        return rng.sample(own, len(own))

    return with_facts(q, crowd)


def crowd(runs: list[Path], svg: Path | None) -> None:
    """A table: number of facts, all of them kept; for each method the accuracy on 300 questions,
    and how many it answers a second. And a picture: a line for each run.
    """
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    lines: list[Line] = []
    for run in runs:
        answerer, questions = open_saved(run, answers_needed=True)
        train = read_questions(split_paths(run_arguments(run)["data"])["train"])
        facts = {fact: words(fact) for fact in sorted({f for q in train for f in facts_of(q)})}
        lines.append((answerer.model.config.inject, []))
        for i, count in enumerate(COUNTS):
            answerer.model.config.num_facts, rng = count, random.Random(count)
            data = answerer.encode([crowded(q, facts, count, rng) for q in questions[:300]])
            of_method = found.setdefault(answerer.model.config.inject, {}).setdefault(count, [])
            if not any(q.cut for q in data):
                began = time.perf_counter()
                share = fmean(answerer.answered_right(data))
                of_method.append((share, len(data) / (time.perf_counter() - began)))
                lines[-1][1].append((i / (len(COUNTS) - 1), share))
    print(f"| facts | {' | '.join(f'{i} (chance {chance(questions):.1%})' for i in found)} |")
    print("| --- " * (1 + len(found)) + "|")
    for count in COUNTS:
        print(f"| {count:,} | " + " | ".join(cell(f[count]) for f in found.values()) + " |")
    if svg:
        ticks = [f"{count:,}" for count in COUNTS]
        svg.write_text(picture([("accuracy, number of facts", ticks, lines)]), encoding="utf-8")


def cell(results: list[tuple[float, float]]) -> str:
    if not results:
        return "no room in the input"
    shares, rates = zip(*results, strict=True)
    return f"{over_seeds(shares)}, {fmean(rates):,.0f} a second"


# ----------------------------------------------------------------------------------------- start


def fires_most(answerer: Answerer, questions: list[Question], layer: int) -> float:
    """The accuracy of the choice whose best fact fires most in an injected layer."""
    right = 0
    for q in tqdm(questions, f"layer {layer}", unit="question", leave=False, disable=None):
        choices = look_into(answerer, q)
        most = [float(c.fired[layer].mean(0).max()) if c.fired else -math.inf for c in choices]
        right += most.index(max(most)) == q.answer
    return right / len(questions)


def start(folders: list[Path], path: Path) -> None:
    """A table: the one layer that has facts, accuracy of the rule, over the folders."""
    questions, found = read_questions(path), {}
    for folder in folders:
        for layer in range(load_config(folder).num_hidden_layers):
            model, tokenizer, _ = open_folder(folder, inject="ffn", inject_layers=(layer,))
            share = fires_most(Answerer(model, tokenizer, "float32"), questions, layer)
            found.setdefault(layer, []).append(share)
    print(f"| layer | fires most, untrained (chance {chance(questions):.1%}) |\n| --- | --- |")
    for layer, values in found.items():
        print(f"| {layer} | {over_seeds(values)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Silence or crowd the facts of trained models.")
    parser.add_argument("what", choices=("silence", "crowd", "start"), help="silence the gold fact "
                        "in one layer, in another, in all; add unrelated facts; or take the choice "
                        "whose facts fire most, untrained")  # fmt: skip
    parser.add_argument("runs", type=Path, nargs="+", help="folders that train.py saved; to be "
                        "silenced, seeds of one method; with start, checkpoints")  # fmt: skip
    parser.add_argument("--questions", type=Path, metavar="FILE", help="for start, which needs it")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="for crowd: a new file for a line "
                        "for each run")  # fmt: skip
    args = parser.parse_args()
    if (args.what == "start") != bool(args.questions) or (args.svg and args.what != "crowd"):
        raise ValueError("start needs --questions FILE, and crowd may have --svg FILE; no other")
    if args.svg:
        check_new(args.svg)
    if args.what == "silence":
        silence(args.runs)
    elif args.what == "crowd":
        crowd(args.runs, args.svg)
    else:
        start(args.runs, args.questions)


if __name__ == "__main__":
    with command():
        main()
