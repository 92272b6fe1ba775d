"""Questions -> ids -> batches -> scores -> which are answered right. Nothing here trains."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from tqdm import tqdm

from kformer import KformerConfig, KformerForMultipleChoice
from qa.questions import Question, of_choice
from qa.tokenizer import Tokenizer

# -------------------------------------------------------------------------------------- tokens


@dataclass
class Encoded:
    """One question as ids: rows of tokens and segments for the choices, lists of rows for facts."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    fact_ids: list[list[list[int]]]
    answer: int | None
    shortened: bool  # something of context, question or choice is left out
    cut: bool  # there may be no room for all words of the facts

    def __len__(self) -> int:
        return max(map(len, self.input_ids))


def encode(q: Question, tokenizer: Tokenizer, config: KformerConfig) -> Encoded:
    """BERT: [CLS] context question [SEP] choice [SEP], segments 0 and 1.
    RoBERTa: <s> context </s> Q: question </s> A: choice </s>, as in the release.

    Too long an input loses the beginning of its context, then of its question, then the end of the
    choice. In concat the context makes room for facts, too.
    """
    begin, end, most = [tokenizer.cls_token_id], [tokenizer.sep_token_id], config.max_tokens
    context, asked, before = tokenizer.encode(q.context), q.question, ""
    if config.model_type == "roberta":
        context, asked, before = context + end * bool(context), f"Q: {asked}", "A: "
    asked = tokenizer.encode(asked) + end
    everything = context + asked
    facts = [[tokenizer.encode(fact) for fact in candidates] for candidates in q.facts]
    needed = [0]
    if config.inject == "concat":
        longest = [sorted(map(len, candidates))[-config.num_facts :] for candidates in facts]
        needed = [sum(lengths) + 1 if lengths else 0 for lengths in longest]  # with a last [SEP]
    rows, segments = [], []
    shortened, cut = False, any(len(fact) > most for fact in chain(*facts))
    segment = min(1, config.type_vocab_size - 1)
    for i, choice in enumerate(q.choices):
        whole = tokenizer.encode(before + choice)
        second = whole[: most - 3] + end
        room, of_facts = most - 1 - len(second), of_choice(needed, i)
        first = everything[-min(room, max(len(asked), room - of_facts)) :]
        shortened |= len(first) < len(everything) or len(second) <= len(whole)
        cut |= len(first) + of_facts > room
        rows.append(begin + first + second)
        segments.append([0] * (len(first) + 1) + [segment] * len(second))
    facts = [[fact[:most] for fact in candidates] for candidates in facts]
    return Encoded(rows, segments, facts, q.answer, shortened, cut)


def lines_of_unread(data: list[Encoded], config: KformerConfig) -> Iterator[str]:
    """For how many questions something isn't read, and what."""
    if count := sum(q.shortened for q in data):
        yield f"{count:,} are too long: the beginning of a context isn't read, or a choice's end"
    if config.inject == "none":
        return
    if count := sum(q.cut for q in data):
        yield f"for {count:,} there may be no room for all facts: the last words aren't read then"
    if count := sum(max(map(len, q.fact_ids)) > config.num_facts for q in data):
        most = max(len(facts) for q in data for facts in q.fact_ids)
        yield f"{count:,} have up to {most:,} facts; the {config.num_facts:,} nearest are read"


# -------------------------------------------------------------------------------------- batches


