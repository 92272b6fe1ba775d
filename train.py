"""Multiple-choice questions and their facts in; a trained Kformer, a report or a table out.

    python train.py --inject ffn        learns the toy world in data/toy from injected facts
    python train.py --inject none       the same without facts: stays at chance
    python train.py --inject ffn --checkpoint FOLDER --data FOLDER      one's own
    python train.py --inject none concat attention ffn --seed 0 1 2     a table
    python train.py --checkpoint runs/ffn-seed-0 --show 3               a look inside
    python train.py --resume runs/ffn-seed-0                            goes on where it stopped
    torchrun --nproc_per_node=2 train.py --inject ffn                   shares each batch out

Read it from top to bottom: processes -> batches, a step -> saved state -> training loop -> one run
-> its report -> tables -> command line.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partialmethod
from itertools import groupby, islice, product
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.adamw import adamw
from tqdm import tqdm

from kformer import KformerForMultipleChoice
from load_weights import grouped, load_config, open_folder, save_pretrained, span
from parts import batches, effects
from parts.batches import (
    RANK,
    WORLD,
    Encoded,
    accuracy,
    add_up,
    chance,
    encode,
    predictions,
    score,
    share_right,
)
from parts.effects import gold
from parts.files import blaming, replacing
from parts.inside import show, write_predictions
from parts.questions import Question, read_facts, read_questions, retrieve
from parts.tokenizer import Tokenizer
from parts.vocabulary import load_tokenizer

# ----------------------------------------------------------------------------------- processes


def join(device: str) -> None:
    """One of several processes meets the others. The first one alone prints and writes."""
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if RANK:
        sys.stdout = open(os.devnull, "w")
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)


def anywhere(said: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes."""
    count = torch.tensor(float(said), device=device) if WORLD > 1 else said
    add_up([count])
    return bool(count)


def mine_to_write(path: Path) -> Path:
    return Path(os.devnull) if RANK else path


# ------------------------------------------------------------------------------ batches, a step


def shuffled(data: list[Encoded], batch_size: int, seed: int) -> Iterator[list[Encoded]]:
    """Batches without end. Each epoch has every question once, in a new order, but neighbours are
    of similar lengths: out of 50 batches' worth of random questions, sorted, come 50 batches.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order, batches = torch.randperm(len(data), generator=generator).tolist(), []
        for start in range(0, len(order), 50 * batch_size):
            some = sorted(order[start : start + 50 * batch_size], key=lambda i: len(data[i]))
            batches += [some[i : i + batch_size] for i in range(0, len(some), batch_size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield [data[k] for k in batches[i]]


def learning_rate(step: int, steps: int) -> float:
    """The share of the full learning rate: up in the first twentieth, then down to 0, linearly."""
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def parameter_groups(model: KformerForMultipleChoice, new: list[str], lr: float) -> list[dict]:
    """Weight decay for matrices, not for biases and LayerNorms; ten times the learning rate for
    what a checkpoint didn't bring: the head, and the parameters of the injection.
    """
    groups = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name in new, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": group, "full_lr": 10 * lr if is_new else lr, "weight_decay": 0.01 * is_matrix}
        for (is_new, is_matrix), group in groups.items()
    ]


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    The steps are those of torch.optim.AdamW, made by the function that it calls; the class itself
    takes most of a second to import torch's compiler. `groups` are those of `parameter_groups`.
    """

    def __init__(self, groups: list[dict]) -> None:
        self.groups, self.state = groups, {}
        for parameter in (p for group in groups for p in group["params"]):
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),  # of the gradient
                "exp_avg_sq": torch.zeros_like(parameter),  # of its square
            }

    @torch.no_grad()
    def step(self, lr_share: float, skip: Tensor) -> None:
        """At a share of the full learning rates. Changes nothing where `skip` is 1."""
        for group in self.groups:
            params = [p for p in group["params"] if p.grad is not None]
            states = [self.state[p].values() for p in params]
            steps, means, squares = zip(*states, strict=True) if states else ([], [], [])
            adamw(
                params, [p.grad for p in params], means, squares, [], steps, fused=True,
                found_inf=skip, lr=lr_share * group["full_lr"], beta1=0.9, beta2=0.999, eps=1e-8,
                weight_decay=group["weight_decay"], amsgrad=False, maximize=False,
            )  # fmt: skip


