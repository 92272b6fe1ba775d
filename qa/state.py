"""What lets a training be stopped at any moment and go on to the very same end.

    identity                  what decides the result of a run: with the same one, a run is the same
    finished                  what a run with this identity left
    TrainingState             model, optimizer, random numbers and progress, saved as one file
    check_finite              a step that can't be made ends the run
    ctrl_c_finishes_the_step  Ctrl-C stops between two steps, when all is whole
"""

import hashlib
import json
import os
import signal
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from qa.files import OURS, replacing, sweep
from qa.processes import RANK, WORLD

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
MODULES = [ROOT / f"{name}.py" for name in ("kformer", "load_weights", "train")]
MODULES += sorted(ROOT.glob("qa/*.py"))
CODE = [path.read_bytes() for path in MODULES]  # now, while they are imported, not as edited later
STATE = "training.safetensors"  # in a run's folder until it is finished
LOG = "log.jsonl"  # from then on
LOCK = "training.lock"  # while a process trains there
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps for each parameter


def identity(arguments: dict, model: nn.Module, *others: object) -> dict:
    """Of a run: its arguments, to be read, and a digest of all that decides its result: some of the
    arguments, the code, the config, the weights at the start and, by their repr, the `others`.
    """
    said = {n: v if v is None or type(v) in (int, float) else str(v) for n, v in arguments.items()}
    names = ("steps", "batch_size", "lr", "warmup", "seed", "device", "dtype")
    decide = [said[name] for name in names]
    digest = hashlib.sha256(repr((decide, CODE, model.config, others)).encode("utf-8"))
    for weights in model.state_dict().values():
        digest.update(weights.cpu().contiguous().numpy())
    return {"arguments": said, "sha256": digest.hexdigest()}


def refuse_to_replace(out: Path, sources: list[Path]) -> None:
    """Raises ValueError where a run saved in `out` would replace what is no run."""
    strange = any((out / name).exists() for name in OURS) and not is_run(out)
    if strange or out.resolve() in [path.resolve() for path in sources]:
        raise ValueError(f"--out {out}: has files that are no run; name a new folder")


def is_run(folder: Path) -> bool:
    """A run that was finished, or one that wasn't and can go on."""
    try:
        with open(folder / LOG, encoding="utf-8") as file:
            return "sha256" in json.loads(file.readline())
    except (OSError, ValueError, TypeError):
        return any((folder / name).exists() for name in (STATE, LOCK))


def finished(folder: Path, run_id: dict) -> dict | None:
    """The result that a run with this identity left in its folder, None if it didn't finish."""
    try:
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
        first, last = json.loads(lines[0]), json.loads(lines[-1])
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    whole = "test_accuracy" in last and not (folder / STATE).exists()
    return last if whole and first.get("sha256") == run_id["sha256"] else None


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
    evaluated: int = 0  # questions
    evaluating: float = 0.0  # seconds

    def figures(self) -> dict[str, float]:
        return {
            "valid_accuracy": self.best,
            "seconds": round(self.training, 2),
            "train_questions_per_second": self.trained / max(1e-9, self.training),
            "eval_questions_per_second": self.evaluated / self.evaluating,
            "padding": 1 - self.tokens / self.places,
        }


