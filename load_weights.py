"""A checkpoint folder, opened and written: config.json, weights, tokenizer.

    python load_weights.py FOLDER        says what is in it and how it fits

Files and tensors carry the names that Hugging Face transformers gives them: a BERT or RoBERTa
folder from there opens here to the same ids, hidden states and scores, and what is written here
opens there. No pickle is read or written, so a checkpoint from a stranger can't run code.
"""

import argparse
import dataclasses
import json
import os
import re
from itertools import takewhile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kformer import VARIANTS, KformerConfig, KformerForMultipleChoice, initialize
from qa.errors import blaming, check_file, command, must_be, printable, read_json
from qa.tokenizer import VOCABULARIES, Tokenizer, load_tokenizer

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
    """bert.encoder.layer.0.output.LayerNorm.gamma -> encoder.layer.0.ffn_norm.weight, and the same
    without "bert.", with "roberta.", and with DataParallel's "module." before either.
    """
    name = re.sub(r"^(module\.)?(bert\.|roberta\.)?", "", theirs)
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return translate(name, NAMES)


def their_name(ours: str, model_type: str) -> str:
    """encoder.layer.0.ffn_norm.weight -> bert.encoder.layer.0.output.LayerNorm.weight"""
    name = translate(ours, {ours: theirs for theirs, ours in NAMES.items()})
    return name if name.startswith("classifier.") else f"{model_type}.{name}"


# --------------------------------------------------------------------------------------- config

FIELDS = [field.name for field in dataclasses.fields(KformerConfig)]

# What a missing field stands for, where BERT and RoBERTa differ.
DEFAULTS = {
    "bert": {"vocab_size": 30522, "pad_token_id": 0},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
}

# All other settings that change the hidden states, in transformers 5.23 and in older versions, and
# what is built here; None is a setting that isn't built at all.
BUILT = {
    "hidden_act": ("gelu", "gelu_python"),  # one function, in two implementations
    "position_embedding_type": "absolute", "pruned_heads": {},
    "is_decoder": False, "is_encoder_decoder": False, "add_cross_attention": False,
    "per_layer_config": None, "fusion_config": None,
    "quantization_config": None, "compression_config": None, "quantization": None,
    "auto_map": None,  # code of its own
    "transformers_weights": None,  # another file than model.safetensors
    "configuration_files": None,  # another file than config.json
}  # fmt: skip
ADAPTER = "adapter_config.json"


def load_config(folder: str | Path, **overrides: object) -> KformerConfig:
    """The fields of config.json that KformerConfig knows; `overrides` replace them first of all.

    Raises ValueError for whatever would make another model in transformers than it does here.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file() or (folder / ADAPTER).is_file():
        raise FileNotFoundError(why_no_checkpoint(folder))
    if unknown := overrides.keys() - {*FIELDS}:
        raise ValueError(f"{min(unknown)!r} is none of the settings: {', '.join(FIELDS)}")
    content = read_json(folder / "config.json") | overrides
    content = {name: value for name, value in content.items() if value is not None}
    with blaming(folder / "config.json"):
        return make_config(content)


def make_config(content: dict) -> KformerConfig:
    """What config.json says -> the config. Raises ValueError for what isn't built here."""
    model_type = content.get("model_type")
    if model_type not in DEFAULTS:
        how = 'write it there, or load_pretrained(folder, model_type="bert")'
        raise ValueError(f'"model_type" is {model_type!r}, must be "bert" or "roberta": {how}')
    must_be(content, **BUILT)
    fields = {k: v for k, v in content.items() if k in FIELDS}
    config = KformerConfig(**DEFAULTS[model_type] | fields)
    if config.pad_token_id >= config.vocab_size or config.max_tokens < 1:
        raise ValueError(
            f"pad_token_id is {config.pad_token_id}, too much for vocab_size "
            f"{config.vocab_size} or max_position_embeddings {config.max_position_embeddings}"
        )
    return config


def why_no_checkpoint(folder: Path) -> str:
    """One line: what is wrong with the folder, and where a checkpoint is to be had."""
    if not folder.is_dir():
        return (
            f"{folder}: no such folder. A model of the Hugging Face Hub that has a "
            f"model.safetensors comes by: hf download NAME --local-dir {folder}"
        )
    if (folder / ADAPTER).is_file():
        return (
            f"{folder}: an adapter ({ADAPTER}), which belongs to the weights of another model: "
            "merge the two with merge_and_unload of peft, and save that"
        )
    configs = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
    deeper = [str(path.parent) for path in configs if any(path.parent.glob("*model*"))]
    where = f", but {' and in '.join(deeper[:3])} there is: open that" if deeper else ""
    return f"{folder / 'config.json'}: no such file{where}"


# -------------------------------------------------------------------------------------- weights


@dataclasses.dataclass
class LoadReport:
    """Where the tensors went: parameters by our names, but what is unused by the file's."""

    loaded: list[str]
    unused: list[str]
    new: list[str]  # newly initialised, see `initialize` in kformer.py
    notes: list[str]  # what else a user should know


