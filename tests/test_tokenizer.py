"""Text -> ids."""

import itertools
import json
import random
import re
import sys
import unicodedata
from pathlib import Path

import pytest

from load_weights import load_tokenizer
from qa.bpe import SYMBOLS, WORD, ByteLevelBPE, like_ascii
from qa.tokenizer import Tokenizer, WordPiece
from test_kformer import KINDS, REFERENCE

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def same_ids_as_transformers(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for line in (folder / "texts.jsonl").read_text(encoding="utf-8").splitlines():
        text, ids = json.loads(line).values()
        found = [tokenizer.vocab[i] for i in tokenizer.encode(text)]
        assert found == [tokenizer.vocab[i] for i in ids], f"{text!r} is split otherwise"


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind: str) -> None:
    same_ids_as_transformers(REFERENCE / kind)


def whole_tokenizer(tokenizer: Tokenizer) -> dict:
    """What transformers writes as tokenizer.json, as far as it's read."""
    added = [token(**t) | {"id": tokenizer.ids[c]} for c, t in tokenizer.added.items()]
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
        splitter["trim_offsets"] = True
    steps = {"normalizer": normalizer, "pre_tokenizer": splitter}
    return {"version": "1.0", "model": model, "added_tokens": added} | steps


def test_wordpiece_cleans_splits_and_takes_the_longest_piece() -> None:
    vocab = [*TOKENS[:4], "un", "##happi", "##ly", "##h", "cafe", "!", "犬"]
    encode = WordPiece(vocab).encode
    assert encode("Unhappily") == [4, 5, 6]
    assert encode("CAFÉ!\tcafe\u200b犬") == [8, 9, 8, 10]
    assert encode("unhappy café" + "!" * 2) == [1, 8, 9, 9]
    assert encode("un" + "ly" * 49) == [4] + [6] * 49, "100 characters"
    assert encode("un" + "ly" * 49 + "h") == [1], "over 100 characters"
    assert encode("unly" * 5000 + " cafe") == [1, 8]
    assert encode("un[SEP]ly") == [4, 3, 1], "a special token in the text is that token"
    assert WordPiece(vocab).decode([4, 5, 6, 9]) == "unhappily !"
    assert WordPiece(vocab, do_lower_case=False).encode("Cafe cafe") == [1, 8]


def byte_level(*merges: str, **options: object) -> ByteLevelBPE:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    merged = dict.fromkeys(pair.replace(" ", "") for pair in merges)
    return ByteLevelBPE([*special, *SYMBOLS, *merged], list(merges), **options)


def bpe_pieces(text: str, *merges: str, **options: object) -> list[str]:
    tokenizer = byte_level(*merges, **options)
    return [tokenizer.vocab[i] for i in tokenizer.encode(text)]


def words(text: str) -> list[str]:
    return [text[slice(*found.span())] for found in WORD.finditer(like_ascii(text))]


def test_bpe_splits_as_gpt_2_does() -> None:
    """At spaces, which stay with the word behind them, and between letters, digits and the rest."""
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
    assert bpe_pieces("owl \n<mask>", *merges, added=greedy) == ["owl", "<mask>"]


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
    """With merges that were learned, and with random ones in any order."""
    learned, rng = load_tokenizer(REFERENCE / "roberta"), random.Random(0)
    for length in range(1, 200):
        pieces, merges = [*"abc"], {}
        for _ in range(rng.randrange(40)):
            pair = rng.choices(pieces, k=2)
            pieces.append("".join(pair))
            merges[" ".join(pair)] = None
        drawn = byte_level(*rng.sample([*merges], len(merges)))
        for tokenizer, letters in ((learned, "owlmiceatsh"), (drawn, "abc")):
            word = "".join(rng.choices(letters, k=length))
            expected = merged_in_loops(list(word), tokenizer.ranks)
            assert [tokenizer.vocab[i] for i in tokenizer.word_ids(word)] == expected


def test_a_long_word_takes_as_many_steps_as_it_has_letters() -> None:
    class Counted(dict):
        asked = 0

        def __contains__(self, pair: object) -> bool:
            self.asked += 1
            return super().__contains__(pair)

    tokenizer = byte_level("a a", "b c", "aa bc", "aabc aabc")
    tokenizer.ranks = Counted(tokenizer.ranks)
    found = [tokenizer.vocab[i] for i in tokenizer.encode("aabc" * 5000 + "a")]
    assert found == ["aabcaabc"] * 2500 + ["a"]
    assert tokenizer.ranks.asked < 4 * 20_000


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

WORDS = [*TOKENS, "the", "owl", "##s", "barn", "犬", "##犬"]
BYTES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *SYMBOLS, "ow", "owl", "Ġowl"]
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
    settings |= {} if added is None else {"added_tokens_decoder": added}
    files = {"config.json": {"model_type": "bert"}, "tokenizer_config.json": settings}
    return files | {"vocab.txt": "\n".join([*WORDS, *words]) + "\n"}


