"""How fast it is on a CPU: beside transformers, and as facts, tokens and choices grow in number.

    pip install transformers
    python -m lab.speed --checkpoint BERT_FOLDER --data FOLDER

FOLDER has a train.jsonl of any format that train.py reads. Questions a second count all that a step
of training or an evaluation needs, the tokens being there: batches, forward and backward pass,
optimizer. Whatever is compared takes turns, so that what slows the machine down for a while slows
all of it down.
"""

from qa.command import command

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoTokenizer, BertForMultipleChoice

from kformer import VARIANTS
from load_weights import open_folder
from qa.arguments import default_dtype
from qa.batches import Encoded, accuracy, encode, predictions, score, shuffled
from qa.questions import Question, read_questions
from train import parameter_groups

DTYPES = (torch.float32, torch.bfloat16)
STEPS, BATCH, HELD_OUT = 10, 16, 300  # of a round of the first table; questions
CASES = [  # choices, tokens in each, facts
    (4, 32, 1), (4, 32, 5), (4, 32, 20), (4, 32, 100), (4, 32, 1000),
    (4, 16, 5), (4, 64, 5), (4, 128, 5), (4, 256, 5), (2, 32, 5), (8, 32, 5), (16, 32, 5),
]  # fmt: skip


def turns(works: list[Callable[[], object]], rounds: int) -> list[tuple[float, ...]]:
    """The seconds that each took in each round; one round before warms up."""
    taken = []
    for _ in tqdm(range(rounds + 1), leave=False, disable=None):
        taken.append([])
        for work in works:
            start = time.perf_counter()
            work()
            taken[-1].append(time.perf_counter() - start)
    return list(zip(*taken[1:], strict=True))


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, forward: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    """One step of training, the same for both sides."""
    model.train()
    loss = cross_entropy(*forward())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


class Transformers:
    """The plain way to fine-tune: random batches, padded to their longest member, AdamW, clipping;
    evaluation in the order of the file.
    """

    def __init__(self, folder: Path, questions: list[Question], dtype: torch.dtype) -> None:
        self.dtype, self.tokenizer = dtype, AutoTokenizer.from_pretrained(folder)
        self.model = BertForMultipleChoice.from_pretrained(folder)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-5, fused=True)
        data = [([self.tokenizer(f"{q.context} {q.question}", c) for c in q.choices], q.answer)
                for q in questions]  # fmt: skip
        self.held_out, data = data[:HELD_OUT], data[HELD_OUT:]
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        self.shuffled = cycle(data[i] for i in order)

    def forward(self, batch: list[tuple]) -> tuple[Tensor, Tensor]:
        padded = self.tokenizer.pad([row for rows, _ in batch for row in rows], return_tensors="pt")
        inputs = {name: t.unflatten(0, (len(batch), -1)) for name, t in padded.items()}
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            scores = self.model(**inputs).logits.float()
        return scores, torch.tensor([answer for _, answer in batch])

    def train(self) -> None:
        for _ in range(STEPS):
            batch = [next(self.shuffled) for _ in range(BATCH)]
            step(self.model, self.optimizer, partial(self.forward, batch))

    @torch.inference_mode()
    def evaluate(self) -> None:
        self.model.eval()
        for start in range(0, HELD_OUT, BATCH):
            self.forward(self.held_out[start : start + BATCH])


class Ours:
    """What train.py does."""

    def __init__(self, folder: Path, questions: list[Question], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.model, tokenizer, _ = open_folder(folder, inject="none")
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, {}, 5e-5), fused=True)
        data = [encode(q, tokenizer, self.model.config) for q in questions]
        self.held_out, self.shuffled = data[:HELD_OUT], shuffled(data[HELD_OUT:], BATCH, seed=0)

    def train(self) -> None:
        for _ in range(STEPS):
            forward = partial(score, self.model, next(self.shuffled), self.dtype)
            step(self.model, self.optimizer, forward)

    def evaluate(self) -> None:
        accuracy(self.model, self.held_out, self.dtype)


def beside_transformers(folder: Path, questions: list[Question], rounds: int) -> None:
    """Prints questions a second, and the median ratio to transformers in float32."""
    sides = [(kind, dtype) for dtype in DTYPES for kind in (Transformers, Ours)]
    works = []
    for kind, dtype in sides:
        side = kind(folder, questions, dtype)
        works += [side.train, side.evaluate]
    taken = turns(works, rounds)
    print("| | products in | training | ratio | evaluation | ratio |")
    print("|---|---|---|---|---|---|")
    for (kind, dtype), *pair in zip(sides, taken[::2], taken[1::2], strict=True):
        cells = [kind.__name__, str(dtype).removeprefix("torch.")]
        for times, base, count in zip(pair, taken[:2], (STEPS * BATCH, HELD_OUT), strict=True):
            ratio = median(b / t for b, t in zip(base, times, strict=True))
            cells += [f"{count / median(times):.1f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} |")


def made_up(choices: int, tokens: int, facts: int) -> Encoded:
    """A question of random words, and facts of ten."""

    def ids(*shape: int) -> list:
        return torch.randint(1000, 20_000, shape).tolist()

    segments = [[0] * tokens for _ in range(choices)]
    return Encoded(ids(choices, tokens), segments, [ids(facts, 10)], 0, False)


def growth(folder: Path, rounds: int) -> None:
    """Prints milliseconds a question, in training / in evaluation."""
    models = {name: open_folder(folder, inject=name, num_facts=1000)[0] for name in VARIANTS}
    config = models["none"].config
    dtype = default_dtype(config.hidden_size, "cpu")
    print(f"\n| choices | tokens | facts | {' | '.join(VARIANTS)} |")
    print("|---" * (3 + len(VARIANTS)) + "|")
    optimizers = {n: torch.optim.AdamW(m.parameters(), 0.0, fused=True) for n, m in models.items()}
    for choices, tokens, facts in CASES:
        batch = [made_up(choices, tokens, facts) for _ in range(8)]
        cells = dict.fromkeys(VARIANTS, "too long")
        names = [n for n in VARIANTS if n != "concat" or tokens + 10 * facts < config.max_tokens]
        works = []
        for name in names:
            forward = partial(score, models[name], batch, dtype)
            works.append(partial(step, models[name], optimizers[name], forward))
            works.append(partial(predictions, models[name], batch, dtype))
        times = [f"{1000 * median(t) / len(batch):.1f}" for t in turns(works, rounds)]
        for name, *pair in zip(names, times[::2], times[1::2], strict=True):
            cells[name] = " / ".join(pair)
        print(f"| {choices} | {tokens} | {facts} | {' | '.join(cells.values())} |", flush=True)


@command()
def main() -> None:
    parser = argparse.ArgumentParser(description="Questions a second, on a CPU.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a BERT")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--rounds", type=int, default=5, help="medians of so many (default: 5)")
    args = parser.parse_args()
    questions = read_questions(args.data / "train.jsonl")[: HELD_OUT + 2000]
    beside_transformers(args.checkpoint, questions, args.rounds)
    growth(args.checkpoint, args.rounds)


if __name__ == "__main__":
    main()
