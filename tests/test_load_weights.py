"""A checkpoint folder, opened and written."""

import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import load_weights
from kformer import Kformer, KformerForMultipleChoice
from lab import predict
from load_weights import (
    grouped,
    load_config,
    load_pretrained,
    load_tokenizer,
    open_folder,
    save_pretrained,
)
from qa.files import replacing, sweep
from qa.state import alone_in
from qa.tokenizer import WordPiece
from test_kformer import HERE, KINDS, REFERENCE, N, biggest_change, padded_batch, tiny
from tests.common import change_json, change_tensors, run_command, run_train, tiny_tokenizer
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
    with pytest.raises(FileNotFoundError, match=f"{shards[1]}: no such file"):
        load_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_load_as_float32(dtype: torch.dtype, folder: Path) -> None:
    plain = load_pretrained(folder)[0].state_dict()
    change_tensors(folder, lambda name, tensor: {name: tensor.to(dtype)})
    for name, tensor in load_pretrained(folder)[0].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, plain[name].to(dtype).float()), name


def test_what_transformers_would_compute_in_is_said(folder: Path) -> None:
    assert open_folder(folder)[2].notes == []
    change_json(folder / "config.json", dtype="float16")
    note = "config.json has dtype float16, but the states are float32 here"
    assert open_folder(folder)[2].notes == [note]
    change_json(folder / "config.json", dtype=None)
    change_tensors(folder, lambda n, t: {n: t.half()})
    assert open_folder(folder)[2].notes == ["weights in float16 become float32"]


def test_the_default_is_the_one_of_the_architecture(folder: Path) -> None:
    """Fields that are missing or null, and the dimensions of a folder without them."""
    whole = load_config(folder)
    remove_fields(folder, "pad_token_id", "layer_norm_eps", "is_decoder", "position_embedding_type")
    same_as_transformers(folder)
    assert load_config(folder) == whole
    change_json(folder / "config.json", pad_token_id=None, sep_token_id=None, pruned_heads=None)
    assert load_config(folder) == whole
    remove_fields(folder, "vocab_size")
    assert load_config(folder).vocab_size == {"bert": 30522, "roberta": 50265}[folder.name]


def test_a_config_of_2019_is_of_the_kind_that_its_names_say(folder: Path) -> None:
    kind = folder.name
    note = f"config.json has no model_type, by its names it is {kind}"
    remove_fields(folder, "model_type")
    same_as_transformers(folder)
    assert open_folder(folder)[2].notes == [note]
    remove_fields(folder, "architectures")
    assert open_folder(folder)[2].notes == [note]
    change_tensors(folder, LAYOUTS["no prefix"])
    line = r'config.json: "model_type" is missing, .* load_pretrained\(folder, model_type="bert"\)'
    for architectures in ([], ["XLMRobertaModel"], ["CamembertModel"]):
        change_json(folder / "config.json", architectures=architectures)
        with pytest.raises(ValueError, match=line):
            open_folder(folder)
    model, _, report = open_folder(folder, model_type=kind)
    assert (model.config.model_type, report.notes) == (kind, [])


def test_overrides_come_before_checks(folder: Path) -> None:
    wrong = {"model_type": "gpt2", "pad_token_id": -1, "hidden_dropout_prob": 2, "inject": "?"}
    right = {"model_type": folder.name, "pad_token_id": load_config(folder).pad_token_id}
    change_json(folder / "config.json", **wrong)
    config = load_pretrained(folder, **right, hidden_dropout_prob=0.3, inject="ffn")[0].config
    assert (config.hidden_dropout_prob, config.inject) == (0.3, "ffn")
    with pytest.raises(ValueError, match="'foo' is none of the settings: vocab_size, ") as error:
        load_pretrained(folder, foo=1)
    assert "config.json" not in str(error.value)


def test_embeddings_may_have_more_rows_than_tokens(folder: Path) -> None:
    """30,528 for 30,522, say: a multiple of 8 or 64 is fast."""
    size = load_config(folder).vocab_size
    change_json(folder / "config.json", vocab_size=size + 3)
    rows = torch.ones(3, 16)
    change_tensors(folder, lambda n, t: {n: torch.cat([t, rows]) if "word_emb" in n else t})
    same_as_transformers(folder)
    note = "3 rows of the embeddings are of no token in the vocabulary"
    assert open_folder(folder)[2].notes == [note]


