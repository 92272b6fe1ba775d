"""A checkpoint folder, opened and written: config.json, weights, tokenizer.

    python load_weights.py FOLDER        says what is in it and how it fits

Files and tensors carry the names that Hugging Face transformers gives them: a BERT or RoBERTa
folder from there opens here to the same ids, hidden states and scores, and what is written here
opens there. No pickle is read or written, so a checkpoint from a stranger can't run code.

Read it from top to bottom: names -> config -> weights -> opening -> saving -> report.
"""

import argparse
import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kformer import KformerConfig, KformerForMultipleChoice
from parts.files import blaming, must_be, open_tensors, read_json, replacing
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

TYPES = {field.name: field.type for field in dataclasses.fields(KformerConfig)}

# What a field that is missing stands for, where BERT and RoBERTa differ.
DEFAULTS = {
    "bert": {"vocab_size": 30522, "pad_token_id": 0},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
}

# Settings that change the hidden states, as this and older versions of transformers read them, and
# the one value that is built here. A setting that is missing has that value too; all others are
# without effect on the states.
BUILT = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
}

# Settings that aren't built here at all, and what to do about them.
QUANTISED = "quantised weights aren't read here, take the ones that they were made from"
REFUSED = {
    "quantization_config": QUANTISED,
    "compression_config": QUANTISED,
    "quantization": QUANTISED,
    "auto_map": "the model needs code of its own, which isn't run here: take another one",
    "per_layer_config": "layers that differ aren't built here: take another model",
    "fusion_config": "fused layers aren't built here: take it out",
    "transformers_weights": "the weights must be in model.safetensors: rename them, take it out",
    "configuration_files": "one config.json is read: put the right one in its place",
}


def load_config(folder: str | Path, **overrides: object) -> KformerConfig:
    """The fields of config.json that KformerConfig knows; `overrides` replace them.

    Raises FileNotFoundError or ValueError with one line for what can't make a model, and for
    whatever would make another one in transformers than it does here.
    """
    folder = Path(folder)
    for name in overrides:
        if name not in TYPES:
            raise ValueError(f"{name}: no setting of that name, there are {', '.join(TYPES)}")
    check_folder(folder)
    path = folder / "config.json"
    content = read_json(path) | overrides
    if content.get("model_type") is None:
        content["model_type"] = guess_model_type(folder, content)[0]
    with blaming(path):
        check_settings(content)
        given = {name: value for name, value in content.items() if name in TYPES}
        for name in ("pad_token_id", "sep_token_id"):
            if given.get(name, 0) is None:  # null is the default, as in transformers
                del given[name]
        fields = DEFAULTS[content["model_type"]] | given
        for name, value in fields.items():
            check_number(name, value)
        return KformerConfig(**fields)


def check_folder(folder: Path) -> None:
    """Raises an error that says where a checkpoint is to be had, if it isn't here."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder. From the Hugging Face Hub, a model that has a "
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
        where = f", but there is one in {' and in '.join(deeper[:3])}: open that" if deeper else ""
        raise FileNotFoundError(f"{folder / 'config.json'}: no such file{where}")


def guess_model_type(folder: Path, content: dict) -> tuple[str, str]:
    """For a config.json of 2019 or 2020, which doesn't say it: "bert" or "roberta", and who does.

    Raises ValueError where nobody does.
    """
    classes, names = str(content.get("architectures") or ""), []
    for path in sorted(folder.glob("*.safetensors")):
        with open_tensors(path) as file:
            names += file.keys()
    for model_type in DEFAULTS:
        if re.search(rf"\b{model_type.capitalize()}(Model|For|LM)", classes):
            return model_type, "architectures"
        if not classes and any(name.startswith(f"{model_type}.") for name in names):
            return model_type, "the names of the tensors"
    raise ValueError(
        f'{folder / "config.json"}: "model_type" is missing, must be "bert" or "roberta": write it '
        'there, or load_pretrained(folder, model_type="bert")'
    )


def check_settings(content: dict) -> None:
    """Raises ValueError for a setting that would make another model in transformers."""
    if content["model_type"] not in DEFAULTS:
        raise ValueError(
            f'model_type is "{content["model_type"]}", must be "bert" or "roberta": take a model '
            "of that kind"
        )
    if content.get("hidden_act") == "gelu_python":
        content = content | {"hidden_act": "gelu"}  # the same function
    must_be(content, **BUILT)
    for name, advice in REFUSED.items():
        if content.get(name):
            raise ValueError(f'"{name}": {advice}')


def check_number(name: str, value: object) -> None:
    """Raises ValueError for what isn't a number, or out of range."""
    most = 1000 if name == "num_hidden_layers" else 1_000_000
    least = 0 if name.endswith("token_id") else 1
    if TYPES[name] is int and (type(value) is not int or not least <= value <= most):
        raise ValueError(f"{name} is {value!r}, must be a whole number from {least} to {most:,}")
    if TYPES[name] is float and (type(value) not in (int, float) or not 0 <= value < 1):
        raise ValueError(f"{name} is {value!r}, must be at least 0 and below 1")


