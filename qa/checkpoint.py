"""What load_weights.py leaves closed: where a checkpoint's weights are, whether its files fit
each other, and what to say of a model, its size in words and its many names in few.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from kformer import KformerConfig, KformerForMultipleChoice
from qa.files import blaming, check_file, read_json
from qa.tokenizer import Tokenizer


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


def check_vocabulary(folder: Path, tokenizer: Tokenizer, config: KformerConfig) -> None:
    """Raises ValueError for a tokenizer whose ids aren't the model's."""
    size, last = len(tokenizer.vocab), tokenizer.vocab[-1]
    if size > config.vocab_size:
        raise ValueError(
            f"{folder}: the vocabulary has {size} tokens, but vocab_size in config.json is "
            f"{config.vocab_size}: take the vocabulary that came with the weights, or, if {last!r} "
            "isn't in it, one that has it"
        )
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"{folder}: {tokenizer.special[0]} has the id {tokenizer.pad_token_id}, but "
            f"pad_token_id in config.json is {config.pad_token_id}: correct the wrong one"
        )


def remarks(content: dict, config: KformerConfig, tokenizer: Tokenizer) -> list[str]:
    """Sentences on what was taken for granted; `content` is that of config.json."""
    said = []
    if "model_type" not in content:
        said.append(f"config.json has no model_type, by its names it is {config.model_type}")
    if spare := config.vocab_size - len(tokenizer.vocab):
        said.append(f"{spare} rows of the embeddings are of no token in the vocabulary")
    dtype = content.get("dtype", content.get("torch_dtype", "float32"))
    if dtype != "float32":
        said.append(f"config.json has dtype {dtype}, but the states are float32 here")
    return said


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


def added_parameters(model: KformerForMultipleChoice) -> int:
    """How many parameters are there for the facts."""
    of_facts = re.compile(r"fact_embeddings\.|.*\.W[kv]\.")
    return sum(p.numel() for name, p in model.named_parameters() if of_facts.match(name))


def in_words(model: KformerForMultipleChoice) -> tuple[str, str]:
    """How large a model is and where facts come in; how many parameters it has."""
    config, added = model.config, added_parameters(model)
    where = f" in layers {' '.join(map(str, config.inject_layers))}" if added else ""
    total = sum(p.numel() for p in model.parameters())
    return (
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, FFN width {config.intermediate_size}; "
        f"injection: {config.inject}{where}",
        f"{total:,} parameters, {added:,} of them for the facts",
    )
