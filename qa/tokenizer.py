"""BERT's and RoBERTa's tokenizers from scratch, with the standard library alone: text -> ids.

WordPiece and byte-level BPE both split a text into words and a word into pieces that they know.
WordPiece takes the longest piece from the left; BPE starts from bytes and merges neighbours.
load_tokenizer in vocabulary.py makes one of them from the files of a checkpoint folder.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import count, groupby, pairwise
from math import inf

# What Unicode calls white space; \s in Python's re has four control characters more.
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009"
SPACE += "\u200a\u2028\u2029\u202f\u205f\u3000"
# Chinese characters, whose words stand without spaces between them; tokenizers, too, leaves out
# those from U+2B820 to U+2B91F.
CJK = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]"
)
FRAMED = re.compile("[\u200c\u200dⒶ-ⓩ🄰-🅉🅐-🅩🅰-🆉]")  # words in Rust, with joiners
NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


class Tokenizer:
    """What both kinds share: ids, and the tokens that stand in the text as they are.

    `vocab[i]` is the token of id i. `added` are those tokens, in the form that transformers has for
    them: {"content": "<mask>", "lstrip": True}. One that isn't in `vocab` gets the next id, and one
    with "normalized" is looked for when the text is. `special` are the tokens that NAMES names.
    """

    special: Sequence[str | None]  # the last one, mask, may be missing

    def __init__(
        self, vocab: list[str], added: list[dict] | None, special: Sequence[str | None] | None
    ) -> None:
        self.vocab, self.size = [*vocab], len(vocab)
        self.own_ids = {token: i for i, token in enumerate(vocab)}  # without those added
        self.ids, special = {**self.own_ids}, special or self.special
        usual = [{"content": token, "special": True} for token in special if token in self.ids]
        self.added = [{"normalized": False} | t for t in (usual if added is None else added)]
        for token in self.added:
            if token["content"] not in self.ids:
                self.ids[token["content"]] = len(self.vocab)
                self.vocab.append(token["content"])
        for name, token in zip(NAMES[:4], special[:4], strict=True):
            if token not in self.ids:
                raise ValueError(f"the token {token or name} is missing")
        self.special = tuple(token if token in self.ids else None for token in special)
        ids = (self.ids[token] for token in self.special[:4])
        self.pad_token_id, self.unk_token_id, self.cls_token_id, self.sep_token_id = ids
        late = [(self.normalize(t["content"]), t) for t in self.added if t["normalized"]]
        soon = [(t["content"], t) for t in self.added if not t["normalized"]]
        self.marks, self.late_marks = Marks(soon, self.ids), Marks(late, self.ids)
        self.word_ids = lru_cache(maxsize=None)(self.word_ids)  # most words come again and again

    def check_ids(self, vocab_size: int, pad_token_id: int) -> None:
        """Raises ValueError for a model that has other ids, by its config."""
        if len(self.vocab) > vocab_size:
            raise ValueError(
                f"the vocabulary has {len(self.vocab)} tokens, but vocab_size in config.json is "
                f"{vocab_size}: take the vocabulary that came with the weights, or, if "
                f"{self.vocab[-1]!r} isn't in it, one that has it"
            )
        if self.pad_token_id != pad_token_id:
            raise ValueError(
                f"{self.special[0]} has the id {self.pad_token_id}, but pad_token_id in "
                f"config.json is {pad_token_id}: correct the wrong one"
            )

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without those of the beginning and the end."""
        return self.marks.encode(text, self.between_marks)

    def between_marks(self, text: str) -> list[int]:
        if self.late_marks.tokens:
            return self.late_marks.encode(self.normalize(text), self.text_ids)
        return self.text_ids(text)

    def normalize(self, text: str) -> str:
        return text

    def config_file(self, **settings: object) -> dict[str, str]:
        settings |= dict(zip(NAMES, self.special, strict=True))
        flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        added = {
            self.ids[token["content"]]: {flag: token.get(flag, False) for flag in flags}
            for token in self.added
        }
        content = json.dumps(settings | {"added_tokens_decoder": added}, indent=2)
        return {"tokenizer_config.json": content + "\n"}


class Marks:
    """Added tokens, to be found in a text from left to right, at one place the longest."""

    def __init__(self, tokens: list[tuple[str, dict]], ids: dict[str, int]) -> None:
        self.tokens, self.ids = dict(tokens), ids
        if len(self.tokens) < len(tokens) or "" in self.tokens:
            raise ValueError("two added tokens are the same, or one is empty, when normalized")
        longest_first = sorted(self.tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, text: str, between: Callable[[str], list[int]]) -> list[int]:
        """The ids of the added tokens in a text, and those that `between` finds around them."""
        ids, done = [], 0
        for mark in self.pattern.finditer(text):
            token, (start, end) = self.tokens[mark.group()], mark.span()
            beside = text[max(start - 1, 0) : start] + text[end : end + 1]
            if token.get("single_word") and any(map(is_word, beside)):
                continue
            if token.get("lstrip"):  # takes the spaces before it along
                start = max(done, len(text[:start].rstrip(SPACE)))
            if token.get("rstrip"):
                end = len(text) - len(text[end:].lstrip(SPACE))
            ids += between(text[done:start])
            if start < end:  # else all of it was taken along by the one before
                ids.append(self.ids[token["content"]])
            done = end
        return ids + between(text[done:])


