"""A saved run and a file of questions, opened for the commands of this folder."""

import argparse
import json
import os
from pathlib import Path
from statistics import mean, stdev

import torch

from load_weights import open_folder
from qa.batches import Answerer, default_dtype, lines_of_unread, share_out_threads
from qa.errors import blaming, must_be, read_text
from qa.evaluation import exchanged
from qa.questions import NO_FACTS, Question, read_questions, split_paths
from train import LOG, digest, question_files


def positive(text: str) -> int:
    """The type of an argument: a whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def make_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that asking, looking, measuring and predicting have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("run", type=Path, help="folder that train.py saved, or any checkpoint")
    parser.add_argument("questions", type=Path, nargs="?", help="file of questions (default: "
                        "test.jsonl of the run's data or, where there is none, the validation "
                        "questions)")  # fmt: skip
    return parser


def open_saved(
    run: Path, path: Path | None = None, answers_needed: bool = False
) -> tuple[Answerer, list[Question]]:
    """The run's model, tokenizer and dtype; the questions of a file, or those of the run."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run}: no such folder; python train.py saves its runs in runs/")
    model, tokenizer, _ = open_folder(run)
    share_out_threads(model.config.hidden_size)
    device, past = "cuda" if torch.cuda.is_available() else "cpu", run_arguments(run)
    dtype = past.get("dtype") or default_dtype(model.config.hidden_size, device)
    if path is None and not past:
        raise ValueError(f"{run} is no run of train.py: name a file of questions")
    if path is None and not past["data"].is_dir():
        raise ValueError(f"{run}: its data, {past['data']}, is gone: name a file of questions")
    for file in [path] if path else reversed(split_paths(past["data"]).values()):
        questions = read_questions(file, answers_needed and file == path)
        if path is None and past.get("wrong_facts"):
            questions = exchanged(questions)
        if answers_needed:
            questions = [q for q in questions if q.answer is not None]
        if questions:
            break  # else the test questions have no answers
    if path is None and past["digest"] != digest(question_files(past["data"])):
        print(f"note      {past['data']}: the files have changed since the run was made")
    if model.config.inject != "none" and not any(any(q.facts) for q in questions):
        print(f"facts     {file}: {NO_FACTS}")
    answerer = Answerer(model.to(device), tokenizer, dtype)
    for line in lines_of_unread(answerer.encode(questions), model.config):
        print(f"questions {line}")
    return answerer, questions


def run_arguments(folder: Path) -> dict:
    """The arguments that a run was made with, and the "digest" of its questions; none of either for
    a checkpoint from elsewhere.
    """
    path = folder / LOG
    if not path.is_file():
        return {}
    with blaming(path):
        run = json.loads(read_text(path).splitlines()[0])
        said = {**run["arguments"], "digest": run["files"]["data"]}
        must_be(said, dtype=("float32", "bfloat16"), wrong_facts=(False, True))
        return said | {"data": Path(said["data"])}


def check_new(path: Path) -> None:
    """Raises ValueError for a file or folder that is there already, or that can't be written."""
    if os.path.lexists(path):
        raise ValueError(f"{path} is there already; choose a new name")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path.parent}: no folder that can be written into")


def over_seeds(values: list[float]) -> str:
    """Mean and, of more than one, standard deviation, in percent."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"
