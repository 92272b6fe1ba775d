"""A checkpoint folder, opened and written."""

import itertools
import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import load_weights
from kformer import (
    Kformer,
)
from load_weights import (
    grouped,
    load_pretrained,
    load_tokenizer,
    open_folder,
    save_pretrained,
)
from parts.tokenizer import WordPiece
from test_kformer import KINDS, REFERENCE, N, biggest_change, padded_batch, tiny
from tests.common import change_json, change_tensors, tiny_tokenizer
from tests.test_tokenizer import same_ids_as_transformers, whole_tokenizer


def hidden_states(model: Kformer, *inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    """What comes out of the embeddings and of each layer, and the scores."""
    states, modules = [], [model.embeddings, *model.encoder.layer]
    hooks = [m.register_forward_hook(lambda _, __, out: states.append(out)) for m in modules]
    with torch.no_grad():
        scores = model(*inputs)
    for hook in hooks:
        hook.remove()
    return states, scores


def same_as_transformers(folder: Path, tolerance: float = 2e-5) -> None:
    """Asserts that hidden states and scores are those of expected.safetensors, layer by layer."""
    expected = load_file(folder / "expected.safetensors")
    inputs = [expected.get(n) for n in ("input_ids", "attention_mask", "token_type_ids")]
    states, scores = hidden_states(load_pretrained(folder)[0], *inputs)
    for i, state in enumerate(states):
        where = f"layer {i - 1}" if i else "the embeddings"
        change = biggest_change(state, expected[f"hidden.{i}"])
        assert change < tolerance, f"first to differ: {where}, by {change:.1e}"
    change = biggest_change(scores, expected["scores"])
    assert change < tolerance, f"hidden states agree, but the scores differ by {change:.1e}"


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_scores_are_those_of_transformers(kind: str) -> None:
    assert not load_file(REFERENCE / kind / "expected.safetensors")["attention_mask"].all()
    same_as_transformers(REFERENCE / kind)


def test_the_first_layer_to_differ_is_named(folder: Path) -> None:
    change_tensors(folder, lambda n, t: {n: t.sin() if "layer.1.output.dense.bias" in n else t})
    with pytest.raises(AssertionError, match="first to differ: layer 1, by"):
        same_as_transformers(folder)


LAYOUTS = {
    "no prefix": lambda name, t: {re.sub(r"^(bert|roberta)\.", "", name): t},
    "the other prefix": lambda name, t: {re.sub(r"^bert\.", "roberta.", name): t},
    "gamma and beta": lambda name, t: {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
    },
    "extras": lambda name, t: {
        name: t,
        "bert.embeddings.position_ids": torch.arange(40).unsqueeze(0),
        "cls.predictions.transform.LayerNorm.gamma": torch.zeros(16),
        "bert.encoder.layer.0.gamma": torch.zeros(1),
        "classifier.dense.weight": torch.zeros(16, 16),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(layout: str, folder: Path) -> None:
    change_tensors(folder, LAYOUTS[layout])
    same_as_transformers(folder)


def test_shards_are_put_together(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    shards = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    places = {name: shards[i % 2] for i, name in enumerate(tensors)}
    for shard in shards:
        save_file({n: t for n, t in tensors.items() if places[n] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    same_as_transformers(folder)
    (folder / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"the shard '{shards[1]}' is missing"):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_load_as_float32(dtype: torch.dtype, folder: Path) -> None:
    plain = load_pretrained(folder)[0].state_dict()
    change_tensors(folder, lambda name, tensor: {name: tensor.to(dtype)})
    for name, tensor in load_pretrained(folder)[0].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, plain[name].to(dtype).float()), name


def test_every_tensor_is_in_one_of_three_lists(folder: Path) -> None:
    """A folder with extras, without a pooler, and with a head for three classes."""
    change_tensors(folder, LAYOUTS["extras"])
    change_tensors(folder, lambda n, t: {} if "pooler" in n else {n: t})
    three = {"classifier.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)}
    change_tensors(folder, lambda n, t: {n: three.get(n, t)})
    model, tokenizer, report = open_folder(folder, inject="ffn", inject_layers=(0, 2))
    assert model.config.sep_token_id == tokenizer.sep_token_id
    modules = ["encoder.layer.0.Wk", "encoder.layer.0.Wv", "encoder.layer.2.Wk"]
    modules += ["encoder.layer.2.Wv", "pooler", "classifier"]
    new = {f"{module}.{parameter}" for module in modules for parameter in ("weight", "bias")}
    assert set(report.new) == new | {"fact_embeddings.weight"}
    assert sorted(report.loaded + report.new) == sorted(model.state_dict())
    assert set(report.unused) == {
        "bert.embeddings.position_ids", "cls.predictions.transform.LayerNorm.gamma",
        "bert.encoder.layer.0.gamma", "classifier.dense.weight", *three,
    }  # fmt: skip


def test_long_lists_are_grouped_by_layer() -> None:
    names = [f"encoder.layer.{i}.ffn.W1.{p}" for i in (0, 1, 10, 2) for p in ("weight", "bias")]
    assert grouped(names) == ["encoder.layer.0,1,2,10.ffn.W1.bias/weight"]
    names = [f"encoder.layer.{i}.Wk.bias" for i in (3, 4, 5)]
    assert grouped([*names, "pooler.bias"]) == ["encoder.layer.3-5.Wk.bias", "pooler.bias"]


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_facts_injected_into_a_checkpoint_start_from_its_words(inject: str, folder: Path) -> None:
    plain, model = load_pretrained(folder)[0], load_pretrained(folder, inject=inject)[0]
    assert torch.equal(model.fact_embeddings.weight, plain.embeddings.word_embeddings.weight)
    assert model.fact_embeddings.weight is not model.embeddings.word_embeddings.weight
    facts = torch.randn(N, 16)
    assert torch.equal(model.encoder.layer[2].Wk(facts), facts), "a key starts as the fact itself"


@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_what_is_saved_is_loaded_bit_for_bit(inject: str, tmp_path: Path) -> None:
    model, tokenizer, (questions, facts) = tiny(inject).float(), tiny_tokenizer(), padded_batch()
    save_pretrained(model, tokenizer, tmp_path)
    loaded, again = load_pretrained(tmp_path)
    assert loaded.config == model.config
    assert again.vocab == tokenizer.vocab
    assert torch.equal(loaded(questions, fact_ids=facts), model(questions, fact_ids=facts))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip


def test_a_saved_folder_is_the_one_it_was(folder: Path, tmp_path: Path) -> None:
    """Scores and ids as transformers has them, after going through our own files."""
    save_pretrained(*load_pretrained(folder), tmp_path / "saved")
    for name in ("expected.safetensors", "texts.jsonl"):
        shutil.copy(folder / name, tmp_path / "saved")
    same_as_transformers(tmp_path / "saved")
    same_ids_as_transformers(tmp_path / "saved")


def test_who_may_read_the_config_may_read_the_weights(tmp_path: Path) -> None:
    save_pretrained(tiny("none"), tiny_tokenizer(), tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_saving_over_another_folder_leaves_nothing_of_its_tokenizer(tmp_path: Path) -> None:
    for kind in KINDS:
        shutil.copytree(REFERENCE / kind, tmp_path / kind)
    save_pretrained(*load_pretrained(tmp_path / "bert"), tmp_path / "roberta")
    assert load_pretrained(tmp_path / "roberta")[1].vocab == load_tokenizer(tmp_path / "bert").vocab


@pytest.mark.parametrize("failing", [1, 2, 3, 4, "save_file"])
def test_a_crash_while_writing_leaves_the_folder_readable(
    failing: int | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new state of the same model is written over the old one, and something fails."""
    old, new, tokenizer = tiny("ffn").float(), tiny("ffn").float(), tiny_tokenizer()
    new.classifier.bias.data += 1
    save_pretrained(old, tokenizer, tmp_path)
    calls, replace_file = itertools.count(1), os.replace

    def crash(*arguments: object, **_: object) -> None:
        if failing == "save_file":
            raise SafetensorError("disk full")
        if failing == next(calls):
            raise OSError("disk full")
        replace_file(*arguments)

    place = "load_weights.save_file" if failing == "save_file" else "os.replace"
    monkeypatch.setattr(place, crash)
    (tmp_path / ".kformer-writing-a1b2c3d4").mkdir()  # of one who was killed
    with pytest.raises(OSError, match=f"{tmp_path}: can't be written .*disk full"):
        save_pretrained(new, tokenizer, tmp_path)
    bias = load_pretrained(tmp_path)[0].classifier.bias
    assert torch.equal(bias, (old if failing in (1, "save_file") else new).classifier.bias)
    assert len(list(tmp_path.iterdir())) == 4, "what was half written is gone"


def test_tensors_have_the_names_of_transformers(tmp_path: Path) -> None:
    """So that BertForMultipleChoice opens what is written here, and the other way round."""
    model = tiny("none", num_hidden_layers=1, inject_layers=(0,)).float()
    save_pretrained(model, tiny_tokenizer(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    block = model.encoder.layer[0]
    expected = {
        "bert.embeddings.word_embeddings": model.embeddings.word_embeddings,
        "bert.embeddings.position_embeddings": model.embeddings.position_embeddings,
        "bert.embeddings.token_type_embeddings": model.embeddings.token_type_embeddings,
        "bert.embeddings.LayerNorm": model.embeddings.norm,
        "bert.encoder.layer.0.attention.self.query": block.attention.query,
        "bert.encoder.layer.0.attention.self.key": block.attention.key,
        "bert.encoder.layer.0.attention.self.value": block.attention.value,
        "bert.encoder.layer.0.attention.output.dense": block.attention.output,
        "bert.encoder.layer.0.attention.output.LayerNorm": block.attention_norm,
        "bert.encoder.layer.0.intermediate.dense": block.ffn.W1,
        "bert.encoder.layer.0.output.dense": block.ffn.W2,
        "bert.encoder.layer.0.output.LayerNorm": block.ffn_norm,
        "bert.pooler.dense": model.pooler,
        "classifier": model.classifier,
    }
    assert {name.rsplit(".", 1)[0] for name in tensors} == set(expected)
    for name, module in expected.items():
        for parameter, value in module.named_parameters():
            assert torch.equal(tensors[f"{name}.{parameter}"], value), name


def tokenizer_of_kind(folder: Path) -> None:
    model = {"type": "Unigram", "vocab": [["a", -1.0]]}
    content = {"model": model, "normalizer": None, "pre_tokenizer": {"type": "Metaspace"}}
    (folder / "tokenizer.json").write_text(json.dumps(content | {"added_tokens": []}))


def with_a_gap(tokenizer: WordPiece) -> dict:
    del tokenizer.ids["w7"]
    return whole_tokenizer(tokenizer)


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def change_bert(**fields: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **fields)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda n, t: {} if n == name else {n: t})


BAD_FOLDERS = {
    "bert: no such folder": lambda f: shutil.rmtree(f),
    "config.json: no such file": lambda f: (f / "config.json").unlink(),
    "config.json: not JSON": lambda f: (f / "config.json").write_text("{"),
    "config.json: must be a JSON object": lambda f: (f / "config.json").write_text("[]"),
    "config.json: not UTF-8": lambda f: (f / "config.json").write_bytes(b"\xff"),
    'config.json: model_type is "gpt2", must be "bert" or "r': change_bert(model_type="gpt2"),
    'config.json: model_type is "a b", must be': change_bert(model_type="a\nb"),
    'config.json: "hidden_act" is \'relu\', only \'gelu\' is known': change_bert(hidden_act="relu"),
    "config.json: hidden_size is '16', must be a whole number": change_bert(hidden_size="16"),
    "config.json: hidden_size 16 can't be divided among num_attention_heads 3": change_bert(
        num_attention_heads=3
    ),
    "config.json: num_hidden_layers is 10000, must be": change_bert(num_hidden_layers=10000),
    "config.json: hidden_dropout_prob is 2, must be at least 0": change_bert(hidden_dropout_prob=2),
    "config.json: inject_layers ('n', 'o') must lie between": change_bert(inject_layers="no"),
    "model.safetensors: no such file": lambda f: (f / "model.safetensors").unlink(),
    "pytorch_model.bin is a pickle, which isn't read here. To convert it": only_a_pickle,
    "model.safetensors: not a whole safetensors file": lambda f: cut(f / "model.safetensors"),
    "model.safetensors: not a whole": lambda f: (f / "model.safetensors").write_bytes(b""),
    "bert: bert.encoder.layer.2.attention.self.key.bias is missing": without(
        "bert.encoder.layer.2.attention.self.key.bias"
    ),
    "bert: bert.encoder.layer.3.attention.self.query.weight is missing": change_bert(
        num_hidden_layers=4
    ),
    "bert.encoder.layer.0.intermediate.dense.bias has shape (24,), but config.json asks for (25,): "
    "intermediate_size 25": change_bert(intermediate_size=25),
    "position_embeddings.weight has shape (40, 16), but config.json asks for (41, 16): "
    "max_position_embeddings 41": change_bert(max_position_embeddings=41),
    "holds torch.int64, must hold floating-point numbers": lambda f: change_tensors(
        f, lambda n, t: {n: t.long()}
    ),
    "is there twice": lambda f: change_tensors(f, lambda n, t: {n: t, n[5:]: t.clone()}),
    "bert: no tokenizer.json, vocab.txt or vocab.json": lambda f: (f / "vocab.txt").unlink(),
    "vocab.txt: the token [PAD] is missing": lambda f: (f / "vocab.txt").write_text("a\nb\n"),
    "the vocabulary has 96 tokens, but vocab_size in config.json is 95": lambda f: (
        (f / "vocab.txt").open("a").write("more\n")
    ),
    "[PAD] has the id 0, but pad_token_id in config.json is 1": change_bert(pad_token_id=1),
    "tokenizer.json: a tokenizer of the kind Unigram + Metaspace; read are": tokenizer_of_kind,
    "tokenizer.json: the ids of the tokens must be 0, 1, 2, ... without gaps": lambda f: (
        (f / "tokenizer.json").write_text(json.dumps(with_a_gap(tiny_tokenizer())))
    ),
    "tokenizer.json: not as transformers writes it (KeyError('model'))": lambda f: (
        (f / "tokenizer.json").write_text("{}")
    ),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_a_broken_folder_gets_one_line(message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE / "bert", tmp_path / "bert"))
    BAD_FOLDERS[message](folder)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as error:
        load_pretrained(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_flipped_bytes_give_a_model_or_one_line(folder: Path) -> None:
    """400 times a byte or two of a random file; half of the flips hit the first 4,000 bytes."""
    rng, refused = random.Random(0), []
    files = sorted(p for p in folder.iterdir() if "expected" not in p.name and p.suffix != ".jsonl")
    for _ in range(400):
        path = rng.choice(files)
        whole = path.read_bytes()
        flipped, end = bytearray(whole), rng.choice((4000, len(whole)))
        for _ in range(rng.randint(1, 2)):
            flipped[rng.randrange(min(end, len(whole)))] = rng.randrange(256)
        path.write_bytes(flipped)
        try:
            model, tokenizer = load_pretrained(folder)
            model(torch.tensor([[tokenizer.encode("the owl's nest")]]))
        except ValueError as error:
            refused.append(str(error))
        path.write_bytes(whole)
    assert 40 < len(refused) < 360, "of use only if some flips are noticed and some are harmless"
    for message in refused:
        assert message.startswith(str(folder))
        assert len(message.splitlines()) == 1, message


def test_the_report_says_what_is_in_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["load_weights.py", str(folder), "--inject", "ffn"])
    load_weights.main()
    said = capsys.readouterr().out
    for part in (
        f"{folder.name}, injection ffn: 3 layers, hidden size 16",
        "loaded     57\n",
        "unused     0\n",
        "new        9\n             encoder.layer.1,2.Wk.bias/weight\n",
    ):
        assert part in said
    (folder / "config.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        load_weights.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: {folder / 'config.json'}: no such file\n"


@pytest.fixture
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="the references above hold without it")


RANDOM_SHAPES = [
    {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 7},
    {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 96},
]


@pytest.mark.parametrize("shape", RANDOM_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_random_models_agree_both_ways(
    kind: str, shape: dict, transformers: ModuleType, tmp_path: Path
) -> None:
    """What transformers writes opens here, what is written here opens there; the same scores."""
    shutil.copytree(REFERENCE / kind, tmp_path / "theirs")
    name, size = kind.capitalize(), load_tokenizer(REFERENCE / kind)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(size.vocab), initializer_range=0.2, max_position_embeddings=40, **shape
    )
    theirs = getattr(transformers, f"{name}ForMultipleChoice")(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours, tokenizer = load_pretrained(tmp_path / "theirs")
    save_pretrained(ours, tokenizer, tmp_path / "ours")
    reopened = type(theirs).from_pretrained(tmp_path / "ours").eval()
    ids = torch.randint(5, len(tokenizer.vocab), (3, 2, 9))
    ids[0, 1, 4:] = ids[2, 0, 7:] = tokenizer.pad_token_id
    inputs = {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}
    with torch.no_grad():
        scores = theirs(**inputs).logits
        assert biggest_change(ours(**inputs), scores) < 2e-5
        assert biggest_change(reopened(**inputs).logits, scores) < 1e-6  # rounding alone
    opened = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for line in (REFERENCE / kind / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        text, expected = json.loads(line).values()
        assert opened.encode(text, add_special_tokens=False) == expected, text
