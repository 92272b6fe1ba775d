"""Multiple-choice questions and their facts in; a trained Kformer and a report of it out.

    python train.py --inject ffn        learns the toy world in data/toy from injected facts
    python train.py --inject none       the same without facts: stays at chance
    python train.py --inject ffn --checkpoint FOLDER --data FOLDER      one's own
    torchrun --nproc_per_node=2 train.py --inject ffn                   shares each batch out

Read it from top to bottom, one run in the order in which it happens: arguments, questions and
model, training, the report. `main` at the end calls them. The same command again goes on with a run
that was stopped.
"""

from qa.command import command

import argparse
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from kformer import VARIANTS, KformerForMultipleChoice
from load_weights import load_config, open_config, open_folder, save_pretrained
from qa.arguments import default_dtype, layer_numbers, positive, runs_folder
from qa.batches import Encoded, accuracy, encode, score, shuffled
from qa.checkpoint import added_parameters, grouped
from qa.effects import edited, gold, measure
from qa.inside import show
from qa.lookup import read_splits
from qa.processes import RANK, add_up_gradients, anywhere, join, my_share
from qa.questions import Question
from qa.report import lines_of_data, lines_of_model, lines_of_result, row_of_report
from qa.sentences import Embed, is_sentence_encoder, sentence_encoder
from qa.state import (
    LOG,
    TrainingState,
    alone_in,
    check_finite,
    ctrl_c_finishes_the_step,
    finished,
    identity,
    refuse_to_replace,
)
from qa.tokenizer import Tokenizer

# ----------------------------------------------------------------------------------- arguments


def make_parser(several: bool = False) -> argparse.ArgumentParser:
    """With `several`, four of the arguments take several values, for lab.table."""
    more = {"nargs": "+"} if several else {}
    parser = argparse.ArgumentParser(
        description="Train a Kformer on multiple-choice questions and facts.",
        epilog="Without arguments it learns the toy world of this repo in half a minute. The same "
        "command goes on with a run that was stopped. A table of many runs: python -m lab.table.",
    )
    add, toy = parser.add_argument, Path(__file__).resolve().parent / "data" / "toy"
    add("--inject", choices=VARIANTS, **more,
        help="how the facts come in: not at all, as words behind the input, as a prefix of keys "
        "and values, as hidden neurons of the FFN (default: as in the checkpoint, or ffn)")
    add("--layers", metavar="WHICH", **more,
        help="layers to inject into: bottom, middle or top (a third of all), all, or numbers from "
        "0 at the bottom, such as 2 or 0-2 or 0,2 (default: as in the checkpoint, or the top three,"
        " layer 0 only if it is alone)")
    add("--facts", type=positive, metavar="N", **more,
        help="facts kept for a question, those nearest to it (default: as in the checkpoint, or 5)")
    add("--data", type=Path, default=toy, metavar="FOLDER",
        help="train.jsonl, valid.jsonl or dev.jsonl, maybe test.jsonl and facts.txt "
        "(default: data/toy)")
    add("--checkpoint", type=Path, metavar="FOLDER",
        help="pretrained weights to start from (default: random ones, of the size in the "
        "config.json of the data folder)")
    add("--retrieve", type=positive, metavar="N",
        help="look up N facts for each question in facts.txt, each for the choice that it speaks "
        "for (default: as many as are kept, for questions that bring none)")
    add("--retriever", type=Path, metavar="FOLDER",
        help="sentence encoder that ranks what is looked up by its meaning (default: the "
        "checkpoint, if it is one; otherwise words in common count)")
    add("--wrong-facts", action="store_true",
        help="give each question the facts of another, for comparison")
    add("--steps", type=positive, metavar="N",
        help="batches to train on (default: 700, with a checkpoint four epochs)")
    add("--batch-size", type=positive, default=32, help="questions in a batch (default: 32)")
    add("--lr", type=float, help="learning rate (default: 1e-3, with a checkpoint 5e-5)")
    add("--warmup", type=positive, metavar="N",
        help="steps in which the learning rate rises; then it falls to the end (default: it rises "
        "in the first fifth and falls in the last)")
    add("--seed", type=int, default=[0] if several else 0, metavar="N", **more,
        help="of the weights and the order (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"),
        help="where it runs (default: the GPU if there is one)")
    add("--dtype", choices=("float32", "bfloat16"),
        help="of the matrix products (default: bfloat16 where the machine multiplies it natively "
        "and the hidden size is at least 256, else float32)")
    add("--out", type=Path, metavar="FOLDER",
        help="where the run is saved (default: runs/INJECT-seed-SEED or runs/wrong-facts/...)")
    return parser


