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
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kformer import KformerConfig, KformerForMultipleChoice
from parts.files import blaming, must_be, read_json, replacing
from parts.tokenizer import Tokenizer
from parts.vocabulary import load_tokenizer

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


# --------------------------------------------------------------------------------------- config


def load_config(folder: str | Path, **overrides: object) -> KformerConfig:
    """The fields of config.json that KformerConfig knows; `overrides` replace them."""
    path = Path(folder, "config.json")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    content = read_json(path)
    with blaming(path):
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
        with blaming(index):
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
    with blaming(folder / "config.json"), Unfilled():
        model = KformerForMultipleChoice(config)
    wanted, tensors, report = model.state_dict(), {}, LoadReport([], [], [])
    for path in weight_files(folder):
        with blaming(path), safe_open(path, framework="pt") as file:
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
    with blaming(folder):
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