# -------------------------------------------------------------------------------------- weights


@dataclasses.dataclass
class LoadReport:
    """Where the tensors went: parameters by our names, but what is unused by the file's."""

    loaded: list[str]
    unused: list[str]
    new: list[str]  # newly initialised, see `fresh`
    notes: list[str]  # what else a user should know


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
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        raise FileNotFoundError(
            f"{whole}: no such file, and {' + '.join(pickles)} is a pickle, which isn't read here. "
            'To convert it, in that folder: python -c "import glob, torch, safetensors.torch as s; '
            "files = glob.glob('pytorch_model*.bin'); "
            "w = {k: t for f in files for k, t in torch.load(f, weights_only=True).items()}; "
            "s.save_file({k: t.clone().contiguous() for k, t in w.items()}, 'model.safetensors')\""
        )
    raise FileNotFoundError(f"{whole}: no such file")


class Unfilled(TorchFunctionMode):
    """For building modules whose weights come from a file: in-place functions, which would fill
    them with a start, do nothing, and their memory is reserved but never touched.

    torch.device("meta") would do as well, but costs a second: it imports 800 modules.
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
    wanted, tensors, report = model.state_dict(), {}, LoadReport([], [], [], [])
    for path in weight_files(folder):
        with open_tensors(path) as file:
            for theirs in file.keys():
                name = our_name(theirs)
                if name in tensors:
                    raise ValueError(f"{theirs} is there twice, under another prefix or name")
                if name not in wanted or is_other_head(name, file.get_slice(theirs).get_shape()):
                    check_unused(theirs, wanted)
                    report.unused.append(theirs)
                    continue
                tensor = file.get_tensor(theirs)
                check(theirs, tensor, wanted[name].shape, config)
                if name == "classifier.weight":  # a dot product may round in another way where
                    tensor = tensor.clone()  # numbers don't lie at a multiple of 16 bytes
                tensors[name] = tensor.to(wanted[name].dtype)
    report.loaded = [name for name in wanted if name in tensors]
    report.new = [name for name in wanted if name not in tensors]
    check_missing(folder, report, config)
    for name in report.new:
        tensors[name] = fresh(name, wanted[name].shape, tensors, config)
    model.load_state_dict(tensors, assign=True)
    return model.eval(), report


def is_other_head(name: str, shape: list[int]) -> bool:
    """A classifier with more than one output is another task's."""
    return name.startswith("classifier.") and shape[:1] != [1]


def check_unused(theirs: str, wanted: dict[str, Tensor]) -> None:
    """Raises ValueError for a tensor that changes what the weights beside it mean: the scale of
    quantised ones, an adapter's lora_A.
    """
    modules = {name.rpartition(".")[0] for name in wanted} - {"classifier"}
    parts = our_name(theirs).split(".")
    above = {".".join(parts[:i]) for i in range(1, len(parts))}
    if above & modules or re.search(r"lora_|adapter", theirs):
        raise ValueError(
            f"{theirs} isn't built here, and the weights beside it are of no use without it: take "
            "weights that aren't quantised, and into which adapters are merged"
        )


