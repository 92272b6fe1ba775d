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
from qa.errors import blaming, must_be, read_json, read_text


def pooling_of(folder: Path) -> str:
    """Whether a text's vector is the "mean" of its tokens' last hidden states, or the first, "cls".

    Raises ValueError unless the folder says, as those of sentence-transformers do, that it's one of
    these, and that nothing else becomes of it.
    """
    no = f"{folder}: no sentence encoder: modules.json and the config.json of the pooling must say "
    no += "that a text's vector is the mean of its tokens or [CLS], and nothing else"
    path = folder / "modules.json"
    if not path.is_file():
        raise ValueError(no)
    with blaming(path):
        modules = {m["type"].split(".")[-1]: Path(m["path"]) for m in json.loads(read_text(path))}
    if modules.keys() - {"Normalize"} != {"Transformer", "Pooling"}:
        raise ValueError(no)
    pooling = read_json(folder / modules["Pooling"] / "config.json")
    # older files have a switch for each mode, sentence-transformers 6.2 writes "pooling_mode"
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    modes = [known.get(k) for k, on in pooling.items() if k.startswith("pooling_mode_") and on]
    mode = pooling.get("pooling_mode", modes[0] if modes else "mean")
    if mode not in ("mean", "cls") or len(modes) > 1:
        raise ValueError(no)
    with blaming(folder / modules["Pooling"] / "config.json"):
        must_be(pooling, include_prompt=(True, 1))
    return mode


class SentenceEncoder:
    """A folder of sentence-transformers. Raises ValueError where it isn't said to be one."""

    def __init__(self, folder: Path) -> None:
        self.pooling = pooling_of(folder)
        self.model, self.tokenizer, _ = open_folder(folder, inject="none")
        older = read_json(folder / "sentence_bert_config.json", {})
        newer = read_json(folder / "tokenizer_config.json", {})  # where 6.2 writes the length
        prompts = read_json(folder / "config_sentence_transformers.json", {})
        most = self.model.config.max_tokens
        length = older.get("max_seq_length") or newer.get("model_max_length") or most
        with blaming(folder):
            must_be(prompts, truncate_dim=None)
            self.prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), "")
            self.lower = bool(older.get("do_lower_case"))
            if not isinstance(length, int):
                raise ValueError(f"its length is {length!r}, must be a whole number")
        self.most = min(most, length)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        """(n, D): the mean of each text's last hidden states, or the first one, divided by its
        length. A text is cut to `most` tokens.
        """
        texts = [self.prompt + text for text in texts]
        texts = [text.lower() for text in texts] if self.lower else texts
        rows = [
            [self.tokenizer.cls_token_id, *ids[: self.most - 2], self.tokenizer.sep_token_id]
            for ids in map(self.tokenizer.encode, texts)
        ]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found = np.zeros((len(rows), self.model.config.hidden_size), np.float32)
        for start in tqdm(range(0, len(order), 64), "embedding", leave=False, disable=None):
            places = order[start : start + 64]
            ids = pad([rows[i] for i in places], self.model.config.pad_token_id)
            mask = pad([[1] * len(rows[i]) for i in places], 0)
            states = Kformer.forward(self.model, ids, mask)  # (64, T, D), without the head
            total = (states * mask.unsqueeze(-1)).sum(-2)
            found[places] = normalize(total if self.pooling == "mean" else states[:, 0], dim=-1)
        return found