def load_weights(
    folder: Path, config: KformerConfig
) -> tuple[KformerForMultipleChoice, LoadReport]:
    """The model of `config` with the weights of a folder, in evaluation mode."""
    with blaming(folder / "config.json"):  # its sizes may be too much for the memory
        model = KformerForMultipleChoice(config, from_scratch=False)
    wanted = model.state_dict()
    tensors, unused = read_tensors(folder, wanted, config)
    loaded = [name for name in wanted if name in tensors]
    new = [name for name in wanted if name not in tensors]
    check_missing(folder, new, config)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    notes = [f"weights in {kind} become float32" for kind in sorted(kinds - {"float32"})]
    model.load_state_dict(tensors, strict=False)
    initialize(model, new)
    return model.eval(), LoadReport(loaded, unused, new, notes)


def read_tensors(
    folder: Path, wanted: dict[str, Tensor], config: KformerConfig
) -> tuple[dict[str, Tensor], list[str]]:
    """By our names those that are `wanted`, and the names in the file of all others: buffers, heads
    of other tasks, such as a classifier with more than one output.
    """
    tensors, unused = {}, []
    for path in weight_files(folder):
        check_file(path)
        with blaming(path), safe_open(path, framework="pt") as file:
            for theirs in file.keys():
                name = our_name(theirs)
                if name in tensors:
                    raise ValueError(f"{theirs} is there twice, under another prefix or name")
                outputs = file.get_slice(theirs).get_shape()[:1]
                if name not in wanted or (name.startswith("classifier.") and outputs != [1]):
                    check_unused(theirs, wanted)
                    unused.append(theirs)
                else:
                    tensors[name] = file.get_tensor(theirs)
                    check_tensor(theirs, tensors[name], wanted[name].shape, config)
    return tensors, unused


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that model.safetensors.index.json lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        content = read_json(index)
        with blaming(index):
            return [folder / name for name in sorted(set(content["weight_map"].values()))]
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        check_file(folder / pickles[0])
        raise FileNotFoundError(
            f"{whole}: no such file, and {' + '.join(pickles)} is a pickle, which isn't read here. "
            'To convert it, in that folder: python -c "import glob, torch, safetensors.torch as s; '
            "files = glob.glob('pytorch_model*.bin'); "
            "w = {k: t for f in files for k, t in torch.load(f, weights_only=True).items()}; "
            "s.save_file({k: t.clone().contiguous() for k, t in w.items()}, 'model.safetensors')\""
        )
    others = sorted(path.name for path in folder.glob("*model*"))
    but = f", but {' + '.join(others)}: transformers may be able to convert that" if others else ""
    raise FileNotFoundError(f"{whole}: no such file{but}")


def check_tensor(name: str, tensor: Tensor, wanted: torch.Size, config: KformerConfig) -> None:
    """Raises ValueError for other numbers, and for a shape that the config doesn't ask for."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        right = "floating-point numbers of 16 bits or more: take weights that aren't quantised"
        raise ValueError(f"{name} holds {tensor.dtype}, must hold {right}")
    if tensor.shape != wanted:
        sizes = {k: v for k, v in vars(config).items() if k.endswith(("_size", "_embeddings"))}
        wrong = set(wanted) - set(tensor.shape) or set(wanted)
        asked = ", ".join(f"{k} {v}" for k, v in sizes.items() if v in wrong)
        found, right = tuple(tensor.shape), tuple(wanted)
        raise ValueError(f"{name} has shape {found}, but config.json asks for {right}: {asked}")
    if not tensor.float().isfinite().all():
        raise ValueError(f"{name} has a nan or an infinite number in it: the weights are damaged")


def check_unused(theirs: str, wanted: dict[str, Tensor]) -> None:
    """Raises ValueError for what stands beside a weight of ours and changes what it means: the
    scale of a quantised one, an adapter's lora_A.
    """
    name = re.sub(r"^(module\.)?(bert\.|roberta\.)?", "bert.", theirs)
    modules = {their_name(name, "bert").rpartition(".")[0] for name in wanted} - {"classifier"}
    if any(name.startswith(f"{module}.") for module in modules) or re.search("adapter|lora_", name):
        advice = "take weights that aren't quantised, with adapters merged into them"
        raise ValueError(f"{theirs} isn't built here: {advice}")


def check_missing(folder: Path, new: list[str], config: KformerConfig) -> None:
    """Raises ValueError for a parameter that can't be new: without it, it is another model."""
    for name in new:
        if not re.search(r"^fact_embeddings|^pooler|^classifier|\.W[kv]\.", name):
            raise ValueError(f"{folder}: {their_name(name, config.model_type)} is missing")


# -------------------------------------------------------------------------------------- opening


def open_config(folder: Path, **overrides: object) -> tuple[KformerConfig, Tokenizer]:
    """Config and tokenizer of a folder that may have no weights."""
    config, tokenizer = load_config(folder, **overrides), load_tokenizer(folder)
    with blaming(folder):
        tokenizer.check_ids(config.vocab_size, config.pad_token_id)
    config.sep_token_id = tokenizer.sep_token_id
    return config, tokenizer