def train_step(
    model: KformerForMultipleChoice,
    batch: list[Encoded],
    optimizer: AdamW,
    lr_share: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch -> its loss and accuracy before the step, and the length of its gradient. Each
    process takes its share of the questions, and all make the same step; none is made where the
    loss or the gradient isn't finite. On a GPU nothing here waits for a result, but for concat,
    which must know its longest input.
    """
    model.train()
    mine = batch[RANK::WORLD]
    share = len(mine) / len(batch)
    scores, answers = score(model, mine or batch[:1], dtype)
    loss = share * cross_entropy(scores, answers)
    right = share * (scores.argmax(-1) == answers).float().mean()
    model.zero_grad()
    loss.backward()
    loss = loss.detach()
    add_up([loss, right, *(p.grad for p in model.parameters() if p.grad is not None)])
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(lr_share, skip=1 - torch.isfinite(loss + norm).float())
    return loss, right, norm


# ---------------------------------------------------------------------------------- saved state

STATE = "training.safetensors"  # in a run's folder, as long as it isn't finished


@dataclass
class Progress:
    """How far a training has come, and what it has found on the way."""

    step: int = 0
    rows: list[dict] = field(default_factory=list)  # of the log
    best: float = -1.0  # accuracy on the validation split
    trained: int = 0  # questions
    training: float = 0.0  # seconds
    tokens: int = 0  # of the questions trained on
    places: int = 0  # for tokens, padding among them
    evaluated: int = 0
    evaluating: float = 0.0

    def count(self, batch: list[Encoded], seconds: float) -> None:
        """One more step. The first two warm the machine up, and aren't timed."""
        self.step += 1
        rows = [row for q in batch for row in q.input_ids]
        self.tokens += sum(map(len, rows))
        self.places += len(batch) * max(len(q.input_ids) for q in batch) * max(map(len, rows))
        if self.step > 2:
            self.trained += len(batch)
            self.training += seconds

    def validate(
        self, model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype, loss: float
    ) -> bool:
        """One more row for the log, with the accuracy on `data`; says whether it's the best."""
        start = time.perf_counter()
        found = accuracy(model, data, dtype)
        self.evaluating += time.perf_counter() - start
        self.evaluated += len(data)
        self.rows.append({"step": self.step, "loss": loss, "valid_accuracy": found})
        is_best = found > self.best
        self.best = max(found, self.best)
        return is_best

    def result(self) -> dict[str, float]:
        return {
            "valid_accuracy": self.best,
            "seconds": round(self.training, 2),
            "train_questions_per_second": self.trained / max(1e-9, self.training),
            "eval_questions_per_second": self.evaluated / self.evaluating,
            "padding": 1 - self.tokens / self.places,
        }


def dropout_dice(model: KformerForMultipleChoice) -> ModuleType:
    """Who has the random state that dropout draws from."""
    return torch.cuda if model.classifier.weight.is_cuda else torch


def save_state(
    folder: Path,
    whose: dict,
    model: KformerForMultipleChoice,
    optimizer: AdamW,
    best_state: dict[str, Tensor],
    progress: Progress,
) -> None:
    """All that the rest of a training depends on, in one file that replaces the one before."""
    if RANK:
        return
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best_state.items()}
    for name, parameter in model.named_parameters():
        moments = optimizer.state[parameter].items()
        tensors |= {f"{key}.{name}": tensor for key, tensor in moments}
    tensors["random"] = dropout_dice(model).get_rng_state()
    about = json.dumps({"identity": whose, "progress": asdict(progress)})
    with replacing(folder) as new:
        save_file(tensors, new / STATE, metadata={"about": about})


def saved_identity(folder: Path) -> dict | None:
    """Of the run that was interrupted here, None if there is none."""
    if not (folder / STATE).is_file():
        return None
    with blaming(folder / STATE), safe_open(folder / STATE, framework="pt") as file:
        return json.loads(file.metadata()["about"])["identity"]


