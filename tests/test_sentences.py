"""Texts as vectors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kformer import Kformer
from load_weights import load_pretrained
from parts.sentences import embed, is_sentence_encoder
from tests.common import KINDS, REFERENCE

TEXTS = ["Owls eat mice.", "Oaks.", "Owls eat mice, and mice fear owls when the night falls.", ""]


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_the_mean_of_the_last_states_and_has_length_1(kind: str) -> None:
    model, tokenizer = load_pretrained(REFERENCE / kind)
    found = embed(TEXTS, model, tokenizer, torch.float32)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = [tokenizer.cls_token_id, *tokenizer.encode(text), tokenizer.sep_token_id]
        mean = Kformer.forward(model, torch.tensor([ids]))[0].mean(0).detach().numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_long_text_is_cut() -> None:
    model, tokenizer = load_pretrained(REFERENCE / "bert")
    most = model.config.max_tokens
    texts = ["owl " * n for n in (most - 2, 2 * most)]
    long, longer = embed(texts, model, tokenizer, torch.float32)
    assert np.array_equal(long, longer)


def test_a_folder_says_that_it_is_a_sentence_encoder(tmp_path: Path) -> None:
    assert not is_sentence_encoder(tmp_path)
    path = tmp_path / "1_Pooling" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    assert is_sentence_encoder(tmp_path)
    path.write_text(json.dumps({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}))
    assert not is_sentence_encoder(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"1_Pooling/config.json: not as"):
        is_sentence_encoder(tmp_path)