def open_folder(
    folder: Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer, LoadReport]:
    """Config, tokenizer and weights."""
    config, tokenizer = open_config(folder, **overrides)
    model, report = load_weights(folder, config)
    if spare := config.vocab_size - len(tokenizer.vocab):
        report.notes.append(f"{spare} rows of the embeddings are of no token in the vocabulary")
    return model, tokenizer, report


def load_pretrained(
    folder: str | Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer]:
    """A BERT or RoBERTa folder -> (model in evaluation mode, tokenizer).

    `overrides` replace config fields: inject="ffn". Prints the report that `open_folder` returns.
    Raises FileNotFoundError or ValueError with one line that says what is wrong, and where.
    """
    model, tokenizer, report = open_folder(Path(folder), **overrides)
    for line in lines_of_report(report):
        print(f"{folder}: {line}")
    return model, tokenizer


# --------------------------------------------------------------------------------------- saving


def save_pretrained(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, folder: str | Path
) -> None:
    """Writes a folder that load_pretrained reads back to the same scores, bit for bit.

    transformers opens it too, as BertForMultipleChoice or RobertaForMultipleChoice. Raises
    ValueError, before anything is written, where config, vocabulary and folder don't fit together.
    """
    folder, model = Path(folder), getattr(model, "module", model)  # of DataParallel
    config = model.config
    tokenizer.check_ids(config.vocab_size, config.pad_token_id)
    kind = config.model_type.capitalize()
    fields = {"architectures": [f"{kind}ForMultipleChoice"], "hidden_act": "gelu"}
    fields |= dataclasses.asdict(config)
    make_config(fields)
    texts = {"config.json": json.dumps(fields, indent=2) + "\n"} | tokenizer.files()
    for name in takewhile(lambda name: name not in texts, VOCABULARIES):
        if (folder / name).exists():
            raise ValueError(
                f"{folder / name} would be read in the place of the vocabulary that is saved: name "
                "a new folder"
            )
    tensors = {  # each with memory of its own, where two parameters are one
        their_name(name.replace("_orig_mod.", ""), config.model_type):  # of torch.compile
            tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_whole(tensors, folder / "model.safetensors")
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))


def save_whole(tensors: dict[str, Tensor], path: Path, **metadata: str) -> None:
    """A safetensors file, written beside and moved into place: the old one is there until then."""
    beside = path.with_name(f"{path.name}.new")
    try:
        beside.touch()
        mode = beside.stat().st_mode
        save_file(tensors, beside, metadata={"format": "pt"} | metadata)
        beside.chmod(mode)  # what is usual here; safetensors makes a private file
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path}: can't be written ({error})") from None


# -------------------------------------------------------------------------------------- report


def lines_of_report(report: LoadReport) -> list[str]:
    """Its notes, and what isn't loaded: the Wk.weight and Wk.bias of all layers in one name."""
    lines = [*report.notes]
    for what, names in (("unused", report.unused), ("newly initialised", report.new)):
        short = (re.sub(r"\.(weight|bias)$", "", re.sub(r"\.\d+\.", ".*.", n)) for n in names)
        if names:
            lines.append(printable(f"{what}: {', '.join(dict.fromkeys(short))}", 2000))
    return lines


def lines_of_model(model: KformerForMultipleChoice) -> list[str]:
    """How large a model is, where facts come in, and how many parameters it has."""
    config, added = model.config, added_parameters(model)
    where = f" in layers {' '.join(map(str, config.inject_layers))}" if added else ""
    total = sum(p.numel() for p in model.parameters())
    return [
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, FFN width {config.intermediate_size}",
        f"injection: {config.inject}{where}; {total:,} parameters, {added:,} of them for the facts",
    ]


def added_parameters(model: KformerForMultipleChoice) -> int:
    """How many parameters are there for the facts."""
    parameters = model.named_parameters()
    return sum(p.numel() for n, p in parameters if re.search(r"fact_embeddings|\.W[kv]\.", n))


def main() -> None:
    parser = argparse.ArgumentParser(description="Say what is in a checkpoint folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inject", choices=VARIANTS, help="(default: as in config.json)")
    args = parser.parse_args()
    overrides = {} if args.inject is None else {"inject": args.inject}
    model, tokenizer, report = open_folder(args.folder, **overrides)
    config, sentence = model.config, "Kformer's facts fire in feed-forward layers: naïve, isn't it?"
    print(f"model      {config.model_type}, up to {config.max_tokens} tokens",
          *lines_of_model(model), f"{len(report.loaded)} tensors are loaded",
          *lines_of_report(report), sep="\n           ")  # fmt: skip
    print(f"tokenizer  {type(tokenizer).__name__}, {len(tokenizer.vocab):,} tokens", sentence,
          printable(" ".join(tokenizer.vocab[i] for i in tokenizer.encode(sentence))),
          sep="\n           ")  # fmt: skip


if __name__ == "__main__":
    with command():
        main()
