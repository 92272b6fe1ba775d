"""Texts as vectors, by a sentence encoder: facts are looked up by what they mean."""

from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from kformer import Kformer
from load_weights import open_folder
from parts.batches import pad
from parts.files import blaming, read_json
from parts.lookup import Embed
from parts.tokenizer import Tokenizer


def is_sentence_encoder(folder: Path) -> bool:
    """Whether it says, as the folders of sentence-transformers do, that a text's vector is the mean
    of its tokens' last hidden states.
    """
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return False
    with blaming(path):
        return read_json(path)["pooling_mode_mean_tokens"] is True


@cache  # runs of a table share it
def sentence_encoder(folder: Path, dtype: torch.dtype, device: str) -> Embed:
    """What gives texts their vectors."""
    model, tokenizer, _ = open_folder(folder, inject="none")
    return partial(embed, model=model.to(device), tokenizer=tokenizer, dtype=dtype)


@torch.inference_mode()
def embed(
    texts: list[str], model: Kformer, tokenizer: Tokenizer, dtype: torch.dtype
) -> np.ndarray:
    """(n, D): the mean of each text's last hidden states, divided by its length."""
    most, device = model.config.max_tokens, next(model.parameters()).device
    rows = [
        [tokenizer.cls_token_id, *tokenizer.encode(text)[: most - 2], tokenizer.sep_token_id]
        for text in texts
    ]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = np.zeros((len(rows), model.config.hidden_size), np.float32)
    batches = [order[i : i + 64] for i in range(0, len(order), 64)]
    for places in tqdm(batches, "embedding", unit="batch", leave=False, disable=None):
        ids = pad([rows[i] for i in places], model.config.pad_token_id, 2).to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            states = Kformer.forward(model, ids).float()  # (n, T, D), without the head
        mask = (ids != model.config.pad_token_id).unsqueeze(-1)
        found[places] = normalize((states * mask).sum(-2), dim=-1).cpu()
    return found
