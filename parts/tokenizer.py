"""BERT's and RoBERTa's tokenizers from scratch, with the standard library alone: text -> ids.

WordPiece and byte-level BPE both split a text into words and a word into pieces that they know.
WordPiece takes the longest piece from the left; BPE starts from bytes and merges neighbours.
load_tokenizer in load_weights.py makes one of them from the files of a checkpoint folder.
"""

import json
import re
import sys
import unicodedata
from functools import lru_cache
from heapq import heappop, heappush
from itertools import count, groupby

# What Unicode calls white space; \s in Python's re has four control characters more.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


class Tokenizer:
    """What both kinds share: ids, and the tokens that stand in the text as they are.

    `vocab[i]` is the token of id i. `added` are those tokens, in the form that transformers has for
    them: {"content": "<mask>", "lstrip": True}, where "lstrip" takes the spaces before it along.
    """

    special: tuple[str, ...]  # padding, unknown, beginning, end; the last one may be missing: mask

    def __init__(self, vocab: list[str], added: list[dict]) -> None:
        self.vocab, self.ids = vocab, {token: i for i, token in enumerate(vocab)}
        if missing := [token for token in self.special[:4] if token not in self.ids]:
            raise ValueError(f"the token {missing[0]} is missing")
        ids = (self.ids[token] for token in self.special[:4])
        self.pad_token_id, self.unk_token_id, self.cls_token_id, self.sep_token_id = ids
        usual = [{"content": t, "lstrip": t == "<mask>", "special": True} for t in self.special]
        self.added = added or [token for token in usual if token["content"] in self.ids]
        for token in self.added:
            if token["content"] not in self.ids or token["content"] != token["content"].strip():
                raise ValueError(f"the added token {token['content']!r} is not in the vocabulary")
        longest_first = sorted(self.added, key=lambda token: -len(token["content"]))
        self.marks = re.compile("|".join(map(added_pattern, longest_first)))
        self.word_ids = lru_cache(maxsize=None)(self.word_ids)  # most words come again and again

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without those of the beginning and the end."""
        ids, done = [], 0
        for mark in self.marks.finditer(text):
            ids += self.text_ids(text[done : mark.start()])
            ids.append(self.ids[mark.group().strip()])
            done = mark.end()
        return ids + self.text_ids(text[done:])

    def config_file(self, **settings: object) -> dict[str, str]:
        added = {self.ids[token["content"]]: token for token in self.added}
        content = json.dumps(settings | {"added_tokens_decoder": added}, indent=2)
        return {"tokenizer_config.json": content + "\n"}


def added_pattern(token: dict) -> str:
    """{"content": "<mask>", "lstrip": True} -> a regular expression"""
    left, right = (f"[{SPACE}]*" if token.get(side) else "" for side in ("lstrip", "rstrip"))
    return left + re.escape(token["content"]) + right


# ----------------------------------------------------------------------------------- WordPiece


class WordPiece(Tokenizer):
    """BERT's tokenizer: split at spaces and punctuation, then into the longest known pieces.

    A word that isn't in the vocabulary is taken apart, "unhappily" into "un", "##happi", "##ly"; a
    word that can't be becomes [UNK], and so does one of over 100 characters.

    The same ids as Hugging Face tokenizers 0.23, but for what the two have from different years of
    Unicode, 559 code points with Python 3.11. Its categories are those of Unicode 8 (2015); here
    newer accents are accents and newer punctuation is punctuation, as Python's unicodedata has
    them, and with it Google's own tokenization.py.
    """

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(
        self, vocab: list[str], lower: bool = True, strip_accents: bool | None = None,
        added: list[dict] | None = None,
    ) -> None:
        self.lower = lower
        self.strip_accents = lower if strip_accents is None else strip_accents
        super().__init__(vocab, added)

    def files(self) -> dict[str, str]:
        """File name -> content, as load_tokenizer and transformers read them."""
        return {"vocab.txt": "\n".join(self.vocab) + "\n"} | self.config_file(
            tokenizer_class="BertTokenizer",
            do_lower_case=self.lower,
            strip_accents=self.strip_accents,
        )

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, as far as it can be had back: spaces around punctuation stay."""
        return " ".join(self.vocab[i] for i in ids).replace(" ##", "")

    def text_ids(self, text: str) -> list[int]:
        return [i for word in text.split(" ") for i in self.word_ids(word)]

    def word_ids(self, text: str) -> list[int]:
        """What stands between two spaces -> ids: cleaned, split and taken apart."""
        return [i for word in self.clean(text).split() for i in self.pieces(word)]

    def clean(self, text: str) -> str:
        """Control characters out, accents off and letters small where asked, CJK set apart."""
        chars = [c for c in text if c in "\t\n\r" or not is_control(c)]
        text = "".join(f" {c} " if is_cjk(c) else " " if category(c) == "Zs" else c for c in chars)
        if self.strip_accents:
            text = unicodedata.normalize("NFD", text)
            text = "".join(c for c in text if category(c) != "Mn")
        if self.lower:
            text = "".join(c.lower() for c in text)
        return "".join(f" {c} " if is_punctuation(c) else c for c in text)

    def pieces(self, word: str) -> list[int]:
        """One word -> its pieces, each the longest that fits."""
        if len(word) > 100:
            return [self.unk_token_id]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.ids), None)
            if end is None:
                return [self.unk_token_id]
            pieces.append(self.ids[prefix + word[start:end]])
            start = end
        return pieces


category = lru_cache(maxsize=None)(unicodedata.category)