class TrainingState:
    """All that the rest of a training depends on. It is saved in `folder` as one file, which
    replaces the one before at once, so that whoever is killed leaves the one or the other.

    `run_id` is the identity of the run. If an unfinished run with the same one has left a file, its
    state is taken up. `best` is the model's state that was best on the validation split so far,
    of equals the last.
    """

    def __init__(
        self, folder: Path, run_id: dict, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.folder, self.run_id, self.model, self.optimizer = folder, run_id, model, optimizer
        self.best: dict[str, Tensor] = {}
        self.progress, self.replaces = Progress(), ""
        if (folder / LOG).is_file():
            self.replaces = "a finished run of other arguments, data or code, replaced at the end"
        if (folder / STATE).is_file():
            about, tensors = read_state(folder / STATE)
            if about["identity"]["sha256"] == run_id["sha256"]:
                self.progress = Progress(**about["progress"])
                self.take(tensors)
            else:
                self.replaces = "an unfinished run of other arguments, data or code, replaced now"
        self.clock = time.perf_counter()

    def take(self, tensors: dict[str, Tensor]) -> None:
        """Model, optimizer and random numbers become what they were."""
        self.dice().set_rng_state(tensors.pop("random"))
        parts = {part: {} for part in ("model", "best", *MOMENTS)}
        for name, tensor in tensors.items():
            part, _, parameter = name.partition(".")
            parts[part][parameter] = tensor
        self.best = parts["best"]
        self.model.load_state_dict(parts["model"])
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: parts[key][name].to(parameter.device) for key in MOMENTS if name in parts[key]
            }

    def lap(self) -> float:
        """Seconds since the last call."""
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before

    def count(self, batch: list) -> None:
        """One more step is made. The first two warm the machine up, and aren't timed."""
        seconds, progress, rows = self.lap(), self.progress, [r for q in batch for r in q.input_ids]
        progress.step += 1
        progress.tokens += sum(map(len, rows))
        progress.places += len(batch) * max(len(q.input_ids) for q in batch) * max(map(len, rows))
        if progress.step > 2:
            progress.trained += len(batch)
            progress.training += seconds

    def evaluated(self, row: dict, questions: int) -> None:
        """One more row for the log; keeps the model's state if none was better, and saves all."""
        self.progress.evaluating += self.lap()
        self.progress.evaluated += questions
        self.progress.rows.append(row)
        if row["valid_accuracy"] >= self.progress.best:
            self.progress.best = row["valid_accuracy"]
            self.best = {name: t.clone() for name, t in self.model.state_dict().items()}
        self.save()
        self.lap()

    def save(self) -> None:
        if RANK:
            return
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state[parameter].items()
            tensors |= {f"{key}.{name}": tensor for key, tensor in moments}
        tensors["random"] = self.dice().get_rng_state()
        about = {"identity": self.run_id, "progress": asdict(self.progress)}
        about["checksum"] = checksum(tensors, *about.values())
        with replacing(self.folder) as new:
            save_file(tensors, new / STATE, metadata={"about": json.dumps(about)})

    def finish(self, result: dict) -> None:
        """The model is saved: the log takes the place of the state."""
        lines = [json.dumps(row) for row in (self.run_id, *self.progress.rows, result)]
        with replacing(self.folder) as new:
            (new / LOG).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.folder / STATE).unlink()

    def dice(self) -> object:
        """Who has the random state that dropout draws from."""
        return torch.cuda if next(self.model.parameters()).is_cuda else torch


def read_state(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """What `TrainingState.save` wrote. Raises ValueError if so much as a bit of it has changed."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        if about["checksum"] != checksum(tensors, about["identity"], about["progress"]):
            raise ValueError("its checksum is another")
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"{path}: damaged ({why}); delete it, and the same command starts anew"
        ) from None
    return about, tensors


def checksum(tensors: dict[str, Tensor], *others: object) -> int:
    """Of all tensors, their names and shapes, and of the others as JSON."""
    found = zlib.crc32(json.dumps(others).encode("utf-8"))
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tensor.shape}".encode(), found)
        found = zlib.crc32(tensor.cpu().contiguous().numpy(), found)
    return found


def check_finite(loss: Tensor, norm: Tensor, step: int, batch: list, data: list) -> None:
    """Raises ValueError, with the numbers of the questions, for a step that can't be made."""
    if not torch.isfinite(loss + norm):
        some = {id(q) for q in batch}
        numbers = [i for i, q in enumerate(data, 1) if id(q) in some]
        raise ValueError(
            f"step {step}: the loss is {loss:.3g}, the length of its gradient {norm:.3g}, with the "
            f"training questions {numbers}; what was saved before is kept; a smaller --lr may help"
        )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within, no other process trains in this folder: two would mix their files.

    Raises ValueError if another one does already. (Windows has no fcntl, and there nobody looks.)
    """
    folder.mkdir(parents=True, exist_ok=True)
    if RANK or not fcntl:
        yield
        return
    with open(folder / LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another training is writing there") from None
        sweep(folder)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


@contextmanager
def ctrl_c_finishes_the_step() -> Iterator[list]:
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
