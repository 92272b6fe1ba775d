"""A checkpoint folder, opened and written."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import load_weights
import train
from kformer import Kformer, KformerForMultipleChoice
from lab import predict
from load_weights import load_config, load_pretrained, load_tokenizer, open_folder, save_pretrained
from qa.batches import Answerer
from qa.questions import Question
from qa.tokenizer import WordPiece
from test_kformer import biggest_change, tiny
from tests.common import (
    KINDS,
    REFERENCE,
    change_json,
    change_tensors,
    ids,
    run_command,
    tiny_tokenizer,
)

EXPECTED = "expected.safetensors"  # what transformers makes of a reference folder
INDEX = "model.safetensors.index.json"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir()}


# ------------------------------------------------------------------ opened as transformers does it


def same_as_transformers(folder: Path, **overrides: object) -> None:
    """Asserts that what comes out of the embeddings (hidden.0) and of each layer, and the scores
    are those of expected.safetensors, but for the rounding of sums in another order.
    """
    model, expected = load_pretrained(folder, **overrides)[0], load_file(folder / EXPECTED)
    inputs = [expected.get(n) for n in ("input_ids", "attention_mask", "token_type_ids")]
    assert not inputs[1].all(), "there is padding"
    found = {}
    for i, module in enumerate([model.embeddings, *model.encoder.layer]):
        module.register_forward_hook(lambda _, __, out, i=i: found.update({f"hidden.{i}": out}))
    found["scores"] = model(*inputs)
    for name, states in found.items():
        change = biggest_change(states, expected[name])
        assert change < 2e-5, f"first to differ: {name}, by {change:.1e}"


LAYOUTS = {
    "as it came": lambda name, t: {name: t},
    "no prefix": lambda name, t: {re.sub(r"^(bert|roberta)\.", "", name): t},
    "DataParallel, the other prefix": lambda n, t: {f"module.{re.sub('^bert', 'roberta', n)}": t},
    "gamma, beta": lambda n, t: {n.replace("m.weight", "m.gamma").replace("m.bias", "m.beta"): t},
    "extras": lambda name, t: {
        name: t,
        "bert.embeddings.position_ids": torch.arange(40).unsqueeze(0),
        "bert.encoder.layer.0.gamma": torch.zeros(1),
        "classifier.dense.weight": torch.zeros(16, 16),
        "cls.predictions.transform.LayerNorm.gamma": torch.zeros(16),
    },
}
extras = LAYOUTS["extras"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_model_of_transformers(layout: str, folder: Path) -> None:
    change_tensors(folder, LAYOUTS[layout])
    same_as_transformers(folder)


def test_shards_are_put_together(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    shards = [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    places = {name: shards[i % 2] for i, name in enumerate(tensors)}
    for shard in shards:
        save_file({n: t for n, t in tensors.items() if places[n] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    same_as_transformers(folder)
    (folder / shards[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{shards[1]}: no such file"):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_load_as_float32_and_are_said(dtype: torch.dtype, folder: Path) -> None:
    plain, _, report = open_folder(folder)
    assert report.notes == []
    change_tensors(folder, lambda name, tensor: {name: tensor.to(dtype)})
    model, _, report = open_folder(folder)
    assert report.notes == [f"weights in {str(dtype)[6:]} become float32"]
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.to(dtype).float()), name


def test_the_default_is_the_one_of_the_architecture(folder: Path) -> None:
    whole, names = load_config(folder), "pad_token_id layer_norm_eps is_decoder pruned_heads"
    change_json(folder / "config.json", **dict.fromkeys(names.split()))
    same_as_transformers(folder)
    assert load_config(folder) == whole
    change_json(folder / "config.json", vocab_size=None)
    assert load_config(folder).vocab_size == {"bert": 30522, "roberta": 50265}[folder.name]


def test_overrides_come_before_checks(folder: Path) -> None:
    wrong = {"model_type": "gpt2", "pad_token_id": -1, "hidden_dropout_prob": 2, "inject": "?"}
    right = {"model_type": folder.name, "pad_token_id": load_config(folder).pad_token_id}
    change_json(folder / "config.json", **wrong)
    config = load_pretrained(folder, **right, hidden_dropout_prob=0.3, inject="ffn")[0].config
    assert (config.hidden_dropout_prob, config.inject) == (0.3, "ffn")
    with pytest.raises(ValueError, match=r"^'foo' is none of the settings: "):
        load_pretrained(folder, foo=1)


def test_rows_of_the_embeddings_that_are_of_no_token_are_said(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    change_json(folder / "config.json", vocab_size=load_config(folder).vocab_size + 3)
    change_tensors(folder, lambda n, t: {n: torch.cat([t, t[:3]]) if "word_emb" in n else t})
    same_as_transformers(folder)
    note = f"{folder}: 3 rows of the embeddings are of no token in the vocabulary\n"
    assert capsys.readouterr().out == note


def test_every_tensor_is_in_one_of_three_lists(folder: Path) -> None:
    """A folder with extras, without a pooler, with a head for three classes, for two layers."""
    three = {"classifier.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)}
    change_tensors(folder, lambda n, t: {} if "pooler" in n else extras(n, three.get(n, t)))
    torch.manual_seed(0)
    model, tokenizer, report = open_folder(folder, inject="ffn", inject_layers=(0, 2))
    assert model.config.sep_token_id == tokenizer.sep_token_id
    names = [*model.state_dict()]
    new = [name for name in names if re.match(r".*\.W[kv]\.|pooler|classifier|fact_emb", name)]
    assert len(new) == 2 * 2 * 2 + 5
    assert report.new == new
    assert sorted(report.loaded + new) == sorted(names)
    assert {*report.unused} == {*extras("", None), *three} - {""}
    assert not model.pooler.bias.any()
    assert 0 < model.pooler.weight.abs().max() < 0.1, "five standard deviations of BERT's start"


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells")
def test_no_file_stays_mapped(folder: Path) -> None:
    """On Windows it couldn't be replaced, and saved is often into the folder that was opened."""
    opened = load_pretrained(folder)
    assert str(folder) not in Path("/proc/self/maps").read_text(), opened