def roberta(added: dict | None = None, **settings: object) -> dict[str, object]:
    files = bert(added=added, **settings) | {"config.json": {"model_type": "roberta"}}
    ids = {symbol: i for i, symbol in enumerate(BYTES)}
    return {name: files[name] for name in [*files][:2]} | {"vocab.json": ids, "merges.txt": MERGES}


def whole(files: dict[str, object], change: str = "", value: object = None) -> dict[str, object]:
    """The same in tokenizer.json, with a field "model.type" changed; "gone" takes it away."""
    bpe = "vocab.json" in files
    content = whole_tokenizer(byte_level(*MERGES.splitlines()[1:]) if bpe else WordPiece(WORDS))
    *parts, name = change.split(".")
    place = content[parts[0]] if parts else content
    place |= {name: value} if name else {}
    if value == "gone":
        del place[name]
    return {name: files[name] for name in [*files][:2]} | {"tokenizer.json": content}


E1, MASK = token("[E1]"), token("<mask>", lstrip=True)
LATE = {261: token("ow"), 264: token("lo", normalized=True), 265: token("a\n", normalized=True)}
OLDER = {"added_tokens.json": {"[MASK]": 4, "Zoo": 11}}
NO_S = {symbol.replace("<s>", "[CLS]"): i for i, symbol in enumerate(BYTES)}
ETE = ("ete", "été", "Ete", "Été")
AS_IN_TRANSFORMERS = {  # files, a text, its ids
    "added words get the next ids": (
        bert(added={11: E1, 12: token("[E1]barn")}), "the [E1] [E1]barns", [5, 11, 12, 1]
    ),
    "one of white space": (bert(added={11: token("\n")}), "the\nowl", [5, 11, 6]),
    "normalized ones are found later": (
        roberta(LATE | {4: MASK}), "lowlo a\n <mask>", [113, 261, 264, 37, 102, 4]
    ),
    "special tokens by other names": (
        bert("<s>", "</s>", cls_token="<s>", sep_token="</s>"), "the<s> [CLS]", [5, 11, 1, 1, 1]
    ),
    "added_tokens.json": (
        roberta() | {"added_tokens.json": {"Zoo": 265, "Ape": 264}}, "ZooApe", [265, 264]
    ),
    "special ones in added_tokens.json": (
        bert(additional_special_tokens=["Zoo"], mask_token="[MASK]") | OLDER,
        "[MASK]Zoo[mask]", [4, 11, 1, 1, 1],
    ),
    "no <s>": (
        roberta(bos_token=None, cls_token="[CLS]") | {"vocab.json": NO_S},
        "owl<s>[CLS]", [262, 65, 120, 67, 0],
    ),
    "special_tokens_map.json": (
        roberta() | {"special_tokens_map.json": {"mask_token": MASK}}, "owl <mask>", [262, 4]
    ),
    "Chinese characters together": (bert(tokenize_chinese_chars=False), "犬犬 owl", [9, 10, 6]),
    "Chinese characters apart": (bert(), "犬犬 owl", [9, 9, 6]),
    "accents": (bert(*ETE), "Été", [11]),
    "lower case with accents": (bert(*ETE, strip_accents=False), "Été", [12]),
    "capitals without": (bert(*ETE, do_lower_case=False, strip_accents=True), "Été", [13]),
    "cased": (
        bert(*ETE, do_lower_case=False, tokenizer_class="BertTokenizerFast"), "Été", [14]
    ),
    "cased, tokenizer.json": (
        whole(bert(do_lower_case=False), "normalizer.lowercase", False), "The owl", [1, 6]
    ),
    "a blank last line": (bert(""), "the owls", [5, 6, 7]),
    "a word twice": (bert("owl"), "the owls", [5, 11, 7]),
    "Windows' line ends, trailing blanks": (
        bert() | {"vocab.txt": "\r\n".join(f"{word} \u3000" for word in WORDS)},
        "the owls", [5, 6, 7],
    ),
    "a gap": (roberta() | {"vocab.json": {t: i + (i > 261) for t, i in
              roberta()["vocab.json"].items()}}, "owl", [263]),
    "no model.type, WordPiece": (whole(bert(), "model.type", "gone"), "the owls", [5, 6, 7]),
    "no model.type, BPE": (whole(roberta(), "model.type", "gone"), "owl owl", [262, 263]),
}  # fmt: skip


@pytest.mark.parametrize("what", AS_IN_TRANSFORMERS)
def test_a_folder_opens_as_in_transformers(what: str, tmp_path: Path) -> None:
    """Written out, then live, and both once more after saving."""
    files, text, expected = AS_IN_TRANSFORMERS[what]
    folder = write(tmp_path / "theirs", files)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode(text) == expected
    assert all(tokenizer.vocab[i] for i in expected)
    saved = write(tmp_path / "saved", {"config.json": files["config.json"]} | tokenizer.files())
    assert load_tokenizer(saved).encode(text) == expected
    auto = pytest.importorskip("transformers").AutoTokenizer
    for place in (folder, saved):
        opened = auto.from_pretrained(place)
        assert opened.encode(text, add_special_tokens=False) == expected
        assert opened.cls_token_id == tokenizer.cls_token_id


