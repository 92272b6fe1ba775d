"""What the values of arguments may be, and what they mean."""

import re
from pathlib import Path

import torch


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def layer_numbers(text: str, depth: int) -> tuple[int, ...]:
    """ "0-2,5" -> (0, 1, 2, 5); "all"; "bottom", "middle", "top": a third of `depth` layers."""
    if not re.fullmatch(r"top|middle|bottom|all|\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text):
        raise ValueError(f"--layers {text}: must be bottom, middle, top, all, or 2, 0-2, 0,2")
    third = max(1, depth // 3)
    names = {"bottom": (0, third), "middle": (third, depth - third), "top": (depth - third, depth)}
    if text in names or text == "all":
        numbers = range(*names.get(text, (0, depth)))
    else:
        ends = [part.split("-") for part in text.split(",")]
        numbers = {i for pair in ends for i in range(int(pair[0]), int(pair[-1]) + 1)}
    if not numbers or max(numbers) >= depth:
        raise ValueError(f"--layers {text}: the model has the layers 0 to {depth - 1}")
    return tuple(sorted(numbers))


def runs_folder(wrong_facts: bool) -> Path:
    """A run with wrong facts doesn't take the place of the one with the right ones."""
    return Path("runs", "wrong-facts") if wrong_facts else Path("runs")


def default_dtype(hidden_size: int, device: str) -> torch.dtype:
    """bfloat16 where products of matrices are most of the work, and the machine has instructions
    for it; without them it's emulated, and many times as slow as float32.
    """
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = getattr(torch.cpu, "get_capabilities", dict)()  # older versions don't say it
        native = known.get("avx512_bf16") or known.get("amx_bf16")
    return torch.bfloat16 if native and hidden_size >= 256 else torch.float32
