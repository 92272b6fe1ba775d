"""Texts as vectors, by a sentence encoder: facts are looked up by what they mean."""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from kformer import Kformer
from load_weights import open_folder
from qa.batches import pad
from qa.errors import blaming, read_json, read_text


def check_pooling(folder: Path) -> None:
    """Raises ValueError unless the folder says, as those of sentence-transformers do, that a text's
    vector is the mean of its tokens' last hidden states, and that nothing else becomes of it.
    """
    no = f"{folder}: no sentence encoder: modules.json and the config.json of the pooling must say "
    no += "that a text's vector is the mean of its tokens, and nothing else"
    path = folder / "modules.json"
    if not path.is_file():
        raise ValueError(no)
    with blaming(path):
        modules = {m["type"].split(".")[-1]: Path(m["path"]) for m in json.loads(read_text(path))}
    if modules.keys() - {"Normalize"} != {"Transformer", "Pooling"}:
        raise ValueError(no)
    pooling = read_json(folder / modules["Pooling"] / "config.json")
    # sentence-transformers 6.2 writes "pooling_mode"; older ones a switch for each mode
    modes = {key for key, on in pooling.items() if key.startswith("pooling_mode_") and on}
    if pooling.get("pooling_mode", "mean") != "mean" or not modes <= {"pooling_mode_mean_tokens"}:
        raise ValueError(no)


class SentenceEncoder:
    """A folder of sentence-transformers. Raises ValueError where it isn't said to be one."""

    def __init__(self, folder: Path) -> None:
        check_pooling(folder)
        self.model, self.tokenizer, _ = open_folder(folder, inject="none")
        lengths = {
            "sentence_bert_config.json": "max_seq_length",
            "tokenizer_config.json": "model_max_length",  # where 6.2 writes it
        }
        found = [read_json(folder / f).get(k) for f, k in lengths.items() if (folder / f).is_file()]
        most = self.model.config.max_tokens
        first = next(filter(None, found), most)
        if not isinstance(first, int):
            raise ValueError(f"{folder}: its length is {first!r}, must be a whole number")
        self.most = min(most, first)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        """(n, D): the mean of each text's last hidden states, divided by its length. A text is cut
        to `most` tokens.
        """
        rows = [
            [self.tokenizer.cls_token_id, *ids[: self.most - 2], self.tokenizer.sep_token_id]
            for ids in map(self.tokenizer.encode, texts)
        ]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = np.zeros((len(rows), self.model.config.hidden_size), np.float32)
        for start in tqdm(range(0, len(order), 64), "embedding", leave=False, disable=None):
            places = order[start : start + 64]
            ids = pad([rows[i] for i in places], self.model.config.pad_token_id)
            states = Kformer.forward(self.model, ids)  # (64, T, D), without the head
            mask = (ids != self.model.config.pad_token_id).unsqueeze(-1)
            found[places] = normalize((states * mask).sum(-2), dim=-1)
        return found
