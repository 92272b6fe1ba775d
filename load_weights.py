"""A checkpoint folder, opened and written: config.json, weights, tokenizer.

    python load_weights.py FOLDER        says what is in it and how it fits

Files and tensors carry the names that Hugging Face transformers gives them: a BERT or RoBERTa
folder from there opens here to the same ids, hidden states and scores, and what is written here
opens there. No pickle is read or written, so a checkpoint from a stranger can't run code.

Read it from top to bottom: names, weights, opening, saving, report. What is checked on the way is
in qa/checkpoint.py, what the other files may say in qa/config.py and qa/vocabulary.py.
"""

from qa.command import command

import argparse
import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kformer import VARIANTS, KformerConfig, KformerForMultipleChoice, initialize
from qa.checkpoint import (
    check_tensor,
    check_vocabulary,
    grouped,
    in_words,
    remarks,
    weight_files,
)
from qa.config import load_config, make_config, read_config
from qa.files import blaming, open_tensors, replacing
from qa.tokenizer import Tokenizer
from qa.vocabulary import VOCABULARIES, load_tokenizer

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


# -------------------------------------------------------------------------------------- weights


@dataclasses.dataclass
class LoadReport:
    """Where the tensors went: parameters by our names, but what is unused by the file's."""

    loaded: list[str]
    unused: list[str]
    new: list[str]  # newly initialised, see `initialize` in kformer.py
    notes: list[str]  # what else a user should know


class Unfilled(TorchFunctionMode):
    """In-place functions, which would fill new weights with a start, do nothing.

    torch.device("meta") would do as well, but costs a second: it imports 800 modules.
    """

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if re.search(r"[^_]_$", function.__name__):  # normal_, mul_, but not __get__
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs or {})


def empty_model(config: KformerConfig) -> KformerForMultipleChoice:
    """For weights that come from a file: memory is reserved, but never touched."""
    with Unfilled():
        return KformerForMultipleChoice(config, from_scratch=False)


