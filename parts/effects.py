"""What the answers owe to the facts: the same questions with facts edited, removed, added."""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from statistics import mean

import torch

from kformer import KformerForMultipleChoice
from parts.batches import by_length, collate, encode, predictions, score
from parts.inside import fact_scores
from parts.questions import Question, of_choice
from parts.tokenizer import Tokenizer

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
