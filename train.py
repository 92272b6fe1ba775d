"""Multiple-choice questions and their facts in; a trained Kformer and a report of it out.

    python train.py --inject ffn        an encoder that can read learns to use injected facts
    python train.py --inject none       the same without facts: stays at chance
    python train.py --inject ffn --checkpoint FOLDER --data FOLDER      one's own
    torchrun --nproc_per_node=2 train.py --inject ffn                   shares each batch out

Read `main` at the end first, then from top to bottom one run in the order in which it happens. The
same command again goes on with a run that was stopped.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
from argparse import Namespace
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from kformer import VARIANTS, KformerForMultipleChoice
from load_weights import (
    added_parameters,
    lines_of_model,
    lines_of_report,
    load_weights,
    open_config,
    save_pretrained,
    save_whole,
)
from qa.batches import (
    Answerer,
    Encoded,
    default_dtype,
    lines_of_unread,
    share_out_threads,
    shuffled,
)
from qa.errors import blaming, command
from qa.evaluation import chance, exchanged, lines_of_result, measure, rules
from qa.questions import NO_FACTS, Question, read_questions, split_paths

WORLD, RANK = 1, 0  # the only process, or one of those that torchrun starts
if "TORCHELASTIC_RUN_ID" in os.environ:
    WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])

# ----------------------------------------------------------------------------------- arguments


def parse_arguments(argv: list[str] | None) -> Namespace:
    parser = argparse.ArgumentParser(
        description="Train a Kformer on multiple-choice questions and facts; by default, ffn on "
        "the toy world. The same command goes on with a run that was stopped."
    )
    add, data = parser.add_argument, Path(__file__).resolve().parent / "data"
    add("--inject", choices=VARIANTS, help="where the facts go: nowhere, behind the input, before "
        "attention's keys and values, into the FFN (default: as in the checkpoint, or ffn)")
    add("--layers", metavar="WHICH", help="bottom, middle or top (a third of the layers), all, or "
        "numbers from 0, such as 0-2 or 0,2 (default: as in the checkpoint, or the last three)")
    add("--facts", type=int, metavar="N",
        help="facts kept for a question, those nearest to it (default: as in the checkpoint, or 5)")
    add("--data", type=Path, default=data / "toy", metavar="FOLDER",
        help="train.jsonl, valid.jsonl or dev.jsonl, maybe test.jsonl (default: data/toy)")
    add("--checkpoint", type=Path, default=data / "encoder", metavar="FOLDER",
        help="pretrained weights (default: data/encoder, which can read the toy world)")
    add("--from-scratch", action="store_true",
        help="random weights, of the size in the checkpoint's config.json")
    add("--wrong-facts", action="store_true", help="give each question the facts of another")
    add("--steps", type=int, metavar="N",
        help="batches to train on (default: four epochs)")
    add("--batch-size", type=int, default=32, help="questions in a batch (default: 32)")
    add("--lr", type=float, help="learning rate (default: 0.064 / hidden size, which is 1e-3 for "
        "data/encoder, 8e-5 for BERT-base)")
    add("--warmup", type=int, metavar="N", help="steps in which the rate rises, to fall in "
        "all others (default: it rises in the first fifth and falls in the last)")
    add("--seed", type=int, default=0, help="of the weights and the order (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"),
        help="where it runs (default: the GPU if there is one)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the matrix products (default: "
        "bfloat16 where the machine multiplies it natively and the hidden size is 256 or more)")
    add("--out", type=Path, metavar="FOLDER",
        help="where the run is saved (default: runs/INJECT-seed-SEED or runs/wrong-facts/...)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is to be seen here, use --device cpu")
    counts = {"facts", "steps", "batch_size", "warmup"}
    if wrong := [n for n, v in vars(args).items() if n in counts and v is not None and v < 1]:
        raise ValueError(f"--{wrong[0].replace('_', '-')}: must be 1 or more")
    if args.lr is not None and not 0 < args.lr < 1:
        raise ValueError(f"--lr {args.lr}: must be above 0 and below 1")
    if not 0 <= args.seed < 1_000_000:
        raise ValueError(f"--seed {args.seed}: must be from 0 to 999,999")
    return args


def layer_numbers(text: str, depth: int) -> tuple[int, ...]:
    """ "0-2,5" -> (0, 1, 2, 5); "all"; "bottom", "middle", "top": a third of `depth` layers."""
    if not re.fullmatch(r"top|middle|bottom|all|\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        raise ValueError(f"--layers {text}: must be bottom, middle, top, all, or 2, 0-2, 0,2")
    third = max(1, depth // 3)
    names = {"bottom": range(third), "middle": range(third, depth - third),
             "top": range(depth - third, depth), "all": range(depth)}  # fmt: skip
    ends = [] if text in names else [part.split("-") for part in text.split(",")]
    numbers = names.get(text) or {i for e in ends for i in range(int(e[0]), int(e[-1]) + 1)}
    if not numbers or max(numbers) >= depth:
        raise ValueError(f"--layers {text}: no such layers, the model has 0 to {depth - 1}")
    return tuple(sorted(numbers))


# ------------------------------------------------------------------------- model and questions


def open_model(args: Namespace) -> tuple[Answerer, dict[str, float]]:
    """The model with its tokenizer, and for parameters that don't learn at --lr a factor. Fills in
    arguments that were not given.
    """
    config, tokenizer = open_config(args.checkpoint)
    args.inject = args.inject or (config.inject if config.inject != "none" else "ffn")
    layers = config.inject_layers
    if args.layers:
        layers = layer_numbers(args.layers, config.num_hidden_layers)
    facts = args.facts or config.num_facts
    config = replace(config, inject=args.inject, inject_layers=layers, num_facts=facts)
    args.dtype = args.dtype or default_dtype(config.hidden_size, args.device)
    args.lr = args.lr or 0.064 / config.hidden_size
    share_out_threads(config.hidden_size)
    torch.manual_seed(args.seed)
    if args.from_scratch:
        return Answerer(KformerForMultipleChoice(config).to(args.device), tokenizer, args.dtype), {}
    model, report = load_weights(args.checkpoint, config)
    for line in lines_of_report(report):
        print(f"weights   {line}")
    # The head starts from noise, and learns faster. Wk, Wv and the table start near what they are
    # to be; but Wv, with the small --lr of a wide encoder, would hardly move from there.
    rates = {name: 10.0 for name in report.new if name.startswith(("pooler", "classifier"))}
    rates |= {name: config.hidden_size / 64 for name in report.new if ".Wv." in name}
    return Answerer(model.to(args.device), tokenizer, args.dtype), rates


def read_data(args: Namespace) -> dict[str, list[Question]]:
    """The questions of "train", of "valid" and, last, of "test" if there is one."""
    paths = split_paths(args.data)
    splits = {s: read_questions(path, answers_needed=s != "test") for s, path in paths.items()}
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in splits.items())
    own = sum(any(q.facts) for part in splits.values() for q in part)
    print(f"data      {os.path.relpath(args.data)}: {sizes} questions")
    print(f"facts     {own:,} questions bring theirs" + ", and get others" * args.wrong_facts)
    if not own and args.inject != "none":
        raise ValueError(f"{args.data}: {NO_FACTS}; --inject none needs none")
    if args.wrong_facts:
        splits = {split: exchanged(part) for split, part in splits.items()}
    return splits


# ------------------------------------------------------------------------------------ training


def parameter_groups(
    model: KformerForMultipleChoice, rates: dict[str, float], lr: float
) -> list[dict]:
    """Weight decay for matrices, not for biases and LayerNorms; some have a rate of their own."""
    groups = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((rates.get(name, 1.0), parameter.dim() > 1), []).append(parameter)
    return [
        {"params": group, "full_lr": rate * lr, "weight_decay": 0.01 * matrix}
        for (rate, matrix), group in groups.items()
    ]


def lr_share(step: int, steps: int, warmup: int | None) -> float:
    """The share of the full learning rate: up in the first fifth, down to 0 in the last one; or up
    in the first `warmup` steps and down in all others, as in the release.
    """
    fifth = max(1, steps // 5)
    rise, fall = (warmup, max(1, steps - warmup)) if warmup else (fifth, fifth)
    return min(1.0, (step + 1) / rise, (steps - step) / fall)


def train(
    answerer: Answerer, rates: dict[str, float], data: dict[str, list[Encoded]],
    args: Namespace, log: list[dict],
) -> None:  # fmt: skip
    """Trains the model, and leaves it in its best state on the validation split, of equals the
    last. At ten evaluations all is saved, and the log gets a row.

    Raises ValueError where a gradient isn't finite any more.
    """
    model = answerer.model
    groups = parameter_groups(model, rates, args.lr)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    best = {}  # the model's best state so far
    row = {"step": 0, "questions": 0, "seconds": 0.0, "eval_seconds": 0.0}
    if len(log) > 1:  # it was stopped
        best, row = read_state(args.out, model, optimizer), dict(log[-1])
        print(*map(row_of_report, log[1:]), sep="\n")
    done = row["step"]
    batches = islice(shuffled(data["train"], args.batch_size, args.seed), done, args.steps)
    bar = tqdm(batches, args.out.name, args.steps, initial=done, unit="step", leave=False,
               disable=True if RANK else None)  # fmt: skip
    evaluate_at = {round(args.steps * i / 10) for i in range(1, 11)}
    for step, batch in enumerate(bar, done + 1):
        start = time.perf_counter()
        torch.manual_seed(args.seed + 1_000_000 * (WORLD * step + RANK))  # of the dropout
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * lr_share(step - 1, args.steps, args.warmup)
        model.train()
        mine = batch[RANK::WORLD]  # all, where this is the only process; one of weight 0 for none
        weight, mine = len(mine) / len(batch), mine or batch[:1]
        answers = torch.tensor([q.answer for q in mine], device=answerer.device)
        loss = weight * cross_entropy(answerer.scores(mine), answers)
        optimizer.zero_grad()
        loss.backward()
        if WORLD > 1:
            add_up_gradients(model, loss)
        norm = clip_grad_norm_(model.parameters(), 1.0)
        if not norm.isfinite():
            said = f"the loss is {loss:.3g}, the length of its gradient {norm:.3g}"
            raise ValueError(f"step {step}: {said}; a smaller --lr may help")
        optimizer.step()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if step > 2:  # the first two warm the machine up, and aren't timed
            row["questions"] += len(batch)
            row["seconds"] += time.perf_counter() - start

        if step in evaluate_at and RANK == 0:
            start = time.perf_counter()
            found = fmean(answerer.answered_right(data["valid"]))
            row["eval_seconds"] += time.perf_counter() - start
            if found >= max((r["valid_accuracy"] for r in log[1:]), default=0.0):
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            row |= {"step": step, "loss": loss.item(), "valid_accuracy": found}
            log.append(dict(row))
            write_log(args.out, log)  # first: read_log drops rows that no state goes with
            write_state(args.out, step, model, best, optimizer)
            tqdm.write(row_of_report(row))
    if RANK == 0:
        model.load_state_dict(best)


def join_processes(device: str) -> None:
    """This process of torchrun meets the others. The first one alone prints and writes."""
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if RANK:
        sys.stdout = open(os.devnull, "w")


def add_up_gradients(model: KformerForMultipleChoice, loss: torch.Tensor) -> None:
    """The loss and all gradients become their sums over the processes of torchrun."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for tensor in (loss.detach(), *gradients):
        torch.distributed.all_reduce(tensor)


