"""What several files of tests use."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from qa.batches import Answerer, Encoded
from qa.errors import command
from qa.tokenizer import WordPiece
from test_kformer import HERE, TINY, tiny

REFERENCE = HERE / "data" / "reference"  # written by transformers, see data/make_reference.py
KINDS = ["bert", "roberta"]

OWL = ("What eats mice?", ["the owl", "the oak", "rain"])
TWO_LISTS = {"text": OWL[1], "label": ["A", "B", "C"]}
STEM = {
    "stem": OWL[0],
    "choices": [{"label": str(i), "text": c} for i, c in enumerate(OWL[1], 1)],
}
FORMATS = {  # of the question OWL; where a format wants it, the last choice is left out, or "snow"
    "release": {
        "question": OWL[0], "choices": [{"text": c} for c in OWL[1]], "AnswerKey": "A",
        "knowledges": ["Owls eat mice."],
    },
    "release, facts of each choice": {
        "context": "", "question": OWL[0], "answer_idx": "A",
        "choices": [{"text": c, "knowledge": [f"About {c}."]} for c in OWL[1]],
    },
    "release, number from 0": {
        "question": OWL[0], "choices": [{"text": c} for c in OWL[1]], "answer_idx": 0,
    },
    "social_iqa": {"context": "", "question": OWL[0]}
    | {f"answer{letter}": choice for letter, choice in zip("ABC", OWL[1], strict=True)},
    "stem": {"question": STEM, "answerKey": "1"},
    "openbookqa, hub": {
        "question_stem": OWL[0], "choices": TWO_LISTS, "answerKey": "A", "fact1": "Owls eat mice.",
    },
    "arc, hub": {
        "question": OWL[0], "choices": {"text": OWL[1], "label": ["1", "2", "3"]}, "answerKey": "1",
    },
    "qasc, hub": {
        "question": OWL[0], "choices": TWO_LISTS, "answerKey": "A", "combinedfact": "x",
        "fact1": "Owls are birds.", "fact2": "Birds eat mice.", "formatted_question": "x",
    },
    "medqa": {
        "question": OWL[0], "options": dict(zip("ABC", OWL[1], strict=True)), "answer_idx": "A"
    },
    "medqa, a choice that others have": {
        "question": OWL[0], "options": dict(zip("ABCD", [*OWL[1], None], strict=True)),
        "answer": OWL[1][0], "answer_idx": "A",
    },
    "medqa, pairs": {
        "question": OWL[0], "answer": OWL[1][0],
        "options": [{"key": k, "value": v} for k, v in zip("ABC", OWL[1], strict=True)],
    },
    "medqa, bigbio": {
        "question": OWL[0], "choices": OWL[1], "context": "", "answer": [OWL[1][0]]
    },
    "mmlu": {"question": OWL[0], "subject": "owls", "choices": OWL[1], "answer": 0},
    "race": {"article": "", "question": OWL[0], "options": OWL[1], "answer": "A"},
    "sciq": {
        "question": OWL[0], "correct_answer": OWL[1][0], "distractor1": OWL[1][1],
        "distractor2": OWL[1][2], "distractor3": "snow", "support": "Owls eat mice.",
    },
    "piqa": {"goal": OWL[0], "sol1": OWL[1][0], "sol2": OWL[1][1], "label": 0},
    "swag": {"sent1": "What eats", "sent2": "mice?", "label": 0}
    | {f"ending{i}": choice for i, choice in enumerate([*OWL[1], "snow"])},
    "hellaswag": {"ctx": OWL[0], "ctx_a": "What", "endings": OWL[1], "label": "0"},
    "winogrande": {
        "sentence": OWL[0], "option1": OWL[1][0], "option2": OWL[1][1], "answer": "1"
    },
    "cosmos": {"context": "", "question": OWL[0], "label": 0}
    | {f"answer{i}": choice for i, choice in enumerate([*OWL[1], "snow"])},
    "medmcqa": {"question": OWL[0], "cop": 0, "choice_type": "single", "exp": "Owls eat mice."}
    | {f"op{letter}": choice for letter, choice in zip("abcd", [*OWL[1], "snow"], strict=True)},
}  # fmt: skip
FACTS = {  # that they bring, where they bring any
    "release": [["Owls eat mice."]],
    "release, facts of each choice": [["About the owl."], ["About the oak."], ["About rain."]],
    "openbookqa, hub": [["Owls eat mice."]],
    "qasc, hub": [["Owls are birds.", "Birds eat mice."]],
    "sciq": [["Owls eat mice."]],
}


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


def sentence_encoder_of(folder: Path, *more: str, **pooling: object) -> Path:
    """Says what a text's vector is: by default the mean of the tokens, divided by its length."""
    modules = ["Transformer", "Pooling", *(more or ["Normalize"])]
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    rows = [{"path": paths.get(m, m), "type": f"sentence_transformers.models.{m}"} for m in modules]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True, "include_prompt": 1}
    write_lines(folder / "1_Pooling" / "config.json", pooling or modes)
    return folder


def tiny_tokenizer() -> WordPiece:
    words = [f"w{i}" for i in range(5, TINY.vocab_size)]
    return WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])


def tiny_answerer(inject: str, **fields: object) -> Answerer:
    """Random weights, and a vocabulary of w5 to w49."""
    return Answerer(tiny(inject, **fields).float(), tiny_tokenizer(), "float32")


def ids(*choices: int, facts: int = 1, length: int = 3) -> Encoded:
    """A question with one choice for each id, the id repeated `length` times."""
    rows = [[i] * length for i in choices]
    return Encoded(rows, [[0] * length for _ in rows], [[[9, 9]]] * facts, 0, False, False)


def run_command(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *arguments: object) -> None:
    """As `python -m MODULE ARGUMENTS` would, in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    with command():
        module.main()


def log_of(run: Path) -> list[dict]:
    return [json.loads(row) for row in (run / "log.jsonl").read_text().splitlines()]


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