def check(name: str, tensor: Tensor, wanted: torch.Size, config: KformerConfig) -> None:
    """Raises ValueError for other numbers, and for a shape that the config doesn't ask for."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"{name} holds {tensor.dtype}, must hold floating-point numbers of 16 bits or more: "
            "take weights that aren't quantised"
        )
    if tensor.shape != wanted:
        sizes = {k: v for k, v in vars(config).items() if k.endswith(("_size", "_embeddings"))}
        wrong = set(wanted) - set(tensor.shape) or set(wanted)
        asked = ", ".join(f"{k} {v}" for k, v in sizes.items() if v in wrong)
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, but config.json asks for {tuple(wanted)}: "
            f"{asked}"
        )


def check_missing(folder: Path, report: LoadReport, config: KformerConfig) -> None:
    """Raises ValueError for a parameter without which it is another model."""
    for name in report.new:
        if re.search(r"^(fact_embeddings|pooler|classifier)\.|\.W[kv]\.", name) is None:
            theirs = their_name(name, config.model_type)
            there = [other for other in report.unused if other.endswith(f".{theirs}")]
            but = f", but {there[0]} is there: take away what stands in front" if there else ""
            raise ValueError(f"{folder}: {theirs} is missing{but}")


def fresh(
    name: str, shape: torch.Size, loaded: dict[str, Tensor], config: KformerConfig
) -> Tensor:
    """How a parameter starts that the checkpoint lacks.

    The release draws Wk and Wv (`kfc1`, `kfc2`) from N(0, 0.02), as BERT does the head and the
    pooler: then a fact's key has nothing to do with its words, and facts are hardly used. With
    Wk = I the key starts as the fact itself, and with Wv = 0 the ffn starts as the plain encoder,
    exactly, and opens as it learns. Figures are in the README.
    """
    if name == "fact_embeddings.weight":
        return loaded["embeddings.word_embeddings.weight"].clone()
    if name.endswith("bias") or (name.endswith("Wv.weight") and config.inject == "ffn"):
        return torch.zeros(shape)
    return torch.eye(shape[0]) if ".W" in name else 0.02 * torch.randn(shape)


# -------------------------------------------------------------------------------------- opening


def open_folder(
    folder: Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer, LoadReport]:
    """Config, tokenizer and weights, after a look at whether they belong together."""
    config, tokenizer = load_config(folder, **overrides), load_tokenizer(folder)
    check_vocabulary(folder, tokenizer, config)
    check_saved_together(folder, tokenizer)
    config.sep_token_id = tokenizer.sep_token_id
    model, report = load_weights(folder, config)
    content = read_json(folder / "config.json")
    if (content | overrides).get("model_type") is None:
        model_type, who = guess_model_type(folder, content)
        report.notes.append(f"model_type isn't in config.json, but {who} say it is {model_type}")
    if unused := config.vocab_size - 1 - max(tokenizer.ids.values()):
        report.notes.append(f"{unused} embeddings more than the vocabulary has tokens")
    dtype = content.get("dtype") or content.get("torch_dtype") or "float32"
    if dtype != "float32":
        report.notes.append(f"{dtype} in config.json, but here weights and states are float32")
    return model, tokenizer, report


def check_vocabulary(folder: Path, tokenizer: Tokenizer, config: KformerConfig) -> None:
    """Raises ValueError for a tokenizer whose ids aren't the model's."""
    needed = max(tokenizer.ids.values()) + 1
    if needed > config.vocab_size:
        raise ValueError(
            f"{folder}: the vocabulary has {needed} tokens, but vocab_size in config.json is "
            f"{config.vocab_size}: take the vocabulary that came with the weights"
        )
    if tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"{folder}: {tokenizer.special[0]} has the id {tokenizer.pad_token_id}, but "
            f"pad_token_id in config.json is {config.pad_token_id}: correct the wrong one"
        )


def identity(fields: dict, tokenizer: Tokenizer) -> dict:
    """What the shapes of the weights don't show of the config and the vocabulary they belong to."""
    names = ("model_type", "num_attention_heads", "layer_norm_eps", "pad_token_id")
    names += ("inject", "inject_layers", "num_facts")
    vocabulary = json.dumps(sorted(tokenizer.ids.items())).encode("utf-8")
    return {n: fields.get(n) for n in names} | {"vocabulary": sha256(vocabulary).hexdigest()[:16]}


def check_saved_together(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError where somebody was killed while saving over a model of another kind.

    save_pretrained writes the identity into the file of the weights, which is replaced first.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        return
    with open_tensors(path) as file:
        saved = json.loads((file.metadata() or {}).get("kformer", "null"))
    found = identity(read_json(folder / "config.json"), tokenizer)
    for name, value in found.items():
        if saved is not None and saved.get(name) != value:
            raise ValueError(
                f"{path}: saved with {name} {saved.get(name)}, but the files beside it have "
                f"{value}: the folder was saved in part, save it again (or, if you changed it in "
                f"config.json, change it back: load_pretrained(folder, {name}=...) does the same)"
            )


def load_pretrained(
    folder: str | Path, **overrides: object
) -> tuple[KformerForMultipleChoice, Tokenizer]:
    """A BERT or RoBERTa folder -> (model in evaluation mode, tokenizer).

    `overrides` replace config fields: inject="ffn". Prints which tensors were left unused and which
    parameters are newly initialised; `open_folder` hands the lists over.
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
    folder, model = Path(folder), unwrapped(model)
    config = model.config
    tensors = whole_tensors(model)
    check_vocabulary(folder, tokenizer, config)
    kind = config.model_type.capitalize()
    fields = {"architectures": [f"{kind}ForMultipleChoice"], "hidden_act": "gelu"}
    fields |= dataclasses.asdict(config)
    texts = {"config.json": json.dumps(fields, indent=2) + "\n"} | tokenizer.files()
    metadata = {"format": "pt", "kformer": json.dumps(identity(fields, tokenizer))}

    with replacing(folder) as new:
        for name, text in texts.items():
            (new / name).write_bytes(text.encode("utf-8"))
        save_file(tensors, new / "model.safetensors", metadata=metadata)
        shutil.copymode(new / "config.json", new / "model.safetensors")  # not private
    for name in {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"} - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of the tokenizer that was here before


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of torch.compile, DataParallel and DistributedDataParallel."""
    while inner := getattr(model, "_orig_mod", getattr(model, "module", None)):
        model = inner
    return model


def whole_tensors(model: KformerForMultipleChoice) -> dict[str, Tensor]:
    """All parameters by their names in the file, each with memory of its own.

    Raises ValueError where they aren't those that the config asks for.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("_orig_mod.", "")  # of a layer inside of torch.compile
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    with Unfilled():
        wanted = KformerForMultipleChoice(model.config).state_dict()
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in wanted.items()}:
        raise ValueError("the parameters aren't those of a KformerForMultipleChoice of its config")
    return {their_name(name, model.config.model_type): t for name, t in tensors.items()}


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
    for note in report.notes:
        print(f"note       {note}")
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