def load_state(
    folder: Path, model: KformerForMultipleChoice, optimizer: AdamW
) -> tuple[dict[str, Tensor], Progress]:
    """Model, optimizer and the random state become what they were; returns the best state so far,
    and the progress.
    """
    with blaming(folder / STATE), safe_open(folder / STATE, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    parts = {"model": {}, "best": {}, "step": {}, "exp_avg": {}, "exp_avg_sq": {}}
    dropout_dice(model).set_rng_state(tensors.pop("random"))
    for name, tensor in tensors.items():
        part, _, parameter = name.partition(".")
        parts[part][parameter] = tensor
    model.load_state_dict(parts["model"])
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][key] = parts[key][name].to(parameter.device)
    return parts["best"], Progress(**about["progress"])


# ------------------------------------------------------------------------------- training loop

LOOK_EVERY = {"cpu": 1, "cuda": 20}  # steps: on a GPU, to look at a result is to wait for it


@contextmanager
def steps_are_finished() -> Iterator[list]:
    """Within, Ctrl-C only enters into the list that it was pressed; a second one stops at once."""
    pressed = []

    def press(*_: object) -> None:
        pressed.append(True)
        if WORLD == 1:  # torchrun hands it on, so that it comes twice
            signal.signal(signal.SIGINT, usual)
        os.write(2, b"\nthis step will be finished and saved; Ctrl-C again stops at once\n")

    usual = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)


def check_finite(steps: list[tuple], questions: list[Encoded]) -> None:
    """Raises ValueError with the first of the steps, (number, batch, loss, length of the gradient),
    that could not be made, and the numbers of its questions.
    """
    for step, batch, loss, norm in steps:
        if not torch.isfinite(loss + norm):
            lines = [i for i, q in enumerate(questions, 1) if any(q is b for b in batch)]
            raise ValueError(
                f"step {step}: the loss is {loss:.3g}, the length of its gradient {norm:.3g}, with "
                f"the training questions {lines}; what was saved before is kept; a smaller --lr "
                "may help"
            )


def train(
    model: KformerForMultipleChoice,
    data: dict[str, list[Encoded]],
    new: list[str],
    args: Namespace,
    whose: dict,
    log: Callable[[dict], None],
    bar: tqdm,
) -> dict[str, float]:
    """Trains `model`, leaves it in its best state on the validation split, returns what it found.

    `new` are the parameters that a checkpoint didn't bring. At every evaluation and at Ctrl-C the
    state is saved in args.out; the next call for the same run, `whose` identity is the same, goes
    on from there. Raises ValueError where the loss isn't finite any more.
    """
    optimizer = AdamW(parameter_groups(model, new, args.lr))
    best_state, so_far = {}, Progress()
    if saved_identity(args.out) == whose:
        best_state, so_far = load_state(args.out, model, optimizer)
        bar.update(so_far.step)
        for row in so_far.rows:
            log(row)
    if RANK:
        torch.manual_seed(args.seed + RANK)  # for dropout
    batches = islice(shuffled(data["train"], args.batch_size, args.seed), so_far.step, None)
    evaluate_at = {round(args.steps * i / 10) for i in range(1, 11)}
    look_every = LOOK_EVERY[model.classifier.weight.device.type]
    unseen = []
    with steps_are_finished() as pressed:
        for step in range(so_far.step + 1, args.steps + 1):
            start, batch = time.perf_counter(), next(batches)
            lr_share = learning_rate(step - 1, args.steps)
            loss, right, norm = train_step(model, batch, optimizer, lr_share, args.dtype)
            unseen.append((step, batch, loss, norm))
            look = step % look_every == 0 or step in evaluate_at or step == 2
            if look:
                check_finite(unseen, data["train"])
                unseen.clear()
            so_far.count(batch, time.perf_counter() - start)
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", accuracy=f"{right.item():.0%}")
            if step in evaluate_at:
                is_best = so_far.validate(model, data["valid"], args.dtype, loss.item())
                log(so_far.rows[-1])
                if is_best:
                    best_state = {name: t.clone() for name, t in model.state_dict().items()}
            stop = look and anywhere(bool(pressed), loss.device)
            if step in evaluate_at or stop:
                save_state(args.out, whose, model, optimizer, best_state, so_far)
            if stop:
                raise KeyboardInterrupt(
                    f"saved after step {step:,}, the same command or --resume {args.out} goes on"
                )
    model.load_state_dict(best_state)
    return so_far.result()


# -------------------------------------------------------------------------------------- one run