def row_of_report(row: dict) -> str:
    return "  step {step:6,}   loss {loss:.3f}   validation {valid_accuracy:6.1%}".format(**row)


# --------------------------------------------------------------------------------- what is saved

LOG = "log.jsonl"  # in a run's folder: the run, a row for each evaluation, the result
STATE = "training.safetensors"  # until the run is finished: all that the rest of it depends on


def identity(args: Namespace) -> dict:
    """What decides the result of a run: its arguments, and digests of the files that it reads."""
    endings = ("json", "txt", "safetensors")
    model = [path for ending in endings for path in args.checkpoint.glob(f"*.{ending}")]
    said = {n: str(v.resolve()) if isinstance(v, Path) else v for n, v in vars(args).items()}
    del said["out"]
    files = {"data": digest(question_files(args.data)), "checkpoint": digest(model)}
    return {"arguments": said | {"processes": WORLD}, "files": files}


def question_files(folder: Path) -> list[Path]:
    files = [*split_paths(folder).values()]
    return files + [path.with_name(f"{path.stem}-labels.lst") for path in files]


def digest(paths: list[Path]) -> str:
    """Of the names and the contents of those files that are there."""
    own = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths if p.is_file()}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def read_log(out: Path, run: dict) -> list[dict]:
    """The log of this run, without rows that are newer than the state that was saved.

    Raises ValueError where the folder has anything else.
    """
    if out.is_dir() and all(path.suffix == ".new" for path in out.iterdir()):  # left by a kill
        return [run]
    try:
        log = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
        steps = [row.get("step", 0) + 0 for row in log]
        # where files lie doesn't matter, what is in them does
        before, now = ({**r["arguments"], **r["files"]} for r in (log[0], run))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"--out {out}: has files that are no run; name a new folder") from None
    if differ := [name for name in now if before.get(name) != now[name]]:
        raise ValueError(
            f"{out} has another run, of other {', '.join(differ)}: name a new folder with --out, "
            "or delete that one"
        )
    if "test_accuracy" in log[-1]:
        return log
    step = 0
    if (out / STATE).is_file():
        with blaming(out / STATE), safe_open(out / STATE, "pt") as file:
            step = int(file.metadata()["step"])
    if step not in steps:
        raise ValueError(f"{out}: {LOG} and {STATE} aren't of one moment; delete the folder")
    return log[: steps.index(step) + 1]


