"""A checkpoint folder, opened and written: config.json, weights, tokenizer.

    python load_weights.py FOLDER        says what is in it and how it fits

Files and tensors carry the names that Hugging Face transformers gives them: a BERT or RoBERTa
folder from there opens here to the same ids, hidden states and scores, and what is written here
opens there. No pickle is read or written, so a checkpoint from a stranger can't run code.

Read it from top to bottom: names -> files -> config -> weights -> tokenizers -> report.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kformer import KformerConfig, KformerForMultipleChoice
from tokenizer import ByteLevelBPE, Tokenizer, WordPiece

# ---------------------------------------------------------------------------------------- names

# Their name of a module -> ours, in a layer or outside. What isn't listed is the same in both.
NAMES = {
    "embeddings.LayerNorm": "embeddings.norm",
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "ffn.W1",
    "output.dense": "ffn.W2",
    "output.LayerNorm": "ffn_norm",
    "pooler.dense": "pooler",
}


def translate(name: str, table: dict[str, str]) -> str:
    layer = re.match(r"(encoder\.layer\.\d+\.)?", name).group()
    module, dot, parameter = name[len(layer) :].rpartition(".")
    return layer + table.get(module, module) + dot + parameter


def our_name(theirs: str) -> str:
    """bert.encoder.layer.0.output.LayerNorm.gamma -> encoder.layer.0.ffn_norm.weight"""
    name = re.sub(r"^(bert|roberta)\.", "", theirs)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return translate(name, NAMES)


def their_name(ours: str, model_type: str) -> str:
    """encoder.layer.0.ffn_norm.weight -> bert.encoder.layer.0.output.LayerNorm.weight"""
    name = translate(ours, {ours: theirs for theirs, ours in NAMES.items()})
    return name if name.startswith("classifier.") else f"{model_type}.{name}"


# ---------------------------------------------------------------------------------------- files


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What is wrong with a file's content becomes a ValueError of one line that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: not as transformers writes it ({error!r})") from None
    except ValueError as error:
        line = " ".join(str(error).split())
        raise ValueError(f"{path}: {line}") from None


def read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with naming(path):
        return path.read_text(encoding="utf-8")


def read_json(path: Path) -> dict:
    text = read_text(path)
    with naming(path):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("must be a JSON object")
        return content


def must_be(content: dict, **known: object) -> None:
    """Raises ValueError for a setting that isn't built here; where it's missing it is the usual."""
    for key, value in known.items():
        if content.get(key) not in (None, value):
            raise ValueError(f'"{key}" is {content[key]!r}, only {value!r} is known here')


# --------------------------------------------------------------------------------------- config


def load_config(folder: str | Path, **overrides: object) -> KformerConfig:
    """The fields of config.json that KformerConfig knows; `overrides` replace them."""
    path = Path(folder, "config.json")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    content = read_json(path)
    with naming(path):
        if "model_type" not in content:
            raise ValueError('"model_type" is missing, must be "bert" or "roberta"')
        must_be(content, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False)
        known = {field.name for field in dataclasses.fields(KformerConfig)}
        fields = {name: value for name, value in content.items() if name in known}
        return KformerConfig(**fields | overrides)


# -------------------------------------------------------------------------------------- weights


@dataclasses.dataclass
class LoadReport:
    """Where the tensors went: parameters by our names, but what is unused by the file's."""

    loaded: list[str]
    unused: list[str]
    new: list[str]  # newly initialised, see `fresh`


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that model.safetensors.index.json lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        content = read_json(index)
        with naming(index):
            names = sorted(set(content["weight_map"].values()))
            for name in names:
                if not (folder / name).is_file():
                    raise FileNotFoundError(f"{index}: the shard {name!r} is missing")
            return [folder / name for name in names]
    if (folder / "pytorch_model.bin").is_file():
        raise FileNotFoundError(
            f"{whole}: no such file, and pytorch_model.bin is a pickle, which isn't read here. "
            "To convert it, in that folder: python -c \"import torch, safetensors.torch as s; "
            "w = torch.load('pytorch_model.bin', weights_only=True); s.save_file("
            "{k: t.clone().contiguous() for k, t in w.items()}, 'model.safetensors')\""
        )
    raise FileNotFoundError(f"{whole}: no such file")