def is_control(c: str) -> bool:
    """Control, format, private use, surrogate; code points without a character (Cn) may stay."""
    return category(c) in ("Cc", "Cf", "Co", "Cs") or c == "\ufffd"


def is_punctuation(c: str) -> bool:
    """All of ASCII that is neither letter nor digit nor space counts, "$" and "^" too."""
    return ("!" <= c <= "~" and not c.isalnum()) or category(c)[0] == "P"


def is_cjk(c: str) -> bool:
    """Chinese characters, whose words stand without spaces between them. From U+2B820 to U+2B91F
    they are left out, as in tokenizers.
    """
    return (
        "\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf" or "\uf900" <= c <= "\ufaff"
        or "\U00020000" <= c <= "\U0002a6df" or "\U0002a700" <= c <= "\U0002b81f"
        or "\U0002b920" <= c <= "\U0002ceaf" or "\U0002f800" <= c <= "\U0002fa1f"
    )


# ------------------------------------------------------------------------------ byte-level BPE


class ByteLevelBPE(Tokenizer):
    """RoBERTa's tokenizer, which is GPT-2's: bytes, and merges of two neighbours into one.

    A word keeps the space before it, written "Ġ": " owl" and "owl" have different ids. Each byte
    of its UTF-8 is a token, so nothing is ever unknown; then the pair that was learned first is
    merged, and so on. `merges[i]` is "a b", the i-th pair to be learned.

    The same ids as Hugging Face tokenizers 0.23. Letters and digits that are newer than Python's
    Unicode (unicodedata.unidata_version) are split like symbols; their bytes hardly ever merge.
    """

    special = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")

    def __init__(
        self, vocab: list[str], merges: list[str], add_prefix_space: bool = False,
        added: list[dict] | None = None,
    ) -> None:
        super().__init__(vocab, added)
        self.merges, self.add_prefix_space = merges, add_prefix_space
        self.symbols = byte_symbols()
        self.ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)}
        if lacking := [symbol for symbol in self.symbols if symbol not in self.ids]:
            raise ValueError(f"the byte {lacking[0]} is missing in the vocabulary")
        for pair in self.ranks:
            if len(pair) != 2 or not {*pair, "".join(pair)} <= self.ids.keys():
                raise ValueError(f'the merge "{" ".join(pair)}" isn\'t of two tokens into one')

    def files(self) -> dict[str, str]:
        """File name -> content, as load_tokenizer and transformers read them."""
        vocab = json.dumps(self.ids, ensure_ascii=False) + "\n"
        merges = "\n".join(["#version: 0.2", *self.merges]) + "\n"
        return {"vocab.json": vocab, "merges.txt": merges} | self.config_file(
            tokenizer_class="RobertaTokenizer", add_prefix_space=self.add_prefix_space
        )

    def decode(self, ids: list[int]) -> str:
        """Ids -> text; what isn't UTF-8, half a character for one, becomes "\ufffd"."""
        byte_of = {symbol: bytes([byte]) for byte, symbol in enumerate(self.symbols)}
        text = "".join(self.vocab[i] for i in ids)
        return b"".join(byte_of.get(c, c.encode()) for c in text).decode("utf-8", "replace")

    def text_ids(self, text: str) -> list[int]:
        if self.add_prefix_space and text and not text.startswith(" "):
            text = " " + text
        return [i for word in word_pattern().findall(text) for i in self.word_ids(word)]

    def word_ids(self, word: str) -> list[int]:
        """One word -> its ids. Parts that were merged into the one before them are left empty."""
        parts = [self.symbols[byte] for byte in word.encode("utf-8", "replace")]
        after, before = list(range(1, len(parts) + 1)), list(range(-1, len(parts) - 1))
        queue = []  # pairs that may be merged: rank, place, what stood there

        def enter(i: int) -> None:
            pair = tuple(parts[k] for k in (i, after[i]) if 0 <= k < len(parts))
            if pair in self.ranks:
                heappush(queue, (self.ranks[pair], i, pair))

        for i in range(len(parts)):
            enter(i)
        while queue:
            _, i, pair = heappop(queue)
            j = after[i]
            if j == len(parts) or (parts[i], parts[j]) != pair:
                continue  # one of the two was merged with another neighbour
            parts[i], parts[j] = "".join(pair), ""
            after[i] = after[j]
            if after[i] < len(parts):
                before[after[i]] = i
            enter(before[i])
            enter(i)
        return [self.ids[part] for part in parts if part]


def byte_symbols() -> list[str]:
    """A visible character for each byte: its own in Latin-1, or the next one from U+0100 on."""
    spare = count(256)
    own = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in own else next(spare)) for byte in range(256)]


@lru_cache(maxsize=1)
def word_pattern() -> re.Pattern:
    """GPT-2's split: contractions, letters, digits, the rest, each with a space before it; spaces.
    """
    letter, digit = characters("L"), characters("N")
    return re.compile(
        f"'s|'t|'re|'ve|'m|'ll|'d| ?[{letter}]+| ?[{digit}]+| ?[^{SPACE}{letter}{digit}]+"
        f"|[{SPACE}]+(?![^{SPACE}])|[{SPACE}]+"
    )


def characters(kind: str) -> str:
    """All characters of a Unicode category, "L" or "N", as ranges within [] of an expression."""
    ranges = []
    codes = groupby(range(sys.maxunicode + 1), lambda i: unicodedata.category(chr(i))[0] == kind)
    for inside, run in codes:
        first, *_, last = [*run] * 2
        ranges += [f"{chr(first)}-{chr(last)}"] * inside
    return "".join(ranges)
