"""A Kformer at work: questions in; scores, probabilities, and what its facts did out.

    encode, score, accuracy     questions -> ids -> batches -> scores -> how many are right
    answer, show                one question: its choices, its facts, which fired at which token
    effects                     the same questions with facts edited, removed, added, shuffled

Read it from top to bottom: processes, tokens, batches, scores, answers, looking inside, edited
facts. Nothing here trains.
"""

import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from tqdm import tqdm

from kformer import KformerConfig, KformerForMultipleChoice
from questions import Question, of_choice, words
from tokenizer import Tokenizer

# ----------------------------------------------------------------------------------- processes

# Of how many processes this is which one: torchrun says so.
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def add_up(tensors: list[Tensor]) -> None:
    """Each becomes its sum over all processes."""
    for tensor in tensors if WORLD > 1 else []:
        torch.distributed.all_reduce(tensor)


# -------------------------------------------------------------------------------------- tokens


@dataclass
class Encoded:
    """One question as ids: for each choice a row of tokens and of segments; for each list of facts
    a row for each fact.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    fact_ids: list[list[list[int]]]
    answer: int | None
    shortened: bool

    def __len__(self) -> int:
        return max(map(len, self.input_ids))


def encode(q: Question, tokenizer: Tokenizer, config: KformerConfig) -> Encoded:
    """BERT: [CLS] context question [SEP] choice [SEP], segments 0 and 1.
    RoBERTa: <s> context </s> Q: question </s> A: choice </s>, as in the release.

    Too long an input loses the beginning of its context, never the choice.
    """
    begin, end, most = [tokenizer.cls_token_id], [tokenizer.sep_token_id], config.max_tokens
    if config.model_type == "bert":
        first = tokenizer.encode(f"{q.context} {q.question}") + end
        last = [tokenizer.encode(choice) for choice in q.choices]
    else:
        context = tokenizer.encode(q.context) + end if q.context else []
        first = context + tokenizer.encode(f"Q: {q.question}") + end
        last = [tokenizer.encode(f"A: {choice}") for choice in q.choices]
    rows, segments, shortened = [], [], False
    for second in last:
        second = second[: most - 3] + end
        room = most - 1 - len(second)
        shortened = shortened or len(first) > room
        rows.append(begin + first[-room:] + second)
        segment = min(1, config.type_vocab_size - 1)
        segments.append([0] * (len(rows[-1]) - len(second)) + [segment] * len(second))
    facts = [[tokenizer.encode(fact)[:most] for fact in candidates] for candidates in q.facts]
    return Encoded(rows, segments, facts, q.answer, shortened)


# -------------------------------------------------------------------------------------- batches


def pad(ragged: list, value: int, depth: int) -> Tensor:
    """Lists of lists of ... ids, `depth` levels, -> a tensor as long as the longest in each."""

    def sizes(part: list, depth: int) -> list[int]:
        if depth == 1:
            return [max(1, len(part))]
        inner = [sizes(p, depth - 1) for p in part] or [[1] * (depth - 1)]
        return [max(1, len(part)), *map(max, zip(*inner, strict=True))]

    def fill(part: list, shape: list[int]) -> list:
        if len(shape) == 1:
            return part + [value] * (shape[0] - len(part))
        empty = [fill([], shape[1:])] * (shape[0] - len(part))
        return [fill(p, shape[1:]) for p in part] + empty

    return torch.tensor(fill(ragged, sizes(ragged, depth)))


def collate(
    batch: list[Encoded], pad_id: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """B questions -> the arguments of the model, and the answers (B,), -1 where nobody knows.

    A question with fewer choices than others gets rows of padding.
    """
    most = max(len(q.input_ids) for q in batch)
    shared = all(len(q.fact_ids) == 1 for q in batch)
    facts = [q.fact_ids * (1 if shared or len(q.fact_ids) > 1 else most) for q in batch]
    inputs = {
        "input_ids": pad([q.input_ids for q in batch], pad_id, 3),  # (B, C, T)
        "token_type_ids": pad([q.token_type_ids for q in batch], 0, 3),  # (B, C, T)
        "fact_ids": pad(facts, pad_id, 4),  # (B, 1 or C, S, L)
    }
    answers = torch.tensor([-1 if q.answer is None else q.answer for q in batch])
    if device.type == "cuda":  # from pinned memory: nobody waits until it is there
        inputs, answers = {name: t.pin_memory() for name, t in inputs.items()}, answers.pin_memory()
    inputs = {name: t.to(device, non_blocking=True) for name, t in inputs.items()}
    return inputs, answers.to(device, non_blocking=True)


# -------------------------------------------------------------------------------------- scores


def score(
    model: KformerForMultipleChoice, batch: list[Encoded], dtype: torch.dtype, look: bool = False
) -> tuple[Tensor, Tensor]:
    """B questions -> scores (B, C) in float32, -inf where a choice is missing; answers (B,)

    With `look` the activations of the facts are all there to be looked at afterwards.
    """
    device, pad_id = model.classifier.weight.device, model.config.pad_token_id
    inputs, answers = collate(batch, pad_id, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        scores = model(**inputs, scores_only=not look).float()
    missing = (inputs["input_ids"] == pad_id).all(-1)
    return scores.masked_fill(missing, -torch.inf), answers


def by_length(data: list[Encoded], device: torch.device) -> Iterator[list[int]]:
    """The places of all questions, in batches of similar lengths and of a size that suits the
    device: on a CPU, what a layer works on should fit into its cache.
    """
    most, batch, longest = 64_000 if device.type == "cuda" else 2_000, [], 0  # tokens
    for i in sorted(range(len(data)), key=lambda i: (len(data[i].input_ids), len(data[i]))):
        longest = max(longest, len(data[i]))
        if batch and (len(batch) + 1) * len(data[i].input_ids) * longest > most:
            yield batch
            batch, longest = [], len(data[i])
        batch.append(i)
    yield batch


@torch.inference_mode()
def predictions(
    model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype
) -> list[int]:
    """The choice with the largest score, for each question. Processes share the batches out."""
    model.eval()
    device = model.classifier.weight.device
    chosen = torch.zeros(len(data), dtype=torch.long, device=device)
    mine = list(by_length(data, device))[RANK::WORLD]
    for places in tqdm(mine, "evaluating", unit="batch", leave=False, disable=None, delay=2):
        scores, _ = score(model, [data[i] for i in places], dtype)
        chosen[torch.tensor(places, device=device)] = scores.argmax(-1)
    add_up([chosen])
    return chosen.tolist()


def accuracy(model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype) -> float:
    """The share of questions whose right choice has the largest score."""
    return share_right(predictions(model, data, dtype), data)


def share_right(chosen: list[int], data: list[Encoded]) -> float:
    """The share of questions of which the right choice is the one that was chosen."""
    return sum(c == q.answer for c, q in zip(chosen, data, strict=True)) / len(data)


def chance(data: list[Encoded]) -> float:
    """The accuracy of guessing."""
    return sum(1 / len(q.input_ids) for q in data) / len(data)


def baselines(train: list[Question], held_out: list[Question]) -> str:
    """The accuracy of rules that learn nothing: the place that is most often right in training, and
    the choice with the most words in common with its facts, or with the question without facts.
    """
    place = Counter(q.answer for q in train).most_common(1)[0][0]
    overlap = 0
    for q in held_out:
        known = [set(words(" ".join(facts) or f"{q.context} {q.question}")) for facts in q.facts]
        common = [len(of_choice(known, i) & set(words(c))) for i, c in enumerate(q.choices)]
        overlap += common.index(max(common)) == q.answer
    majority = sum(q.answer == place for q in held_out) / len(held_out)
    overlap /= len(held_out)
    return f"always choice {place + 1}: {majority:.1%}, most common words: {overlap:.1%}"


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


@torch.inference_mode()
def gold_fires_most(
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    questions: list[Question],
    dtype: torch.dtype,
) -> dict[int, float]:
    """For each injected layer, in which share of the questions the gold fact has the largest score
    of all facts, at whatever token of the choice that was taken. All questions must have one.
    """
    if model.config.inject not in ("attention", "ffn"):
        return {}
    model.eval()
    data, pad_id = [encode(q, tokenizer, model.config) for q in questions], tokenizer.pad_token_id
    hits = Counter()
    for places in by_length(data, model.classifier.weight.device):
        batch = [data[i] for i in places]
        scores, _ = score(model, batch, dtype, look=True)
        taken, rows = scores.argmax(-1), torch.arange(len(batch))
        kept = model.kept_facts.expand(-1, scores.shape[1], -1, -1)[rows, taken]  # (B, N, L)
        gold_ids = [tokenizer.encode(gold(questions[i]))[: kept.shape[-1]] for i in places]
        gold_ids = [ids + [pad_id] * (kept.shape[-1] - len(ids)) for ids in gold_ids]
        is_gold = (kept == torch.tensor(gold_ids, device=kept.device).unsqueeze(1)).all(-1)
        tokens = collate(batch, pad_id, kept.device)[0]["input_ids"][rows, taken] != pad_id
        for layer, fired in fact_scores(model).items():  # (B, C, T, N)
            strongest = fired[rows, taken].masked_fill(~tokens.unsqueeze(-1), -torch.inf).amax(1)
            most = strongest.argmax(-1, keepdim=True)  # (B, N) -> (B, 1)
            hits[layer] += is_gold.gather(1, most).sum().item()
    return {layer: count / len(questions) for layer, count in hits.items()}


# -------------------------------------------------------------------------------- edited facts


def naming(choice: str) -> re.Pattern:
    """Finds the words of a choice in a text."""
    return re.compile(rf"(?<!\w){re.escape(choice.strip())}(?!\w)", re.IGNORECASE)


def gold(q: Question) -> str | None:
    """The one fact that names the right choice. None if there isn't one, or more than one."""
    if q.answer is None or not q.choices[q.answer].strip():
        return None
    name = naming(q.choices[q.answer])
    facts = {fact for fact in of_choice(q.facts, q.answer) if name.search(fact)}
    return facts.pop() if len(facts) == 1 else None


