"""Text -> ids."""

import itertools
import json
import pickle
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from load_weights import load_tokenizer
from qa.bpe import SYMBOLS, WORD, ByteLevelBPE, like_ascii
from qa.tokenizer import WordPiece
from test_kformer import KINDS, REFERENCE

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*TOKENS, "the", "owl", "##s", "barn", "犬", "##犬"]
BYTES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *SYMBOLS, "ow", "owl", "Ġowl"]
MERGES = "#version: 0.2\no w\now l\nĠ owl\n"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str) -> None:
    tokenizer = pickle.loads(pickle.dumps(load_tokenizer(REFERENCE / kind)))
    for line in (REFERENCE / kind / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        text, ids = json.loads(line).values()
        found = [tokenizer.vocab[i] for i in tokenizer.encode(text)]
        assert found == [tokenizer.vocab[i] for i in ids], f"{text!r} is split otherwise"


def test_wordpiece_cleans_splits_and_takes_the_longest_piece() -> None:
    vocab = [*TOKENS[:4], "un", "##happi", "##ly", "##h", "cafe", "!", "犬"]
    encode = WordPiece(vocab).encode
    assert encode("Unhappily") == [4, 5, 6]
    assert encode("CAFÉ!\tcafe\u200b犬") == [8, 9, 8, 10]
    assert encode("unhappy café!!") == [1, 8, 9, 9]
    assert encode("un" + "ly" * 49) == [4] + [6] * 49, "100 characters"
    assert encode("un" + "ly" * 49 + "h") == [1], "over 100 characters"
    assert WordPiece(vocab).decode([4, 5, 6, 9]) == "unhappily !"


def words(text: str) -> list[str]:
    return [text[slice(*found.span())] for found in WORD.finditer(like_ascii(text))]


def test_bpe_splits_as_gpt_2_does() -> None:
    assert words("I'll say: it's 3rd") == ["I", "'ll", " say", ":", " it", "'s", " 3", "rd"]
    assert words("a  b\n\n c ") == ["a", " ", " b", "\n\n", " c", " "]
    assert words("naïve夜²٣!?") == ["naïve夜", "²٣", "!?"]
    assert words("a\x1cb\u2003c") == ["a", "\x1c", "b", "\u2003", "c"], "U+001C is no space"


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


class Counted(dict):
    asked = 0

    def __contains__(self, pair: object) -> bool:
        self.asked += 1
        return super().__contains__(pair)


def test_bpe_equals_plain_loops_and_asks_for_a_few_pairs_a_letter() -> None:
    rng = random.Random(0)
    for length in range(1, 200):
        pieces, merges = [*"abc"], {}
        for _ in range(rng.randrange(40)):
            pair = rng.choices(pieces, k=2)
            pieces.append("".join(pair))
            merges[" ".join(pair)] = None
        merges = rng.sample([*merges], len(merges))  # in any order
        tokenizer = ByteLevelBPE([*BYTES[:261], *dict.fromkeys(pieces[3:])], merges)
        word = "".join(rng.choices("abc", k=length))
        expected = merged_in_loops(list(word), tokenizer.ranks)
        tokenizer.ranks = Counted(tokenizer.ranks)
        assert [tokenizer.vocab[i] for i in tokenizer.word_ids(word)] == expected
        assert tokenizer.ranks.asked < 4 * length


@pytest.fixture(scope="module")
def characters() -> list[str]:
    """Those with a name, less what tokenizers and Python have from different years: marks,
    punctuation and format characters that are newer than Unicode 3.2 or changed since.
    """
    known = []
    for c in map(chr, range(0x110000)):
        kinds = unicodedata.category(c), unicodedata.ucd_3_2_0.category(c)
        may_differ = any(k in ("Mn", "Mc", "Cf") or k[0] == "P" for k in kinds)
        if kinds[0] not in ("Cn", "Co", "Cs") and (kinds[0] == kinds[1] or not may_differ):
            known.append(c)
    return known


@pytest.mark.parametrize("lower", [True, False])
def test_wordpiece_treats_every_character_as_tokenizers_does(
    lower: bool, characters: list[str]
) -> None:
    lib = pytest.importorskip("tokenizers", reason="the references above hold without it")
    vocab = [*TOKENS, *characters, *(f"##{c}" for c in characters)]
    ours = WordPiece(vocab, do_lower_case=lower)
    theirs = lib.Tokenizer(lib.models.WordPiece(ours.ids, unk_token="[UNK]"))
    theirs.normalizer = lib.normalizers.BertNormalizer(lowercase=lower)
    theirs.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
    texts = [f"{c} a{c}B" for c in characters]
    rng, often = random.Random(0), [*" aÉΣςİ\u0301\u200d犬!", *characters[:800]]
    for _ in range(5000):
        texts.append("".join(rng.choices(rng.choice((often, characters)), k=rng.randrange(20))))
    for text, expected in zip(texts, theirs.encode_batch(texts), strict=True):
        found = [ours.vocab[i] for i in ours.encode(text)]
        assert found == expected.tokens, f"{text!r} is split otherwise"


def test_bpe_splits_every_character_as_tokenizers_does(characters: list[str]) -> None:
    lib = pytest.importorskip("tokenizers", reason="the references above hold without it")
    split = lib.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    for text in (f"a{c}1 {c}'s" for c in characters):
        found = ["".join(SYMBOLS[byte] for byte in word.encode()) for word in words(text)]
        assert found == [word for word, _ in split(text)], f"{text!r} is split otherwise"


# ------------------------------------------------------- what the files of a folder may say

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def token(content: str, **flags: bool) -> dict:
    return {"content": content} | dict.fromkeys(FLAGS, False) | flags


def write(folder: Path, files: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(text.encode("utf-8"))
    return folder


def bert(*words: str, added: dict | None = None, **settings: object) -> dict[str, object]:
    settings |= {} if added is None else {"added_tokens_decoder": added}
    files = {"config.json": {"model_type": "bert"}, "tokenizer_config.json": settings}
    return files | {"vocab.txt": "\n".join([*WORDS, *words]) + "\n"}


def roberta(added: dict | None = None, **settings: object) -> dict[str, object]:
    files = bert(added=added, **settings) | {"config.json": {"model_type": "roberta"}}
    del files["vocab.txt"]
    return files | {"vocab.json": {s: i for i, s in enumerate(BYTES)}, "merges.txt": MERGES}


def whole(files: dict[str, object], change: str, value: object) -> dict[str, object]:
    """The same in tokenizer.json, with "model.type" changed; RoBERTa's is that of the reference."""
    if "vocab.json" in files:
        content = json.loads((REFERENCE / "roberta/tokenizer.json").read_text(encoding="utf-8"))
    else:
        ids = {word: i for i, word in enumerate(WORDS)}
        model = {"type": "WordPiece", "vocab": ids, "unk_token": "[UNK]"}
        model |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
        normalizer |= {"lowercase": True, "strip_accents": None}
        content = {"version": "1.0", "model": model, "normalizer": normalizer, "added_tokens": []}
        content["pre_tokenizer"] = {"type": "BertPreTokenizer"}
    part, name = change.split(".")
    content[part][name] = value
    if value == "gone":
        del content[part][name]
    return files | {"tokenizer.json": content}


E1, MASK = token("[E1]"), token("<mask>", lstrip=True)
TYPED = {"__type": "AddedToken"}
LATE = {4: MASK, 261: token("ow"), 264: token("lo", normalized=True)}
OLD = {"[MASK]": 4, "Zoo": 12, "Ape": 11}
OLDER = {"added_tokens.json": OLD}
MAP = {"special_tokens_map.json": {"mask_token": MASK}}
ODD = {symbol.replace("<s>", "[CLS]"): i + (i > 261) for i, symbol in enumerate(BYTES)}
ETE = ("ete", "été", "Ete", "Été")
AS_IN_TRANSFORMERS = {  # files, a text, its ids
    "the longest first": (bert(added={11: E1, 12: token("[E1]\n")}), "[E1]\nowl", [12, 6]),
    "normalized ones later": (roberta(LATE), "lowlo <mask>", [113, 261, 264, 4]),
    "other names": (bert("<s>", cls_token="<s>"), "the<s> [CLS]", [5, 11, 1, 1, 1]),
    "added_tokens.json, in the order of ids": (
        bert(additional_special_tokens=[*OLD]) | OLDER, "[MASK]ApeZoo", [4, 11, 12]
    ),
    "no <s>, and a gap": (
        roberta(bos_token=None, cls_token="[CLS]") | {"vocab.json": ODD}, "owl[CLS]", [263, 0]
    ),
    "a space before a mask": (roberta(), "owl owl <mask>", [262, 263, 37, 4]),
    "special_tokens_map.json": (roberta() | MAP, "owl \n<mask>", [262, 4]),
    "a space first": (roberta(add_prefix_space=True), "<mask> owl<mask>\t", [4, 263, 4, 37, 14]),
    "Chinese characters together": (bert(tokenize_chinese_chars=False), "犬犬 owl", [9, 10, 6]),
    "lower case with accents": (bert(*ETE, strip_accents=False), "Été", [12]),
    "capitals without": (bert(*ETE, do_lower_case=False, strip_accents=True), "Été", [13]),
    "cased": (bert(*ETE, do_lower_case=False, tokenizer_class="BertTokenizerFast"), "Été", [14]),
    "tokenizer.json": (whole(bert(), "normalizer.lowercase", True), "The owls", [5, 6, 7]),
    "no model.type": (whole(roberta(), "model.type", "gone"), "owl owl", [262, 269]),
    "a word twice, Windows' line ends, trailing and lonely blanks": (
        bert() | {"vocab.txt": "\r\n".join(f"{word} \u3000" for word in [*WORDS, "owl", ""])},
        "the owls", [5, 11, 7],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", AS_IN_TRANSFORMERS)
def test_a_folder_opens_as_in_transformers(what: str, tmp_path: Path) -> None:
    files, text, expected = AS_IN_TRANSFORMERS[what]
    folder = write(tmp_path / "theirs", files)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(text) == expected
    saved = write(tmp_path / "saved", {"config.json": files["config.json"]} | tokenizer.files())
    assert load_tokenizer(saved).encode(text) == expected
    auto = pytest.importorskip("transformers").AutoTokenizer
    for place in (folder, saved):
        opened = auto.from_pretrained(place)
        assert opened.encode(text, add_special_tokens=False) == expected
        assert opened.cls_token_id == tokenizer.cls_token_id


REFUSED = {  # what is said of it, files
    "is 'Phobert', not one of Bert": bert() | {"config.json": {"tokenizer_class": "Phobert"}},
    "the tokenizer is 'roberta', not one of": bert() | {"config.json": {"model_type": "roberta"}},
    '"fix_mistral_regex" is True': roberta(fix_mistral_regex=True),
    '"auto_map" is': bert(auto_map={"AutoTokenizer": "tokens.py"}),
    "\"do_lower_case\" is 'no'": bert(do_lower_case="no"),
    "the token <i> is missing": bert(extra_special_tokens={"image_token": "<i>"}),
    "the token pad_token is missing": bert(pad_token=None),
    "\"normalized\" of the added token '[MASK]'": bert() | OLDER,
    "token '[MASK]' isn't built": bert(mask_token=TYPED | token("[MASK]")) | OLDER,
    "vocab.txt: starts with a byte-order mark; save it without": bert() | {"vocab.txt": "\ufeff"},
    "the token [E1] is missing, or not 11, or ids": bert(added={15: E1}),
    "is missing, or not 12, or ids have gaps": bert("", "", added={12: E1}),
    '"lstrip" of the added token': roberta({264: token("[E1]", lstrip=True)}),
    "of the added token ''": bert(added={11: token("", special=True)}),
    "each once": roberta() | {"vocab.json": {s: max(i, 5) for i, s in enumerate(BYTES)}},
    "whole numbers": roberta() | {"vocab.json": {s: float(i) for i, s in enumerate(BYTES)}},
    '"lowercase" is False, but True by': whole(bert(), "normalizer.lowercase", False),
    '"strip_accents" is False, but True': whole(bert(), "normalizer.strip_accents", False),
    "white space that no line": whole(bert(), "model.vocab", {"a ": 0}),
    '"add_prefix_space" is True': whole(roberta(), "pre_tokenizer.add_prefix_space", True),
    '"use_regex" is False': whole(roberta(), "pre_tokenizer.use_regex", False),
    "o and x, or the two as one, are no tokens": whole(roberta(), "model.merges", ["o x"]),
    "'none', 'Whitespace')": whole(roberta(), "pre_tokenizer.type", "Whitespace"),
    '"max_input_chars_per_word" is 5': whole(bert(), "model.max_input_chars_per_word", 5),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_built_is_refused(message: str, tmp_path: Path) -> None:
    write(tmp_path, REFUSED[message])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


VALUES = (None, "owl", "<new>", TYPED | token("the"))
SWITCHES = ("do_lower_case", "tokenize_chinese_chars", "add_prefix_space", "split_special_tokens")
CLASSES = ("BertTokenizer", "RobertaTokenizerFast", "ElectraTokenizer", "GPT2Tokenizer")
ADDED = [token(c, **{flag: True}) for c in ("Owl", " barn ", "[E1]", "\n") for flag in FLAGS]
CHANGES = [
    *itertools.product(("bos_token", "mask_token", "cls_token", "image_token"), VALUES),
    *itertools.product(SWITCHES, (True, False)),
    *itertools.product(["tokenizer_class"], CLASSES),
    *itertools.product(["added"], ADDED),
]


@pytest.mark.parametrize("files", [bert, roberta])
@pytest.mark.parametrize(("name", "value"), CHANGES)
def test_every_setting_gives_the_ids_of_transformers_or_a_line(
    files: Callable, name: str, value: object, tmp_path: Path
) -> None:
    value = {len(WORDS if files is bert else BYTES): value} if name == "added" else value
    auto = pytest.importorskip("transformers", reason="the ids above hold without it").AutoTokenizer
    folder, rng = write(tmp_path, files(**{name: value})), random.Random(0)
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError:
        return
    opened = auto.from_pretrained(folder)
    pieces = ["owl", "Owl", " barn", " ", "\n", "[E1]", "<mask>", "[MASK]", "<new>", "é", "犬", "s"]
    for _ in range(100):
        text = "".join(rng.choices(pieces, k=8))
        assert tokenizer.encode(text) == opened.encode(text, add_special_tokens=False), text