def shuffled(data: list[Encoded], batch_size: int, seed: int) -> Iterator[list[Encoded]]:
    """Batches without end. Each epoch has every question once, and the questions of a batch are of
    similar lengths: out of 50 batches' worth of random questions, sorted, come 50 batches.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order, batches = torch.randperm(len(data), generator=generator).tolist(), []
        for start in range(0, len(order), 50 * batch_size):
            some = sorted(order[start : start + 50 * batch_size], key=lambda i: len(data[i]))
            batches += [some[i : i + batch_size] for i in range(0, len(some), batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield [data[k] for k in batches[i]]


def by_length(data: list[Encoded], most: int) -> Iterator[list[int]]:
    """The places of all questions, in batches of similar lengths, of at most so many tokens."""
    batch, longest = [], 0
    for i in sorted(range(len(data)), key=lambda i: (len(data[i].input_ids), len(data[i]))):
        longest = max(longest, len(data[i]))
        if batch and (len(batch) + 1) * len(data[i].input_ids) * longest > most:
            yield batch
            batch, longest = [], len(data[i])
        batch.append(i)
    if batch:
        yield batch


def pad(rows: list[list[int]], value: int) -> Tensor:
    """n rows of ids -> (n, the length of the longest, at least 1)"""
    longest = max(1, *map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def collate(batch: list[Encoded], pad_id: int) -> dict[str, Tensor]:
    """B questions -> the arguments of the model, with rows of padding for missing choices."""
    B, C = len(batch), max(len(q.input_ids) for q in batch)
    shared = all(len(q.fact_ids) == 1 for q in batch)

    def padded(rows: list, number: int) -> list:
        return rows + [[]] * (number - len(rows))

    rows = [row for q in batch for row in padded(q.input_ids, C)]
    segments = [row for q in batch for row in padded(q.token_type_ids, C)]
    lists = [q.fact_ids * (1 if shared or len(q.fact_ids) > 1 else C) for q in batch]
    lists = [facts for own in lists for facts in padded(own, 1 if shared else C)]
    S = max(1, *map(len, lists))
    facts = [fact for facts in lists for fact in padded(facts, S)]
    return {
        "input_ids": pad(rows, pad_id).view(B, C, -1),  # (B, C, T)
        "attention_mask": pad([[1] * len(row) for row in rows], 0).view(B, C, -1),  # (B, C, T)
        "token_type_ids": pad(segments, 0).view(B, C, -1),  # (B, C, T)
        "fact_ids": pad(facts, pad_id).view(B, len(lists) // B, S, -1),  # (B, 1 or C, S, L)
    }


# -------------------------------------------------------------------------------------- scores


WIDE = 256  # a hidden size from which products of matrices are most of the work


def default_dtype(hidden_size: int, device: str) -> str:
    """bfloat16 where products of matrices are most of the work, and the machine is made for it."""
    return "bfloat16" if hidden_size >= WIDE and multiplies_bfloat16(device) else "float32"


def multiplies_bfloat16(device: str) -> bool:
    """Whether there are instructions for it. Else it is emulated, and many times as slow."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions don't say it
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def share_out_threads(hidden_size: int) -> None:
    """One thread where products are so small that several mostly wait for each other."""
    if hidden_size < WIDE and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@dataclass
class Answerer:
    """A model with its tokenizer, and the dtype of its matrix products, "float32" or "bfloat16"."""

    model: KformerForMultipleChoice
    tokenizer: Tokenizer
    dtype: str

    @property
    def device(self) -> torch.device:
        return self.model.classifier.weight.device

    def encode(self, questions: list[Question]) -> list[Encoded]:
        return [encode(q, self.tokenizer, self.model.config) for q in questions]

    def scores(self, batch: list[Encoded], look: bool = False) -> Tensor:
        """B questions -> (B, C) in float32, -inf where a choice is missing. With `look` the top
        layer has the `fact_scores` of all tokens, otherwise it computes [CLS] alone.
        """
        inputs = collate(batch, self.model.config.pad_token_id)
        inputs = {name: ids.to(self.device) for name, ids in inputs.items()}
        dtype = getattr(torch, self.dtype)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            scores = self.model(**inputs, cls_only=not look).float()
        return scores.masked_fill(~inputs["attention_mask"].any(-1), -torch.inf)

    @torch.inference_mode()
    def all_scores(
        self, data: list[Encoded], look: bool = False
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Batch by batch, without dropout: the places of its questions in `data`, their scores."""
        self.model.eval()  # on a CPU, what a layer works on should fit into its cache
        batches = [*by_length(data, 64_000 if self.device.type == "cuda" else 2_000)]
        for places in tqdm(batches, "evaluating", unit="batch", leave=False, disable=None, delay=2):
            scores = self.scores([data[i] for i in places], look)
            if not scores.amax(-1).isfinite().all():
                raise ValueError("the scores aren't finite numbers: the weights are damaged")
            yield places, scores

    def answered_right(self, data: list[Encoded]) -> list[bool]:
        """Whether the right choice has the largest score, for each question."""
        right = [False] * len(data)
        for places, scores in self.all_scores(data):
            for place, choice in zip(places, scores.argmax(-1).tolist(), strict=True):
                right[place] = choice == data[place].answer
        return right
