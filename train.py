"""Multiple-choice questions and their facts in, a trained Kformer and a report out.

    python train.py --inject ffn        learns the toy world in data/toy from injected facts
    python train.py --inject none       the same without facts: stays at chance

Read it from top to bottom: questions -> tokens -> batches -> training -> report -> command line.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from kformer import KformerForMultipleChoice
from load_weights import load_config, load_pretrained, load_tokenizer, save_pretrained
from tokenizer import Tokenizer

# ------------------------------------------------------------------------------------ questions


@dataclass
class Question:
    context: str
    question: str
    choices: list[str]
    answer: int  # place of the right choice, from 0
    facts: list[str]  # the candidates, best first if they were retrieved


def parse_question(line: str) -> Question:
    """One line in the format of the Kformer release. Raises ValueError with what is wrong."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("must be a JSON object")
    row = {"context": "", "knowledges": []} | row
    for key in ("context", "question", "AnswerKey"):
        if not isinstance(row.get(key), str):
            raise ValueError(f'"{key}" is missing or not a text')
    if not isinstance(row.get("choices"), list):
        raise ValueError('"choices" is missing or not a list')
    choices = [choice.get("text") for choice in row["choices"] if isinstance(choice, dict)]
    if len(choices) < max(2, len(row["choices"])) or not all(isinstance(c, str) for c in choices):
        raise ValueError('"choices" must be a list of at least two {"text": ...}')
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    if len(row["AnswerKey"]) != 1 or row["AnswerKey"] not in letters:
        raise ValueError(f'"AnswerKey" must be one of {letters}, not "{row["AnswerKey"]}"')
    facts = row["knowledges"]
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
        raise ValueError('"knowledges" must be a list of texts')
    answer = letters.index(row["AnswerKey"])
    return Question(row["context"], row["question"], choices, answer, facts)


def read_questions(path: Path) -> list[Question]:
    """One question a line. Raises ValueError or FileNotFoundError with file and line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    questions = []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                questions.append(parse_question(line.decode("utf-8")))
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: not UTF-8 text") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not questions:
        raise ValueError(f"{path}: no questions in it")
    if len({len(q.choices) for q in questions}) > 1:
        raise ValueError(f"{path}: all questions must have the same number of choices")
    return questions


# -------------------------------------------------------------------------------------- batches


@dataclass
class Encoded:
    """One question as ids: a row of tokens and segments for each choice, a row for each fact."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    fact_ids: list[list[int]]
    answer: int


def encode(q: Question, tokenizer: Tokenizer, max_length: int) -> Encoded:
    """[CLS] context question [SEP] choice [SEP], segments 0 and 1.

    Too long an input loses the beginning of its context, never the choice.
    """
    cls, sep = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
    text = tokenizer.encode(f"{q.context} {q.question}")
    rows, segments = [], []
    for choice in q.choices:
        second = tokenizer.encode(choice)[: max_length - 3] + sep
        room = max_length - 2 - len(second)
        first = cls + text[max(0, len(text) - room) :] + sep
        rows.append(first + second)
        segments.append([0] * len(first) + [1] * len(second))
    facts = [tokenizer.encode(fact)[:max_length] for fact in q.facts]
    return Encoded(rows, segments, facts, q.answer)


def pad(rows: list[list[list[int]]], value: int) -> Tensor:
    """Ragged lists of lists of ids -> (B, longest list, longest row), at least (B, 1, 1)."""
    width = max((len(row) for group in rows for row in group), default=0) or 1
    height = max(len(group) for group in rows) or 1
    filled = [[row + [value] * (width - len(row)) for row in group] for group in rows]
    return torch.tensor([group + [[value] * width] * (height - len(group)) for group in filled])


