"""How many answers are right, and what they owe to the facts.

    gold, edited, removed, ...   a question with its facts changed
    measure                      a model on questions as they are and changed
"""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from statistics import fmean

import torch
from torch import Tensor

from kformer import KformerForMultipleChoice
from qa.batches import Encoded, answered_right, chance, encode, scored
from qa.inside import fact_scores
from qa.lookup import exchanged
from qa.processes import add_up
from qa.questions import Question, of_choice
from qa.tokenizer import Tokenizer

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


def swapped(q: Question, old: str, new: str) -> Question:
    return changed(q, lambda facts: [new if fact == old else fact for fact in facts])


def edited(q: Question) -> Question:
    """The gold fact names another choice, and that one is now the right answer. Where each choice
    has facts of its own, that choice gets the edited one too.
    """
    old, answer = gold(q), (q.answer + 1) % len(q.choices)
    new = naming(q.choices[q.answer]).sub(lambda _: q.choices[answer], old)
    q = swapped(q, old, new)
    if new not in of_choice(q.facts, answer):
        q.facts[answer].insert(0, new)
    return replace(q, answer=answer)


def edited_elsewhere(q: Question) -> Question | None:
    """Another fact than the gold one, which names a wrong choice, names another wrong one: the
    answer should stay. None if there is no such fact.
    """
    wrong = [c for i, c in enumerate(q.choices) if i != q.answer and c.strip()]
    right = gold(q)
    others = [fact for fact in of_choice(q.facts, q.answer) if fact != right]
    for fact, (old, new) in product(others, zip(wrong, wrong[1:] + wrong[:1], strict=True)):
        changed_fact = naming(old).sub(lambda _, new=new: new, fact)
        if changed_fact != fact:
            return swapped(q, fact, changed_fact)
    return None


def removed(q: Question) -> Question:
    """Without the gold fact."""
    left_out = gold(q)
    return changed(q, lambda facts: [fact for fact in facts if fact != left_out])


def with_facts_of(q: Question, other: Question) -> Question:
    """With another question's facts behind its own."""
    return changed(q, lambda facts: facts + other.facts[0])


# ----------------------------------------------------------------------------------- measuring


def measure(
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    questions: list[Question],
    dtype: torch.dtype,
) -> dict[str, object]:
    """Accuracy beside chance and, if the model takes facts, with those of another question instead,
    and how many questions are right with only one of the two. Over the questions that have a gold
    fact: of the right answers, which share follows when it's edited (efficacy) and which share
    stays when another fact is (locality: Meng et al. 2022, arXiv 2202.05262); the accuracy without
    it, with the facts in another order and with those of another question added; and how often it
    is the one that fires most.
    """

    def encoded(version: list[Question]) -> list[Encoded]:
        return [encode(q, tokenizer, model.config) for q in version]

    data = encoded(questions)
    before = answered_right(model, data, dtype)
    found = {"test_accuracy": fmean(before), "chance": chance(data)}
    if model.config.inject != "none" and any(any(q.facts) for q in questions):
        instead = answered_right(model, encoded(exchanged(questions)), dtype)
        differ = sum(was != now for was, now in zip(before, instead, strict=True))
        found |= {"exchanged_accuracy": fmean(instead), "exchanged_differ": differ}
    some = [q for q in questions if gold(q)]
    if not some:
        return found
    rng, others = random.Random(0), some[1:] + some[:1]
    elsewhere = [edited_elsewhere(q) for q in some]
    versions = {
        "edited": [edited(q) for q in some],
        "edited_elsewhere": [e or q for e, q in zip(elsewhere, some, strict=True)],
        "removed": [removed(q) for q in some],
        "shuffled": [changed(q, lambda facts: rng.sample(facts, len(facts))) for q in some],
        "added": [with_facts_of(q, other) for q, other in zip(some, others, strict=True)],
    }
    after = {name: answered_right(model, encoded(v), dtype) for name, v in versions.items()}
    before = [was for was, q in zip(before, questions, strict=True) if gold(q)]
    follow = [now for was, now in zip(before, after["edited"], strict=True) if was]
    found |= {"flip_rate": sum(follow) / max(1, len(follow)), "gold_facts": len(some)}
    stay = zip(before, after["edited_elsewhere"], elsewhere, strict=True)
    if stay := [now for was, now, e in stay if was and e]:
        found["locality"] = fmean(stay)
    found |= {f"{name}_accuracy": fmean(after[name]) for name in ("removed", "shuffled", "added")}
    return found | {"gold_fires_most": gold_fires_most(model, tokenizer, some, dtype)}


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
    data = [encode(q, tokenizer, model.config) for q in questions]
    gold_ids = [tokenizer.encode(gold(q)) for q in questions]
    layers = model.config.inject_layers
    hits = torch.zeros(len(layers), device=model.classifier.weight.device)
    for places, scores in scored(model, data, dtype, look=True):
        fired_in = fact_scores(model)  # layer -> (B, C, T, N)
        golden = is_gold(model, [gold_ids[i] for i in places]).expand(-1, scores.shape[1], -1)
        for row, i in enumerate(places):
            choice = scores[row].argmax()
            tokens = len(data[i].input_ids[choice])
            for n, layer in enumerate(layers):
                strongest = fired_in[layer][row, choice, :tokens].amax(0).argmax()
                hits[n] += golden[row, choice, strongest]
    add_up([hits])
    return {n: count / len(questions) for n, count in zip(layers, hits.tolist(), strict=True)}


def is_gold(model: KformerForMultipleChoice, gold_ids: list[list[int]]) -> Tensor:
    """Which of the facts that the last forward pass kept, (B, 1 or C, N, L), are the gold one of
    their question, whose ids are given: (B, 1 or C, N)
    """
    kept, pad = model.kept_facts, model.config.pad_token_id
    length = kept.shape[-1]
    rows = [(ids + [pad] * length)[:length] for ids in gold_ids]
    return (kept == kept.new_tensor(rows)[:, None, None]).all(-1)