@dataclass
class Task:
    """All that a run needs, read and encoded."""

    model: KformerForMultipleChoice
    tokenizer: Tokenizer
    new: list[str]  # parameters that the checkpoint didn't bring
    questions: dict[str, list[Question]]  # split -> questions; "test" last where there is one
    data: dict[str, list[Encoded]]  # the same, encoded
    held_out: str  # the split that accuracies are of: "valid" where nobody knows test's answers


def layer_numbers(text: str, depth: int) -> tuple[int, ...]:
    """ "0-2,5" -> (0, 1, 2, 5); "all"; "bottom", "middle", "top": a third of `depth` layers."""
    third = max(1, depth // 3)
    names = {"bottom": (0, third), "middle": (third, depth - third), "top": (depth - third, depth)}
    if text in names or text == "all":
        numbers = range(*names.get(text, (0, depth)))
    else:
        ends = [part.split("-") for part in text.split(",")]
        numbers = {i for pair in ends for i in range(int(pair[0]), int(pair[-1]) + 1)}
    if not numbers:
        raise ValueError(f"--layers {text}: there are none such among {depth} layers")
    return tuple(sorted(numbers))


def read_data(args: Namespace, say: Callable[[str], None]) -> dict[str, list[Question]]:
    """The questions of each split, "test" last where there is one, with facts where they're needed.

    Facts are looked up in facts.txt for questions that bring none, or for all with --retrieve.
    """
    paths = {split: args.data / f"{split}.jsonl" for split in ("train", "valid", "dev", "test")}
    valid = paths["dev"] if paths["dev"].exists() else paths["valid"]
    questions = {"train": read_questions(paths["train"]), "valid": read_questions(valid)}
    if paths["test"].exists():
        questions["test"] = read_questions(paths["test"], answers_needed=False)
    everything = [q for part in questions.values() for q in part]
    bare = [q for q in everything if args.retrieve or not any(q.facts)]
    if bare and (args.retrieve or args.inject != "none"):
        path = args.data / "facts.txt"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file, but {len(bare):,} questions need facts from it; "
                "--inject none needs no facts"
            )
        lines = read_facts(path)
        facts = [line for line in lines if line]
        blank = f"; blank lines skipped: {len(lines) - len(facts):,}" if "" in lines else ""
        say(f"facts     {len(bare):,} questions get theirs out of {len(facts):,} in {path}{blank}")
        retrieve(bare, facts, args.retrieve or args.facts or 5)
    return questions


def default_dtype(hidden_size: int, device: str) -> torch.dtype:
    """bfloat16 where products of matrices are most of the work, and the machine has instructions
    for it; without them it's emulated, and many times as slow as float32.
    """
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities()
        native = known.get("avx512_bf16") or known.get("amx_bf16")
    return torch.bfloat16 if native and hidden_size >= 256 else torch.float32


def prepare(args: Namespace, say: Callable[[str], None] = print) -> Task:
    """Opens the model, reads and encodes the questions; fills in the steps and the dtype."""
    folder = args.checkpoint or args.data
    fields = {"inject": args.inject, "num_facts": args.facts}
    if args.layers is not None:
        fields["inject_layers"] = layer_numbers(args.layers, load_config(folder).num_hidden_layers)
    fields = {name: value for name, value in fields.items() if value is not None}
    torch.manual_seed(args.seed)
    new = []
    if args.checkpoint:
        model, tokenizer, report = open_folder(folder, **fields)
        new = report.new
        for what, names in (("unused", report.unused), ("new", new)):
            if names:
                say(f"{what:10}{', '.join(grouped(names))}")
    else:
        config, tokenizer = load_config(folder, **fields), load_tokenizer(folder)
        model = KformerForMultipleChoice(config)
    model.to(args.device)
    questions = read_data(args, say)
    data = {s: [encode(q, tokenizer, model.config) for q in part] for s, part in questions.items()}
    held_out = [s for s, part in questions.items() if all(q.answer is not None for q in part)][-1]
    if args.steps is None:
        epoch = -(-len(data["train"]) // args.batch_size)
        args.steps = 4 * epoch if args.checkpoint else 1500
    if args.dtype is None:
        args.dtype = default_dtype(model.config.hidden_size, args.device)
    return Task(model, tokenizer, new, questions, data, held_out)


def added_parameters(model: KformerForMultipleChoice) -> int:
    """How many parameters are there for the facts."""
    of_facts = re.compile(r"fact_embeddings\.|.*\.W[kv]\.")
    return sum(p.numel() for name, p in model.named_parameters() if of_facts.match(name))


def describe_data(task: Task, source: Path) -> None:
    """How many questions, and what is reached without learning."""
    everything = [q for part in task.data.values() for q in part]
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in task.data.items())
    choices = sorted({len(q.input_ids) for q in everything})
    print(f"data      {source}: {sizes} questions of {' or '.join(map(str, choices))} choices")
    if shortened := sum(q.shortened for q in everything):
        most = task.model.config.max_tokens
        print(f"          {shortened:,} of them cut at the front to {most} tokens")
    rules = batches.baselines(task.questions["train"], task.questions[task.held_out])
    print(f"chance    {chance(task.data[task.held_out]):.1%}; {rules}")