category = lru_cache(maxsize=None)(unicodedata.category)


def is_word(c: str) -> bool:
    """Letters, marks, digits, connectors like "_", joiners, letters in circles and squares."""
    kind = category(c)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or FRAMED.match(c) is not None


# ----------------------------------------------------------------------------------- WordPiece


class WordPiece(Tokenizer):
    """BERT's tokenizer: split at spaces and punctuation, then into the longest known pieces.

    A word that isn't in the vocabulary is taken apart, "unhappily" into "un", "##happi", "##ly"; a
    word that can't be becomes [UNK], and so does one of over 100 characters.

    The same ids as Hugging Face tokenizers 0.23, but for accents and punctuation that are newer
    than its Unicode 8 (2015): 559 code points with Python 3.11, which are here what Python's
    unicodedata says, as in Google's own tokenization.py.
    """

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(
        self, vocab: list[str], lower: bool = True, strip_accents: bool | None = None,
        chinese: bool = True, added: list[dict] | None = None,
        special: Sequence[str | None] | None = None,
    ) -> None:
        self.lower, self.chinese = lower, chinese
        self.strip_accents = lower if strip_accents is None else strip_accents
        super().__init__(vocab, added, special)

    def files(self) -> dict[str, str]:
        """File name -> content, as load_tokenizer and transformers read them."""
        return {"vocab.txt": "\n".join(self.vocab[: self.size]) + "\n"} | self.config_file(
            tokenizer_class="BertTokenizer",
            do_lower_case=self.lower,
            strip_accents=self.strip_accents,
            tokenize_chinese_chars=self.chinese,
        )

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, as far as it can be had back: spaces around punctuation stay."""
        return " ".join(self.vocab[i] for i in ids).replace(" ##", "")

    def text_ids(self, text: str) -> list[int]:
        return [i for word in text.split(" ") for i in self.word_ids(word)]

    def word_ids(self, text: str) -> list[int]:
        """What stands between two spaces -> ids: normalized, split and taken apart."""
        text = self.normalize(text)  # once more, where that was done for added tokens: no matter
        text = "".join(f" {c} " if is_punctuation(c) else c for c in text)
        return [i for word in text.split() for i in self.pieces(word)]

    def normalize(self, text: str) -> str:
        """Control characters out, accents off and letters small where asked, CJK set apart."""
        chars = [" " if c in SPACE else c for c in text if c in "\t\n\r" or not is_control(c)]
        text = "".join(chars)
        if self.chinese:
            text = CJK.sub(r" \g<0> ", text)
        if self.strip_accents:
            text = unicodedata.normalize("NFD", text)
            text = "".join(c for c in text if category(c) != "Mn")
        return "".join(c.lower() for c in text) if self.lower else text

    def pieces(self, word: str) -> list[int]:
        """One word -> its pieces, each the longest that fits."""
        if len(word) > 100:
            return [self.unk_token_id]
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.own_ids), None)
            if end is None:
                return [self.unk_token_id]
            pieces.append(self.own_ids[prefix + word[start:end]])
            start = end
        return pieces


def is_control(c: str) -> bool:
    """Control, format, private use, surrogate; code points without a character (Cn) may stay."""
    return category(c) in ("Cc", "Cf", "Co", "Cs") or c == "\ufffd"


def is_punctuation(c: str) -> bool:
    """All of ASCII that is neither letter nor digit nor space counts, "$" and "^" too."""
    return ("!" <= c <= "~" and not c.isalnum()) or category(c)[0] == "P"


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
        added: list[dict] | None = None, special: Sequence[str | None] | None = None,
    ) -> None:
        super().__init__(vocab, added, special)
        self.merges, self.add_prefix_space = merges, add_prefix_space
        self.symbols = byte_symbols()
        self.ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(merges)}
        if lacking := [symbol for symbol in self.symbols if symbol not in self.own_ids]:
            raise ValueError(f"the byte {lacking[0]} is missing in the vocabulary")
        for pair in self.ranks:
            if len(pair) != 2 or not {*pair, "".join(pair)} <= self.own_ids.keys():
                raise ValueError(f'the merge "{" ".join(pair)}" isn\'t of two tokens into one')

    def files(self) -> dict[str, str]:
        """File name -> content, as load_tokenizer and transformers read them."""
        vocab = json.dumps(self.own_ids, ensure_ascii=False) + "\n"
        merges = "\n".join(["#version: 0.2", *self.merges]) + "\n"
        return {"vocab.json": vocab, "merges.txt": merges} | self.config_file(
            tokenizer_class="RobertaTokenizer",
            add_prefix_space=self.add_prefix_space,
            bos_token=self.special[2],
            eos_token=self.special[3],
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
        """One word -> its ids: the pair of the lowest rank is merged, of several the leftmost."""
        parts = [self.symbols[byte] for byte in word.encode("utf-8", "replace")]
        ranks = self.ranks_of(parts)  # of each part with the one after it
        while ranks and min(ranks) < inf:
            i = ranks.index(min(ranks))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            before = max(i - 1, 0)
            ranks[before : i + 2] = self.ranks_of(parts[before : i + 2])
        return [self.own_ids[part] for part in parts]

    def ranks_of(self, parts: list[str]) -> list[float]:
        return [self.ranks.get(pair, inf) for pair in pairwise(parts)]


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
