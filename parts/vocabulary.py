"""The files of a tokenizer -> WordPiece or ByteLevelBPE: tokenizer.json, vocab.txt, vocab.json."""

from pathlib import Path

from parts.files import blaming, must_be, read_json, read_text
from parts.tokenizer import ByteLevelBPE, Tokenizer, WordPiece


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """From tokenizer.json; without one from vocab.txt (WordPiece), or vocab.json and merges.txt
    (byte-level BPE). What tokenizer_config.json says of lower case and the like comes first.
    """
    folder, settings, merges = Path(folder), {}, None
    if (folder / "tokenizer_config.json").is_file():
        settings = read_json(folder / "tokenizer_config.json")
    if (path := folder / "tokenizer.json").is_file():
        content = read_json(path)
        with blaming(path):
            vocab, merges, usual = parse_tokenizer(content)
            settings = usual | settings
    elif (path := folder / "vocab.txt").is_file():
        vocab = read_text(path).removesuffix("\n").split("\n")
    elif (path := folder / "vocab.json").is_file():
        merges = read_text(folder / "merges.txt").removesuffix("\n").split("\n")
        ids = read_json(path)
        with blaming(path):
            vocab = in_order(ids)
    else:
        raise FileNotFoundError(f"{folder}: no tokenizer.json, vocab.txt or vocab.json")
    with blaming(path):
        added = list(settings.get("added_tokens_decoder", {}).values())
        if merges is None:
            lower, accents = settings.get("do_lower_case", True), settings.get("strip_accents")
            return WordPiece(vocab, lower, accents, added)
        merges = [m for m in merges if not m.startswith("#version")]
        return ByteLevelBPE(vocab, merges, settings.get("add_prefix_space", False), added)


def parse_tokenizer(content: dict) -> tuple[list[str], list[str] | None, dict]:
    """tokenizer.json -> vocabulary, merges, settings by the names of tokenizer_config.json.

    The file can describe tokenizers of many kinds; two of them are built here.
    """
    model, normalizer = content["model"], content["normalizer"] or {}
    splitter = content["pre_tokenizer"] or {}
    kinds = [model["type"], normalizer.get("type"), splitter.get("type")]
    if kinds == ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        must_be(model, continuing_subword_prefix="##", max_input_chars_per_word=100)
        must_be(normalizer, clean_text=True, handle_chinese_chars=True)
        merges, lower = None, normalizer["lowercase"]
        settings = {"do_lower_case": lower, "strip_accents": normalizer["strip_accents"]}
    elif kinds == ["BPE", None, "ByteLevel"]:
        must_be(splitter, use_regex=True)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        settings = {"add_prefix_space": splitter["add_prefix_space"]}
    else:
        kind = " + ".join(str(kind) for kind in kinds if kind)
        raise ValueError(f"a tokenizer of the kind {kind}; read are WordPiece and byte-level BPE")
    added = {token["id"]: token for token in content["added_tokens"]}
    vocab = in_order(model["vocab"] | {token["content"]: i for i, token in added.items()})
    return vocab, merges, settings | {"added_tokens_decoder": added}


def in_order(ids: dict[str, int]) -> list[str]:
    vocab = sorted(ids, key=ids.get)
    if [ids[token] for token in vocab] != list(range(len(vocab))):
        raise ValueError("the ids of the tokens must be 0, 1, 2, ... without gaps")
    return vocab