def describe_model(model: KformerForMultipleChoice, dtype: torch.dtype) -> None:
    config, added = model.config, added_parameters(model)
    layers = f" in layers {' '.join(map(str, config.inject_layers))}" if added else ""
    print(
        f"model     {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads; injection: {config.inject}{layers}"
    )
    total = sum(p.numel() for p in model.parameters())
    print(
        f"          {total:,} parameters, {added:,} of them for the facts; "
        f"products in {str(dtype).removeprefix('torch.')}"
    )


def identity(task: Task, args: Namespace) -> dict:
    """What decides the result of a run: arguments, questions, weights at the start, code."""
    decide = ("inject", "layers", "facts", "data", "checkpoint", "retrieve", "steps", "batch_size",
              "lr", "seed", "device", "dtype")  # fmt: skip
    arguments = {name: str(getattr(args, name)) for name in decide}
    digest = hashlib.sha256(repr(task.questions).encode("utf-8"))
    for weights in task.model.state_dict().values():
        digest.update(weights.cpu().contiguous().numpy())
    for path in sorted(Path(__file__).parent.glob("**/*.py")):
        if not path.name.startswith("test_"):
            digest.update(path.read_bytes())
    return {"arguments": arguments, "sha256": digest.hexdigest()}


def measured(task: Task, dtype: torch.dtype) -> dict[str, object]:
    """Accuracy beside chance, and what the answers owe to the facts, of the held-out split."""
    data, questions = task.data[task.held_out], task.questions[task.held_out]
    chosen = predictions(task.model, data, dtype)
    result = {"test_accuracy": share_right(chosen, data), "chance": chance(data)}
    return result | effects.effects(task.model, task.tokenizer, questions, chosen, dtype)


