"""RoBERTa's tokenizer, which is GPT-2's: byte-level BPE, from scratch."""

import heapq
import json
import re
from itertools import count
from unicodedata import category

from qa.tokenizer import SPACE, SPECIAL, Tokenizer


def byte_symbols() -> list[str]:
    """A visible character for each byte: its own in Latin-1, or the next one from U+0100 on."""
    spare, own = count(256), {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in own else next(spare)) for byte in range(256)]


SYMBOLS = byte_symbols()
# GPT-2's words: contractions, letters, digits, the rest, each with a space before it; spaces.
WORD = re.compile(r"(?a)'(?:s|t|re|ve|m|ll|d)| ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]+|\s+(?!\S)|\s+")


class ByteLevelBPE(Tokenizer):
    """A word keeps the space before it, written "Ġ". Each byte of its UTF-8 is a token, so nothing
    is ever unknown; then the pair of neighbours that was learned first is merged, and so on.

    `merges[i]` is "a b", the i-th pair that was learned. Letters and digits newer than Python's
    Unicode (unicodedata.unidata_version) are split like symbols.
    """

    types = ("BPE", "none", "ByteLevel")
    classes = ("RobertaTokenizer", "LongformerTokenizer", "roberta")
    usual = (*zip(SPECIAL, ("<pad>", "<unk>", "<s>", "</s>", "<mask>"), strict=True),
             ("bos_token", "<s>"), ("eos_token", "</s>"), ("add_prefix_space", False))

    def __init__(self, vocab: list, merges: list, added: list = (), **settings: object) -> None:
        super().__init__(vocab, added, **settings)
        self.merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        self.ranks = {tuple(pair.split(" ")): rank for rank, pair in enumerate(self.merges)}
        for parts in [*zip(SYMBOLS), *self.ranks]:
            if not {*parts, "".join(parts)} <= self.own_ids.keys():
                raise ValueError(f"{' and '.join(parts)}, or the two as one, are no tokens")

    def files(self) -> dict[str, str]:
        vocab = json.dumps(self.own_ids) + "\n"
        merges = "\n".join(["#version: 0.2", *self.merges]) + "\n"
        return {"vocab.json": vocab, "merges.txt": merges} | super().files()

    def decode(self, ids: list[int]) -> str:
        """Ids -> text; what isn't UTF-8, half a character for one, becomes "\ufffd"."""
        byte_of = {symbol: bytes([byte]) for byte, symbol in enumerate(SYMBOLS)}
        symbols = (c for i in ids for c in self.vocab[i])
        return b"".join(byte_of.get(c, c.encode()) for c in symbols).decode("utf-8", "replace")

    def text_ids(self, text: str) -> list[int]:
        if self.settings["add_prefix_space"] and text and not text.startswith(" "):
            text = " " + text
        words = (text[slice(*found.span())] for found in WORD.finditer(like_ascii(text)))
        return [i for word in words for i in self.known_ids(word)]

    def word_ids(self, word: str) -> list[int]:
        """One word -> its ids: the pair of the lowest rank is merged, of several the leftmost."""
        parts = ["", *(SYMBOLS[byte] for byte in word.encode("utf-8", "replace")), ""]
        left, right = [*range(-1, len(parts) - 1)], [*range(1, len(parts) + 1)]  # the neighbours
        heap, new = [], range(len(parts) - 1)  # `new` are places whose pair isn't in the heap yet
        while True:
            for i in new:
                pair = parts[i], parts[right[i]]
                if pair in self.ranks:
                    heapq.heappush(heap, (self.ranks[pair], i, pair))
            if not heap:
                return [self.own_ids[part] for part in parts if part]
            _, i, pair = heapq.heappop(heap)
            j, new = right[i], ()
            if pair == (parts[i], parts[j]):  # else one of the two was merged meanwhile
                parts[i], parts[j] = "".join(pair), ""  # both stand at the place of the left one
                right[i], left[right[j]] = right[j], i
                new = left[i], i


def like_ascii(text: str) -> str:
    """The other letters become "a", numbers "1", spaces line ends, and the rest "!"."""
    like = {c: {"L": "a", "N": "1"}.get(category(c)[0], "!") for c in {*text} if c > "\x7f"}
    return text.translate(str.maketrans(like | dict.fromkeys({*SPACE} & like.keys(), "\n")))