def collate(
    batch: list[Encoded], pad_id: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """B questions -> the arguments of the model, and the answers (B,)."""
    inputs = {
        "input_ids": pad([q.input_ids for q in batch], pad_id),  # (B, C, T)
        "token_type_ids": pad([q.token_type_ids for q in batch], 0),  # (B, C, T)
        "fact_ids": pad([q.fact_ids for q in batch], pad_id),  # (B, S, L)
    }
    answers = torch.tensor([q.answer for q in batch])
    return {name: t.to(device) for name, t in inputs.items()}, answers.to(device)


def shuffled(data: list[Encoded], batch_size: int, seed: int) -> Iterator[list[Encoded]]:
    """Batches without end: each epoch has every question once, in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator).tolist()
        for start in range(0, len(order), batch_size):
            yield [data[i] for i in order[start : start + batch_size]]


# ------------------------------------------------------------------------------------- training


def score(model: KformerForMultipleChoice, batch: list[Encoded], dtype: torch.dtype) -> tuple:
    """B questions -> scores (B, C) in float32, answers (B,)"""
    device = model.classifier.weight.device
    inputs, answers = collate(batch, model.config.pad_token_id, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return model(**inputs).float(), answers


@torch.inference_mode()
def accuracy(model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype) -> float:
    """The share of questions whose right choice has the largest score."""
    model.eval()
    right = 0
    for start in range(0, len(data), 100):
        scores, answers = score(model, data[start : start + 100], dtype)
        right += (scores.argmax(-1) == answers).sum().item()
    return right / len(data)


def learning_rate(step: int, steps: int) -> float:
    """The share of the full learning rate: up in the first twentieth, then down to 0, linearly."""
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def train_step(
    model: KformerForMultipleChoice,
    batch: list[Encoded],
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """One batch -> its loss and accuracy, before the step."""
    model.train()
    scores, answers = score(model, batch, dtype)
    loss = cross_entropy(scores, answers)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach(), (scores.argmax(-1) == answers).float().mean()


def train(
    model: KformerForMultipleChoice,
    data: dict[str, list[Encoded]],
    args: argparse.Namespace,
    log: Callable[[dict], None],
) -> dict[str, float]:
    """Trains `model`, leaves it in its best state on the validation split, returns the times."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: learning_rate(i, args.steps))
    batches = shuffled(data["train"], args.batch_size, args.seed)
    evaluate_at = {round(args.steps * i / 10) for i in range(1, 11)}
    best, best_state = -1.0, {}
    trained, training, evaluated, evaluating = 0, 0.0, 0, 0.0  # questions and seconds
    bar = tqdm(range(1, args.steps + 1), "training", unit="step", leave=False, disable=None)
    for step in bar:
        start, batch = time.perf_counter(), next(batches)
        loss, right = train_step(model, batch, optimizer, args.dtype)
        schedule.step()
        if step > 2:  # the first steps warm the machine up
            training += time.perf_counter() - start
            trained += len(batch)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{right.item():.0%}")
        if step in evaluate_at:
            start = time.perf_counter()
            found = accuracy(model, data["valid"], args.dtype)
            evaluating += time.perf_counter() - start
            evaluated += len(data["valid"])
            tqdm.write(f"  step {step:6,}   loss {loss.item():.3f}   validation {found:6.1%}")
            log({"step": step, "loss": loss.item(), "valid_accuracy": found})
            if found > best:
                best = found
                best_state = {name: t.clone() for name, t in model.state_dict().items()}
    model.load_state_dict(best_state)
    return {
        "valid_accuracy": best,
        "seconds": round(training, 2),
        "train_questions_per_second": trained / training if training else 0.0,
        "eval_questions_per_second": evaluated / evaluating,
    }


# --------------------------------------------------------------------------------------- report


def describe(model: KformerForMultipleChoice, data: dict[str, list[Encoded]], source: Path) -> None:
    """What data, what model, how many parameters, what chance is."""
    config, first = model.config, data["train"][0]
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in data.items())
    total = sum(p.numel() for p in model.parameters())
    names = [n for n, _ in model.named_parameters()]
    added = [n for n in names if n == "fact_embeddings.weight" or ".Wk." in n or ".Wv." in n]
    extra = sum(model.get_parameter(n).numel() for n in added)
    layers = f" in layers {' '.join(map(str, config.inject_layers))}" if added else ""
    print(f"data      {source}: {sizes} questions of {len(first.input_ids)} choices")
    print(
        f"model     {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads; injection: {config.inject}{layers}"
    )
    print(f"          {total:,} parameters, {extra:,} of them for the facts")
    print(f"chance    {1 / len(first.input_ids):.1%}")


def fired(model: KformerForMultipleChoice, choice: int) -> list[float]:
    """How strongly each fact fired for one choice of the last question: its strongest token, summed
    over the injected layers. Empty where no fact is injected."""
    halves = [half for block in model.encoder.layer for half in (block.attention, block.ffn)]
    scores = [half.fact_scores for half in halves if half.fact_scores is not None]
    return sum(s[0, choice].amax(0) for s in scores).tolist() if scores else []


@torch.inference_mode()
def show(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, question: Question, dtype: torch.dtype
) -> None:
    """One worked question: its facts, how strongly they fired, the choices and probabilities."""
    model.eval()
    encoded = encode(question, tokenizer, model.config.max_tokens)
    probabilities = score(model, [encoded], dtype)[0].softmax(-1)[0].tolist()
    chosen = max(range(len(probabilities)), key=probabilities.__getitem__)
    strengths = fired(model, chosen)
    for i, fact in enumerate(question.facts):
        strength = ""
        if len(strengths) == len(question.facts):
            most = "  <- fired most" if strengths[i] == max(strengths) else ""
            strength = f"{strengths[i]:8.2f}{most}"
        print(f"    {fact:<36}{strength}".rstrip())
    for i, choice in enumerate(question.choices):
        right = "  <- right" if i == question.answer else ""
        print(f"    {'>' if i == chosen else ' '} {choice:<32}{probabilities[i]:10.1%}{right}")


def edited(question: Question) -> Question | None:
    """The same question, its right fact changed to say another choice; None without such a fact."""
    answer = (question.answer + 1) % len(question.choices)
    old, new = re.escape(question.choices[question.answer]), question.choices[answer]
    facts = [re.sub(rf"\b{old}\b", lambda _: new, fact) for fact in question.facts]
    return replace(question, facts=facts, answer=answer) if facts != question.facts else None


