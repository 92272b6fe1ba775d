"""Text -> ids."""

import itertools
import json
import random
import re
import sys
import unicodedata
from pathlib import Path

import pytest

from load_weights import (
    load_tokenizer,
    save_pretrained,
)
from qa.tokenizer import ByteLevelBPE, Tokenizer, WordPiece, byte_symbols, word_pattern
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
        with pytest.raises(ValueError, match=r"in tokenizer\.json it is False"):
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


# ------------------------------------------------------- what the files of a folder may say

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "owl", "##s", "barn", "犬", "##犬"]
BYTES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *byte_symbols(), "ow", "owl", "Ġowl"]
MERGES = "#version: 0.2\no w\now l\nĠ owl\n"


def token(content: str, **flags: bool) -> dict:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": content} | plain | flags


def write(folder: Path, files: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(text.encode("utf-8"))
    return folder


def bert(*words: str, added: dict | None = None, **settings: object) -> dict[str, object]:
    """The files of a BERT folder; `added` is {id: token}."""
    if added is not None:
        settings["added_tokens_decoder"] = added
    files = {"config.json": {"model_type": "bert"}, "tokenizer_config.json": settings}
    return files | {"vocab.txt": "\n".join([*WORDS, *words]) + "\n"}


def roberta(**settings: object) -> dict[str, object]:
    files = {"config.json": {"model_type": "roberta"}, "tokenizer_config.json": settings}
    ids = {symbol: i for i, symbol in enumerate(BYTES)}
    return files | {"vocab.json": ids, "merges.txt": MERGES}


def whole(files: dict[str, object], change: str = "", value: object = None) -> dict[str, object]:
    """The same in tokenizer.json, with a field "model.type" changed; "gone" takes it away."""
    tokenizer = WordPiece(WORDS)
    if "vocab.json" in files:
        merges = MERGES.splitlines()[1:]
        tokenizer = ByteLevelBPE(BYTES, merges)
    content = whole_tokenizer(tokenizer)
    *parts, name = change.split(".")
    place = content[parts[0]] if parts else content
    place |= {name: value} if name else {}
    if value == "gone":
        del place[name]
    kept = ("config.json", "tokenizer_config.json")
    return {name: files[name] for name in kept} | {"tokenizer.json": content}


AS_IN_TRANSFORMERS = {
    "added words get the next ids": (
        bert(added={11: token("[E1]"), 12: token("barnowl")}), "the [E1] barnowls", [5, 11, 12, 1]
    ),
    "they are no pieces of other words": (
        bert(added={11: token("owlet", single_word=True)}), "owlet owlets _owlet", [11, 1, 1, 1]
    ),
    "an accent belongs to the word": (
        bert(added={11: token("owl", single_word=True)} | {11: token("nest", single_word=True)}),
        "nest, nest\u0301 ⓐnest", [11, 1, 1, 1],
    ),
    "one of white space": (bert(added={11: token("\n")}), "the\nowl", [5, 11, 6]),
    "normalized ones are found in the normalized text": (
        bert(added={11: token("COVID", normalized=True), 12: token("NY", normalized=False)}),
        "covid Côvid NY ny", [11, 11, 12, 1],
    ),
    "spaces are taken along": (
        roberta(added_tokens_decoder={264: token("[E]", lstrip=True, rstrip=True)}),
        "owl  [E] \nowl", [262, 264, 262],
    ),
    "what one took along is no other": (
        roberta(added_tokens_decoder={264: token("\n", lstrip=True, rstrip=True)}),
        "owl \n\n", [262, 264],
    ),
    "special tokens by other names": (
        bert("<s>", "</s>", cls_token="<s>", sep_token="</s>"), "the<s> [CLS]", [5, 11, 1, 1, 1]
    ),
    "an old vocabulary with added_tokens.json": (
        bert() | {"added_tokens.json": {"Zoo": 12, "Ape": 11}}, "zoo Ape", [12, 11]
    ),
    "one that is special is not normalized": (
        bert(mask_token="[MASK]") | {"added_tokens.json": {"[MASK]": 4, "Zoo": 11}},
        "[MASK]zoo[mask]", [4, 11, 1, 1, 1],
    ),
    "added tokens of two files": (
        whole(bert(tokenizer_class="TokenizersBackend", added={11: token("[E1]")},
                   pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")),
        "[MASK][E1]", [4, 11],
    ),
    "no <s>": (
        roberta(bos_token=None, cls_token="[CLS]")
        | {"vocab.json": {t.replace("<s>", "[CLS]"): i for i, t in enumerate(BYTES)}},
        "owl<s>[CLS]", [262, 65, 120, 67, 0],
    ),
    "special_tokens_map.json": (
        roberta() | {"special_tokens_map.json": {"mask_token": token("<mask>", lstrip=True)}},
        "owl <mask>", [262, 4],
    ),
    "Chinese characters together": (bert(tokenize_chinese_chars=False), "犬犬 owl", [9, 10, 6]),
    "Chinese characters apart": (bert(), "犬犬 owl", [9, 9, 6]),
    "a blank last line": (bert("", added=None), "the owls", [5, 6, 7]),
    "a word twice": (bert("owl"), "the owls", [5, 11, 7]),
    "Windows' line ends, trailing blanks": (
        bert() | {"vocab.txt": "\r\n".join(f"{word} \u3000" for word in WORDS)},
        "the owls", [5, 6, 7],
    ),
    "a gap": (
        roberta() | {"vocab.json": {t: i + (i > 261) for i, t in enumerate(BYTES)}},
        "owl", [263],
    ),
    "no model.type, WordPiece": (whole(bert(), "model.type", "gone"), "the owls", [5, 6, 7]),
    "no model.type, BPE": (whole(roberta(), "model.type", "gone"), "owl owl", [262, 263]),
    "all from tokenizer.json": (
        whole(bert(tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]", unk_token="[UNK]",
                   cls_token="[CLS]", sep_token="[SEP]"), "normalizer.lowercase", False),
        "The owls", [1, 6, 7],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", AS_IN_TRANSFORMERS)
def test_a_folder_opens_as_in_transformers(what: str, tmp_path: Path) -> None:
    """Written out, then live, and both once more after saving."""
    files, text, expected = AS_IN_TRANSFORMERS[what]
    folder = write(tmp_path / "theirs", files)
    tokenizer = load_tokenizer(folder)
    found = tokenizer.encode(text)
    assert found == expected
    assert all(tokenizer.vocab[i] for i in found)
    saved = write(tmp_path / "saved", {"config.json": files["config.json"]} | tokenizer.files())
    assert load_tokenizer(saved).encode(text) == expected
    auto = pytest.importorskip("transformers").AutoTokenizer
    for place in (folder, saved):
        opened = auto.from_pretrained(place)
        assert opened.encode(text, add_special_tokens=False) == expected
        assert opened.cls_token_id == tokenizer.cls_token_id


REFUSED = {
    "config.json: \"tokenizer_class\" is 'BertJapaneseTokenizer', only BertTokenizer": bert()
    | {"config.json": {"tokenizer_class": "BertJapaneseTokenizer"}},
    "\"tokenizer_class\" is 'PhobertTokenizer', only": bert(tokenizer_class="PhobertTokenizer"),
    "vocab.txt: a WordPiece vocabulary, but the tokenizer is a RobertaTokenizer": bert()
    | {"config.json": {"model_type": "roberta"}},
    "vocab.txt: a WordPiece vocabulary, but the tokenizer is a TokenizersBackend": bert(
        tokenizer_class="TokenizersBackend"
    ),
    "\"word_tokenizer_type\" is 'mecab', only 'basic'": bert(word_tokenizer_type="mecab"),
    '"split_special_tokens" is True': bert(split_special_tokens=True),
    '"extra_special_tokens" is': bert(extra_special_tokens={"image_token": "<i>"}),
    "do_lower_case, strip_accents, tokenize_chinese_chars must be true": bert(do_lower_case="no"),
    "vocab.txt: the token <new> is missing": bert(cls_token="<new>"),
    "the token pad_token is missing": bert(pad_token=None),
    "the token [PAD] is missing": bert() | {"vocab.txt": "\ufeff" + "\n".join(WORDS)},
    "11 is the place of the added token '[E1]', whose id is said to be 15": bert(
        added={15: token("[E1]")}
    ),
    '"normalized" isn\'t said of the added token': bert(added={11: {"content": "[E1]"}}),
    "the ids have gaps": bert("", "", added={13: token("[E1]")}),
    "two added tokens are the same": bert(
        added={11: token("Zoo", normalized=True), 12: token("zoo", normalized=True)}
    ),
    "vocab.json: two tokens have the same id": roberta()
    | {"vocab.json": {symbol: max(i, 5) for i, symbol in enumerate(BYTES)}},
    "vocab.json: the ids of the tokens must be whole numbers": roberta()
    | {"vocab.json": {symbol: float(i) for i, symbol in enumerate(BYTES)}},
    '"unk_token" is \'[UNK]\'': whole(bert(), "model.unk_token", "[PAD]"),
    "the added tokens must be in the order": whole(bert(), "added_tokens", [{"id": 1}, {"id": 0}]),
    "white space that no line": whole(bert(), "model.vocab", {"a ": 0}),
    '"add_prefix_space" is False': whole(roberta(), "pre_tokenizer.add_prefix_space", True),
    '"ignore_merges" is True': whole(roberta(), "model.ignore_merges", True),
    '"dropout" is 0.1': whole(roberta(), "model.dropout", 0.1),
    "a merge starts with": whole(roberta(), "model.merges", ["#version s"]),
    '"use_regex" is False': whole(roberta(), "pre_tokenizer.use_regex", False),
    "BPE + NFC + ByteLevel": whole(roberta(), "normalizer", {"type": "NFC"}),
    '"clean_text" is False': whole(bert(), "normalizer.clean_text", False),
    '"max_input_chars_per_word" is 5': whole(bert(), "model.max_input_chars_per_word", 5),
    "codec can't encode character": roberta()
    | {"vocab.json": {t: i for i, t in enumerate([*BYTES, "\ud800"])}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_built_is_refused(message: str, tmp_path: Path) -> None:
    write(tmp_path, REFUSED[message])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def variants() -> dict[str, dict[str, object]]:
    """Folders in which one thing is otherwise."""
    found = {}
    for kind, files in (("bert", bert), ("roberta", roberta)):
        size = len(WORDS if kind == "bert" else BYTES)
        for flag in ("single_word", "lstrip", "rstrip", "normalized", "special"):
            for content in ("Owl", " barn ", "[E1]", "\n"):
                added = {"added_tokens_decoder": {size: token(content, **{flag: True})}}
                found[f"{kind} {flag} {content!r}"] = files(**added)
        for name in ("bos_token", "eos_token", "mask_token", "cls_token", "image_token"):
            for value in (None, "owl", "<new>", {"__type": "AddedToken"} | token("the")):
                found[f"{kind} {name} {value}"] = files(**{name: value})
        for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "lower_case",
                     "add_prefix_space", "split_special_tokens", "do_basic_tokenize"):  # fmt: skip
            for value in (True, False, None):
                found[f"{kind} {name} {value}"] = files(**{name: value})
        for name in ("Bert", "Roberta", "Electra", "DistilBert", "Longformer", "GPT2", "Herbert"):
            found[f"{kind} {name}"] = files(tokenizer_class=f"{name}Tokenizer")
        for part, name, value in (
            ("model", "unk_token", "owl"), ("model", "type", "gone"), ("model", "fuse_unk", True),
            ("model", "continuing_subword_prefix", "@@"), ("model", "byte_fallback", True),
            ("normalizer", "lowercase", False), ("normalizer", "strip_accents", False),
            ("normalizer", "handle_chinese_chars", False), ("pre_tokenizer", "type", "Whitespace"),
        ):  # fmt: skip
            if kind == "bert" or part != "normalizer":
                found[f"{kind} {part}.{name}"] = whole(files(), f"{part}.{name}", value)
    return found


@pytest.mark.parametrize("what", variants())
def test_every_setting_gives_the_ids_of_transformers_or_a_line(what: str, tmp_path: Path) -> None:
    auto = pytest.importorskip("transformers", reason="the ids above hold without it").AutoTokenizer
    folder, rng = write(tmp_path, variants()[what]), random.Random(0)
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError:
        return
    try:
        opened = auto.from_pretrained(folder)
    except TypeError:  # of another kind than true and false: it doesn't open there
        return
    pieces = ["owl", "Owl", " barn", " ", "\n", "[E1]", "<mask>", "[MASK]", "<new>", "é", "犬", "s"]
    for _ in range(100):
        text = "".join(rng.choices(pieces, k=8))
        assert tokenizer.encode(text) == opened.encode(text, add_special_tokens=False), text