def test_the_program_says_what_is_in_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    change_tensors(folder, lambda n, t: extras(n, t.half() if "classifier" in n else t))
    run_command(monkeypatch, load_weights, folder, "--inject", "ffn")
    said = capsys.readouterr().out
    for part in (
        f"model      {folder.name}, up to ",
        "  3 layers, hidden size 16, 4 heads, FFN width 24\n", "  injection: ffn in layers 0 1 2; ",
        f"parameters, {16 * load_config(folder).vocab_size + 6 * (16 * 16 + 16):,} of them for the",
        " tensors are loaded\n           weights in float16 become float32\n           unused: "
        "bert.embeddings.position_ids, bert.encoder.layer.*.gamma, classifier.dense, cls.predict",
        "\n           newly initialised: encoder.layer.*.Wk, encoder.layer.*.Wv, fact_embeddings\n",
    ):  # fmt: skip
        assert part in said


# ------------------------------------------------------------------------- saved, and opened again


def compiled(model: KformerForMultipleChoice) -> nn.Module:
    model.encoder.layer[1] = torch.compile(model.encoder.layer[1])
    return nn.DataParallel(torch.compile(model))


def tied_and_transposed(model: KformerForMultipleChoice) -> nn.Module:
    model.fact_embeddings.weight = model.embeddings.word_embeddings.weight
    for parameter in model.parameters():
        parameter.data = parameter.data.mT.contiguous().mT if parameter.dim() > 1 else parameter
    return model