# --------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse_arguments() -> argparse.Namespace:
    toy = os.path.relpath(Path(__file__).resolve().parent / "data" / "toy")
    parser = argparse.ArgumentParser(
        description="Train a Kformer on multiple-choice questions and facts.",
        epilog="Without arguments it learns the toy world of this repo in about a minute.",
    )
    add = parser.add_argument
    add("--inject", default="ffn", choices=("none", "concat", "attention", "ffn"),
        help="how the facts come in: not at all, as words behind the input, as a prefix of keys "
        "and values, as hidden neurons of the FFN (default: ffn)")
    add("--layers", type=int, nargs="+", metavar="N",
        help="layers that facts are injected into, from 0 at the bottom (default: the top three, "
        "of fewer than four layers all but the bottom one)")
    add("--facts", type=int, metavar="N",
        help="facts kept for a question, those nearest to it (default: 5)")
    add("--data", type=Path, default=Path(toy), metavar="FOLDER",
        help="train.jsonl, valid.jsonl and test.jsonl (default: data/toy)")
    add("--checkpoint", type=Path, metavar="FOLDER",
        help="pretrained weights to start from (default: random ones, of the size in the "
        "config.json of the data folder)")
    add("--steps", type=positive, default=1500, help="batches to train on (default: 1500)")
    add("--batch-size", type=positive, default=32, help="questions in a batch (default: 32)")
    add("--lr", type=float, help="learning rate (default: 2e-3, with a checkpoint 5e-5)")
    add("--seed", type=int, default=0, help="of the weights and the order (default: 0)")
    gpu = torch.cuda.is_available()
    add("--device", default="cuda" if gpu else "cpu", choices=("cpu", "cuda"),
        help="where it runs (default: the GPU if there is one)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"),
        help="of the matrix products (default: float32)")
    add("--out", type=Path, metavar="FOLDER",
        help="where the run is saved (default: runs/INJECT-seed-SEED)")
    args = parser.parse_args()
    if args.device == "cuda" and not gpu:
        parser.error("argument --device: no GPU is to be seen here, try --device cpu")
    if args.lr is None:
        args.lr = 5e-5 if args.checkpoint else 2e-3
    args.out = args.out or Path("runs", f"{args.inject}-seed-{args.seed}")
    args.dtype = getattr(torch, args.dtype)
    return args


def load(
    args: argparse.Namespace,
) -> tuple[KformerForMultipleChoice, Tokenizer, dict[str, list[Question]]]:
    """The model, its tokenizer, and the questions of each split, "test" last where there is one."""
    splits = ["train", "valid"] + ["test"] * (args.data / "test.jsonl").exists()
    questions = {split: read_questions(args.data / f"{split}.jsonl") for split in splits}
    fields = {"inject": args.inject, "inject_layers": args.layers, "num_facts": args.facts}
    fields = {name: value for name, value in fields.items() if value is not None}
    torch.manual_seed(args.seed)
    if args.checkpoint:
        return *load_pretrained(args.checkpoint, **fields), questions
    config, tokenizer = load_config(args.data, **fields), load_tokenizer(args.data)
    return KformerForMultipleChoice(config), tokenizer, questions


def run(args: argparse.Namespace) -> None:
    """Everything from the files to the last line of the report."""
    model, tokenizer, questions = load(args)
    model.to(args.device)
    longest = model.config.max_tokens
    data = {s: [encode(q, tokenizer, longest) for q in part] for s, part in questions.items()}
    describe(model, data, args.data)

    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "log.jsonl", "w", encoding="utf-8") as file:

        def log(row: dict) -> None:
            print(json.dumps(row), file=file, flush=True)

        result = train(model, data, args, log)
        name, held_out = list(data.items())[-1]  # the validation split where there's no test split
        chance, test = 1 / len(held_out[0].input_ids), accuracy(model, held_out, args.dtype)
        log({"test_accuracy": test, "chance": chance, **result})
    save_pretrained(model, tokenizer, args.out)

    print(f"{name:10}{test:.1%} of {len(held_out):,} questions, chance is {chance:.1%}")
    if test < chance + 2 * (chance * (1 - chance) / len(held_out)) ** 0.5:
        print("          no better than chance: what it learned does not answer new questions")
    print(f"time      {result['seconds']:.0f} s of training")
    print(f'saved     {args.out}: load_pretrained("{args.out}") opens it; figures in log.jsonl')

    question = questions[name][0]
    print(f"\nOne question: {question.question}")
    show(model, tokenizer, question, args.dtype)
    if changed := edited(question):
        print("The same, one fact changed:")
        show(model, tokenizer, changed, args.dtype)


def main() -> None:
    args = parse_arguments()
    sys.stdout.reconfigure(line_buffering=True)  # through a pipe, too, lines come as they are made
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was saved but the log", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
