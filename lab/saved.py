"""A saved run and a file of questions, opened for the commands of this folder."""

import argparse
import json
import os
from pathlib import Path

import torch

from kformer import KformerForMultipleChoice
from load_weights import open_folder
from qa.arguments import default_dtype, positive
from qa.files import blaming, read_text, replacing
from qa.lookup import look_up
from qa.questions import Question, read_questions
from qa.sentences import sentence_encoder
from qa.tokenizer import Tokenizer


def make_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that asking, looking, measuring and predicting have in common."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("run", type=Path, help="folder that train.py saved, or any checkpoint")
    add("questions", type=Path, nargs="?",
        help="file of questions, with facts.txt beside it if they bring none (default: test.jsonl "
        "of the run's data)")  # fmt: skip
    add("--retrieve", type=positive, metavar="N",
        help="look up N facts for each question (default: as the run did)")  # fmt: skip
    return parser


def open_saved(
    run: Path,
    questions: Path | None = None,
    retrieve: int | None = None,
    answers_needed: bool = False,
) -> tuple[KformerForMultipleChoice, Tokenizer, list[Question], torch.dtype]:
    """The model, its tokenizer, the questions with their facts, and the dtype of products."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such folder; python train.py saves its runs in runs/")
    model, tokenizer, _ = open_folder(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    dtype = default_dtype(model.config.hidden_size, device)
    past = run_arguments(run)
    if questions is None and not past:
        raise ValueError(
            f"{run} is no run of train.py: name a file of questions, where the command takes one"
        )
    path = questions or Path(past["data"], "test.jsonl")
    retrieve = retrieve or past.get("retrieve")
    found = read_questions(path, answers_needed)
    bare = [q for q in found if retrieve or not any(q.facts)]
    if bare and model.config.inject != "none":
        facts_path, candidates = path.with_name("facts.txt"), retrieve or model.config.num_facts
        retriever = past.get("retriever")
        embed = retriever and sentence_encoder(Path(retriever), dtype, device)
        print(f"facts     {look_up(bare, facts_path, candidates, embed)}")
    return model, tokenizer, found, dtype


def run_arguments(folder: Path) -> dict:
    """The arguments that a run was made with; none for a checkpoint from elsewhere."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return {}
    with blaming(path):
        return json.loads(read_text(path).splitlines()[0])["arguments"]


def check_new(path: Path, option: str = "--out") -> None:
    if os.path.lexists(path):
        raise ValueError(f"{option} {path}: is there already; name a new file")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{option} {path}: no folder that can be written into")


def write_new(path: Path, text: str, option: str = "--out") -> None:
    """A whole file or none, in the place of no other: that was checked before, but it took a while.
    """
    check_new(path, option)
    with replacing(path.parent) as new:
        (new / path.name).write_text(text, encoding="utf-8")
