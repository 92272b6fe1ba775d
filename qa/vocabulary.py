"""The files that speak of a tokenizer, as transformers, tokenizers and their users wrote them.

The ids are those of transformers 5.23. What isn't built here is refused: a ValueError of one line.
"""

import re
from pathlib import Path

from qa.bpe import ByteLevelBPE
from qa.errors import blaming, must_be, read_json, read_text
from qa.tokenizer import VOCABULARIES, Tokenizer, WordPiece, in_order, read_vocab_txt


def open_vocabulary(folder: Path) -> Tokenizer:
    """From tokenizer.json; without it from vocab.txt, or from vocab.json and merges.txt."""
    path, kind, ids, merges, whole = read_vocabulary(folder)
    settings = read_settings(folder, kind)
    with blaming(folder / "tokenizer_config.json"):
        added = added_tokens(settings, kind, whole.get("added_tokens", []))
        chosen = {name: settings.get(name, usual) for name, usual in kind.usual}
        chosen |= {name: t["content"] for name, t in chosen.items() if isinstance(t, dict)}
    with blaming(path):
        if path.name == "tokenizer.json":
            check_whole(whole, kind, chosen)
        check_added(added, ids, kind, chosen["mask_token"])
        return kind(in_order(ids), *merges, added, **chosen)


def read_vocabulary(folder: Path) -> tuple[Path, type, dict[str, int], list, dict]:
    """The file, its kind, token -> id, [merges] for BPE, and what is in tokenizer.json."""
    if (path := folder / "tokenizer.json").is_file():
        whole = read_json(path)
        with blaming(path):
            model = whole["model"]
            if "merges" in model:  # "type" is missing in the files of 2019 and 2020
                return path, ByteLevelBPE, model["vocab"], [model["merges"]], whole
            return path, WordPiece, model["vocab"], [], whole
    if (path := folder / "vocab.txt").is_file():
        return path, WordPiece, read_vocab_txt(path), [], {}
    if (path := folder / "vocab.json").is_file():
        lines = read_text(folder / "merges.txt").splitlines()
        merges = [line for line in lines if not line.startswith("#version")]
        return path, ByteLevelBPE, read_json(path), [merges], {}
    raise FileNotFoundError(f"{folder}: no {', '.join(VOCABULARIES[:2])} or {VOCABULARIES[2]}")


def read_settings(folder: Path, kind: type) -> dict:
    """What transformers makes of tokenizer_config.json and the files beside it."""
    path, flag = folder / "tokenizer_config.json", (True, False)
    settings, config = read_json(path, {}), read_json(folder / "config.json", {})
    names = read_json(folder / "special_tokens_map.json", {})
    with blaming(path):
        must_be(settings, do_lower_case=flag, strip_accents=flag, tokenize_chinese_chars=flag)
        must_be(settings, add_prefix_space=flag, split_special_tokens=False, init_inputs=[])
        must_be(settings, vocab=None, merges=None, auto_map=None, fast_tokenizer_files=None)
        must_be(settings, fix_mistral_regex=False)
        must_be(names, extra_special_tokens=None)
        name = settings.get("tokenizer_class") or config.get("tokenizer_class")
        if not name and (name := config.get("model_type")) not in ("bert", "roberta"):
            name = kind.classes[0]  # of other models, the files decide
        if str(name).removesuffix("Fast") not in kind.classes:
            raise ValueError(f"the tokenizer is {name!r}, not one of {', '.join(kind.classes)}")
    if not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens", None)
    if settings.get("added_tokens_decoder") is None:  # else transformers reads no other file
        settings |= names
        settings["added_tokens.json"] = read_json(folder / "added_tokens.json", {})
    return settings


def added_tokens(settings: dict, kind: type, whole: list[dict]) -> list[dict]:
    """Those that a file lists with their ids, and then the special tokens that settings name."""
    # special tokens: those that settings name, more that have no name, and the usual ones
    tokens = [t for k, t in settings.items() if k.endswith("_token") and isinstance(t, str | dict)]
    extra = settings["extra_special_tokens"] or settings.get("additional_special_tokens") or []
    tokens += extra.values() if isinstance(extra, dict) else extra
    tokens = [t if isinstance(t, dict) else {"content": t} for t in tokens]
    special = [t["content"] for t in tokens if "__type" not in t]  # for added_tokens.json
    unsaid = [(name, token) for name, token in kind.usual if name not in settings]
    tokens += [{"content": token} for name, token in unsaid if name.endswith("_token")]
    named = {t["content"]: {"normalized": False} | t | {"special": True} for t in tokens}
    # tokens with an id: in added_tokens.json, and in the decoder of the settings or tokenizer.json
    older = sorted(settings.get("added_tokens.json", {}).items(), key=lambda item: item[1])
    listed = [{"content": t, "id": i, "special": t in special} for t, i in older]
    decoder = settings.get("added_tokens_decoder")
    listed += whole if decoder is None else [t | {"id": int(i)} for i, t in decoder.items()]
    listed = {t["content"]: {"normalized": not t.get("special")} | t for t in listed}
    return [*(listed | named | listed).values()]  # those with an id first, as they are listed


def check_added(added: list[dict], ids: dict[str, int], kind: type, mask: str | None) -> None:
    """Raises ValueError for an added token that transformers finds otherwise, or by another id."""
    places, gaps = {**ids}, max(ids.values()) >= len(ids)
    for token in added:
        content, plain = token["content"], kind is ByteLevelBPE  # its texts aren't normalized
        built = {(mask, "lstrip"), (content, "normalized")} if plain else {(mask, "lstrip")}
        for flag in ("single_word", "lstrip", "rstrip", "normalized"):
            if (token.get(flag) and (content, flag) not in built) or not content:
                raise ValueError(f'"{flag}" of the added token {content!r} isn\'t built here')
        place = places.setdefault(content, len(places))  # that of the vocabulary, or the next one
        if token.get("id", ids.get(content)) != place or (gaps and content not in ids):
            raise ValueError(f"the token {content} is missing, or not {place}, or ids have gaps")


def check_whole(whole: dict, kind: type, settings: dict) -> None:
    """Raises ValueError where tokenizer.json describes another tokenizer than the settings do."""
    parts = [whole[part] or {"type": "none"} for part in ("model", "normalizer", "pre_tokenizer")]
    types = tuple(part.get("type", kind.types[0]) for part in parts)  # a model may have none
    if types != kind.types:
        raise ValueError(f"a tokenizer of the kind {types}, but {kind.types} is what is read")
    said = {"strip_accents": parts[1].get("lowercase")}  # where it is null
    said |= {k: v for part in parts for k, v in part.items() if v is not None}
    must_be(said, clean_text=True, max_input_chars_per_word=100, dropout=0, use_regex=True)
    must_be(said, continuing_subword_prefix="##" if kind is WordPiece else "")
    must_be(said, ignore_merges=False, end_of_word_suffix="")
    if settings.get("strip_accents") is None:
        settings = settings | {"strip_accents": settings.get("do_lower_case")}
    pairs = [("lowercase", "do_lower_case"), ("handle_chinese_chars", "tokenize_chinese_chars")]
    pairs += [(name, name) for name in ("unk_token", "strip_accents", "add_prefix_space")]
    for name, value in ((name, settings.get(ours)) for name, ours in pairs):
        if said.get(name, value) != value:
            raise ValueError(f'"{name}" is {said[name]!r}, but {value!r} by tokenizer_config.json')
    if kind is WordPiece and (odd := [t for t in said["vocab"] if re.search(r"\n|\s$", t)]):
        raise ValueError(f"the token {odd[0]!r} has white space that no line of vocab.txt has")
