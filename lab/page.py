"""A page that runs the model: one file for a browser, in which everything can be typed.

page.html has its parts and style, kformer.js the model, page.js what happens when one types. Here
the weights, the vocabulary and the questions become data for them. It loads nothing.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from qa.batches import Answerer
from qa.errors import printable
from qa.evaluation import edited, gold, removed
from qa.inside import facts_of
from qa.questions import Question
from qa.tokenizer import CJK, WordPiece

MOST = 2_000_000  # parameters: with so many, a key stroke of four choices takes 0.15 s


def page(runs: list[tuple[str, Answerer]], questions: list[Question], title: str) -> str:
    """Runs with their names, side by side on the same questions.

    Raises ValueError for a model that the page can't run.
    """
    data = {
        "runs": [run_data(name, answerer) for name, answerer in runs],
        "questions": [{"versions": versions(q)} for q in questions],
    }

    def read(name: str) -> str:
        return Path(__file__).with_name(name).read_text(encoding="utf-8")

    parts = {
        "TITLE": escape(printable(title, len(title))),
        "SCRIPTS": read("kformer.js") + read("page.js"),
        "JSON_DATA": json.dumps(data).replace("<", "\\u003c"),
    }
    return re.sub("|".join(parts), lambda found: parts[found.group()], read("page.html"))


def run_data(name: str, answerer: Answerer) -> dict:
    model, tokenizer = answerer.model, answerer.tokenizer
    count = sum(tensor.numel() for tensor in model.parameters())
    if count > MOST:
        raise ValueError(f"{name}: {count:,} parameters, a page can run up to {MOST:,}")
    if not isinstance(tokenizer, WordPiece) or model.config.model_type != "bert":
        raise ValueError(f"{name}: a page can run BERT with WordPiece alone")
    state = model.state_dict()
    weights = np.concatenate([tensor.float().cpu().numpy().ravel() for tensor in state.values()])
    return {
        "name": printable(name),
        "config": vars(model.config) | {"max_tokens": model.config.max_tokens},
        "tokenizer": tokenizer.settings | {
            "vocab": tokenizer.vocab, "added": sorted(tokenizer.added, key=len, reverse=True),
            "cjk": CJK, **{f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in
                           ("cls", "sep", "unk")}},
        "parameters": {name: [*tensor.shape] for name, tensor in state.items()},
        "weights": base64.b64encode(packed(weights)).decode(),
    }  # fmt: skip


def packed(numbers: np.ndarray) -> bytes:
    """float32, first all lowest bytes, then all second ones ...: in this order they compress."""
    return zlib.compress(numbers.astype("<f4").view(np.uint8).reshape(-1, 4).T.tobytes())


def versions(q: Question) -> list[dict]:
    """A question as it is; with a gold fact also without it, and with it edited."""
    some, old = [("as it is", "", q)], gold(q)
    if old:
        changed = edited(q)
        new = " ".join({*facts_of(changed)} - {*facts_of(q)})  # one, or none that is new
        some = [("with the gold fact", old, q), ("without it", "", removed(q)),
                ("with it edited", new, changed)]  # fmt: skip
    return [
        {"name": name, "fact": fact, "context": version.context, "question": version.question,
         "choices": version.choices, "answer": version.answer,
         "facts": [{"text": text, "on": True, "of": of, "gold": old if text == fact else ""}
                   for text, of in listed(version)]}
        for name, fact, version in some
    ]  # fmt: skip


def listed(q: Question) -> Iterator[tuple[str, list[bool] | None]]:
    """Each fact, and which choices have it, None for all; once, where no choice wants another
    order.
    """
    once, many = facts_of(q), len(q.facts) > 1
    if many and all([fact for fact in once if fact in own] == own for own in q.facts):
        yield from ((fact, [fact in own for own in q.facts]) for fact in once)
    else:
        for i, own in enumerate(q.facts):
            yield from (
                (fact, [k == i for k in range(len(q.facts))] if many else None) for fact in own
            )