def test_a_vocabulary_that_was_cut_off_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """It can't be told from one that has fewer tokens than there are rows, so it is said."""
    folder = Path(shutil.copytree(REFERENCE / "bert", tmp_path / "bert"))
    cut(folder / "vocab.txt")
    load_pretrained(folder)
    assert "3 rows of the embeddings are of no token" in capsys.readouterr().out


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


def test_saving_where_another_vocabulary_would_be_read_is_refused(tmp_path: Path) -> None:
    model, tokenizer = load_pretrained(shutil.copytree(REFERENCE / "bert", tmp_path / "bert"))
    save_pretrained(model, tokenizer, tmp_path / "bert")
    for kind, name in (("roberta", "tokenizer.json"), ("bert", "vocab.txt")):
        folder = Path(shutil.copytree(REFERENCE / kind, tmp_path / "other" / kind))
        before = {path: path.read_bytes() for path in folder.iterdir()}
        saved = load_pretrained(REFERENCE / ("bert" if kind == "roberta" else "roberta"))
        with pytest.raises(ValueError, match=f"{name} would be read in the place of .*: name"):
            save_pretrained(*saved, folder)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


def vocabulary_of_its_own(folder: Path) -> None:
    """RoBERTa's tokenizer.json in parts, as transformers 4 wrote them, with words that were added
    later, out of the order of their names; BERT's vocab.txt as a tokenizer.json.
    """
    settings = folder / "tokenizer_config.json"
    if (folder / "vocab.txt").is_file():
        words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
        (folder / "tokenizer.json").write_text(json.dumps(whole_tokenizer(WordPiece(words))))
        (folder / "vocab.txt").unlink()
    else:
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
        (folder / "tokenizer.json").unlink()
        settings.unlink()


def words_added(folder: Path) -> None:
    """Two that were added later, out of the order of their names."""
    fields = json.loads((folder / "config.json").read_text())
    size = len(load_tokenizer(folder).vocab)
    rows = [*range(size), 7, 8]
    (folder / "added_tokens.json").write_text(json.dumps({"zebra": size, "<a>": size + 1}))
    change_tensors(folder, lambda n, t: {n: t[rows] if "word_embeddings" in n else t})
    change_json(folder / "config.json", vocab_size=fields["vocab_size"] + 2)


def special_tokens_in_another_order(folder: Path) -> None:
    """[SEP] first and [PAD] last: ids are what the files say, whatever is usual."""
    if (folder / "vocab.txt").is_file():
        words = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
        words = ["[SEP]", "[MASK]", "[CLS]", "[UNK]", "[PAD]", *words[5:]]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        change_json(folder / "config.json", pad_token_id=4)
        return
    path = folder / "tokenizer.json"
    content, new = json.loads(path.read_text(encoding="utf-8")), {"</s>": 0, "<pad>": 2, "<s>": 1}
    content["model"]["vocab"] |= new
    for token in content["added_tokens"]:
        token["id"] = new.get(token["content"], token["id"])
    content["added_tokens"].sort(key=lambda token: token["id"])
    path.write_text(json.dumps(content))
    change_json(folder / "config.json", pad_token_id=2)


ONES_OWN = {
    "as it came": lambda folder: None,
    "in another form": vocabulary_of_its_own,
    "special tokens in another order": special_tokens_in_another_order,
    "both": lambda folder: (special_tokens_in_another_order(folder), vocabulary_of_its_own(folder)),
    "words added": words_added,
    "words added in another form": lambda f: (vocabulary_of_its_own(f), words_added(f)),
}


