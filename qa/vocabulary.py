"""The files of a tokenizer -> WordPiece or ByteLevelBPE: tokenizer.json, vocab.txt, vocab.json.

The ids are those of transformers 5.23, or there is a ValueError. Its BertTokenizer takes only the
vocabulary and the added tokens from tokenizer.json, the rest from tokenizer_config.json, where
tokenizers takes all from tokenizer.json: a folder in which the two differ isn't opened.
"""

from pathlib import Path

from qa.errors import blaming, must_be, read_json, read_text
from qa.tokenizer import NAMES, SPACE, ByteLevelBPE, Tokenizer, WordPiece

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")  # the first one that is there is read
# What "tokenizer_class" may be, less "Fast"; None is whatever tokenizer.json describes.
CLASSES = {
    "BertTokenizer": WordPiece, "DistilBertTokenizer": WordPiece, "ElectraTokenizer": WordPiece,
    "RobertaTokenizer": ByteLevelBPE, "LongformerTokenizer": ByteLevelBPE,
    "PreTrainedTokenizer": None, "TokenizersBackend": None,
}  # fmt: skip
# What holds where tokenizer_config.json is silent: options, in the order of the constructor ...
OPTIONS = {
    WordPiece: {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True},
    ByteLevelBPE: {"add_prefix_space": False},
    None: {},
}
# ... and special tokens, in the order in which new ones get their ids.
SPECIAL = {
    WordPiece: (None, None, *WordPiece.special),
    ByteLevelBPE: ("<s>", "</s>", *ByteLevelBPE.special),
    None: (None,) * 7,
}
# Settings of tokenizer_config.json that change ids -> the value that is built here.
BUILT = {
    "split_special_tokens": False, "fix_mistral_regex": False, "init_inputs": [], "vocab": None,
    "merges": None, "auto_map": None, "fast_tokenizer_files": None,
    "word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece",
}  # fmt: skip


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """From tokenizer.json; without one from vocab.txt (WordPiece), or vocab.json and merges.txt
    (byte-level BPE).
    """
    folder = Path(folder)
    settings = read_if_there(folder / "tokenizer_config.json")
    name = tokenizer_class(folder, settings)
    path, kind, ids, merges, whole = read_vocabulary(folder)
    cls = CLASSES[name] if name else kind
    with blaming(path):
        if cls is not kind and (cls or path.name != "tokenizer.json"):
            raise ValueError(f"a {kind.__name__} vocabulary, but the tokenizer is a {name}")
    with blaming(folder / "tokenizer_config.json"):
        must_be(settings, **BUILT)
        stated = stated_tokens(folder, settings, whole.pop("added_tokens", []), cls)
        usual = zip(("bos_token", "eos_token", *NAMES), SPECIAL[cls], strict=True)
        settings = dict(usual) | OPTIONS[cls] | settings
        named = special_tokens(settings)
        special = [t["content"] if isinstance(t, dict) else t for t in map(settings.get, NAMES)]
        options = agreed(whole, settings | {"unk_token": special[1]}, OPTIONS[kind])
    with blaming(path):
        added = {token["content"]: token for token in stated}
        for content, token in named.items():
            if content in ids or content not in special[:4]:  # those four aren't made up
                added.setdefault(content, token)
        vocab = in_order(ids, [content for content in added if content not in ids])
        tokenizer = kind(vocab, *merges, *options, [*added.values()], special)
        check_ids(tokenizer, stated)
        return tokenizer


def tokenizer_class(folder: Path, settings: dict) -> str | None:
    """The class that transformers takes: what a file names, or the one of the model."""
    config = read_if_there(folder / "config.json")
    for file, content in (("tokenizer_config.json", settings), ("config.json", config)):
        if name := content.get("tokenizer_class"):
            if str(name).removesuffix("Fast") in CLASSES:
                return name.removesuffix("Fast")
            known = f"only {', '.join(CLASSES)} are built here"
            raise ValueError(f'{folder / file}: "tokenizer_class" is {name!r}, {known}')
    usual = {"bert": "BertTokenizer", "roberta": "RobertaTokenizer"}
    return usual.get(str(config.get("model_type")))  # None: goes by the files


def read_vocabulary(folder: Path) -> tuple[Path, type, dict[str, int], list, dict]:
    """The file, its kind, token -> id, [merges] for BPE, and what tokenizer.json says besides."""
    if (path := folder / "tokenizer.json").is_file():
        content = read_json(path)
        with blaming(path):
            return path, *parse_tokenizer(content)
    if (path := folder / "vocab.txt").is_file():
        ids = {line.rstrip(SPACE): i for i, line in enumerate(read_lines(path))}
        return path, WordPiece, ids, [], {}
    if (path := folder / "vocab.json").is_file():
        lines = read_lines(folder / "merges.txt")
        merges = [line for line in lines if not line.startswith("#version")]
        return path, ByteLevelBPE, read_json(path), [merges], {}
    raise FileNotFoundError(f"{folder}: no tokenizer.json, vocab.txt or vocab.json")


