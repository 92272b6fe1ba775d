"""BERT's tokenizer, WordPiece, from scratch: text -> ids, those of transformers 5.23.

RoBERTa's is in bpe.py, and what the files of either may say in vocabulary.py.
"""

import json
import re
from pathlib import Path
from unicodedata import category, normalize

from qa.errors import blaming, read_json, read_text

# What Unicode calls white space; Python has four control characters more.
SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace() and not "\x1c" <= c <= "\x1f")
# Chinese characters; tokenizers, too, leaves out those from U+2B820 to U+2B91F.
CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
CJK += "\U0002a700-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")  # the first one that is there is read
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class Tokenizer:
    """What both kinds share: ids, settings and added tokens.

    `settings` are those of tokenizer_config.json. Added tokens stand in a text as they are, such as
    {"content": "<mask>", "lstrip": True}. One that isn't in `vocab` gets the next id.
    """

    usual: tuple[tuple[str, object], ...]  # names of settings, and their default values
    classes: tuple[str, ...]  # what transformers calls this kind, and the model types that have it
    types: tuple[str, ...]  # of model, normalizer and pre_tokenizer in tokenizer.json

    def __init__(self, vocab: list[str], added: list | tuple = (), **settings: object) -> None:
        self.settings, self.size = dict(self.usual) | settings, len(vocab)
        self.own_ids = {token: i for i, token in enumerate(vocab) if token}  # without those added
        named = [token for token in self.settings.values() if token in self.own_ids]
        special = {token: {"content": token, "special": True} for token in named}
        self.added = special | {token["content"]: token for token in added}
        self.vocab = [*vocab, *(token for token in self.added if token not in self.own_ids)]
        self.ids = {token: i for i, token in enumerate(self.vocab) if token}
        for name in SPECIAL:
            token = self.settings[name]
            if token not in self.ids and name != "mask_token":
                raise ValueError(f"the token {token or name} is missing")
            self.settings[name] = token if token in self.ids else None
            setattr(self, f"{name}_id", self.ids.get(token))
        groups = [], []  # those with "normalized" are looked for after the others
        for content in sorted(self.added, key=len, reverse=True):
            groups[self.added[content].get("normalized", False)].append(re.escape(content))
        self.patterns = [re.compile("|".join(group)) for group in groups if group]
        self.known: dict[str, list[int]] = {}  # most words come again and again

    def check_ids(self, vocab_size: int, pad_token_id: int) -> None:
        """Raises ValueError where a model, by its config.json, has other ids."""
        if len(self.vocab) > vocab_size:
            raise ValueError(
                f"the vocabulary has {len(self.vocab)} tokens, but vocab_size in config.json is "
                f"{vocab_size}: take the vocabulary that came with the weights"
            )
        if self.pad_token_id != pad_token_id:
            raise ValueError(
                f"{self.settings['pad_token']} has the id {self.pad_token_id}, but pad_token_id in "
                f"config.json is {pad_token_id}: correct the wrong one"
            )

    def encode(self, text: str, step: int = 0) -> list[int]:
        """Text -> ids, without those of the beginning and the end; `step` counts `patterns`."""
        if step == len(self.patterns):
            return self.text_ids(text)
        ids, done = [], 0
        for found in self.patterns[step].finditer(text):
            before = text[done : found.start()]
            if self.added[found.group()].get("lstrip"):
                before = before.rstrip(SPACE)
            ids += [*self.encode(before, step + 1), self.ids[found.group()]]
            done = found.end()
        return ids + self.encode(text[done:], step + 1)

    def known_ids(self, word: str) -> list[int]:
        if word not in self.known:
            self.known[word] = self.word_ids(word)
        return self.known[word]

    def files(self) -> dict[str, str]:
        """File name -> content, as load_tokenizer and transformers read them."""
        flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        added = {self.ids[c]: {f: t.get(f, False) for f in flags} for c, t in self.added.items()}
        content = {"tokenizer_class": self.classes[0], "added_tokens_decoder": added}
        return {"tokenizer_config.json": json.dumps(self.settings | content, indent=2) + "\n"}


class WordPiece(Tokenizer):
    """BERT's tokenizer: split at spaces and punctuation, then into the longest known pieces.

    "unhappily" becomes "un", "##happi", "##ly"; a word that can't be taken apart, or has over 100
    characters, is [UNK]. Accents and punctuation newer than tokenizers' Unicode 8 (2015), 559 code
    points with Python 3.11, are what Python's unicodedata says.
    """

    types = ("WordPiece", "BertNormalizer", "BertPreTokenizer")
    classes = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "bert")
    usual = (*zip(SPECIAL, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), strict=True),
             ("do_lower_case", True), ("strip_accents", None), ("tokenize_chinese_chars", True))

    def files(self) -> dict[str, str]:
        return {"vocab.txt": "\n".join(self.vocab[: self.size]) + "\n"} | super().files()

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, as far as it can be had back: spaces around punctuation stay."""
        return " ".join(self.vocab[i] for i in ids).replace(" ##", "")

    def text_ids(self, text: str) -> list[int]:
        return [i for word in text.split(" ") for i in self.known_ids(word)]

    def word_ids(self, text: str) -> list[int]:
        """What stands between two spaces -> ids: normalized, split and taken apart."""
        text, also = self.normalize(text), "$+<=>^`|~"  # symbols of ASCII, which split, too
        text = "".join(f" {c} " if category(c)[0] == "P" or c in also else c for c in text)
        return [i for word in text.split() for i in self.pieces(word)]

    def normalize(self, text: str) -> str:
        """Control characters out, accents off and letters small where asked, CJK set apart."""
        lower, strip = self.settings["do_lower_case"], self.settings["strip_accents"]
        control = ("Cc", "Cf", "Co", "Cs")  # code points without a character (Cn) may stay
        text = text.replace("\ufffd", "")
        text = "".join(c for c in text if c in "\t\n\r" or category(c) not in control)
        if self.settings["tokenize_chinese_chars"]:
            text = re.sub(f"[{CJK}]", r" \g<0> ", text)
        if strip or (strip is None and lower):
            text = "".join(c for c in normalize("NFD", text) if category(c) != "Mn")
        return "".join(c.lower() for c in text) if lower else text

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


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a folder: BERT's, where vocab.txt is all that is said of it, as it is in
    data/encoder. What other files may say is read in vocabulary.py.
    """
    folder, path = Path(folder), Path(folder, "vocab.txt")
    config = read_json(folder / "config.json", {})
    found = [name for name in (*VOCABULARIES, *OTHERS) if (folder / name).is_file()]
    if found != ["vocab.txt"] or config.get("tokenizer_class", config.get("model_type")) != "bert":
        from qa.vocabulary import open_vocabulary

        return open_vocabulary(folder)
    ids = read_vocab_txt(path)
    with blaming(path):
        return WordPiece(in_order(ids))


def read_vocab_txt(path: Path) -> dict[str, int]:
    """Token -> id: the number of its line, from 0."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return {line.rstrip(SPACE): i for i, line in enumerate(lines)}


def in_order(ids: dict[str, int]) -> list[str]:
    """{token: id} -> the token of each id, "" where there is none."""
    tokens = {i: token for token, i in ids.items()}
    if len(tokens) < len(ids) or not all(type(i) is int and 0 <= i < 10_000_000 for i in tokens):
        raise ValueError("the ids of the tokens must be whole numbers below 10,000,000, each once")
    last = max((i for i in tokens if tokens[i]), default=-1)
    return [tokens.get(i, "") for i in range(last + 1)]