@pytest.mark.parametrize("form", ONES_OWN)
def test_every_folder_that_opens_can_be_saved_and_opened_again(
    form: str, folder: Path, small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so can a run that is trained from it, by the commands that open runs."""
    ONES_OWN[form](folder)
    model, tokenizer = load_pretrained(folder, inject="ffn")
    save_pretrained(model, tokenizer, folder.parent / "saved")
    again, same_tokenizer = load_pretrained(folder.parent / "saved")
    texts = [json.loads(line)["text"] for line in open(folder / "texts.jsonl", encoding="utf-8")]
    texts += ["a zebra<a> <mask>[MASK]"]
    assert [*map(same_tokenizer.encode, texts)] == [*map(tokenizer.encode, texts)]
    assert same_tokenizer.vocab == tokenizer.vocab
    inputs = torch.randint(5, 60, (1, 2, 9), generator=torch.Generator().manual_seed(0))
    scores = model(inputs, fact_ids=inputs)
    assert torch.equal(again(inputs, fact_ids=inputs), scores)
    settings = ("--checkpoint", folder, "--data", small_world, "--steps", 1)
    run_train(monkeypatch, "--inject", "ffn", *settings, "--out", folder.parent / "run")
    answers = folder.parent / "answers.jsonl"
    run_command(monkeypatch, predict, folder.parent / "run", "--out", answers)
    assert len(answers.read_text().splitlines()) == 40
    trained = load_pretrained(folder.parent / "run")[1]
    assert [*map(trained.encode, texts)] == [*map(tokenizer.encode, texts)]


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
    with pytest.raises(OSError, match=f"{tmp_path}: can't be written .*disk full"):
        save_pretrained(new, tokenizer, tmp_path)
    bias = load_pretrained(tmp_path)[0].classifier.bias
    assert torch.equal(bias, (old if failing in (1, "save_file") else new).classifier.bias)
    assert len(list(tmp_path.iterdir())) == 4, "what was half written is gone"


def test_a_saved_config_may_be_changed_by_hand(tmp_path: Path) -> None:
    save_pretrained(tiny("ffn"), tiny_tokenizer(), tmp_path)
    change_json(tmp_path / "config.json", hidden_dropout_prob=0.4)
    assert load_pretrained(tmp_path)[0].config.hidden_dropout_prob == 0.4
    assert load_pretrained(tmp_path, num_facts=2, inject="attention")[0].config.num_facts == 2


def tie(model: KformerForMultipleChoice) -> nn.Module:
    model.fact_embeddings.weight = model.embeddings.word_embeddings.weight
    return model


def transpose(model: KformerForMultipleChoice) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = parameter.data.mT.contiguous().mT if parameter.dim() > 1 else parameter
    return model


def compile_layer(model: KformerForMultipleChoice) -> nn.Module:
    model.encoder.layer[1] = torch.compile(model.encoder.layer[1])
    return model


WRAPPED = {
    "torch.compile": torch.compile,
    "a compiled layer": compile_layer,
    "DataParallel": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model)),
    "tied": tie,
    "not contiguous": transpose,
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrapped_and_tied_models_are_saved_as_they_are(wrapped: str, tmp_path: Path) -> None:
    model = tiny("ffn").float()
    outer = WRAPPED[wrapped](model)
    expected = {name.replace("_orig_mod.", ""): t for name, t in model.state_dict().items()}
    save_pretrained(outer, tiny_tokenizer(), tmp_path)
    found = load_pretrained(tmp_path)[0].state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in found)


def test_a_model_with_more_dimensions_than_words_is_saved(tmp_path: Path) -> None:
    model = tiny("ffn", hidden_size=64).float()
    assert model.config.vocab_size < 64
    save_pretrained(model, tiny_tokenizer(), tmp_path)
    found = load_pretrained(tmp_path)[0].state_dict()
    assert all(torch.equal(t, found[name]) for name, t in model.state_dict().items())


def test_an_empty_model_leaves_the_dice_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    config = tiny("ffn").config
    torch.manual_seed(0)
    load_weights.empty_model(config)
    assert torch.rand(1) == expected


def test_what_could_not_be_opened_again_is_not_saved(tmp_path: Path) -> None:
    save_pretrained(tiny("ffn"), tiny_tokenizer(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    changed, headless = tiny("ffn"), Kformer(tiny("ffn").config)
    changed.config.inject = "none"
    large = WordPiece([*tiny_tokenizer().vocab, "more"])
    for model, tokenizer in (
        (changed, tiny_tokenizer()), (headless, tiny_tokenizer()), (tiny("ffn"), large)
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"model\.config asks for|the vocabulary has"):
            save_pretrained(model, tokenizer, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_config_that_could_not_be_opened_again_is_not_saved(tmp_path: Path) -> None:
    model, tokenizer = tiny("ffn"), tiny_tokenizer()
    save_pretrained(model, tokenizer, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for wrong in ({"num_facts": 0}, {"layer_norm_eps": 2.0}, {"model_type": "gpt"}):
        model.config = replace(model.config, inject="ffn", **wrong)
        with pytest.raises(ValueError, match=next(iter(wrong))):
            save_pretrained(model, tokenizer, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="only Linux tells")
def test_no_file_stays_mapped(folder: Path) -> None:
    """On Windows it couldn't be replaced, and saved is often into the folder that was opened."""
    load_pretrained(folder)
    assert str(folder) not in Path("/proc/self/maps").read_text()


needs_fcntl = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fcntl")


@needs_fcntl  # and a symlink needs an administrator there
def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    for name in ("writing-samples", "writing-a1b2c3d4", ".kformer-writing-examples"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chapter.txt").write_text("It was a dark night.")
    (tmp_path / "writing-list").write_text("pen, paper")
    (tmp_path / ".kformer-writing-00000000").symlink_to(tmp_path / "writing-samples")
    (tmp_path / ".kformer-writing-11111111").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / ".kformer-writing-a1b2c3d4").mkdir()
    (tmp_path / ".kformer-writing-a1b2c3d4" / "config.json").touch()
    with replacing(tmp_path) as new:
        (new / "file.json").write_text("{}")
        assert (tmp_path / ".kformer-writing-a1b2c3d4").is_dir(), "somebody else may be writing"
    sweep(tmp_path)
    assert sorted([*before, tmp_path / "file.json"]) == sorted(tmp_path.rglob("*"))


@needs_fcntl
def test_what_a_killed_run_left_is_removed_by_the_next_training(tmp_path: Path) -> None:
    script = "import os, sys; from pathlib import Path; from qa.files import replacing\n"
    script += "with replacing(Path(sys.argv[1])) as new: (new / 'vocab.txt').touch(); os._exit(1)"
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=HERE, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with alone_in(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["training.lock"]


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


def remove_fields(folder: Path, *names: str) -> None:
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in fields.items() if k not in names}))