def resolve(args: Namespace) -> Namespace:
    """Checks the arguments and fills in what is left to default, but for --steps: see `prepare`."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is to be seen here, use --device cpu")
    if args.lr is not None and not 0 < args.lr < 1:
        raise ValueError(f"--lr {args.lr}: must be above 0 and below 1")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed {args.seed}: must be from 0 to 2**63 - 1")
    folder = args.checkpoint or args.data
    config = load_config(folder)
    args.inject = args.inject or (config.inject if config.inject != "none" else "ffn")
    if args.layers is not None:
        args.layers = layer_numbers(args.layers, config.num_hidden_layers)
    args.facts = args.facts or config.num_facts
    load_config(folder, inject=args.inject, num_facts=args.facts)
    if args.checkpoint and args.retriever is None and is_sentence_encoder(args.checkpoint):
        args.retriever = args.checkpoint
    args.lr = args.lr or (5e-5 if args.checkpoint else 1e-3)
    chosen = args.dtype and getattr(torch, args.dtype)
    args.dtype = chosen or default_dtype(config.hidden_size, args.device)
    args.out = args.out or runs_folder(args.wrong_facts) / f"{args.inject}-seed-{args.seed}"
    refuse_to_replace(args.out, [Path.cwd(), args.data, args.checkpoint or args.data])
    return args


# ------------------------------------------------------------------------- questions and model


@dataclass
class Task:
    """All that a run needs, read and encoded."""

    model: KformerForMultipleChoice
    tokenizer: Tokenizer
    rates: dict[str, float]  # of parameters that don't learn at --lr, as multiples of it
    questions: dict[str, list[Question]]  # split -> questions; "test" last where there is one
    data: dict[str, list[Encoded]]  # the same, encoded
    held_out: str  # the split to report on: the last one whose answers are known


@cache  # the runs of a table share their questions
def read_data(
    data: Path, folder: Path, candidates: int | None, always: bool, wrong: bool, embed: Embed | None
) -> tuple[dict[str, list[Question]], dict[str, list[Encoded]]]:
    """The questions of each split, as they are and as ids for the checkpoint in `folder`."""
    questions = read_splits(data, candidates, always, wrong, embed)
    config, tokenizer = open_config(folder)
    encoded = {s: [encode(q, tokenizer, config) for q in part] for s, part in questions.items()}
    return questions, encoded


def prepare(args: Namespace, say: Callable[[str], None] = print) -> Task:
    """Opens the model, reads and encodes the questions; fills in the number of steps."""
    folder = args.checkpoint or args.data
    fields = {"inject": args.inject, "num_facts": args.facts}
    if args.layers is not None:
        fields["inject_layers"] = args.layers
    torch.manual_seed(args.seed)
    if args.checkpoint:
        model, tokenizer, opened = open_folder(folder, **fields)
        lists = {"note": opened.notes, "unused": grouped(opened.unused), "new": grouped(opened.new)}
        for what, items in lists.items():
            if items:
                say(f"{what:10}{', '.join(items)}")
        # Wk and the table start near what they are to be; Wv and the head don't, and learn faster.
        rates = {n: 10.0 for n in opened.new if "Wk" not in n and "fact_embeddings" not in n}
    else:
        config, tokenizer = open_config(folder, **fields)
        model = KformerForMultipleChoice(config)
        # At the full rate the pooler's tanh soon saturates, and concat dies more often.
        rates = {"pooler.weight": 0.1, "pooler.bias": 0.1}
    candidates = None if args.inject == "none" else args.retrieve or args.facts
    retriever = candidates and args.retriever
    embed = retriever and sentence_encoder(retriever, args.dtype, args.device)
    always = args.retrieve is not None
    questions, data = read_data(args.data, folder, candidates, always, args.wrong_facts, embed)
    if args.steps is None:
        epoch = -(-len(data["train"]) // args.batch_size)
        args.steps = 4 * epoch if args.checkpoint else 700
    answered = [s for s, part in questions.items() if all(q.answer is not None for q in part)]
    return Task(model.to(args.device), tokenizer, rates, questions, data, answered[-1])


def describe(task: Task, args: Namespace) -> None:
    """How many questions, what is reached without learning, how large the model is."""
    lines = lines_of_data(args.data, task.questions, task.data, task.held_out)
    print(*lines, *lines_of_model(task.model, args.dtype), sep="\n")


# ------------------------------------------------------------------------------------ training


def parameter_groups(
    model: KformerForMultipleChoice, rates: dict[str, float], lr: float
) -> list[dict]:
    """Weight decay for matrices, not for biases and LayerNorms; some have a rate of their own."""
    groups = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((rates.get(name, 1.0), parameter.dim() > 1), []).append(parameter)
    return [
        {"params": group, "lr": rate * lr, "initial_lr": rate * lr, "weight_decay": 0.01 * matrix}
        for (rate, matrix), group in groups.items()
    ]


def lr_share(step: int, steps: int, warmup: int | None) -> float:
    """The share of the full learning rate: up in the first fifth, down to 0 in the last one; or up
    in the first `warmup` steps and down in all others, as in the release.
    """
    fifth = max(1, steps // 5)
    rise, fall = (warmup, max(1, steps - warmup)) if warmup else (fifth, fifth)
    return min(1.0, (step + 1) / rise, (steps - step) / fall)


def train(task: Task, args: Namespace, run_id: dict, say: Callable[[str], None]) -> TrainingState:
    """Trains the model, and leaves it in its best state on the validation split.

    Saves all to args.out at ten evaluations and at Ctrl-C, and the next call goes on from there.
    Raises ValueError where the loss isn't finite any more.
    """
    model, device = task.model, task.model.classifier.weight.device
    groups = parameter_groups(model, task.rates, args.lr)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    state = TrainingState(args.out, run_id, model, optimizer)
    if state.replaces:
        say(f"          {args.out} has {state.replaces}")
    for row in state.progress.rows:
        say(row_of_report(row))
    done = state.progress.step
    share = partial(lr_share, steps=args.steps, warmup=args.warmup)
    scheduler = LambdaLR(optimizer, share, last_epoch=done - 1)
    batches = islice(shuffled(task.data["train"], args.batch_size, args.seed), done, args.steps)
    evaluate_at = {round(args.steps * i / 10) for i in range(1, 11)}
    bar = tqdm(batches, desc=args.out.name, total=args.steps, initial=done, unit="step",
               leave=False, disable=None)  # fmt: skip
    if RANK:
        torch.manual_seed(args.seed + RANK)  # each process has dropout of its own
    with ctrl_c_finishes_the_step() as pressed:
        for step, batch in enumerate(bar, done + 1):
            model.train()
            questions, weight = my_share(batch)  # all, and 1.0, where this is the only process
            scores, answers = score(model, questions, args.dtype)
            loss = weight * cross_entropy(scores, answers)
            optimizer.zero_grad()
            loss.backward()
            add_up_gradients(model, loss)  # over the processes
            norm = clip_grad_norm_(model.parameters(), 1.0)
            check_finite(loss, norm, step, batch, task.data["train"])
            optimizer.step()
            scheduler.step()

            state.count(batch)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if step in evaluate_at:
                found = accuracy(model, task.data["valid"], args.dtype)
                row = {"step": step, "loss": loss.item(), "valid_accuracy": found}
                state.evaluated(row, len(task.data["valid"]))
                say(row_of_report(row))
            if anywhere(bool(pressed), device):
                state.save()
                raise KeyboardInterrupt(f"saved after step {step:,}, the same command goes on")
    model.load_state_dict(state.best)
    return state


# --------------------------------------------------------------------------- one run, its report


def run(task: Task, args: Namespace, say: Callable[[str], None] = tqdm.write) -> dict:
    """Trains, measures and saves, or opens a finished run. -> the log's last line"""
    run_id = identity(vars(args), task.model, task.questions, task.tokenizer.files())
    if result := finished(args.out, run_id):
        say(f"          {args.out} has this very run, finished: nothing is left to train")
        try:
            task.model = open_folder(args.out)[0].to(args.device)
        except (ValueError, OSError) as error:
            raise ValueError(f"{error}; without {args.out / LOG} it's trained again") from None
        return result
    with alone_in(args.out):
        state = train(task, args, run_id, say)
        result = measure(task.model, task.tokenizer, task.questions[task.held_out], args.dtype)
        result |= {"parameters_added": added_parameters(task.model)} | state.progress.figures()
        if RANK == 0:
            save_pretrained(task.model, task.tokenizer, args.out)
            state.finish(result)
    return result


def report(task: Task, result: dict, args: Namespace) -> None:
    """What was measured, where it was saved, and one question."""
    questions = task.questions[task.held_out]
    print(*lines_of_result(task.held_out, len(questions), result), sep="\n")
    opens = f'load_pretrained("{args.out.as_posix()}") opens it'
    print(f"saved     {args.out}: {opens}; figures in log.jsonl")
    print("\nOne question:")
    print(*show(task.model, task.tokenizer, questions[0], args.dtype), sep="\n")
    if gold(questions[0]):
        print("\nThe same, its gold fact edited:")
        print(*show(task.model, task.tokenizer, edited(questions[0]), args.dtype), sep="\n")


@command()
def main() -> None:
    args = resolve(make_parser().parse_args())
    join(args.device)
    task = prepare(args)
    describe(task, args)
    result = run(task, args)
    if RANK == 0:
        report(task, result, args)


if __name__ == "__main__":
    main()
