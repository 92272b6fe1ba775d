"""Multiple-choice questions and their facts in, a trained Kformer and a report out.

    python train.py --inject ffn        learns the toy world in data/toy from injected facts
    python train.py --inject none       the same without facts: stays at chance
    python train.py --inject ffn --checkpoint FOLDER --data FOLDER      one's own

Read it from top to bottom: tokens -> batches -> training -> report -> command line.
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from kformer import KformerConfig, KformerForMultipleChoice
from load_weights import grouped, load_config, load_tokenizer, open_folder, save_pretrained
from questions import Question, of_choice, read_facts, read_questions, retrieve, words
from tokenizer import Tokenizer

# -------------------------------------------------------------------------------------- tokens


@dataclass
class Encoded:
    """One question as ids: for each choice a row of tokens and of segments; for each list of facts
    a row for each fact.
    """

    input_ids: list[list[int]]
    token_type_ids: list[list[int]]
    fact_ids: list[list[list[int]]]
    answer: int | None
    shortened: bool

    def __len__(self) -> int:
        return max(map(len, self.input_ids))


def encode(q: Question, tokenizer: Tokenizer, config: KformerConfig) -> Encoded:
    """BERT: [CLS] context question [SEP] choice [SEP], segments 0 and 1.
    RoBERTa: <s> context </s> Q: question </s> A: choice </s>, as in the release.

    Too long an input loses the beginning of its context, never the choice.
    """
    begin, end, most = [tokenizer.cls_token_id], [tokenizer.sep_token_id], config.max_tokens
    if config.model_type == "bert":
        first = tokenizer.encode(f"{q.context} {q.question}") + end
        last = [tokenizer.encode(choice) for choice in q.choices]
    else:
        context = tokenizer.encode(q.context) + end if q.context else []
        first = context + tokenizer.encode(f"Q: {q.question}") + end
        last = [tokenizer.encode(f"A: {choice}") for choice in q.choices]
    rows, segments, shortened = [], [], False
    for second in last:
        second = second[: most - 3] + end
        room = most - 1 - len(second)
        shortened = shortened or len(first) > room
        rows.append(begin + first[-room:] + second)
        segment = min(1, config.type_vocab_size - 1)
        segments.append([0] * (len(rows[-1]) - len(second)) + [segment] * len(second))
    facts = [[tokenizer.encode(fact)[:most] for fact in candidates] for candidates in q.facts]
    return Encoded(rows, segments, facts, q.answer, shortened)


# -------------------------------------------------------------------------------------- batches


def pad(ragged: list, value: int, depth: int) -> Tensor:
    """Lists of lists of ... ids, `depth` levels, -> a tensor as long as the longest in each."""

    def sizes(part: list, depth: int) -> list[int]:
        if depth == 1:
            return [max(1, len(part))]
        inner = [sizes(p, depth - 1) for p in part] or [[1] * (depth - 1)]
        return [max(1, len(part)), *map(max, zip(*inner, strict=True))]

    def fill(part: list, shape: list[int]) -> list:
        if len(shape) == 1:
            return part + [value] * (shape[0] - len(part))
        empty = [fill([], shape[1:])] * (shape[0] - len(part))
        return [fill(p, shape[1:]) for p in part] + empty

    return torch.tensor(fill(ragged, sizes(ragged, depth)))


def collate(
    batch: list[Encoded], pad_id: int, device: torch.device
) -> tuple[dict[str, Tensor], Tensor]:
    """B questions -> the arguments of the model, and the answers (B,), -1 where nobody knows.

    A question with fewer choices than others gets rows of padding.
    """
    most = max(len(q.input_ids) for q in batch)
    shared = all(len(q.fact_ids) == 1 for q in batch)
    facts = [q.fact_ids * (1 if shared or len(q.fact_ids) > 1 else most) for q in batch]
    inputs = {
        "input_ids": pad([q.input_ids for q in batch], pad_id, 3),  # (B, C, T)
        "token_type_ids": pad([q.token_type_ids for q in batch], 0, 3),  # (B, C, T)
        "fact_ids": pad(facts, pad_id, 4),  # (B, 1 or C, S, L)
    }
    answers = torch.tensor([-1 if q.answer is None else q.answer for q in batch])
    return {name: t.to(device) for name, t in inputs.items()}, answers.to(device)


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


# ------------------------------------------------------------------------------------- training


def score(model: KformerForMultipleChoice, batch: list[Encoded], dtype: torch.dtype) -> tuple:
    """B questions -> scores (B, C) in float32, -inf where a choice is missing; answers (B,)"""
    device, pad_id = model.classifier.weight.device, model.config.pad_token_id
    inputs, answers = collate(batch, pad_id, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        scores = model(**inputs).float()
    missing = (inputs["input_ids"] == pad_id).all(-1)
    return scores.masked_fill(missing, -torch.inf), answers


@torch.inference_mode()
def accuracy(model: KformerForMultipleChoice, data: list[Encoded], dtype: torch.dtype) -> float:
    """The share of questions whose right choice has the largest score."""
    model.eval()
    right, data = 0, sorted(data, key=len)  # less padding
    for start in range(0, len(data), 100):
        scores, answers = score(model, data[start : start + 100], dtype)
        right += (scores.argmax(-1) == answers).sum().item()
    return right / len(data)


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
        {"params": group, "lr": 10 * lr if is_new else lr, "weight_decay": 0.01 * is_matrix}
        for (is_new, is_matrix), group in groups.items()
    ]


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
    new: list[str],
    args: argparse.Namespace,
    log: Callable[[dict], None],
) -> dict[str, float]:
    """Trains `model`, leaves it in its best state on the validation split, returns the times.

    `new` are the parameters that a checkpoint didn't bring.
    """
    optimizer = torch.optim.AdamW(parameter_groups(model, new, args.lr), fused=True)
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


def chance(data: list[Encoded]) -> float:
    """The accuracy of guessing."""
    return sum(1 / len(q.input_ids) for q in data) / len(data)


def describe(model: KformerForMultipleChoice, data: dict[str, list[Encoded]], source: Path) -> None:
    """What data, what model, how many parameters."""
    config, everything = model.config, [q for part in data.values() for q in part]
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in data.items())
    choices = sorted({len(q.input_ids) for q in everything})
    total = sum(p.numel() for p in model.parameters())
    names = [n for n, _ in model.named_parameters()]
    added = [n for n in names if n == "fact_embeddings.weight" or ".Wk." in n or ".Wv." in n]
    extra = sum(model.get_parameter(n).numel() for n in added)
    layers = f" in layers {' '.join(map(str, config.inject_layers))}" if added else ""
    print(f"data      {source}: {sizes} questions of {' or '.join(map(str, choices))} choices")
    if shortened := sum(q.shortened for q in everything):
        print(f"          {shortened:,} of them cut at the front to {config.max_tokens} tokens")
    print(
        f"model     {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads; injection: {config.inject}{layers}"
    )
    print(f"          {total:,} parameters, {extra:,} of them for the facts")


def baselines(train: list[Question], held_out: list[Question]) -> str:
    """The accuracy of rules that learn nothing: the place that is most often right in training, and
    the choice with the most words in common with its facts, or with the question without facts.
    """
    place = Counter(q.answer for q in train).most_common(1)[0][0]
    overlap = 0
    for q in held_out:
        known = [set(words(" ".join(facts) or f"{q.context} {q.question}")) for facts in q.facts]
        common = [len(of_choice(known, i) & set(words(c))) for i, c in enumerate(q.choices)]
        overlap += common.index(max(common)) == q.answer
    majority = sum(q.answer == place for q in held_out) / len(held_out)
    overlap /= len(held_out)
    return f"always choice {place + 1}: {majority:.1%}, most common words: {overlap:.1%}"


@torch.inference_mode()
def answer(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, q: Question, dtype: torch.dtype
) -> tuple[list[float], list[str]]:
    """One question -> the probabilities of its choices, and the facts that the model kept for the
    likeliest one.
    """
    model.eval()
    encoded = encode(q, tokenizer, model.config)
    probabilities = score(model, [encoded], dtype)[0].softmax(-1)[0].tolist()
    if model.kept_facts is None:
        return probabilities, []
    likeliest = probabilities.index(max(probabilities))
    facts, rows = of_choice(q.facts, likeliest), of_choice(encoded.fact_ids, likeliest)
    kept = model.kept_facts.expand(-1, len(q.choices), -1, -1)[0, likeliest].tolist()
    kept = [without(tokenizer.pad_token_id, row) for row in kept]
    ids = [without(tokenizer.pad_token_id, row) for row in rows]
    return probabilities, [facts[ids.index(row)] for row in kept if row]


def without(value: int, row: list[int]) -> list[int]:
    return [i for i in row if i != value]


def fired(model: KformerForMultipleChoice, choice: int) -> list[float]:
    """How strongly each fact fired for one choice of the last question: its strongest token, summed
    over the injected layers. Empty where no fact is injected."""
    halves = [half for block in model.encoder.layer for half in (block.attention, block.ffn)]
    scores = [half.fact_scores for half in halves if half.fact_scores is not None]
    return sum(s[0, choice].amax(0) for s in scores).tolist() if scores else []


def show(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, q: Question, dtype: torch.dtype
) -> None:
    """One worked question: its facts, how strongly they fired, the choices and probabilities."""
    probabilities, facts = answer(model, tokenizer, q, dtype)
    chosen = probabilities.index(max(probabilities))
    strengths = fired(model, chosen)
    for i, fact in enumerate(facts or of_choice(q.facts, chosen)):  # or: nothing was injected
        strength = ""
        if strengths:
            most = "  <- fired most" if strengths[i] == max(strengths) else ""
            strength = f"{strengths[i]:8.2f}{most}"
        print(f"    {fact:<36}{strength}".rstrip())
    for i, choice in enumerate(q.choices):
        right = "  <- right" if i == q.answer else ""
        print(f"    {'>' if i == chosen else ' '} {choice:<32}{probabilities[i]:10.1%}{right}")


def edited(q: Question) -> Question | None:
    """The same question, its right fact changed to say another choice; None without such a fact."""
    if q.answer is None:
        return None
    answer = (q.answer + 1) % len(q.choices)
    old, new = re.compile(rf"\b{re.escape(q.choices[q.answer])}\b"), q.choices[answer]
    facts = [[old.sub(lambda _: new, fact) for fact in candidates] for candidates in q.facts]
    return replace(q, facts=facts, answer=answer) if facts != q.facts else None


def write_predictions(
    path: Path,
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    questions: list[Question],
    dtype: torch.dtype,
) -> None:
    """One JSON object a line: the choice (from 0), its text, all probabilities, the facts used."""
    with open(path, "w", encoding="utf-8") as file:
        for q in tqdm(questions, "predicting", unit="question", leave=False, disable=None):
            probabilities, facts = answer(model, tokenizer, q, dtype)
            choice = probabilities.index(max(probabilities))
            row = {"choice": choice, "text": q.choices[choice], "probabilities": probabilities}
            print(json.dumps(row | {"facts": facts}), file=file)


# --------------------------------------------------------------------------------- command line


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def make_parser() -> argparse.ArgumentParser:
    toy = os.path.relpath(Path(__file__).resolve().parent / "data" / "toy")
    parser = argparse.ArgumentParser(
        description="Train a Kformer on multiple-choice questions and facts.",
        epilog="Without arguments it learns the toy world of this repo in about a minute.",
    )
    add = parser.add_argument
    add("--inject", choices=("none", "concat", "attention", "ffn"),
        help="how the facts come in: not at all, as words behind the input, as a prefix of keys "
        "and values, as hidden neurons of the FFN (default: as in the checkpoint, or ffn)")
    add("--layers", type=int, nargs="+", metavar="N",
        help="layers that facts are injected into, from 0 at the bottom (default: the top three, "
        "of fewer than four layers all but the bottom one)")
    add("--facts", type=int, metavar="N",
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
    add("--seed", type=int, default=0, help="of the weights and the order (default: 0)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"),
        help="where it runs (default: the GPU if there is one)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"),
        help="of the matrix products (default: float32)")
    add("--predict", type=Path, metavar="FILE",
        help="write predictions for the test questions, a JSON object a line")
    add("--out", type=Path, metavar="FOLDER",
        help="where the run is saved (default: runs/INJECT-seed-SEED)")
    return parser


def parse_arguments() -> argparse.Namespace:
    """What depends on other arguments, or on the machine, is filled in."""
    parser = make_parser()
    args = parser.parse_args()
    if args.steps is not None and args.steps < 0:
        parser.error(f"argument --steps: must be at least 0, not {args.steps}")
    if args.steps == 0 and not args.checkpoint:
        parser.error("argument --steps: 0 needs a --checkpoint to evaluate")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: no GPU is to be seen here, try --device cpu")
    if args.inject is None:
        own = load_config(args.checkpoint).inject if args.checkpoint else "none"
        args.inject = own if own != "none" else "ffn"
    if args.lr is None:
        args.lr = 5e-5 if args.checkpoint else 2e-3
    args.out = args.out or Path("runs", f"{args.inject}-seed-{args.seed}")
    args.dtype = getattr(torch, args.dtype)
    return args


def read_data(args: argparse.Namespace) -> dict[str, list[Question]]:
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
        facts = read_facts(path)
        print(f"facts     {len(bare):,} questions get theirs out of {len(facts):,} in facts.txt")
        retrieve(bare, facts, args.retrieve or args.facts or 5)
    return questions


def load(args: argparse.Namespace) -> tuple[KformerForMultipleChoice, Tokenizer, list[str]]:
    """The model, its tokenizer, and the names of parameters that a checkpoint didn't bring."""
    fields = {"inject": args.inject, "inject_layers": args.layers, "num_facts": args.facts}
    fields = {name: value for name, value in fields.items() if value is not None}
    torch.manual_seed(args.seed)
    if args.checkpoint:
        model, tokenizer, report = open_folder(args.checkpoint, **fields)
        for what, names in (("unused", report.unused), ("new", report.new)):
            if names:
                print(f"{what:10}{', '.join(grouped(names))}")
        return model, tokenizer, report.new
    config, tokenizer = load_config(args.data, **fields), load_tokenizer(args.data)
    return KformerForMultipleChoice(config), tokenizer, []