def fit(
    task: Task, args: Namespace, whose: dict, bar: tqdm, say: Callable[[str], None] = tqdm.write
) -> dict[str, object]:
    """Trains, and leaves in args.out the log and the best state, of the run `whose` identity it is.
    Returns the log's last line.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    if saved_identity(args.out) not in (None, whose):
        if args.resume:
            raise ValueError(f"{args.out}: its data, its checkpoint or the code has changed since")
        say(f"          {args.out} has an unfinished run of another kind, which this one replaces")
    with open(mine_to_write(args.out / "log.jsonl"), "w", encoding="utf-8") as file:

        def log(row: dict) -> None:
            print(json.dumps(row), file=file, flush=True)
            if "step" in row:
                say(
                    f"  step {row['step']:6,}   loss {row['loss']:.3f}   "
                    f"validation {row['valid_accuracy']:6.1%}"
                )

        log(whose)
        times = train(task.model, task.data, task.new, args, whose, log, bar)
        result = measured(task, args.dtype)
        result |= {"parameters_added": added_parameters(task.model), **times}
        if RANK == 0:
            save_pretrained(task.model, task.tokenizer, args.out)
            log(result)
            (args.out / STATE).unlink()
    return result


def run(args: Namespace) -> None:
    """One run, from the files to the last line of its report."""
    task, result = prepare(args), {}
    describe_data(task, args.data)
    describe_model(task.model, args.dtype)
    if args.steps:
        with tqdm(total=args.steps, desc="training", unit="step", leave=False, disable=None) as bar:
            result = fit(task, args, identity(task, args), bar)
    report(task, result, args)


def report(task: Task, result: dict, args: Namespace) -> None:
    """Accuracy, what the facts did, where it was saved, and single questions."""
    model, tokenizer, name = task.model, task.tokenizer, task.held_out
    questions, data = task.questions[name], task.data[name]
    result = result or measured(task, args.dtype)
    test, least = result["test_accuracy"], result["chance"]
    print(f"{name:10}{test:.1%} of {len(data):,} questions, chance is {least:.1%}")
    if test < least + 2 * (least * (1 - least) / len(data)) ** 0.5:
        print("          no better than chance: what it learned does not answer new questions")
    if "flip_rate" in result:
        print(
            f"edited    {result['flip_rate']:.1%} of right answers follow when the gold fact names "
            f"another choice ({result['gold_facts']:,} questions have one)\n"
            f"          right without the gold fact: {result['removed_accuracy']:.1%}; with facts "
            f"shuffled: {result['shuffled_accuracy']:.1%}; with unrelated ones added: "
            f"{result['added_accuracy']:.1%}"
        )
    if layers := result.get("gold_fires_most"):
        shares = ", ".join(f"{share:.1%} in layer {layer}" for layer, share in layers.items())
        print(f"          of all facts the gold one fires most: {shares}")
    if "seconds" in result:
        print(
            f"time      {result['seconds']:.0f} s of training, "
            f"{result['train_questions_per_second']:,.0f} questions a second; "
            f"{result['padding']:.1%} of the places were padding"
        )
        print(f'saved     {args.out}: load_pretrained("{args.out}") opens it; figures in log.jsonl')
    if args.predict:
        last = list(task.questions)[-1]
        path = mine_to_write(args.predict)
        write_predictions(path, model, tokenizer, task.questions[last], args.dtype)
        print(f"          {args.predict}: predictions for {last}, a line a question")

    terminal = sys.stdout.isatty()
    shades = " ░▒▓█" if terminal else " .:*#"
    width = shutil.get_terminal_size().columns if terminal else 100
    for number, q in enumerate(questions[: args.show or 1], 1):
        print(f"\nQuestion {number}: ", end="")
        show(model, tokenizer, q, args.dtype, shades, width)
    first = questions[0]
    if gold(first) and not args.show:
        print("\nThe same, its gold fact edited: ", end="")
        show(model, tokenizer, effects.edited(first), args.dtype, shades, width)


# --------------------------------------------------------------------------------------- tables


def runs_of(args: Namespace) -> list[Namespace]:
    """The product of --inject, --layers, --facts and --seed, a seed after the other. What makes no
    difference is run once: "none" has no layers and no facts, "concat" has no layers.
    """
    runs = {}
    for inject, layers, facts, seed in product(args.inject, args.layers, args.facts, args.seed):
        layers = layers if inject in ("attention", "ffn") else None
        facts = facts if inject != "none" else None
        which = {"inject": inject, "layers": layers, "facts": facts, "seed": seed}
        name = "-".join(f"{k}-{v}" for k, v in which.items() if v is not None)
        runs[name.removeprefix("inject-")] = Namespace(**(vars(args) | which))
    for name, one in runs.items():
        one.out = args.out or Path("runs")
        if len(runs) > 1 or args.out is None:
            one.out = one.out / name
    return list(runs.values())


def finished(folder: Path, whose: dict) -> dict | None:
    """The result that an earlier run with this identity left in its folder."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        first, last = json.loads(lines[0]), json.loads(lines[-1])
    except (OSError, ValueError, IndexError):
        return None
    return last if first == whose and "test_accuracy" in last else None


def setting(args: Namespace) -> tuple[str, str | None, int | None]:
    """What the runs of a row of the table have in common."""
    return args.inject, args.layers, args.facts