def write_log(out: Path, log: list[dict]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in log)
    (out / f"{LOG}.new").write_text(text, encoding="utf-8")
    os.replace(out / f"{LOG}.new", out / LOG)


def write_state(
    out: Path, step: int, model: KformerForMultipleChoice, best: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:  # fmt: skip
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in moments.items()}
    save_whole(tensors, out / STATE, step=str(step))


def read_state(
    out: Path, model: KformerForMultipleChoice, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Puts model and optimizer into the state that was written. Returns the model's best one."""
    parts, moments = {"model": {}, "best": {}, "optimizer": {}}, {}
    with blaming(out / STATE), safe_open(out / STATE, "pt") as file:
        for name in file.keys():
            part, _, rest = name.partition(".")
            parts[part][rest] = file.get_tensor(name).clone()
        for name, tensor in parts["optimizer"].items():
            i, _, which = name.partition(".")
            moments.setdefault(int(i), {})[which] = tensor
        model.load_state_dict(parts["model"])
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    return parts["best"]


# ------------------------------------------------------------------------------------- one run


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if WORLD > 1:
        join_processes(args.device)
    answerer, rates = open_model(args)
    questions = read_data(args)
    epoch = -(-len(questions["train"]) // args.batch_size)
    args.steps = args.steps or 4 * epoch
    name = f"{'wrong-facts/' * args.wrong_facts}{args.inject}-seed-{args.seed}"
    args.out = args.out or Path("runs", name)
    log = [identity(args)]
    if args.out.exists():
        log = read_log(args.out, log[0])
    data = {split: answerer.encode(questions[split]) for split in ("train", "valid")}
    # the questions of the last split of which answers are known are reported
    known = [s for s, part in questions.items() if any(q.answer is not None for q in part)]
    held_out = [q for q in questions[known[-1]] if q.answer is not None]
    for line in lines_of_unread([*data["train"], *data["valid"]], answerer.model.config):
        print(f"          {line}")
    print(f"chance    {chance(held_out):.1%}; {rules(questions['train'], held_out)}")
    print("model     " + "\n          ".join(lines_of_model(answerer.model)))
    print(f"          products in {args.dtype}; training on {args.device}")

    if "test_accuracy" in log[-1]:
        print(f"          {args.out} has this very run, finished: nothing is left to train")
    else:
        if RANK == 0:
            write_log(args.out, log)  # the folder is taken
        train(answerer, rates, data, args, log)
        if RANK:
            return
        last = log[-1]
        result = measure(answerer, held_out) | {
            "valid_accuracy": max(row["valid_accuracy"] for row in log[1:]),
            "seconds": last["seconds"],
            "train_questions_per_second": last["questions"] / max(1e-9, last["seconds"]),
            "eval_questions_per_second": len(log[1:]) * len(data["valid"]) / last["eval_seconds"],
            "parameters_added": added_parameters(answerer.model),
        }
        save_pretrained(answerer.model, answerer.tokenizer, args.out)
        log.append(result)
        write_log(args.out, log)
    (args.out / STATE).unlink(missing_ok=True)
    with blaming(args.out / LOG):
        print(*lines_of_result(known[-1], len(held_out), log[-1]), sep="\n")
        print(f"saved     {args.out}, after {log[-1]['seconds']:.0f} s of training; python -m "
              f"lab.look {args.out} shows questions and answers")  # fmt: skip


if __name__ == "__main__":
    with command():
        main()