def load_weights(
    folder: Path, config: KformerConfig
) -> tuple[KformerForMultipleChoice, LoadReport]:
    """The model of `config` with the weights of a folder, in evaluation mode.

    Tensors are copied, not mapped from the file: so it may be replaced while the model lives, on
    Windows, too, and where its numbers lie has no part in how a product rounds.
    """
    with blaming(folder / "config.json"):
        model = empty_model(config)
    wanted = model.state_dict()
    tensors, unused = read_tensors(folder, wanted, config)
    loaded = [name for name in wanted if name in tensors]
    new = [name for name in wanted if name not in tensors]
    check_missing(folder, new, unused, config)
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    notes = [f"weights in {kind} become float32" for kind in sorted(kinds - {"float32"})]
    tensors = {name: t.to(wanted[name].dtype, copy=True) for name, t in tensors.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
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
        with open_tensors(path) as file:
            for theirs in file.keys():
                name = our_name(theirs)
                if name in tensors:
                    raise ValueError(f"{theirs} is there twice, under another prefix or name")
                outputs = file.get_slice(theirs).get_shape()[:1]
                if name not in wanted or (name.startswith("classifier.") and outputs != [1]):
                    check_unused(theirs, wanted)
                    unused.append(theirs)
                else:
                    tensor = file.get_tensor(theirs)
                    check_tensor(theirs, tensor, wanted[name].shape, config)
                    tensors[name] = tensor
    return tensors, unused


def check_unused(theirs: str, wanted: dict[str, Tensor]) -> None:
    """Raises ValueError for what stands beside a weight of ours and changes what it means: the
    scale of a quantised one, an adapter's lora_A.
    """
    name = re.sub(r"^(roberta\.|bert\.|)", "bert.", theirs)
    modules = {their_name(name, "bert").rpartition(".")[0] for name in wanted} - {"classifier"}
    if any(name.startswith(f"{module}.") for module in modules) or re.search("adapter|lora_", name):
        advice = "take weights that aren't quantised, with adapters merged into them"
        raise ValueError(f"{theirs} isn't built here: {advice}")


def check_missing(folder: Path, new: list[str], unused: list[str], config: KformerConfig) -> None:
    """Raises ValueError for a parameter that can't be new: without it, it is another model."""
    for name in new:
        if not re.search(r"^fact_embeddings|^pooler|^classifier|\.W[kv]\.", name):
            theirs = their_name(name, config.model_type)
            alike = [other for other in unused if other.endswith(theirs.partition(".")[2])]
            but = f", but {alike[0]} is there: rename the tensors" if alike else ""
            raise ValueError(f"{folder}: {theirs} is missing{but}")


# -------------------------------------------------------------------------------------- opening


def open_config(folder: Path, **overrides: object) -> tuple[KformerConfig, Tokenizer]:
    """Config and tokenizer of a folder that may have no weights."""
    config, tokenizer = load_config(folder, **overrides), load_tokenizer(folder)
    check_vocabulary(folder, tokenizer, config)
    config.sep_token_id = tokenizer.sep_token_id
    return config, tokenizer


def open_folder(
    folder: Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer, LoadReport]:
    """Config, tokenizer and weights."""
    config, tokenizer = open_config(folder, **overrides)
    model, report = load_weights(folder, config)
    report.notes += remarks(read_config(folder) | overrides, config, tokenizer)
    return model, tokenizer, report


def load_pretrained(
    folder: str | Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer]:
    """A BERT or RoBERTa folder -> (model in evaluation mode, tokenizer).

    `overrides` replace config fields: inject="ffn". Prints the report that `open_folder` returns.
    Raises FileNotFoundError or ValueError with one line that says what is wrong, and where.
    """
    model, tokenizer, report = open_folder(Path(folder), **overrides)
    for note in report.notes:
        print(f"{folder}: {note}")
    for what, names in (("unused", report.unused), ("newly initialised", report.new)):
        if names:
            print(f"{folder}: {what}: {', '.join(grouped(names))}")
    return model, tokenizer


# --------------------------------------------------------------------------------------- saving


def save_pretrained(
    model: KformerForMultipleChoice, tokenizer: Tokenizer, folder: str | Path
) -> None:
    """Writes a folder that load_pretrained reads back to the same scores, bit for bit.

    transformers opens it too, as BertForMultipleChoice or RobertaForMultipleChoice. All files are
    whole before the first one takes the place of its old self, the weights first: a crash while
    writing leaves the old folder as it was. Raises ValueError, before anything is written, for what
    couldn't be opened again.
    """
    folder, model = Path(folder), getattr(model, "module", model)  # of DataParallel
    config, tensors = model.config, whole_tensors(model)
    check_vocabulary(folder, tokenizer, config)
    kind = config.model_type.capitalize()
    fields = {"architectures": [f"{kind}ForMultipleChoice"], "hidden_act": "gelu"}
    fields |= dataclasses.asdict(config)
    make_config(fields)
    texts = {"config.json": json.dumps(fields, indent=2) + "\n"} | tokenizer.files()
    for name in itertools.takewhile(lambda name: name not in texts, VOCABULARIES):
        if (folder / name).exists():
            raise ValueError(
                f"{folder / name} would be read in the place of the vocabulary that is saved: name "
                "a new folder"
            )

    with replacing(folder) as new:
        for name, text in texts.items():
            (new / name).write_bytes(text.encode("utf-8"))
        save_file(tensors, new / "model.safetensors", metadata={"format": "pt"})
        shutil.copymode(new / "config.json", new / "model.safetensors")  # not private


def whole_tensors(model: KformerForMultipleChoice) -> dict[str, Tensor]:
    """All parameters by their names in the file, each with memory of its own.

    Raises ValueError where they aren't those that the config asks for.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("_orig_mod.", "")  # of torch.compile
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    wanted = empty_model(model.config).state_dict()
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in wanted.items()}:
        raise ValueError("save_pretrained: these aren't the parameters that model.config asks for")
    return {their_name(name, model.config.model_type): t for name, t in tensors.items()}


# -------------------------------------------------------------------------------------- report


def describe(folder: Path, inject: str | None) -> None:
    """The report: kind and sizes, what went where, one sentence in tokens."""
    overrides = {} if inject is None else {"inject": inject}
    model, tokenizer, report = open_folder(folder, **overrides)
    sizes, parameters = in_words(model)
    print(f"model      {model.config.model_type}, up to {model.config.max_tokens} tokens, {sizes}")
    print(f"           {parameters}")
    for note in report.notes:
        print(f"note       {note}")
    lists = {"loaded": report.loaded, "unused": report.unused, "new": report.new}
    for what, names in lists.items():
        print(f"{what:10} {len(names)}", *grouped(names), sep="\n             ")
    sentence = "Kformer's facts fire in feed-forward layers: naïve, isn't it?"
    tokens = " ".join(tokenizer.vocab[i] for i in tokenizer.encode(sentence))
    print(f"tokenizer  {type(tokenizer).__name__}, {len(tokenizer.vocab):,} tokens")
    print(f"           {sentence}\n           {tokens}")


@command()
def main() -> None:
    parser = argparse.ArgumentParser(description="Say what is in a checkpoint folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--inject", choices=VARIANTS, help="(default: as in config.json)")
    args = parser.parse_args()
    describe(args.folder, args.inject)


if __name__ == "__main__":
    main()