def table(runs: list[Namespace]) -> None:
    """Makes all runs that aren't finished yet, and prints a row as soon as its seeds are done."""
    folder, task = runs[0].out.parent, prepare(runs[-1])
    describe_data(task, runs[0].data)
    least = chance(task.data[task.held_out])
    print(f"runs      {len(runs)}, into {folder}; those that are finished there are kept\n")
    headings = ["inject   ", "layers      ", "facts", f"accuracy (chance {least:.1%})",
                "answers that flip", "seconds a step", "parameters added"]  # fmt: skip
    print(table_row(headings, headings))
    print(table_row(["-" * len(heading) for heading in headings], headings))
    steps = runs[-1].steps
    folder.mkdir(parents=True, exist_ok=True)
    with (
        open(mine_to_write(folder / "table.jsonl"), "w", encoding="utf-8") as file,
        tqdm(total=len(runs) * steps, unit="step", leave=False, disable=None) as bar,
    ):
        for _, same in groupby(runs, setting):
            results = []
            for args in same:
                bar.set_description(args.out.name)
                task = prepare(args, say=lambda _: None)
                whose = identity(task, args)
                result = finished(args.out, whose)
                if result:
                    bar.total -= steps
                else:
                    result = fit(task, args, whose, bar, say=lambda _: None)
                results.append({"seed": args.seed} | result)
            values, cells = summary(task.model, args, results)
            tqdm.write(table_row(cells, headings))
            print(json.dumps(values | {"runs": results}), file=file, flush=True)


def summary(
    model: KformerForMultipleChoice, args: Namespace, results: list[dict]
) -> tuple[dict, list[str]]:
    """What the runs of a row have in common and their mean: for the file, and for the table."""
    config, added = model.config, results[0]["parameters_added"]
    layers = span(set(config.inject_layers)) if added else ""
    facts = config.num_facts if config.inject != "none" else ""
    found = [result["test_accuracy"] for result in results]
    flips = [result["flip_rate"] for result in results if "flip_rate" in result]
    rate = mean(result["train_questions_per_second"] for result in results)
    seconds = args.batch_size / rate if rate else 0.0
    values = {
        "inject": config.inject, "layers": layers, "facts": facts, "mean": mean(found),
        "stdev": stdev(found) if len(found) > 1 else None, "seconds_a_step": seconds,
    }  # fmt: skip
    named = args.layers and not args.layers[0].isdigit()
    layers = f"{args.layers} ({layers})" if named and layers else layers
    flips = over_seeds(flips) if flips else ""
    return values, [
        config.inject, layers, str(facts), over_seeds(found), flips, f"{seconds:.3f}", f"{added:,}",
    ]  # fmt: skip


def over_seeds(values: list[float]) -> str:
    """Mean and, of more than one, standard deviation."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread} %"


def table_row(cells: list[str], headings: list[str]) -> str:
    """A line of a Markdown table, as wide as its headings."""
    padded = (f"{cell:{len(heading)}}" for cell, heading in zip(cells, headings, strict=True))
    return "| " + " | ".join(padded) + " |"


# --------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def layers(text: str) -> str:
    """Looks right; whether the model has such layers is seen when it's known."""
    if re.fullmatch(r"top|middle|bottom|all|\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        return text
    raise ValueError


def make_parser() -> argparse.ArgumentParser:
    toy = os.path.relpath(Path(__file__).resolve().parent / "data" / "toy")
    parser = argparse.ArgumentParser(
        description="Train a Kformer on multiple-choice questions and facts.",
        epilog="Without arguments it learns the toy world of this repo in about a minute. Several "
        "values of --inject, --layers, --facts and --seed make all runs of their product, and a "
        "table, its figures in table.jsonl; given again, the command keeps the finished runs.",
    )
    add = parser.add_argument
    add("--inject", nargs="+", choices=("none", "concat", "attention", "ffn"),
        help="how the facts come in: not at all, as words behind the input, as a prefix of keys "
        "and values, as hidden neurons of the FFN (default: as in the checkpoint, or ffn)")
    add("--layers", type=layers, nargs="+", metavar="WHICH",
        help="layers that facts are injected into: bottom, middle or top (a third of all), all, or "
        "numbers from 0 at the bottom, such as 2 or 0-2 or 0,2 (default: the top three, of fewer "
        "than four layers all but the bottom one)")
    add("--facts", type=int, nargs="+", metavar="N",
        help="facts kept for a question, those nearest to it (default: 5)")
    add("--data", type=Path, default=Path(toy), metavar="FOLDER",
        help="train.jsonl, valid.jsonl or dev.jsonl, maybe test.jsonl and facts.txt "
        "(default: data/toy)")
    add("--checkpoint", type=Path, metavar="FOLDER",
        help="pretrained weights to start from (default: random ones, of the size in the "
        "config.json of the data folder)")
    add("--retrieve", type=positive, metavar="N",
        help="look up N candidate facts for each choice in facts.txt (default: as many as are "
        "kept, and only for questions that bring none)")
    add("--steps", type=int, metavar="N",
        help="batches to train on; 0: only evaluate the checkpoint, write nothing but predictions "
        "(default: 1500, with a checkpoint four epochs)")
    add("--batch-size", type=positive, default=32, help="questions in a batch (default: 32)")
    add("--lr", type=float, help="learning rate (default: 2e-3, with a checkpoint 5e-5)")
    add("--seed", type=int, nargs="+", default=[0], metavar="N",
        help="of the weights and the order (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"),
        help="where it runs (default: the GPU if there is one)")
    add("--dtype", choices=("float32", "bfloat16"),
        help="of the matrix products (default: bfloat16 where the machine multiplies it natively "
        "and the hidden size is at least 256, else float32)")
    add("--predict", type=Path, metavar="FILE",
        help="write predictions for the test questions, a JSON object a line")
    add("--resume", type=Path, metavar="RUN",
        help="go on with a training that was interrupted, with its own arguments, to the very same "
        "end; the same command once more does that, too")
    add("--show", type=positive, metavar="N",
        help="look at N questions: which fact fired where; a checkpoint is not trained unless "
        "--steps is given (default: 1, after training)")
    add("--out", type=Path, metavar="FOLDER",
        help="where the run is saved (default: runs/INJECT-seed-SEED), or the runs of a table "
        "(default: runs)")
    return parser