def js(change: str, value: object) -> dict[str, object]:
    return whole(bert() if change.startswith(("n", "model.u")) else roberta(), change, value)


REFUSED = {
    "the tokenizer is 'BertJapaneseTokenizer', not one of BertTokenizer": bert()
    | {"config.json": {"tokenizer_class": "BertJapaneseTokenizer"}},
    "the tokenizer is 'PhobertTokenizer', not": bert(tokenizer_class="PhobertTokenizer"),
    "the tokenizer is 'roberta', not one of": bert() | {"config.json": {"model_type": "roberta"}},
    "the tokenizer is 'TokenizersBackend', not": bert(tokenizer_class="TokenizersBackend"),
    '"split_special_tokens" is True': bert(split_special_tokens=True),
    '"fix_mistral_regex" is True': roberta(fix_mistral_regex=True),
    '"auto_map" is': bert(auto_map={"AutoTokenizer": "tokens.py"}),
    "\"do_lower_case\" is 'no'": bert(do_lower_case="no"),
    "the token <i> is missing": bert(extra_special_tokens={"image_token": "<i>"}),
    "\"normalized\" of the added token '[MASK]'": bert() | {"added_tokens.json": {"[MASK]": 4}},
    "added token '[MASK]' isn't built": bert(mask_token={"__type": "AddedToken"} | token("[MASK]"))
    | {"added_tokens.json": {"[MASK]": 4}},
    "the token <new> is missing": bert(cls_token="<new>"),
    "the token pad_token is missing": bert(pad_token=None),
    "vocab.txt: starts with a byte-order mark; save it without": bert() | {"vocab.txt": "\ufeff"},
    "vocab.json: starts with a byte-order": roberta() | {"vocab.json": "\ufeff{}"},
    "merges.txt: starts with a byte-order": roberta() | {"merges.txt": "\ufeff" + MERGES},
    "tokenizer.json: starts with a byte-order": bert() | {"tokenizer.json": "\ufeff{}"},
    "the token [E1] is missing, or not 11, or ids": bert(added={15: E1}),
    "is missing, or not 12, or ids have gaps": bert("", "", added={12: E1}),
    '"single_word" of the added token': bert(added={11: token("owlet", single_word=True)}),
    '"rstrip" of the added token': roberta({4: token("<mask>", rstrip=True)}),
    '"lstrip" of the added token': roberta({264: token("[E1]", lstrip=True)}),
    "\"normalized\" of the added token '[E1]'": bert(added={11: {"content": "[E1]"}}),
    "\"normalized\" of the added token 'Zoo'": bert() | {"added_tokens.json": {"Zoo": 11}},
    "of the added token ''": bert(added={11: token("", special=True)}),
    "vocab.json: the ids of the tokens must be whole numbers below": roberta()
    | {"vocab.json": {symbol: max(i, 5) for i, symbol in enumerate(BYTES)}},
    "must be whole numbers below 10,000,000, each once": roberta()
    | {"vocab.json": {symbol: float(i) for i, symbol in enumerate(BYTES)}},
    "\"unk_token\" is '[PAD]', but '[UNK]' by": js("model.unk_token", "[PAD]"),
    '"lowercase" is False, but True by tokenizer_config': js("normalizer.lowercase", False),
    '"strip_accents" is False, but True': js("normalizer.strip_accents", False),
    "white space that no line": whole(bert(), "model.vocab", {"a ": 0}),
    '"add_prefix_space" is True, but False': js("pre_tokenizer.add_prefix_space", True),
    '"ignore_merges" is True': js("model.ignore_merges", True),
    '"dropout" is 0.1': js("model.dropout", 0.1),
    "o and x, or the two as one, are no tokens": js("model.merges", ["o x"]),
    '"use_regex" is False': js("pre_tokenizer.use_regex", False),
    "('BPE', 'NFC', 'ByteLevel')": whole(roberta(), "normalizer", {"type": "NFC"}),
    "('WordPiece', 'none', 'BertPreTokenizer')": js("normalizer", None),
    '"clean_text" is False': js("normalizer.clean_text", False),
    '"max_input_chars_per_word" is 5': whole(bert(), "model.max_input_chars_per_word", 5),
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
    found, typed = {}, {"__type": "AddedToken"} | token("the")
    names = ("bos_token", "mask_token", "cls_token", "image_token", "do_lower_case", "lower_case",
             "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "split_special_tokens")
    for files, size in ((bert, len(WORDS)), (roberta, len(BYTES))):
        for flag in ("single_word", "lstrip", "rstrip", "normalized", "special"):
            for content in ("Owl", " barn ", "[E1]", "\n"):
                added = {size: token(content, **{flag: True})}
                found[f"{files.__name__} {flag} {content!r}"] = files(added=added)
        for name, value in itertools.product(names, (None, True, False, "owl", "<new>", typed)):
            found[f"{files.__name__} {name} {value}"] = files(**{name: value})
        for name in ("Bert", "Roberta", "Electra", "DistilBert", "Longformer", "GPT2", "Herbert"):
            found[f"{files.__name__} {name}"] = files(tokenizer_class=f"{name}Tokenizer")
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