class Unfilled(TorchFunctionMode):
    """For building modules whose weights come from a file: in-place functions, which would fill
    them with a start, do nothing, and their memory is reserved but never touched.
    """

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if re.search(r"[^_]_$", function.__name__):  # normal_, mul_, but not __get__
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs or {})


def load_weights(
    folder: Path, config: KformerConfig
) -> tuple[KformerForMultipleChoice, LoadReport]:
    """The model of `config` with the weights of a folder, in evaluation mode.

    What isn't in the model is left unused: buffers, heads of other tasks. The pooler, the head for
    multiple choice and the parameters of the injection may be missing; nothing else may. Tensors
    are mapped from the file, as transformers does it: as long as the model lives, the file may be
    replaced, but mustn't be written into.
    """
    with naming(folder / "config.json"), Unfilled():
        model = KformerForMultipleChoice(config)
    wanted, tensors, report = model.state_dict(), {}, LoadReport([], [], [])
    for path in weight_files(folder):
        with naming(path), safe_open(path, framework="pt") as file:
            for theirs in file.keys():
                name = our_name(theirs)
                if name in tensors:
                    raise ValueError(f"{theirs} is there twice, under another prefix or name")
                if name not in wanted or is_other_head(name, file.get_slice(theirs).get_shape()):
                    report.unused.append(theirs)
                    continue
                tensor = file.get_tensor(theirs)
                check(theirs, tensor, wanted[name].shape, config)
                if name == "classifier.weight":  # a dot product may round in another way where
                    tensor = tensor.clone()  # numbers don't lie at a multiple of 16 bytes
                tensors[name] = tensor.to(wanted[name].dtype)
    with naming(folder):
        for name in wanted:
            if name in tensors:
                report.loaded.append(name)
            else:
                tensors[name] = fresh(name, wanted[name].shape, tensors, config)
                report.new.append(name)
    model.load_state_dict(tensors, assign=True)
    return model.eval(), report


def is_other_head(name: str, shape: list[int]) -> bool:
    """A classifier with more than one output is another task's."""
    return name.startswith("classifier.") and shape[:1] != [1]