def resumed(parser: argparse.ArgumentParser, given: Namespace) -> Namespace:
    """The arguments of the run that --resume names."""
    saved, own = saved_identity(given.resume), {"resume", "show", "predict"}
    if saved is None:
        raise FileNotFoundError(
            f"{given.resume / STATE}: no such file: that run is finished, or was stopped before it "
            "was saved"
        )
    for name, value in vars(given).items():
        if name not in own and value != parser.get_default(name):
            parser.error(f"argument --{name}: not with --resume, the run has its own arguments")
    known = {name: value for name, value in saved["arguments"].items() if value != "None"}
    words = [(f"--{k.replace('_', '-')}", v.removeprefix("torch.")) for k, v in known.items()]
    args = parser.parse_args([word for pair in words for word in pair])
    args.out = args.resume = given.resume
    args.show, args.predict = given.show, given.predict
    return args


def parse_arguments() -> Namespace:
    """What depends on other arguments, or on the machine, is filled in."""
    parser = make_parser()
    args = parser.parse_args()
    if args.resume:
        args = resumed(parser, args)
    if args.show and args.checkpoint and args.steps is None:
        args.steps = 0
    if args.steps is not None and args.steps < 0:
        parser.error(f"argument --steps: must be at least 0, not {args.steps}")
    if args.steps == 0 and not args.checkpoint:
        parser.error("argument --steps: 0 needs a --checkpoint to evaluate")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: no GPU is to be seen here, try --device cpu")
    if args.inject is None:
        own = load_config(args.checkpoint).inject if args.checkpoint else "none"
        args.inject = [own if own != "none" else "ffn"]
    if args.lr is None:
        args.lr = 5e-5 if args.checkpoint else 2e-3
    args.dtype = args.dtype and getattr(torch, args.dtype)
    args.layers, args.facts = args.layers or [None], args.facts or [None]
    if len(runs_of(args)) > 1 and (args.show or args.predict or args.steps == 0):
        parser.error("argument --show, --predict, --steps 0: these are for one model alone")
    return args


def main() -> None:
    # through a pipe, too, lines come as they are made, and no character is one too many
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    # memory in pages of 2 MB where Linux has them: with those of 4 kB a step has 20,000 page faults
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        runs = runs_of(parse_arguments())
        if WORLD > 1:
            join(runs[0].device)
        if len(runs) > 1:
            table(runs)
        else:
            run(runs[0])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        left = str(interrupt) or "the same command goes on from what was saved, if anything was"
        print(f"\ninterrupted: {left}", file=sys.stderr)
        sys.exit(130)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