def fit(
    model: KformerForMultipleChoice,
    tokenizer: Tokenizer,
    data: dict[str, list[Encoded]],
    held_out: str,
    new: list[str],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Trains, and leaves in args.out the log and the best state. Returns the log's last line."""
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "log.jsonl", "w", encoding="utf-8") as file:

        def log(row: dict) -> None:
            print(json.dumps(row), file=file, flush=True)

        log({"arguments": {name: str(value) for name, value in vars(args).items()}})
        times = train(model, data, new, args, log)
        test = accuracy(model, data[held_out], args.dtype)
        result = {"test_accuracy": test, "chance": chance(data[held_out]), **times}
        log(result)
    save_pretrained(model, tokenizer, args.out)
    return result


def run(args: argparse.Namespace) -> None:
    """Everything from the files to the last line of the report."""
    model, tokenizer, new = load(args)
    questions = read_data(args)
    model.to(args.device)
    data = {s: [encode(q, tokenizer, model.config) for q in part] for s, part in questions.items()}
    known = [split for split in data if all(q.answer is not None for q in questions[split])]
    name = known[-1]  # the validation split where the answers of a test split aren't known
    describe(model, data, args.data)
    print(f"chance    {chance(data[name]):.1%}; {baselines(questions['train'], questions[name])}")
    if args.steps is None:
        epoch = -(-len(data["train"]) // args.batch_size)
        args.steps = 4 * epoch if args.checkpoint else 1500

    result = fit(model, tokenizer, data, name, new, args) if args.steps else {}
    test = result["test_accuracy"] if result else accuracy(model, data[name], args.dtype)
    least = chance(data[name])
    print(f"{name:10}{test:.1%} of {len(data[name]):,} questions, chance is {least:.1%}")
    if test < least + 2 * (least * (1 - least) / len(data[name])) ** 0.5:
        print("          no better than chance: what it learned does not answer new questions")
    if result:
        print(f"time      {result['seconds']:.0f} s of training")
        print(f'saved     {args.out}: load_pretrained("{args.out}") opens it; figures in log.jsonl')
    if args.predict:
        last = list(questions)[-1]
        write_predictions(args.predict, model, tokenizer, questions[last], args.dtype)
        print(f"          {args.predict}: predictions for {last}, a line a question")

    question = questions[name][0]
    print(f"\nOne question: {question.question}")
    show(model, tokenizer, question, args.dtype)
    if changed := edited(question):
        print("The same, one fact changed:")
        show(model, tokenizer, changed, args.dtype)


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # through a pipe, too, lines come as they are made
    try:
        run(parse_arguments())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted: nothing was saved but the log", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
