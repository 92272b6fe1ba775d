"""config.json of a checkpoint -> KformerConfig, or one line that says why not."""

import dataclasses
import re
from pathlib import Path

from kformer import KformerConfig
from qa.files import blaming, must_be, open_tensors, read_json

FIELDS = {field.name: field.type for field in dataclasses.fields(KformerConfig)}

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


def load_config(folder: str | Path, **overrides: object) -> KformerConfig:
    """The fields of config.json that KformerConfig knows; `overrides` replace them first of all.

    Raises ValueError for whatever would make another model in transformers than it does here.
    """
    folder = Path(folder)
    check_folder(folder)
    for name, value in overrides.items():
        if name not in FIELDS:
            raise ValueError(f"{name!r} is none of the settings: {', '.join(FIELDS)}")
        check_number(name, value)
    content = read_config(folder) | overrides
    if "model_type" not in content:
        content["model_type"] = guess_model_type(folder, content)
    with blaming(folder / "config.json"):
        return make_config(content)


def make_config(content: dict) -> KformerConfig:
    """What config.json says -> the config. Raises ValueError for what isn't built here."""
    model_type = content["model_type"]
    if model_type not in DEFAULTS:
        raise ValueError(f'model_type is "{model_type}", must be "bert" or "roberta"')
    must_be(content, **BUILT)
    fields = {name: value for name, value in content.items() if name in FIELDS}
    fields = DEFAULTS[model_type] | fields
    for name, value in fields.items():
        check_number(name, value)
    config = KformerConfig(**fields)
    if config.pad_token_id >= config.vocab_size or config.max_tokens < 1:
        raise ValueError(
            f"pad_token_id is {config.pad_token_id}, too much for vocab_size "
            f"{config.vocab_size} or max_position_embeddings {config.max_position_embeddings}"
        )
    return config


def read_config(folder: Path) -> dict:
    """Without what is null: it is as if it weren't there."""
    content = read_json(folder / "config.json")
    return {name: value for name, value in content.items() if value is not None}


def check_folder(folder: Path) -> None:
    """Raises an error that says where a checkpoint is to be had, if it isn't here."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. A model of the Hugging Face Hub that has a "
            f"model.safetensors comes by: hf download NAME --local-dir {folder}"
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{folder}: an adapter (adapter_config.json), which belongs to the weights of another "
            "model: merge the two with merge_and_unload of peft, and save that"
        )
    if not (folder / "config.json").is_file():
        configs = [*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")]
        deeper = [str(path.parent) for path in configs if any(path.parent.glob("*model*"))]
        where = f", but in {' and in '.join(deeper[:3])} there is: open that" if deeper else ""
        raise FileNotFoundError(f"{folder / 'config.json'}: no such file{where}")


def guess_model_type(folder: Path, content: dict) -> str:
    """For a config.json of 2019 or 2020, which doesn't say it: what the classes in it are called,
    or where there are none, the tensors.
    """
    names = re.findall(r"\w+", str(content.get("architectures", "")).lower())
    if not names:
        for path in folder.glob("*.safetensors"):
            with open_tensors(path) as file:
                names += file.keys()
    for model_type in DEFAULTS:
        if any(re.match(rf"{model_type}(\.|model|for|lm)", name) for name in names):
            return model_type
    raise ValueError(
        f'{folder / "config.json"}: "model_type" is missing, must be "bert" or "roberta": write it '
        'there, or load_pretrained(folder, model_type="bert")'
    )


def check_number(name: str, value: object) -> None:
    """Raises ValueError for what isn't a number, or out of range."""
    most = 1000 if name == "num_hidden_layers" else 1_000_000
    least = 0 if name.endswith("token_id") else 1
    if FIELDS[name] is int and (type(value) is not int or not least <= value <= most):
        raise ValueError(f"{name} is {value!r}, must be a whole number from {least} to {most:,}")
    if FIELDS[name] is float and (type(value) not in (int, float) or not 0 <= value < 1):
        raise ValueError(f"{name} is {value!r}, must be at least 0 and below 1")
