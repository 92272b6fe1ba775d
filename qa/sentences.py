"""Texts as vectors, by a sentence encoder: facts are looked up by what they mean."""

import json
import math
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from kformer import Kformer
from load_weights import open_folder
from qa.batches import pad
from qa.files import blaming, read_json, read_text
from qa.lookup import Embed
from qa.tokenizer import Tokenizer


def is_sentence_encoder(folder: Path) -> bool:
    """Whether it says, as the folders of sentence-transformers do, that a text's vector is the mean
    of its tokens' last hidden states, and that nothing else becomes of it.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return False
    with blaming(path):
        modules = {m["type"].split(".")[-1]: m["path"] for m in json.loads(read_text(path))}
        if modules.keys() - {"Normalize"} != {"Transformer", "Pooling"}:
            return False
        path = folder / modules["Pooling"] / "config.json"
    pooling = read_json(path)
    if "pooling_mode" in pooling:  # as sentence-transformers 6.2 writes it
        return pooling["pooling_mode"] == "mean"
    modes = {key for key, on in pooling.items() if key.startswith("pooling_mode_") and on}
    return modes <= {"pooling_mode_mean_tokens"}  # none: the mean is theirs by default


@cache  # runs of a table share it
def sentence_encoder(folder: Path, dtype: torch.dtype, device: str) -> Embed:
    """What gives texts their vectors. Raises ValueError where the folder isn't said to do that."""
    if not is_sentence_encoder(folder):
        raise ValueError(
            f"{folder}: no sentence encoder: modules.json and the config.json of the pooling must "
            "say that a text's vector is the mean of its tokens, and nothing else"
        )
    model, tokenizer, _ = open_folder(folder, inject="none")
    lengths = {
        "sentence_bert_config.json": "max_seq_length",
        "tokenizer_config.json": "model_max_length",  # where 6.2 writes it
    }
    said = [read_json(folder / f).get(key) for f, key in lengths.items() if (folder / f).is_file()]
    with blaming(folder):
        first = next(filter(None, said), math.inf)
        most = min(model.config.max_tokens, first)
    return partial(embed, model=model.to(device), tokenizer=tokenizer, dtype=dtype, most=most)


@torch.inference_mode()
def embed(
    texts: list[str], model: Kformer, tokenizer: Tokenizer, dtype: torch.dtype, most: int
) -> np.ndarray:
    """(n, D): the mean of each text's last hidden states, divided by its length. A text is cut to
    `most` tokens.
    """
    device = next(model.parameters()).device
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