def one_level_deeper(folder: Path, place: str) -> None:
    """What lies in the folder, in a folder below it."""
    shutil.copytree(folder, folder.parent / "copy")
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "copy", folder / place)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")


def pointer(name: str) -> Callable[[Path], None]:
    """What `git clone` leaves where git lfs isn't installed."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"
    return lambda folder: (folder / name).write_text(text)


def add_tensor(name: str, dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    """Beside the query of layer 1, or in its place."""
    whole = f"bert.encoder.layer.1.attention.self.query.{name}"
    new = {whole: torch.ones(16, 16).to(dtype)}
    return lambda folder: change_tensors(folder, lambda n, t: {n: t} | new)


def sharded_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for i in (1, 2):
        (folder / f"pytorch_model-0000{i}-of-00002.bin").write_bytes(b"")
    (folder / "pytorch_model.bin.index.json").write_text("{}")


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, lambda n, t: {} if n == name else {n: t})


BAD_FOLDERS = {
    "bert: no such folder. A model of the Hugging Face Hub that has a model.safetensors comes "
    "by: hf download NAME --local-dir ": lambda f: shutil.rmtree(f),
    "config.json: no such file": lambda f: (f / "config.json").unlink(),
    "config.json: not JSON": lambda f: (f / "config.json").write_text("{"),
    "config.json: must be a JSON object": lambda f: (f / "config.json").write_text("[]"),
    "config.json: not UTF-8": lambda f: (f / "config.json").write_bytes(b"\xff"),
    'config.json: model_type is "gpt2", must be "bert" or "r': change_bert(model_type="gpt2"),
    'config.json: model_type is "a b", must be': change_bert(model_type="a\nb"),
    'config.json: "hidden_act" is \'relu\', only \'gelu\' is known': change_bert(hidden_act="relu"),
    '"hidden_act" is \'gelu_new\', only \'gelu\' is known': change_bert(hidden_act="gelu_new"),
    '"position_embedding_type" is \'relative_key\', only \'absolute\'': change_bert(
        position_embedding_type="relative_key"
    ),
    '"is_decoder" is True, only False is known': change_bert(is_decoder=True),
    '"add_cross_attention" is True, only False is known': change_bert(add_cross_attention=True),
    '"pruned_heads" is {\'0\': [1]}, only {} is known': change_bert(pruned_heads={"0": [1]}),
    'config.json: "quantization_config" is {\'quant_method\': \'fp8\'}, not built here: take a '
    "model without it": change_bert(quantization_config={"quant_method": "fp8"}),
    '"auto_map" is {\'AutoModel\': \'x.Y\'}, not built': change_bert(auto_map={"AutoModel": "x.Y"}),
    '"per_layer_config" is {\'1\': {\'skip\': [\'self\']}}, not built here': change_bert(
        per_layer_config={"1": {"skip": ["self"]}}
    ),
    '"transformers_weights" is \'a.safetensors\', not built': change_bert(
        transformers_weights="a.safetensors"
    ),
    '"configuration_files" is [\'config.4.json\'], not': change_bert(
        configuration_files=["config.4.json"]
    ),
    'model_type is "xlm-roberta", must be "bert" or "roberta"': change_bert(
        model_type="xlm-roberta"
    ),
    "layer_norm_eps is nan, must be at least 0": change_bert(layer_norm_eps=float("nan")),
    "config.json: hidden_size is True, must be a whole number": change_bert(hidden_size=True),
    "pad_token_id is -1, must be a whole number from 0": change_bert(pad_token_id=-1),
    "config.json: hidden_size is '16', must be a whole number": change_bert(hidden_size="16"),
    "config.json: hidden_size 16 can't be divided among num_attention_heads 3": change_bert(
        num_attention_heads=3
    ),
    "config.json: num_hidden_layers is 10000, must be": change_bert(num_hidden_layers=10000),
    "config.json: hidden_dropout_prob is 2, must be at least 0": change_bert(hidden_dropout_prob=2),
    "config.json: inject_layers ('n', 'o') must lie between": change_bert(inject_layers="no"),
    "model.safetensors: no such file": lambda f: (f / "model.safetensors").unlink(),
    "pytorch_model.bin is a pickle, which isn't read here. To convert it": only_a_pickle,
    "pytorch_model-00001-of-00002.bin + pytorch_model-00002-of-00002.bin is a pickle": (
        sharded_pickles
    ),
    "model.safetensors: a pointer of Git LFS, not the file: run git lfs pull": pointer(
        "model.safetensors"
    ),
    "pytorch_model.bin: a pointer of Git LFS": lambda f: (
        (f / "model.safetensors").unlink(), pointer("pytorch_model.bin")(f)
    ),
    "model.safetensors: no such file, but tf_model.h5: transformers may": lambda f: (
        (f / "model.safetensors").rename(f / "tf_model.h5")
    ),
    "config.json: a pointer of Git LFS": pointer("config.json"),
    "vocab.txt: a pointer of Git LFS": pointer("vocab.txt"),
    "tokenizer.json: a pointer of Git LFS": pointer("tokenizer.json"),
    "model.safetensors.index.json: a pointer of Git LFS": lambda f: (
        (f / "model.safetensors").unlink(), pointer("model.safetensors.index.json")(f)
    ),
    "bert/snapshots/4d7a there is: open that": lambda f: one_level_deeper(f, "snapshots/4d7a"),
    "bert/0_Transformer there is: open that": lambda f: one_level_deeper(f, "0_Transformer"),
    "bert: an adapter (adapter_config.json)": lambda f: (
        (f / "adapter_config.json").write_text("{}")
    ),
    "bert: bert.embeddings.word_embeddings.weight is missing, but "
    "module.bert.embeddings.word_embeddings.weight is there: rename": lambda f: (
        change_tensors(f, lambda n, t: {f"module.{n}": t})
    ),
    "query.parametrizations.weight.original0 isn't built here": add_tensor(
        "parametrizations.weight.original0"
    ),
    "query.weight_scale isn't built here: take weights that aren't quantised": add_tensor(
        "weight_scale"
    ),
    "query.SCB isn't built here": add_tensor("SCB"),
    "query.weight.absmax isn't built here": add_tensor("weight.absmax", torch.uint8),
    "query.qweight isn't built here": add_tensor("qweight", torch.int32),
    "query.lora_A.weight isn't built here": add_tensor("lora_A.weight"),
    "bert.encoder.layer.1.output.adapters.a.0.weight isn't built here": lambda f: change_tensors(
        f, lambda n, t: {n: t, "bert.encoder.layer.1.output.adapters.a.0.weight": torch.ones(1)}
    ),
    "query.weight holds torch.float8_e4m3fn, must hold floating-point numbers of 16": add_tensor(
        "weight", torch.float8_e4m3fn
    ),
    "query.weight holds torch.int8, must hold": add_tensor("weight", torch.int8),
    "query.weight holds torch.complex64, must hold": add_tensor("weight", torch.complex64),
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
        f"{folder.name}, up to ",
            "3 layers, hidden size 16",
            "injection: ffn in layers 1 2",
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


VARIANTS = [
    *({"hidden_act": name} for name in (
        "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_10", "gelu_accurate", "quick_gelu",
        "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh", "mish",
    )),
    *({"layer_norm_eps": eps} for eps in (0.0, 1e-5, 0.1)),
    *({"num_hidden_layers": layers} for layers in (1, 2)),
    *({"num_attention_heads": heads} for heads in (1, 4, 8, 16)),
    *({"position_embedding_type": kind} for kind in ("absolute", "relative_key", "alibi", None)),
    *({"pad_token_id": pad} for pad in (0, 1, 5, -1)),
    *({"dtype": dtype} for dtype in ("float32", "float64", None)),
    *({"is_decoder": value} for value in (True, False)),
    *({"pruned_heads": heads} for heads in ({}, {"0": [1]})),
    *({"per_layer_config": layers} for layers in ({}, {"1": {"skip": ["self"]}})),
    *({"layer_types": [f"{kind}_attention"] * 3} for kind in ("full", "sliding")),
    *({"auto_map": classes} for classes in ({}, {"AutoModel": "x.Y"})),
    *({"transformers_weights": name} for name in (None, "model.safetensors", "other.safetensors")),
    {"configuration_files": ["config.4.0.0.json"]}, {"is_encoder_decoder": True},
    {"chunk_size_feed_forward": 3}, {"embedding_size": 8}, {"head_dim": 4}, {"is_causal": True},
    {"sliding_window": 2}, {"attention_chunk_size": 2}, {"attn_implementation": "eager"},
    {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"tie_word_embeddings": False},
    {"num_labels": 3}, {"classifier_dropout": 0.5}, {"architectures": ["GPT2Model"]},
    {"quantization_config": None}, {"text_config": {"hidden_act": "relu"}}, {"torchscript": True},
    {"output_attentions": True}, {"use_cache": False}, {"initializer_range": 5.0},
]  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_setting_changes_the_states_as_in_transformers_or_is_refused(
    variant: dict, folder: Path, transformers: ModuleType
) -> None:
    """other.safetensors and config.4.0.0.json are there, and would be another model."""
    fields = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", **variant)
    (folder / "config.4.0.0.json").write_text(json.dumps(fields | {"layer_norm_eps": 0.3}))
    tensors = {n: t * 1.5 for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "other.safetensors", metadata={"format": "pt"})
    try:
        model, tokenizer, _ = open_folder(folder)
    except ValueError as error:
        if any(name in str(error) for name in variant):
            return
        raise
    ids = torch.randint(5, len(tokenizer.vocab), (3, 9))
    ids[0, 6:] = tokenizer.pad_token_id
    mask = ids != tokenizer.pad_token_id
    theirs = getattr(transformers, f"{folder.name.capitalize()}Model").from_pretrained(folder)
    with torch.no_grad():
        states = theirs(ids, attention_mask=mask.long())[0].float()
        assert biggest_change(Kformer.forward(model, ids)[mask], states[mask]) < 1e-5