def check(name: str, tensor: Tensor, wanted: torch.Size, config: KformerConfig) -> None:
    """Raises ValueError for whole numbers, and for a shape that the config doesn't ask for."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} holds {tensor.dtype}, must hold floating-point numbers")
    if tensor.shape != wanted:
        sizes = {k: v for k, v in vars(config).items() if k.endswith(("_size", "_embeddings"))}
        wrong = set(wanted) - set(tensor.shape) or set(wanted)
        asked = ", ".join(f"{k} {v}" for k, v in sizes.items() if v in wrong)
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but config.json asks for {tuple(wanted)}: "
            f"{asked}"
        )


def fresh(
    name: str, shape: torch.Size, loaded: dict[str, Tensor], config: KformerConfig
) -> Tensor:
    """How a parameter starts that the checkpoint lacks. Raises ValueError for one that it mustn't.

    The release draws Wk and Wv (`kfc1`, `kfc2`) from N(0, 0.02), as BERT does the head and the
    pooler: then a fact's key has nothing to do with its words, and facts are hardly used. With
    Wk = I the key starts as the fact itself, and with Wv = 0 the ffn starts as the plain encoder,
    exactly, and opens as it learns. Figures are in the README.
    """
    if name == "fact_embeddings.weight":
        return loaded["embeddings.word_embeddings.weight"].clone()
    if re.search(r"^pooler|^classifier|\.W[kv]\.", name) is None:
        raise ValueError(f"{their_name(name, config.model_type)} is missing")
    if name.endswith("bias") or (name.endswith("Wv.weight") and config.inject == "ffn"):
        return torch.zeros(shape)
    return torch.eye(shape[0]) if ".W" in name else 0.02 * torch.randn(shape)


def open_folder(
    folder: Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer, LoadReport]:
    """Config, tokenizer and weights, after a look at whether they belong together."""
    config, tokenizer = load_config(folder, **overrides), load_tokenizer(folder)
    if len(tokenizer.vocab) != config.vocab_size:
        raise ValueError(
            f"{folder}: the vocabulary has {len(tokenizer.vocab)} tokens, but vocab_size in "
            f"config.json is {config.vocab_size}: take the vocabulary that came with the weights"
        )
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"{folder}: {tokenizer.special[0]} has the id {tokenizer.pad_token_id}, but "
            f"pad_token_id in config.json is {config.pad_token_id}"
        )
    config.sep_token_id = tokenizer.sep_token_id
    model, report = load_weights(folder, config)
    return model, tokenizer, report


def load_pretrained(
    folder: str | Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer]:
    """A BERT or RoBERTa folder -> (model in evaluation mode, tokenizer).

    `overrides` replace config fields: inject="ffn". Prints which tensors were left unused and which
    parameters are newly initialised; `open_folder` hands the lists over.
    Raises FileNotFoundError or ValueError with one line that says what is wrong, and where.
    """
    model, tokenizer, report = open_folder(Path(folder), **overrides)
    for what, names in (("unused", report.unused), ("newly initialised", report.new)):
        if names:
            print(f"{folder}: {what}: {', '.join(grouped(names))}")
    return model, tokenizer


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write files in. At the end they take the places of their old selves in `folder`,
    weights first, and each at once: a crash leaves the old file or the new one, never half of one.
    Raises OSError with one line that names `folder`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("writing-*"):  # by somebody who was killed
            shutil.rmtree(left)
        with TemporaryDirectory(dir=folder, prefix="writing-") as new:
            yield Path(new)
            written = sorted(Path(new).iterdir(), key=lambda path: path.suffix != ".safetensors")
            for path in written:
                with open(path, "r+b") as file:
                    os.fsync(file.fileno())
            for path in written:
                os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{folder}: can't be written ({error})") from None


def save_pretrained(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, folder: str | Path
) -> None:
    """Writes a folder that load_pretrained reads back to the same scores, bit for bit.

    transformers opens it too, as BertForMultipleChoice or RobertaForMultipleChoice. All files are
    whole before the first one takes the place of its old self, the weights first: a crash while
    writing leaves the old folder as it was.
    """
    folder, config = Path(folder), model.config
    kind = config.model_type.capitalize()
    fields = {"architectures": [f"{kind}ForMultipleChoice"], "hidden_act": "gelu"}
    fields |= dataclasses.asdict(config)
    tensors = {
        their_name(name, config.model_type): tensor.contiguous()
        for name, tensor in model.state_dict().items()
    }
    texts = {"config.json": json.dumps(fields, indent=2) + "\n"} | tokenizer.files()

    with replacing(folder) as new:
        for name, text in texts.items():
            (new / name).write_bytes(text.encode("utf-8"))
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(new / "config.json", new / "model.safetensors")  # not private
    for name in {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"} - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of the tokenizer that was here before


# ----------------------------------------------------------------------------------- tokenizers


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """From tokenizer.json; without one from vocab.txt (WordPiece), or vocab.json and merges.txt
    (byte-level BPE). What tokenizer_config.json says of lower case and the like comes first.
    """
    folder, settings, merges = Path(folder), {}, None
    if (folder / "tokenizer_config.json").is_file():
        settings = read_json(folder / "tokenizer_config.json")
    if (path := folder / "tokenizer.json").is_file():
        content = read_json(path)
        with naming(path):
            vocab, merges, usual = parse_tokenizer(content)
            settings = usual | settings
    elif (path := folder / "vocab.txt").is_file():
        vocab = read_text(path).removesuffix("\n").split("\n")
    elif (path := folder / "vocab.json").is_file():
        merges = read_text(folder / "merges.txt").removesuffix("\n").split("\n")
        ids = read_json(path)
        with naming(path):
            vocab = in_order(ids)
    else:
        raise FileNotFoundError(f"{folder}: no tokenizer.json, vocab.txt or vocab.json")
    with naming(path):
        added = list(settings.get("added_tokens_decoder", {}).values())
        if merges is None:
            lower, accents = settings.get("do_lower_case", True), settings.get("strip_accents")
            return WordPiece(vocab, lower, accents, added)
        merges = [m for m in merges if not m.startswith("#version")]
        return ByteLevelBPE(vocab, merges, settings.get("add_prefix_space", False), added)


def parse_tokenizer(content: dict) -> tuple[list[str], list[str] | None, dict]:
    """tokenizer.json -> vocabulary, merges, settings by the names of tokenizer_config.json.

    The file can describe tokenizers of many kinds; two of them are built here.
    """
    model, normalizer = content["model"], content["normalizer"] or {}
    splitter = content["pre_tokenizer"] or {}
    kinds = [model["type"], normalizer.get("type"), splitter.get("type")]
    if kinds == ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        must_be(model, continuing_subword_prefix="##", max_input_chars_per_word=100)
        must_be(normalizer, clean_text=True, handle_chinese_chars=True)
        merges, lower = None, normalizer["lowercase"]
        settings = {"do_lower_case": lower, "strip_accents": normalizer["strip_accents"]}
    elif kinds == ["BPE", None, "ByteLevel"]:
        must_be(splitter, use_regex=True)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        settings = {"add_prefix_space": splitter["add_prefix_space"]}
    else:
        kind = " + ".join(str(kind) for kind in kinds if kind)
        raise ValueError(f"a tokenizer of the kind {kind}; read are WordPiece and byte-level BPE")
    added = {token["id"]: token for token in content["added_tokens"]}
    vocab = in_order(model["vocab"] | {token["content"]: i for i, token in added.items()})
    return vocab, merges, settings | {"added_tokens_decoder": added}


def in_order(ids: dict[str, int]) -> list[str]:
    vocab = sorted(ids, key=ids.get)
    if [ids[token] for token in vocab] != list(range(len(vocab))):
        raise ValueError("the ids of the tokens must be 0, 1, 2, ... without gaps")
    return vocab


# -------------------------------------------------------------------------------------- report


def grouped(names: list[str]) -> list[str]:
    """encoder.layer.0.Wk.bias, encoder.layer.0.Wk.weight and the same of layers 1 and 2 ->
    encoder.layer.0-2.Wk.bias/weight
    """
    groups = {}  # module -> its layers, its parameters
    for name in names:
        module, dot, parameter = name.rpartition(".")
        general = re.sub(r"(?<=layer\.)\d+", "*", module + dot)
        layers, parameters = groups.setdefault(general, (set(), set()))
        layers.update(map(int, re.findall(r"(?<=layer\.)\d+", module)))
        parameters.add(parameter)
    return [
        module.replace("*", span(layers)) + "/".join(sorted(parameters))
        for module, (layers, parameters) in groups.items()
    ]


def span(layers: set[int]) -> str:
    """{3, 4, 5} -> 3-5, {0, 2} -> 0,2"""
    first, last = min(layers, default=0), max(layers, default=0)
    whole = len(layers) > 2 and last - first + 1 == len(layers)
    return f"{first}-{last}" if whole else ",".join(map(str, sorted(layers)))


def describe(folder: Path, inject: str) -> None:
    """The report: kind and sizes, what went where, one sentence in tokens."""
    model, tokenizer, report = open_folder(folder, inject=inject)
    config = model.config
    print(
        f"model      {config.model_type}, injection {inject}: {config.num_hidden_layers} layers, "
        f"hidden size {config.hidden_size}, {config.num_attention_heads} heads, FFN width "
        f"{config.intermediate_size}, up to {config.max_tokens} tokens"
    )
    print(f"           {sum(p.numel() for p in model.parameters()):,} parameters")
    lists = {"loaded": report.loaded, "unused": report.unused, "new": report.new}
    for what, names in lists.items():
        print(f"{what:10} {len(names)}", *grouped(names), sep="\n             ")
    sentence = "Kformer's facts fire in feed-forward layers: naïve, isn't it?"
    tokens = " ".join(tokenizer.vocab[i] for i in tokenizer.encode(sentence))
    print(f"tokenizer  {type(tokenizer).__name__}, {len(tokenizer.vocab):,} tokens")
    print(f"           {sentence}\n           {tokens}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Say what is in a checkpoint folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--inject", default="none", choices=("none", "concat", "attention", "ffn"),
        help="open it with this injection (default: none)",
    )  # fmt: skip
    args = parser.parse_args()
    try:
        describe(args.folder, args.inject)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