def changed(q: Question, change: Callable[[list[str]], list[str]]) -> Question:
    return replace(q, facts=[change(facts) for facts in q.facts])


def edited(q: Question) -> Question:
    """The gold fact names another choice, and that one is now the right answer. Where each choice
    has facts of its own, that choice gets the edited one too.
    """
    old, answer = gold(q), (q.answer + 1) % len(q.choices)
    new = naming(q.choices[q.answer]).sub(lambda _: q.choices[answer], old)
    q = changed(q, lambda facts: [new if fact == old else fact for fact in facts])
    if new not in of_choice(q.facts, answer):
        q.facts[answer].insert(0, new)
    return replace(q, answer=answer)


def removed(q: Question) -> Question:
    """Without the gold fact."""
    left_out = gold(q)
    return changed(q, lambda facts: [fact for fact in facts if fact != left_out])


def with_facts_of(q: Question, other: Question) -> Question:
    """With another question's facts behind its own."""
    return changed(q, lambda facts: facts + other.facts[0])


def effects(
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    questions: list[Question],
    chosen: list[int],
    dtype: torch.dtype,
) -> dict[str, object]:
    """What the answers owe to the facts, over the questions that have a gold fact: which share of
    the right answers follows when it's edited, the accuracy without it, with the facts in
    another order and with those of another question added, and how often it fires most.

    `chosen` are the answers with the facts as they are.
    """
    before = [(q, c == q.answer) for q, c in zip(questions, chosen, strict=True) if gold(q)]
    if not before:
        return {}
    some = [q for q, _ in before]
    rng, others = random.Random(0), some[1:] + some[:1]
    versions = {
        "edited": [edited(q) for q in some],
        "removed": [removed(q) for q in some],
        "shuffled": [changed(q, lambda facts: rng.sample(facts, len(facts))) for q in some],
        "added": [with_facts_of(q, other) for q, other in zip(some, others, strict=True)],
    }
    right = {}
    for name, version in versions.items():
        data = [encode(q, tokenizer, model.config) for q in version]
        after = predictions(model, data, dtype)
        right[name] = [c == q.answer for c, q in zip(after, version, strict=True)]
    follow = [now for (_, was), now in zip(before, right["edited"], strict=True) if was]
    found = {f"{name}_accuracy": mean(right[name]) for name in ("removed", "shuffled", "added")}
    fires_most = gold_fires_most(model, tokenizer, some, dtype)
    found |= {"gold_facts": len(some), "gold_fires_most": fires_most}
    return {"flip_rate": sum(follow) / max(1, len(follow)), **found}
