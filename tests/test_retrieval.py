"""Facts found."""

import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kformer import nearest_facts
from qa.retrieval import BM25, best, words
from test_kformer import TINY, B, D, L, tokens


def test_the_best_facts_come_first_and_of_equals_the_first() -> None:
    scores = np.array([0, 2, 1, 3, 1, 1, 0], np.float32)
    assert best(scores, 3) == [3, 1, 2]
    assert best(scores, 4) == [3, 1, 2, 4]
    assert best(scores, 99) == [3, 1, 2, 4, 5], "a fact without a common word is none"
    many = np.tile(np.array([1, 2], np.float32), 500)
    assert best(many, 600) == [*range(1, 1000, 2), *range(0, 200, 2)]


def test_words_lose_endings_and_the_common_ones_are_left_out() -> None:
    assert words("The owls were hunting, isn't it?") == ["owl", "hunt", "isn", "t"]
    assert words("ing is us") == ["ing", "us"], "short words keep theirs"


@pytest.mark.parametrize(
    "forms",
    [
        "class classes", "glass glasses", "fly flies", "box boxes", "city cities", "movie movies",
        "bus buses", "watch watches", "make makes making", "run runs running", "stop stopped",
        "carry carries carried carrying", "tree trees", "tie ties", "horse horses", "virus viruses",
        "play plays played", "İstanbul istanbul", "ＤＮＡ dna", "کتاب\u200cها کتابها",
    ],
)  # fmt: skip
def test_forms_of_a_word_meet(forms: str) -> None:
    assert len(set(words(forms))) == 1
    assert len(words(forms)) == len(forms.split())


def test_different_words_stay_apart() -> None:
    apart = "class clay bus bush fly flu box boy thing thin 100 10 news sing ring red bed"
    assert len(set(words(apart))) == len(apart.split())


@pytest.mark.parametrize("text", ["हिन्दी सूर्य", "தமிழ் மொழி", "café naïve", "Việt Nam", "עִבְרִית שָׁלוֹם"])
def test_marks_do_not_break_words(text: str) -> None:
    for form in ("NFC", "NFD"):
        assert words(unicodedata.normalize(form, text)) == words(text)
    assert len(words(text)) == 2


@pytest.mark.parametrize(
    ("question", "facts"),
    [
        ("谁发现了镭元素？", ["光合作用需要阳光", "玛丽居里发现了镭元素"]),
        ("ペンギンは飛べますか", ["富士山は高い", "ペンギンは鳥だが飛べない"]),
        ("นกฮูกกินอะไร", ["ฝนตกหนัก", "นกฮูกกินหนู"]),
        ("នៅទីក្រុងភ្នំពេញ", ["ឆ្មាស៊ីត្រី", "ភ្នំពេញជារាជធានី"]),
        ("ນົກກິນຫຍັງ", ["ຝົນຕົກ", "ນົກກິນໜູ"]),
        ("ဇီးကွက်ဘာစားလဲ", ["မိုးရွာသည်", "ဇီးကွက်ကြွက်စားသည်"]),
        ("猫", ["光合作用需要阳光", "大熊猫吃竹子"]),
        ("iPhone手机", ["光合作用需要阳光", "iphone是一种手机"]),
        ("𡈽", ["光合作用", "𠮷𡈽の牛丼"]),
    ],
)
def test_words_without_spaces_are_found(question: str, facts: list[str]) -> None:
    assert best(BM25(facts).scores(question), 1) == [1]


def test_a_character_keeps_its_marks() -> None:
    assert words("ก็ดี") == ["ก็", "ดี", "ก็ดี"]


def test_two_characters_together_count_more_than_apart() -> None:
    facts = ["学大小生", "小大学生", "山川"]
    assert best(BM25(facts).scores("大学"), 3) == [1, 0]


class Operations(TorchDispatchMode):
    """Within, collects all operations of torch that run, each with its result."""

    def __init__(self) -> None:
        super().__init__()
        self.found = []

    def __torch_dispatch__(
        self, operation: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        self.found.append((operation, operation(*args, **kwargs or {})))
        return self.found[-1][1]


def test_candidates_are_never_embedded_all_at_once() -> None:
    """Or 10,000 of them for one question would fill gigabytes: every fact is padded with words."""
    facts, table = tokens(B, 100, L), nn.Embedding(50, D)
    with Operations() as done:
        nearest_facts(facts, table, torch.ones(B, D), TINY)
    made = [result for _, result in done.found if isinstance(result, Tensor)]
    assert max(tensor.numel() for tensor in made) == facts.numel()
