"""Texts as vectors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kformer import Kformer
from load_weights import load_pretrained
from qa.sentences import embed, is_sentence_encoder, sentence_encoder
from tests.common import KINDS, REFERENCE, sentence_encoder_of

TEXTS = ["Owls eat mice.", "Oaks.", "Owls eat mice, and mice fear owls when the night falls.", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_the_mean_of_the_last_states_and_has_length_1(kind: str) -> None:
    model, tokenizer = load_pretrained(REFERENCE / kind)
    found = embed(TEXTS, model, tokenizer, torch.float32, most=40)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = [tokenizer.cls_token_id, *tokenizer.encode(text), tokenizer.sep_token_id]
        mean = Kformer.forward(model, torch.tensor([ids]))[0].mean(0).detach().numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("said", "most"),
    [({}, 40), ({"max_seq_length": 7}, 7), ({"max_seq_length": 99}, 40),
     ({"model_max_length": 7}, 7), ({"max_seq_length": 8, "model_max_length": 7}, 8)],
)  # fmt: skip
def test_a_long_text_is_cut(said: dict, most: int, tmp_path: Path) -> None:
    """To what the model has places for, or to the length that the encoder was made for."""
    folder = sentence_encoder_of(shutil.copytree(REFERENCE / "bert", tmp_path / "bert"))
    for key, length in said.items():
        name = "sentence_bert" if key == "max_seq_length" else "tokenizer"
        (folder / f"{name}_config.json").write_text(json.dumps({key: length}))
    texts = ["owl " * n for n in (most - 3, most - 2, most - 1, 2 * most)]
    shorter, long, *longer = sentence_encoder.__wrapped__(folder, torch.float32, "cpu")(texts)
    assert all(np.array_equal(long, vector) for vector in longer)
    assert not np.array_equal(long, shorter)


@pytest.mark.parametrize(
    ("more", "pooling", "is_one"),
    [
        ([], {}, True),
        ([], {"pooling_mode": "mean"}, True),  # as sentence-transformers 6.2 writes it
        ([], {"pooling_mode": "cls"}, False),
        ([], {"pooling_mode": ["mean", "max"]}, False),
        ([], {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, False),
        ([], {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, False),
        (["Dense"], {}, False),
        (["Dense", "Normalize"], {}, False),
    ],
)
def test_a_folder_says_that_it_is_a_sentence_encoder(
    more: list[str], pooling: dict, is_one: bool, tmp_path: Path
) -> None:
    assert is_sentence_encoder(sentence_encoder_of(tmp_path, *more, **pooling)) == is_one


def test_what_is_no_sentence_encoder_gives_no_vectors(tmp_path: Path) -> None:
    assert not is_sentence_encoder(REFERENCE / "bert")
    with pytest.raises(ValueError, match=r"bert: no sentence encoder: modules\.json"):
        sentence_encoder(REFERENCE / "bert", torch.float32, "cpu")
    sentence_encoder_of(tmp_path)
    for name in ("1_Pooling/config.json", "modules.json"):
        (tmp_path / name).write_text("[1]")
        with pytest.raises(ValueError, match=name):
            is_sentence_encoder(tmp_path)