def parse_tokenizer(content: dict) -> tuple[type, dict[str, int], list, dict]:
    """tokenizer.json can describe tokenizers of many kinds; two of them are built here."""
    model, normalizer = content["model"], content.get("normalizer") or {}
    splitter, added = content.get("pre_tokenizer") or {}, content.get("added_tokens", [])
    untyped = "BPE" if "merges" in model else "WordPiece"  # the files of 2019 and 2020
    kinds = [model.get("type", untyped), normalizer.get("type"), splitter.get("type")]
    must_be(content, version="1.0")
    if added != sorted(added, key=lambda token: token["id"]):
        raise ValueError("the added tokens must be in the order of their ids")
    if kinds == ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        must_be(model, continuing_subword_prefix="##", max_input_chars_per_word=100)
        must_be(normalizer, clean_text=True)
        if odd := [t for t in model["vocab"] if t != t.rstrip(SPACE) or "\n" in t]:
            raise ValueError(f"the token {odd[0]!r} has white space that no line of vocab.txt has")
        return WordPiece, model["vocab"], [], {
            "do_lower_case": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
            "unk_token": model.get("unk_token", "[UNK]"),
            "added_tokens": added,
        }
    if kinds == ["BPE", None, "ByteLevel"]:
        must_be(model, dropout=0, continuing_subword_prefix="", end_of_word_suffix="")
        must_be(model, ignore_merges=False)
        must_be(splitter, use_regex=True)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        if any(merge.startswith("#version") for merge in merges):
            raise ValueError('a merge starts with "#version", which merges.txt has for a comment')
        whole = {"add_prefix_space": splitter["add_prefix_space"], "added_tokens": added}
        return ByteLevelBPE, model["vocab"], [merges], whole
    kind = " + ".join(str(kind) for kind in kinds if kind)
    raise ValueError(f"a tokenizer of the kind {kind}; read are WordPiece and byte-level BPE")


def stated_tokens(folder: Path, settings: dict, whole: list[dict], cls: type | None) -> list[dict]:
    """The added tokens for which a file states an id, in the order of the ids.

    What added_tokens_decoder in tokenizer_config.json says takes the place of three other files.
    One of them, special_tokens_map.json, replaces what is in `settings`.
    """
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    by_id, stated = settings.get("added_tokens_decoder"), []
    if by_id is None:
        names = read_if_there(folder / "special_tokens_map.json")
        must_be(names, extra_special_tokens=None)
        settings |= names
        typed = [k for k, t in settings.items() if isinstance(t, dict) and "__type" in t]
        special = special_tokens({k: t for k, t in settings.items() if k not in typed})
        older = read_if_there(folder / "added_tokens.json").items()
        stated += [{"id": i, "content": t, "normalized": t not in special} for t, i in older]
    if by_id is None or cls is None:
        stated += whole
    stated += [token | {"id": int(i)} for i, token in (by_id or {}).items()]
    if unclear := [t for t in stated if not t.get("special") and "normalized" not in t]:
        raise ValueError(f'"normalized" isn\'t said of the added token {unclear[0]["content"]!r}')
    return sorted(stated, key=lambda token: token["id"])


def special_tokens(settings: dict) -> dict[str, dict]:
    """Those that have a name, and then those that have none, by their content."""
    tokens = [t for k, t in settings.items() if k.endswith("_token") and isinstance(t, str | dict)]
    extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens")) or []
    if extra and not isinstance(extra, list):
        raise ValueError(f'"extra_special_tokens" is {extra!r}, must be a list')
    tokens = [t if isinstance(t, dict) else {"content": t} for t in [*tokens, *extra]]
    return {t["content"]: {"normalized": False} | t | {"special": True} for t in tokens}


def agreed(whole: dict, settings: dict, names: dict) -> list[bool]:
    """The options of a constructor; what tokenizer.json says and the settings must not differ."""
    for options in (whole, settings):
        if options.get("strip_accents", 0) is None:
            options["strip_accents"] = options.get("do_lower_case")
    for name, value in whole.items():
        if settings.get(name, value) != value:
            raise ValueError(
                f'"{name}" is {settings[name]!r} (if not written, by default), but in '
                f"tokenizer.json it is {value!r}: make them agree"
            )
    found = [(settings | whole)[name] for name in names]
    if not all(isinstance(value, bool) for value in found):
        raise ValueError(f"{', '.join(names)} must be true or false")
    return found


def check_ids(tokenizer: Tokenizer, stated: list[dict]) -> None:
    """transformers takes the id that a token has in the vocabulary, or the next one."""
    for token in stated:
        content, found = token["content"], tokenizer.ids[token["content"]]
        if token["id"] != found:
            raise ValueError(
                f"{found} is the place of the added token {content!r}, whose id is said to be "
                f"{token['id']}"
            )


def in_order(ids: dict[str, int], new: list[str]) -> list[str]:
    """{token: id} -> the token of each id, "" where there is none. `new` ones are to be added."""
    "".join(ids).encode()  # half a character, "\\ud800", is an error
    tokens = {i: token for token, i in ids.items() if token}  # no word is ""
    if not all(type(i) is int and 0 <= i < 10_000_000 for i in tokens):
        raise ValueError("the ids of the tokens must be whole numbers below 10,000,000")
    if len(tokens) < len(ids.keys() - {""}):
        raise ValueError("two tokens have the same id")
    size = max(tokens, default=-1) + 1
    if new and size != len(ids):
        raise ValueError(f"the ids have gaps, so that no id is sure for the new token {new[0]!r}")
    return [tokens.get(i, "") for i in range(size)]


def read_if_there(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def read_lines(path: Path) -> list[str]:
    """The lines as tokenizers reads them: only \\n and \\r\\n end one."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]
