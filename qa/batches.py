"""Questions -> ids -> batches -> scores -> how many are right. Nothing here trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from tqdm import tqdm

from kformer import KformerConfig, KformerForMultipleChoice
from qa.processes import RANK, WORLD, add_up
from qa.questions import Question
from qa.tokenizer import Tokenizer

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


def shuffled(data: list[Encoded], batch_size: int, seed: int) -> Iterator[list[Encoded]]:
    """Batches without end. Each epoch has every question once, in a new order, but neighbours are
    of similar lengths: out of 50 batches' worth of random questions, sorted, come 50 batches.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order, batches = torch.randperm(len(data), generator=generator).tolist(), []
        for start in range(0, len(order), 50 * batch_size):
            some = sorted(order[start : start + 50 * batch_size], key=lambda i: len(data[i]))
            batches += [some[i : i + batch_size] for i in range(0, len(some), batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield [data[k] for k in batches[i]]


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
    return {name: ids.to(device) for name, ids in inputs.items()}, answers.to(device)


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
        scores = model(**inputs, cls_only=not look).float()
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
def scored(
    model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype, look: bool = False
) -> Iterator[tuple[list[int], Tensor]]:
    """Batch by batch, the places of its questions in `data` and their scores (B, C), without
    dropout. Processes share the batches out.
    """
    model.eval()
    mine = list(by_length(data, model.classifier.weight.device))[RANK::WORLD]
    for places in tqdm(mine, "evaluating", unit="batch", leave=False, disable=None, delay=2):
        yield places, score(model, [data[i] for i in places], dtype, look)[0]


def predictions(
    model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype
) -> list[int]:
    """The choice with the largest score, for each question."""
    chosen = torch.zeros(len(data), dtype=torch.long, device=model.classifier.weight.device)
    for places, scores in scored(model, data, dtype):
        chosen[torch.tensor(places, device=chosen.device)] = scores.argmax(-1)
    add_up([chosen])
    return chosen.tolist()


def answered_right(
    model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype
) -> list[bool]:
    """Whether the right choice has the largest score, for each question."""
    chosen = predictions(model, data, dtype)
    return [c == q.answer for c, q in zip(chosen, data, strict=True)]


def accuracy(model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype) -> float:
    """The share of questions that are answered right."""
    return fmean(answered_right(model, data, dtype))


def chance(data: list[Encoded]) -> float:
    """The accuracy of guessing."""
    return sum(1 / len(q.input_ids) for q in data) / len(data)
