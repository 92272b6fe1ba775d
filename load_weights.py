"""A checkpoint folder, opened and written: config.json, vocab.txt, model.safetensors.

Files and tensors carry the names that Hugging Face transformers gives them, so that a folder
written here opens there, and a BERT folder from there opens here. No pickle is read or written.
"""

import dataclasses
import json
import os
import unicodedata
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kformer import KformerConfig, KformerForMultipleChoice

# Their name of a module -> ours. What isn't listed has the same name in both.
NAMES = {
    "embeddings.LayerNorm": "embeddings.norm",
    "pooler.dense": "pooler",
}
LAYER_NAMES = {  # behind encoder.layer.N.
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn.W1",
    "output.dense": "ffn.W2",
    "output.LayerNorm": "ffn_norm",
}


def name_table(config: KformerConfig) -> dict[str, str]:
    """Their module names -> ours, for a model of this depth."""
    table = dict(NAMES)
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}."
        table |= {layer + theirs: layer + ours for theirs, ours in LAYER_NAMES.items()}
    return table


def rename(name: str, table: dict[str, str]) -> str:
    module, _, parameter = name.rpartition(".")
    return f"{table.get(module, module)}.{parameter}"


# --------------------------------------------------------------------------------------- config


def read_json(path: Path) -> dict:
    """Raises FileNotFoundError or ValueError with a line that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def load_config(folder: str | Path, **overrides: object) -> KformerConfig:
    """The fields of config.json that KformerConfig knows; `overrides` replace them."""
    path = Path(folder, "config.json")
    known = {field.name for field in dataclasses.fields(KformerConfig)}
    found = {key: value for key, value in read_json(path).items() if key in known} | overrides
    try:
        return KformerConfig(**found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


# -------------------------------------------------------------------------------------- weights


def load_pretrained(
    folder: str | Path, **overrides: object
) -> tuple[KformerForMultipleChoice, "WordPiece"]:
    """A BERT folder -> (model in evaluation mode, tokenizer); `overrides` replace config fields.

    Prints which tensors were left unused and which parameters are newly initialised. The table of
    the facts starts as a copy of the loaded word embeddings where the folder doesn't bring its own.
    Raises FileNotFoundError or ValueError with one line that says what is wrong, and where.
    """
    config, tokenizer = load_config(folder, **overrides), load_tokenizer(folder)
    model, table = KformerForMultipleChoice(config), name_table(config)
    path = Path(folder, "model.safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    prefix = f"{config.model_type}."
    tensors = {rename(name.removeprefix(prefix), table): t for name, t in tensors.items()}

    for name, parameter in model.state_dict().items():
        if name in tensors and tensors[name].shape != parameter.shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, "
                f"but config.json asks for {tuple(parameter.shape)}"
            )
    missing, unused = model.load_state_dict(tensors, strict=False)
    new = ("fact_embeddings.", "pooler.", "classifier.", ".Wk.", ".Wv.")
    lost = [name for name in missing if not any(part in name for part in new)]
    if lost:
        raise ValueError(f"{path}: the tensor of {lost[0]} is missing")
    if "fact_embeddings.weight" in missing:
        model.fact_embeddings.weight.data.copy_(model.embeddings.word_embeddings.weight)
    for what, names in (("unused", unused), ("newly initialised", missing)):
        if names:
            print(f"{folder}: {what}: {', '.join(names)}")
    return model.eval(), tokenizer


def save_pretrained(
    model: KformerForMultipleChoice, tokenizer: "WordPiece", folder: str | Path
) -> None:
    """Writes a folder that load_pretrained reads back to the same scores, bit for bit.

    transformers opens it as BertForMultipleChoice too. Each file is written beside its old self and
    then put in its place, so that a crash leaves one of the two, whole.
    """
    folder, config = Path(folder), model.config
    folder.mkdir(parents=True, exist_ok=True)
    table = {ours: theirs for theirs, ours in name_table(config).items()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        prefix = "" if name.startswith("classifier.") else f"{config.model_type}."
        tensors[prefix + rename(name, table)] = tensor.contiguous()
    architecture = f"{config.model_type.capitalize()}ForMultipleChoice"
    fields = {"architectures": [architecture], "hidden_act": "gelu"} | dataclasses.asdict(config)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": tokenizer.lower}

    write = {
        "config.json": lambda path: path.write_text(json.dumps(fields, indent=2) + "\n"),
        "tokenizer_config.json": lambda path: path.write_text(json.dumps(settings) + "\n"),
        "vocab.txt": lambda path: path.write_text("\n".join(tokenizer.vocab) + "\n", "utf-8"),
        "model.safetensors": lambda path: save_file(tensors, path, metadata={"format": "pt"}),
    }
    for name, write_to in write.items():
        new = folder / f"{name}.new"
        write_to(new)
        os.replace(new, folder / name)


# ------------------------------------------------------------------------------------ tokenizer


def load_tokenizer(folder: str | Path) -> "WordPiece":
    """The tokenizer of a folder with a vocab.txt; tokenizer_config.json may say do_lower_case."""
    path = Path(folder, "vocab.txt")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    vocab = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    missing = [token for token in WordPiece.special if token not in vocab]
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing")
    settings = Path(folder, "tokenizer_config.json")
    lower = read_json(settings).get("do_lower_case", True) if settings.is_file() else True
    return WordPiece(vocab, lower)


class WordPiece:
    """BERT's tokenizer: split at spaces and punctuation, then into the longest known pieces.

    A word that isn't in the vocabulary is taken apart, "unhappily" into "un", "##happi", "##ly"; a
    word that can't be becomes [UNK], and so does one of over 100 characters.
    """

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")

    def __init__(self, vocab: list[str], lower: bool = True) -> None:
        self.vocab, self.lower = vocab, lower
        self.ids = {token: i for i, token in enumerate(vocab)}
        ids = (self.ids[token] for token in self.special)
        self.pad_token_id, self.unk_token_id, self.cls_token_id, self.sep_token_id = ids
        self.word_ids = lru_cache(maxsize=None)(self.word_ids)  # most words come again and again

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without [CLS] and [SEP]."""
        return [i for word in text.split(" ") for i in self.word_ids(word)]

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, as far as it can be had back: spaces around punctuation stay."""
        return " ".join(self.vocab[i] for i in ids).replace(" ##", "")

    def word_ids(self, text: str) -> list[int]:
        """What stands between two spaces -> ids: cleaned, split and taken apart."""
        return [i for word in self.clean(text).split() for i in self.pieces(word)]

    def clean(self, text: str) -> str:
        """Control characters out, accents off and letters small where asked, CJK set apart."""
        chars = (c for c in text if c in "\t\n\r" or (c != "\ufffd" and category(c)[0] != "C"))
        text = "".join(f" {c} " if is_cjk(c) else " " if category(c) == "Zs" else c for c in chars)
        if self.lower:
            text = unicodedata.normalize("NFD", text.lower())
            text = "".join(c for c in text if category(c) != "Mn")
        return "".join(f" {c} " if is_punctuation(c) else c for c in text)

    def pieces(self, word: str) -> list[int]:
        """One word -> its pieces, each the longest that fits."""
        if len(word) > 100:
            return [self.unk_token_id]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.ids), None)
            if end is None:
                return [self.unk_token_id]
            pieces.append(self.ids[prefix + word[start:end]])
            start = end
        return pieces


category = lru_cache(maxsize=None)(unicodedata.category)


def is_punctuation(c: str) -> bool:
    """All of ASCII that is neither letter nor digit nor space counts, "$" and "^" too."""
    return ("!" <= c <= "~" and not c.isalnum()) or category(c)[0] == "P"


def is_cjk(c: str) -> bool:
    """Chinese characters, whose words stand without spaces between them."""
    return (
        "\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf" or "\uf900" <= c <= "\ufaff"
        or "\U00020000" <= c <= "\U0002a6df" or "\U0002a700" <= c <= "\U0002ceaf"
        or "\U0002f800" <= c <= "\U0002fa1f"
    )
