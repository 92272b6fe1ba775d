"""One question looked into: its choices, the facts that were kept for each, and which fired.

    answers     many questions: probabilities, and the facts that were used
    look_into   one question, choice by choice, with what the facts did at each token
    screen      the same in lines of text
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from kformer import KformerForMultipleChoice
from qa.batches import Answerer
from qa.errors import printable
from qa.questions import LETTERS, Question, of_choice
from qa.tokenizer import Tokenizer


def answers(
    answerer: Answerer, questions: list[Question]
) -> list[tuple[list[float], list[list[str]]]]:
    """For each question the probabilities of its choices, and the facts read with each of them."""
    data, found = answerer.encode(questions), {}
    for places, scores in answerer.all_scores(data):
        for row, place in enumerate(places):
            q = questions[place]
            probabilities = scores[row, : len(q.choices)].softmax(-1).tolist()
            found[place] = probabilities, [
                [*filter(None, kept_texts(answerer.model, q, row, choice))]
                for choice in range(len(q.choices))
            ]
    return [found[place] for place in range(len(questions))]


def kept_texts(model: KformerForMultipleChoice, q: Question, row: int, choice: int) -> list[str]:
    """The facts that the last forward pass kept for a choice of its question `row`, "" for an empty
    slot.
    """
    if model.kept_facts is None:
        return []
    kept, places = (of_choice(some[row], choice) for some in (model.kept_facts, model.kept_places))
    is_real = (kept != model.config.pad_token_id).any(-1).tolist()
    own = of_choice(q.facts, choice)
    return [own[i] if real else "" for i, real in zip(places.tolist(), is_real, strict=True)]


def fact_scores(model: KformerForMultipleChoice) -> dict[int, Tensor]:
    """What the last forward pass left in each injected layer, (B, C, T, N): how strongly each fact
    fired at each token, or which share of its attention it got.
    """
    halves = [(i, h) for i, b in enumerate(model.encoder.layer) for h in (b.attention, b.ffn)]
    return {i: half.fact_scores for i, half in halves if half.fact_scores is not None}


@dataclass
class Seen:
    """One choice of a question, looked into."""

    text: str
    probability: float
    tokens: list[str]
    facts: list[str]  # those that were kept for it
    fired: dict[int, Tensor]  # injected layer -> (T, N)


def look_into(answerer: Answerer, q: Question) -> list[Seen]:
    """A question's choices, in their order."""
    model, [data], seen = answerer.model, answerer.encode([q]), []
    [(_, scores)] = answerer.all_scores([data], look=True)
    for i, (probability, ids) in enumerate(zip(scores[0].softmax(-1), data.input_ids, strict=True)):
        texts = kept_texts(model, q, 0, i)
        real = [n for n, text in enumerate(texts) if text]
        fired = {layer: s[0, i, : len(ids), real].cpu() for layer, s in fact_scores(model).items()}
        tokens = [word(answerer.tokenizer, token) for token in ids]
        facts = [texts[n] for n in real]
        seen.append(Seen(q.choices[i], probability.item(), tokens, facts, fired if real else {}))
    return seen


def word(tokenizer: Tokenizer, i: int) -> str:
    return printable(tokenizer.decode([i])).strip() or printable(tokenizer.vocab[i])


HEADS = {  # inject -> what stands above the facts
    "none": "facts, which this model doesn't read",
    "concat": "facts, read as words behind the input",
    "attention": "the most attention that a token of choice {} gave the fact (* most of all)",
    "ffn": "how strongly the fact fired for choice {} (* most of all)",
}


def facts_of(q: Question) -> list[str]:
    """Each once, whichever choices have it, in the order of their numbers on the screen."""
    return list(dict.fromkeys(fact for own in q.facts for fact in own))


def screen(
    inject: str, q: Question, seen: list[Seen], was: list[float] | None = None
) -> Iterator[str]:
    """Lines: the question, its choices with what their probabilities were and are, its facts with
    the largest of the scores in each injected layer, for the choice that was taken.
    """
    taken = max(seen, key=lambda choice: choice.probability)
    letter, own = LETTERS[seen.index(taken)], of_choice(q.facts, seen.index(taken))
    texts = [printable(choice.text) for choice in seen]
    width = min(40, max(map(len, texts)))
    yield f"    ?  {printable(q.asked)}"
    for i, choice in enumerate(seen):
        before, right = f"{was[i]:9.1%} ->" if was else "", "  <- right" if i == q.answer else ""
        bar = "#" * round(20 * choice.probability)
        line = f"{LETTERS[i]}  {texts[i]:<{width}}{before}{choice.probability:8.1%}  {bar}".rstrip()
        yield f"  {'>' if choice is taken else ' '} {line}{right}"
    layers = {i: fired.amax(0).tolist() for i, fired in taken.fired.items()}
    head = HEADS[inject].format(letter) if facts_of(q) else "no facts"
    yield " " * 7 + "".join(f"{f'layer {i}':>8} " for i in layers) + f"  {head}"
    for number, fact in enumerate(facts_of(q), 1):
        scores, note = 9 * " " * len(layers), ""
        if fact in taken.facts:
            n = taken.facts.index(fact)
            scores = "".join(f"{two_digits(f[n])}{' *'[f[n] == max(f)]}" for f in layers.values())
        elif inject != "none":
            note = f"  (not {'kept for' if fact in own else 'a fact of'} {letter})"
        yield f"  {number:>3}  {scores}  {printable(fact)}{note}"


def two_digits(score: float) -> str:
    return f"{round(score, 2) + 0.0:8.2f}"  # 0.00, never -0.00