@pytest.mark.parametrize(("inject", "change"), [
    *((inject, nn.Module.eval) for inject in ("none", "concat", "attention", "ffn")),
    ("ffn", compiled), ("ffn", tied_and_transposed),
])  # fmt: skip
def test_what_is_saved_is_loaded_bit_for_bit(inject: str, change: Callable, tmp_path: Path) -> None:
    model, tokenizer = tiny(inject).float(), tiny_tokenizer()
    outer = change(model)
    expected = {name.replace("_orig_mod.", ""): t for name, t in model.state_dict().items()}
    save_pretrained(outer, tokenizer, tmp_path)
    loaded, again = load_pretrained(tmp_path)
    assert (loaded.config, again.vocab) == (model.config, tokenizer.vocab)
    found = loaded.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in found)
    assert len([*tmp_path.iterdir()]) == 4


def test_a_saved_folder_is_the_one_that_transformers_wrote(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    save_pretrained(*load_pretrained(folder), saved)
    found, wanted = (load_file(f / "model.safetensors") for f in (saved, folder))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    shutil.copy(folder / EXPECTED, saved)
    same_as_transformers(saved)


def new_words(folder: Path) -> None:
    """Two that were added later, out of the order of their names."""
    size = len(load_tokenizer(folder).vocab)
    new, rows = {"zebra": size, "<a>": size + 1}, [*range(size), 7, 8]
    name = "added_tokens.json"  # "normalized", as is usual
    if folder.name == "bert":
        added = {i: {"content": word, "normalized": False} for word, i in new.items()}
        name, new = "tokenizer_config.json", {"added_tokens_decoder": added}
    (folder / name).write_text(json.dumps(new))
    change_tensors(folder, lambda n, t: {n: t[rows] if "word_embeddings" in n else t})
    change_json(folder / "config.json", vocab_size=load_config(folder).vocab_size + 2)


def new_order(folder: Path) -> None:
    names = ("tokenizer.json", "<pad>", "</s>", 2), ("vocab.txt", "[PAD]", "[SEP]", 3)
    name, pad, sep, sep_id = names[folder.name == "bert"]
    text = (folder / name).read_text(encoding="utf-8")
    text = text.replace(pad, "\0").replace(sep, pad).replace("\0", sep)
    (folder / name).write_text(text, encoding="utf-8")
    change_json(folder / "config.json", pad_token_id=sep_id)


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_padding_in_a_text_is_a_token_as_any_other(kind: str) -> None:
    """As in transformers, whose tokenizers mask only the padding that they add."""
    answerer = Answerer(*load_pretrained(REFERENCE / kind), "float32")
    pad = answerer.tokenizer.settings["pad_token"]
    question = Question("", f"owls {pad} mice", ["owls", f"{pad} {pad} mice"], 0, [[]])
    [q] = answerer.encode([question])
    found = answerer.scores([q, ids(*[7] * 2, length=30)])[0, :2]
    for row, segments, score in zip(q.input_ids, q.token_type_ids, found, strict=True):
        row, segments = torch.tensor([[row]]), torch.tensor([[segments]])
        alone = answerer.model(row, torch.ones_like(row), segments)
        assert abs(score - alone) < 1e-6, "float32"


@pytest.mark.parametrize("change", [lambda _: None, new_order, new_words])
def test_every_folder_that_opens_can_be_saved_and_opened_again(
    change: Callable, folder: Path, small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so can a run that is trained from it, by the commands that open runs."""
    change(folder)
    saved, run, answers = (folder.parent / name for name in ("saved", "run", "answers.jsonl"))
    model, tokenizer = load_pretrained(folder, inject="ffn")
    save_pretrained(model, tokenizer, saved)
    again, same_tokenizer = load_pretrained(saved)
    texts = ["The owl's naïve nest, 犬.", "a zebra<a> <mask>[MASK]"]
    ids = [*map(tokenizer.encode, texts)]
    assert ([*map(same_tokenizer.encode, texts)], same_tokenizer.vocab) == (ids, tokenizer.vocab)
    inputs = torch.randint(5, 60, (1, 2, 9), generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(inputs, fact_ids=inputs), model(inputs, fact_ids=inputs))
    run_command(monkeypatch, train, "--inject", "ffn", "--checkpoint", folder, "--data",
                small_world, "--steps", 1, "--out", run)  # fmt: skip
    run_command(monkeypatch, predict, run, "--out", answers)
    assert len(answers.read_text().splitlines()) == 40
    assert [*map(load_tokenizer(run).encode, texts)] == ids


def test_saving_where_another_vocabulary_would_be_read_is_refused(tmp_path: Path) -> None:
    bert, roberta = (Path(shutil.copytree(REFERENCE / kind, tmp_path / kind)) for kind in KINDS)
    save_pretrained(*load_pretrained(bert), bert)
    for saved, folder, name in ((bert, roberta, "tokenizer.json"), (roberta, bert, "vocab.txt")):
        before = contents(folder)
        with pytest.raises(ValueError, match=f"{name} would be read in the place of .*: name"):
            save_pretrained(*load_pretrained(saved), folder)
        assert contents(folder) == before


def test_what_could_not_be_opened_again_is_not_saved(tmp_path: Path) -> None:
    model, tokenizer = tiny("ffn"), tiny_tokenizer()
    save_pretrained(model, tokenizer, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="the vocabulary has 51 tokens"):
        save_pretrained(model, WordPiece([*tokenizer.vocab, "more"]), tmp_path)
    for name, value in (("num_facts", 0), ("layer_norm_eps", 2.0), ("model_type", "gpt")):
        model.config = replace(tiny("ffn").config)
        setattr(model.config, name, value)
        with pytest.raises(ValueError, match=name):
            save_pretrained(model, tokenizer, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("failing", "error"), [
    ("os.replace", OSError),
    ("load_weights.save_file", SafetensorError),
])  # fmt: skip
def test_a_crash_before_the_weights_are_in_place_leaves_the_old_ones(
    failing: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny("ffn").float(), tiny_tokenizer()
    save_pretrained(model, tokenizer, tmp_path)
    model.classifier.bias.data += 1
    before = contents(tmp_path)

    def crash(*arguments: object, **_: object) -> None:
        assert failing != "os.replace" or len(load_file(arguments[0])) == len(model.state_dict())
        raise error("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(failing, crash)
        with pytest.raises(OSError, match=r"can't be written .*disk full"):
            save_pretrained(model, tokenizer, tmp_path)
    assert contents(tmp_path).items() >= before.items()
    save_pretrained(model, tokenizer, tmp_path)
    assert contents(tmp_path).keys() == before.keys(), "what the crash left is gone"
    assert torch.equal(load_pretrained(tmp_path)[0].classifier.bias, model.classifier.bias)


# ------------------------------------------------------------------------------ what doesn't open


def config(**fields: object) -> Callable:
    return lambda folder: change_json(folder / "config.json", **fields)


def write(name: str, content: bytes) -> Callable:
    return lambda folder: (folder / name).write_bytes(content)


def no_weights_but(*names: str, content: bytes = b"") -> Callable:
    """These files in the place of model.safetensors."""
    return lambda f: [(f / "model.safetensors").unlink(), *(write(n, content)(f) for n in names)]


def tensor(
    name: str, dtype: torch.dtype = torch.float32, shape: tuple = (16, 16), fill: float = 1.0
) -> Callable:
    new = {name: torch.full(shape, fill, dtype=torch.float64).to(dtype)}
    return lambda folder: change_tensors(folder, lambda n, t: {n: t} | new)


def deeper(place: str) -> Callable:
    return lambda folder: [
        os.renames(folder / "config.json", folder / "1_Pooling" / "config.json"),
        shutil.copytree(REFERENCE / "bert", folder / place),
    ]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"
PICKLES = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
QUERY = "bert.encoder.layer.1.attention.self.query"
SETTINGS = "hidden_act position_embedding_type pruned_heads is_decoder is_encoder_decoder auto_map "
SETTINGS += "add_cross_attention per_layer_config fusion_config quantization_config quantization "
SETTINGS += "compression_config transformers_weights configuration_files"
BAD_FOLDERS = {  # one for each kind of line, and for each setting that isn't built
    "bert: no such folder. A model of the Hugging Face Hub that has a model.s": shutil.rmtree,
    "config.json: no such file": lambda f: (f / "config.json").unlink(),
    "bert/snapshots/4d7a there is: open that": deeper("snapshots/4d7a"),
    "bert/0_Transformer there is: open that": deeper("0_Transformer"),
    "bert: an adapter (adapter_config.json)": write("adapter_config.json", b"{}"),
    "config.json: not JSON (Expecting value at 'nope}')": write("config.json", b'{"a": nope}'),
    'config.json: "model_type" is \'a\\nb\', must be "bert" or "r': config(model_type="a\nb"),
    **{f"config.json: \"{name}\" is 'x', ": config(**{name: "x"}) for name in SETTINGS.split()},
    "config.json: hidden_size is True, must be a whole number": config(hidden_size=True),
    "config.json: pad_token_id is -1, must be a whole number from 0": config(pad_token_id=-1),
    "config.json: num_hidden_layers is 1001, must be": config(num_hidden_layers=1001),
    "layer_norm_eps is nan, must be at least 0 and below 1": config(layer_norm_eps=torch.nan),
    "pad_token_id is 95, too much for vocab_size 95 or max": config(pad_token_id=95),
    "16 can't be divided among num_attention_heads 3": config(num_attention_heads=3),
    "config.json: inject_layers is 2, must be numbers from 0 to 2": config(inject_layers=2),
    "model.safetensors: no such file, but tf_model.h5: transformers": no_weights_but("tf_model.h5"),
    f"{' + '.join(PICKLES)} is a pickle, which isn't read here.": no_weights_but(*PICKLES),
    f"{PICKLES[0]}: a pointer of Git LFS": no_weights_but(*PICKLES, content=POINTER),
    f"{INDEX}: unreadable (KeyError('weight_map'))": no_weights_but(INDEX, content=b"{}"),
    "model.safetensors: a pointer of Git LFS": write("model.safetensors", POINTER),
    "model.safetensors: not a whole safetensors": write("model.safetensors", b"cut off"),
    "query.weight is there twice, under another prefix": tensor(f"roberta{QUERY[4:]}.weight"),
    f"module.{QUERY}.S B isn't built here: take weights": tensor(f"module.{QUERY}.S\nB"),
    "base_model.lora_A isn't built here": tensor("base_model.lora_A"),
    "holds torch.float8_e4m3fn, must hold": tensor(f"{QUERY}.weight", torch.float8_e4m3fn),
    "(24,), but config.json asks for (25,): intermediate_size 25": config(intermediate_size=25),
    f"{QUERY}.weight has a nan or an infinite number": tensor(f"{QUERY}.weight", fill=torch.nan),
    f"{QUERY}.bias has a nan or an inf": tensor(f"{QUERY}.bias", torch.float64, (16,), fill=1e39),
    "bert: bert.encoder.layer.3.attention.self.query.weight is": config(num_hidden_layers=4),
    "bert: no tokenizer.json, vocab.txt or vocab.json": lambda f: (f / "vocab.txt").unlink(),
    "the vocabulary has 95 tokens, but vocab_size in config.json is 94": config(vocab_size=94),
    "[PAD] has the id 0, but pad_token_id in config.json is 1": config(pad_token_id=1),
    "tokenizer.json: unreadable (KeyError('model'))": write("tokenizer.json", b"{}"),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_a_broken_folder_gets_one_line(message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REFERENCE / "bert", tmp_path / "bert"))
    BAD_FOLDERS[message](folder)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as error:
        load_pretrained(folder)
    assert str(folder) in str(error.value)
    assert not re.search("\n|1_Pooling", str(error.value)), "one line, about what matters"


def test_flipped_bytes_give_a_model_or_one_line(folder: Path) -> None:
    """60 times a byte or two of a random file; half of the flips hit the first 4,000 bytes."""
    rng, refused = random.Random(0), []
    files = sorted(p for p in folder.iterdir() if p.name not in (EXPECTED, "texts.jsonl"))
    for _ in range(60):
        path, end = rng.choice(files), rng.choice((4000, 100_000))
        whole = path.read_bytes()
        flipped = bytearray(whole)
        for _ in range(rng.randint(1, 2)):
            flipped[rng.randrange(min(end, len(whole)))] = rng.randrange(256)
        path.write_bytes(flipped)
        try:
            model, tokenizer = load_pretrained(folder)
            model(torch.tensor([[tokenizer.encode("the owl's nest")]]))
        except ValueError as error:
            refused.append(str(error))
        path.write_bytes(whole)
    assert 6 < len(refused) < 54, "of use only if some flips are noticed and some are harmless"
    assert all(re.fullmatch(f"{re.escape(str(folder))}.+", message) for message in refused)


@pytest.fixture
def transformers() -> ModuleType:
    torch.manual_seed(0)
    return pytest.importorskip("transformers", reason="the references above hold without it")


def test_random_models_agree_both_ways(
    folder: Path, transformers: ModuleType, tmp_path: Path
) -> None:
    """What transformers writes opens here, what is written here opens there; the same scores."""
    shape = {"hidden_size": 24, "num_hidden_layers": 4, "intermediate_size": 7}
    config = transformers.AutoConfig.from_pretrained(folder, **shape, num_attention_heads=1)
    ours = tmp_path / "ours"
    theirs = transformers.AutoModelForMultipleChoice.from_config(config).eval()
    theirs.save_pretrained(folder)
    model, tokenizer = load_pretrained(folder)
    save_pretrained(model, tokenizer, ours)
    again = type(theirs).from_pretrained(ours).eval()
    ids = torch.randint(6, config.vocab_size, (3, 2, 9))
    ids[0, 1, 4:] = ids[2, 0, 7:] = tokenizer.pad_token_id
    mask = (ids != tokenizer.pad_token_id).long()
    with torch.no_grad():
        scores = theirs(ids, attention_mask=mask).logits
        assert biggest_change(model(ids), scores) < 2e-5
        assert biggest_change(again(ids, attention_mask=mask).logits, scores) < 1e-6  # rounding


VARIANTS = [  # that open; all others that change states are in BAD_FOLDERS
    {"hidden_act": "gelu_python", "layer_norm_eps": 0.1}, {"num_hidden_layers": 1, "dtype": None},
    {"num_attention_heads": 16, "layer_norm_eps": 0.0, "dtype": "float64"},
    {
        "position_embedding_type": None, "pruned_heads": {}, "quantization_config": None,
        "transformers_weights": None, "layer_types": ["sliding_attention"] * 3, "is_causal": True,
        "sliding_window": 2, "attention_chunk_size": 2, "chunk_size_feed_forward": 3,
        "attn_implementation": "eager", "embedding_size": 8, "head_dim": 4, "num_labels": 3,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": False,
        "initializer_range": 5.0, "classifier_dropout": 0.5, "architectures": ["GPT2Model"],
        "text_config": {"hidden_act": "relu"}, "torchscript": True, "output_attentions": True,
    },
]  # fmt: skip


@pytest.mark.parametrize("settings", VARIANTS)
def test_settings_change_the_states_as_in_transformers(
    settings: dict, folder: Path, transformers: ModuleType
) -> None:
    change_json(folder / "config.json", **settings)
    model, tokenizer = load_pretrained(folder)
    ids = torch.randint(6, len(tokenizer.vocab), (3, 9))
    ids[0, 6:] = tokenizer.pad_token_id
    mask = ids != tokenizer.pad_token_id
    theirs = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        states = theirs(ids, attention_mask=mask.long())[0].float()
        assert biggest_change(Kformer.forward(model, ids)[mask], states[mask]) < 1e-5
