"""How fast it is on a CPU, beside transformers' BertForMultipleChoice.

    pip install transformers
    python -m lab.speed --checkpoint BERT_FOLDER --data FOLDER

FOLDER has a train.jsonl of any format that train.py reads. Questions a second count all that a step
of training or an evaluation needs, the tokens being there: batches, forward and backward pass,
optimizer. The sides take turns, so that what slows the machine down for a while slows both down.
Theirs is the plain way to fine-tune: random batches, padded to their longest member; evaluation in
the order of the file.
"""

import argparse
import time
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer, BertForMultipleChoice

from load_weights import open_folder
from qa.batches import Answerer, shuffled
from qa.errors import command
from qa.questions import Question, read_questions

STEPS, BATCH, HELD_OUT = 10, 16, 300  # of a round; questions
Works = tuple[Callable[[], object], Callable[[], object]]  # training, evaluation


def training(model: nn.Module, batches: object, scores: Callable, answers: Callable) -> Callable:
    """A round of steps, the same for both sides."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)

    def train() -> None:
        model.train()
        for _ in range(STEPS):
            batch = next(batches)
            loss = cross_entropy(scores(batch), torch.tensor([*map(answers, batch)]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return train


def ours(folder: Path, questions: list[Question], dtype: str) -> Works:
    """What train.py does."""
    model, tokenizer, _ = open_folder(folder, inject="none")
    answerer = Answerer(model, tokenizer, dtype)
    data = answerer.encode(questions)
    batches = shuffled(data[HELD_OUT:], BATCH, seed=0)
    train = training(model, batches, answerer.scores, lambda q: q.answer)
    return train, lambda: answerer.answered_right(data[:HELD_OUT])


def theirs(folder: Path, questions: list[Question], dtype: str) -> Works:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForMultipleChoice.from_pretrained(folder)
    data = [([tokenizer(f"{q.context} {q.question}", c) for c in q.choices], q.answer)
            for q in questions]  # fmt: skip

    def scores(batch: list[tuple]) -> Tensor:
        padded = tokenizer.pad([row for rows, _ in batch for row in rows], return_tensors="pt")
        inputs = {name: t.unflatten(0, (len(batch), -1)) for name, t in padded.items()}
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            return model(**inputs).logits.float()

    @torch.inference_mode()
    def evaluate() -> None:
        model.eval()
        for start in range(0, HELD_OUT, BATCH):
            scores(data[start : start + BATCH])

    order = torch.randperm(len(data) - HELD_OUT, generator=torch.Generator().manual_seed(0))
    drawn = cycle(data[HELD_OUT + i] for i in order.tolist())
    batches = ([next(drawn) for _ in range(BATCH)] for _ in count())
    return training(model, batches, scores, lambda pair: pair[1]), evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description="Questions a second, on a CPU.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a BERT")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many (default: 5)")
    args = parser.parse_args()
    questions = read_questions(args.data / "train.jsonl")[: HELD_OUT + 2000]
    if len(questions) < HELD_OUT + BATCH:
        raise ValueError(f"{args.data}: needs {HELD_OUT + BATCH} training questions or more")
    sides = [(side, dtype) for dtype in ("float32", "bfloat16") for side in (theirs, ours)]
    works = [work for side, dtype in sides for work in side(args.checkpoint, questions, dtype)]
    taken = [[] for _ in works]
    for _ in tqdm(range(args.rounds + 1), leave=False, disable=None):  # the first one warms up
        for work, seconds in zip(works, taken, strict=True):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
    print("| | products in | training | ratio | evaluation | ratio |\n|---|---|---|---|---|---|")
    for n, (side, dtype) in enumerate(sides):
        cells = [side.__name__, dtype]
        for k, number in enumerate((STEPS * BATCH, HELD_OUT)):
            mine, base = taken[2 * n + k][1:], taken[k][1:]
            ratio = median(b / t for b, t in zip(base, mine, strict=True))
            cells += [f"{number / median(mine):.1f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    with command():
        main()
