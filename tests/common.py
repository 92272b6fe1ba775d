"""What several files of tests use."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

import train
from parts import batches
from parts.questions import Question
from parts.tokenizer import WordPiece
from test_kformer import HERE, TINY

REFERENCE = HERE / "data" / "reference"  # written by transformers, see data/make_reference.py
KINDS = ["bert", "roberta"]


OWL = ("What eats mice?", ["the owl", "the oak", "rain"])
FORMATS = {
    "release": {
        "question": OWL[0], "choices": [{"text": c} for c in OWL[1]], "AnswerKey": "A",
        "knowledges": ["Owls eat mice."],
    },
    "release, facts of each choice": {
        "context": "", "question": OWL[0], "answer_idx": "A",
        "choices": [{"text": c, "knowledge": [f"About {c}."]} for c in OWL[1]],
    },
    "social_iqa": {"context": "", "question": OWL[0]}
    | {f"answer{letter}": choice for letter, choice in zip("ABC", OWL[1], strict=True)},
    "stem": {
        "question": {
            "stem": OWL[0],
            "choices": [{"label": str(i), "text": c} for i, c in enumerate(OWL[1], 1)],
        },
        "answerKey": "1",
    },
    "medqa": {
        "question": OWL[0], "options": dict(zip("ABC", OWL[1], strict=True)), "answer_idx": "A"
    },
}  # fmt: skip


def write_lines(path: Path, *rows: dict | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def change_tensors(folder: Path, change: Callable[[str, Tensor], dict[str, Tensor]]) -> None:
    """Each tensor of the folder is replaced by those that `change` makes of its name and itself."""
    path, changed = folder / "model.safetensors", {}
    for name, tensor in load_file(path).items():
        changed |= change(name, tensor)
    save_file(changed, path)


def change_json(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields))


def tiny_tokenizer() -> WordPiece:
    words = [f"w{i}" for i in range(5, TINY.vocab_size)]
    return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])


def ids(*choices: int, facts: int = 1, length: int = 3) -> batches.Encoded:
    """A question with one choice for each id, the id repeated `length` times."""
    rows = [[i] * length for i in choices]
    return batches.Encoded(rows, [[0] * length for _ in rows], [[[9, 9]]] * facts, 0, False)


def run_command(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *arguments: object) -> None:
    """As `python -m MODULE ARGUMENTS` would, in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    train.read_data.cache_clear()
    module.main()


def run_train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    run_command(monkeypatch, train, *arguments)


def log_of(run: Path) -> list[dict]:
    return [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt




def ask(q: Question) -> batches.Encoded:
    return batches.encode(q, tiny_tokenizer(), TINY)
