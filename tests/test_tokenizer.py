"""Text -> ids."""

import itertools
import json
import random
import sys
import unicodedata
from pathlib import Path

import pytest

from load_weights import (
    load_tokenizer,
    save_pretrained,
)
from parts.tokenizer import ByteLevelBPE, Tokenizer, WordPiece, byte_symbols, word_pattern
from test_kformer import KINDS, REFERENCE, tiny


def same_ids_as_transformers(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        text, ids = json.loads(line).values()
        found = [tokenizer.vocab[i] for i in tokenizer.encode(text)]
        assert found == [tokenizer.vocab[i] for i in ids], f"{text!r} is split otherwise"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str) -> None:
    same_ids_as_transformers(REFERENCE / kind)


def test_every_form_of_a_vocabulary_is_read(folder: Path) -> None:
    """vocab.txt or vocab.json with merges.txt as saved here, and tokenizer.json made of them."""
    tokenizer = load_tokenizer(folder)
    for name in ("vocab.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    for name, text in tokenizer.files().items():
        (folder / name).write_text(text, encoding="utf-8")
    same_ids_as_transformers(folder)
    for name in tokenizer.files():
        (folder / name).unlink()
    (folder / "tokenizer.json").write_text(json.dumps(whole_tokenizer(tokenizer)))
    same_ids_as_transformers(folder)


def whole_tokenizer(tokenizer: Tokenizer) -> dict:
    """What transformers writes as tokenizer.json, as far as it's read."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "special": False}
    added = [{"id": tokenizer.ids[t["content"]]} | flags | t for t in tokenizer.added]
    added.sort(key=lambda token: token["id"])
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": tokenizer.own_ids}
    model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    normalizer |= {"lowercase": True, "strip_accents": None}
    splitter = {"type": "BertPreTokenizer"}
    if isinstance(tokenizer, ByteLevelBPE):
        pairs = [pair.split(" ") for pair in tokenizer.merges]
        model = {"type": "BPE", "vocab": tokenizer.own_ids, "merges": pairs}
        normalizer, splitter = None, {"type": "ByteLevel", "add_prefix_space": False}
        splitter |= {"trim_offsets": True}
    steps = {"normalizer": normalizer, "pre_tokenizer": splitter}
    return {"version": "1.0", "model": model, "added_tokens": added} | steps


def test_lower_case_is_what_the_folder_says(tmp_path: Path) -> None:
    """Lower case where nothing is said; tokenizer.json and tokenizer_config.json must agree."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ete", "Ete", "été", "Été"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")

    def pieces() -> list[str]:
        return [vocab[i] for i in load_tokenizer(tmp_path).encode("Été")]

    assert pieces() == ["ete"]
    config = tmp_path / "tokenizer_config.json"
    for settings, expected in (
        ({"do_lower_case": False}, "Été"),
        ({"do_lower_case": True}, "ete"),
        ({"do_lower_case": True, "strip_accents": False}, "été"),
        ({"do_lower_case": False, "strip_accents": True}, "Ete"),
    ):
        config.write_text(json.dumps(settings))
        assert pieces() == [expected]
        save_pretrained(tiny("none"), load_tokenizer(tmp_path), tmp_path / "saved")
        assert load_tokenizer(tmp_path / "saved").encode("Été") == [vocab.index(expected)]
    config.unlink()
    whole = whole_tokenizer(WordPiece(vocab))
    whole["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    for said in (None, {"do_lower_case": True}, {"do_lower_case": False, "strip_accents": True}):
        if said:
            config.write_text(json.dumps(said))
        with pytest.raises(ValueError, match="in tokenizer.json it is (F|f)alse"):
            pieces()
    config.write_text('{"do_lower_case": false}')
    assert pieces() == ["Été"]


def test_wordpiece_cleans_splits_and_takes_the_longest_piece() -> None:
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##happi", "##ly", "##h", "cafe", "!", "犬"]
    encode = WordPiece(vocab).encode
    assert encode("Unhappily") == [4, 5, 6]
    assert encode("CAFÉ!\tcafe\u200b犬") == [8, 9, 8, 10]
    assert encode("unhappy café" + "!" * 2) == [1, 8, 9, 9]
    assert encode("un" + "ly" * 49) == [4] + [6] * 49, "100 characters"
    assert encode("un" + "ly" * 49 + "h") == [1], "over 100 characters"
    assert encode("un[SEP]ly") == [4, 3, 1], "a special token in the text is that token"
    assert WordPiece(vocab).decode([4, 5, 6, 9]) == "unhappily !"
    assert WordPiece(vocab, lower=False).encode("Cafe cafe") == [1, 8]


def byte_level(*merges: str, **options: object) -> ByteLevelBPE:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merged = [pair.replace(" ", "") for pair in merges]
    return ByteLevelBPE([*special, *byte_symbols(), *merged], list(merges), **options)


def bpe_pieces(text: str, *merges: str, **options: object) -> list[str]:
    tokenizer = byte_level(*merges, **options)
    return [tokenizer.vocab[i] for i in tokenizer.encode(text)]


def test_bpe_merges_in_the_order_that_was_learned() -> None:
    assert bpe_pieces("abc", "a b", "b c") == ["ab", "c"]
    assert bpe_pieces("abc", "b c", "a b") == ["a", "bc"]
    assert bpe_pieces("abcab", "a b", "ab c", "abc ab") == ["abcab"]
    assert bpe_pieces("aaaaa", "a a", "aa aa") == ["aaaa", "a"], "from the left"


def test_bpe_splits_as_gpt_2_does() -> None:
    """At spaces, which stay with the word behind them, and between letters, digits and the rest."""
    words = word_pattern().findall
    assert words("I'll say: it's 3rd") == ["I", "'ll", " say", ":", " it", "'s", " 3", "rd"]
    assert words("a  b\n\n c ") == ["a", " ", " b", "\n\n", " c", " "]
    assert words("naïve夜²٣!?") == ["naïve夜", "²٣", "!?"]
    assert words("a\x1cb\u2003c") == ["a", "\x1c", "b", "\u2003", "c"], "U+001C is no space"


def test_a_leading_space_counts_in_bpe() -> None:
    merges = ("o w", "ow l", "Ġ owl")
    assert bpe_pieces("owl owl", *merges) == ["owl", "Ġowl"]
    assert bpe_pieces("owl owl", *merges, add_prefix_space=True) == ["Ġowl", "Ġowl"]
    assert bpe_pieces("\towl", *merges, add_prefix_space=True) == ["Ġ", "ĉ", "owl"]
    assert bpe_pieces("owl <mask>", *merges) == ["owl", "Ġ", "<mask>"]
    greedy = [{"content": "<mask>", "lstrip": True}]
    assert bpe_pieces("owl <mask>", *merges, added=greedy) == ["owl", "<mask>"]


def test_bpe_brings_every_text_back() -> None:
    tokenizer = load_tokenizer(REFERENCE / "roberta")
    rng, codes = random.Random(0), [*range(0xD800), *range(0xE000, 0x110000)]
    for _ in range(300):
        text = "".join(map(chr, rng.sample(codes, 5))) + " the owls"
        assert tokenizer.decode(tokenizer.encode(text)) == text


def merged_in_loops(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """The specification: as long as there is one, merge the leftmost pair of the lowest rank."""
    while pairs := [(ranks[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in ranks]:
        _, i = min(pairs)
        parts[i : i + 2] = ["".join(parts[i : i + 2])]
    return parts


def test_bpe_equals_plain_loops() -> None:
    tokenizer, rng = load_tokenizer(REFERENCE / "roberta"), random.Random(0)
    for length in range(1, 200):
        word = "".join(rng.choice("owlmiceatsh") for _ in range(length))
        expected = merged_in_loops(list(word), tokenizer.ranks)
        assert [tokenizer.vocab[i] for i in tokenizer.word_ids(word)] == expected


@pytest.fixture(scope="module")
def characters() -> list[str]:
    """All that Unicode has a name for, less what tokenizers and Python have from different years:
    marks, punctuation and format characters that are newer than Unicode 3.2 or changed since.
    """

    def may_differ(c: str) -> bool:
        now, then = unicodedata.category(c), unicodedata.ucd_3_2_0.category(c)
        return now != then and any(k in ("Mn", "Mc", "Cf") or k[0] == "P" for k in (now, then))

    everything = (chr(i) for i in range(sys.maxunicode + 1))
    known = [c for c in everything if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    return [c for c in known if not may_differ(c)]


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece_treats_every_character_as_tokenizers_does(
    lower: bool, characters: list[str]
) -> None:
    """With a vocabulary of all characters, alone, between letters, and in random strings."""
    lib = pytest.importorskip("tokenizers", reason="the references above hold without it")
    ours = WordPiece([*WordPiece.special, *characters, *(f"##{c}" for c in characters)], lower)
    theirs = lib.Tokenizer(lib.models.WordPiece(ours.ids, unk_token="[UNK]"))
    theirs.normalizer = lib.normalizers.BertNormalizer(lowercase=lower)
    theirs.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
    texts = [f"{c} a{c}B" for c in characters]
    rng, often = random.Random(0), [*" aÉΣςİ\u0301\u200d犬!", *characters[:800]]
    for _ in range(5000):
        pool = rng.choice((often, characters))
        texts.append("".join(rng.choice(pool) for _ in range(rng.randrange(20))))
    for text, expected in zip(texts, theirs.encode_batch(texts), strict=True):
        found = [ours.vocab[i] for i in ours.encode(text)]
        assert found == expected.tokens, f"{text!r} is split otherwise"


def test_bpe_splits_every_character_as_tokenizers_does(characters: list[str]) -> None:
    lib = pytest.importorskip("tokenizers", reason="the references above hold without it")
    split = lib.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    ours = byte_level()
    for c in characters:
        text = f"a{c}1 {c}'s"
        words = ["".join(ours.symbols[b] for b in w.encode()) for w in word_pattern().findall(text)]
        assert words == [word for word, _ in split(text)], f"{text!r} is split otherwise"
