"""One run in several processes, as torchrun starts them: which one this is, and what they share.

With one process, which is the usual case, nothing here does anything.
"""

import os
import sys
from functools import partialmethod

import torch
from torch import Tensor, nn
from tqdm import tqdm

SAID = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK")}
WORLD, RANK = (int(value) if value.isdigit() else 0 for value in SAID.values())
if WORLD < 2:  # not by torchrun
    WORLD, RANK = 1, 0


def join(device: str) -> None:
    """This process meets the others. The first one alone prints and writes."""
    if WORLD > 1:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    if RANK:
        sys.stdout = open(os.devnull, "w")
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)


def leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def my_share(batch: list) -> tuple[list, float]:
    """The questions of a batch that this process takes, and what they weigh in its mean.

    Where there are too few it takes one all the same, and that weighs nothing.
    """
    mine = batch[RANK::WORLD]
    return mine or batch[:1], len(mine) / len(batch)


def add_up(tensors: list[Tensor]) -> None:
    """Each becomes its sum over all processes."""
    for tensor in tensors if WORLD > 1 else []:
        torch.distributed.all_reduce(tensor)


def add_up_gradients(model: nn.Module, loss: Tensor) -> None:
    """The loss and all gradients become their sums over all processes."""
    add_up([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])


def anywhere(said: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes."""
    count = torch.tensor(float(said), device=device)
    add_up([count])
    return bool(count)
