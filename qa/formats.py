"""Lines of public data sets, as they were released and as the Hub has them -> lines of ours.

One more format is one more line in `FORMATS`, and maybe a key in the lines below it.
"""

import random
from pathlib import Path

from qa.errors import blaming, printable
from qa.questions import LETTERS, read_lines, text, texts

# How an answer names a choice: by its label (A, B, ... where it has none), by its place from 0 or
# from 1, by its text, by a list of this text alone. Of several ways a file has one.
WAYS = LABEL, FROM_0, FROM_1, TEXT, TEXTS = "label", "place from 0", "place from 1", "text", "list"
NO_ANSWER = ("", "-1", "nan")
FORMATS = {  # keys of the choices -> key of the answer -> how it names a choice
    "choices": {  # Kformer release, CommonsenseQA, OpenBookQA, QASC, ARC; the last one is MMLU's
        "AnswerKey": [LABEL, FROM_1], "answerKey": [LABEL], "answer_idx": [LABEL, FROM_0],
        "answer": [LABEL, FROM_0, TEXT, TEXTS],
    },
    "options": {"answer_idx": [LABEL, FROM_0], "answer": [LABEL, TEXT]},  # MedQA, RACE
    "endings": {"label": [FROM_0]},  # HellaSwag
    "ending0 ending1 ending2 ending3": {"label": [FROM_0]},  # SWAG
    "answerA answerB answerC": {"label": [LABEL, FROM_1]},  # Social IQA
    "answer0 answer1 answer2 answer3": {"label": [FROM_0]},  # CosmosQA
    "sol1 sol2": {"label": [FROM_0]},  # PIQA
    "option1 option2": {"answer": [FROM_1]},  # WinoGrande
    "opa opb opc opd": {"cop": [FROM_0, FROM_1]},  # MedMCQA: the Hub's, and as it was released
    "correct_answer distractor1 distractor2 distractor3": {"correct_answer": [TEXT]},  # SciQ
}  # fmt: skip
QUESTION = ["question", "question_stem", "goal", "sentence", "ctx", "ctx_a ctx_b", "sent1 sent2"]
CONTEXT = ["context", "article", "passage", "para", "paragraph", "hint"]
FACTS = ["knowledges", "fact1", "fact2", "support"]
# What explains the right answer gives it away: it isn't read ("exp", "explanation", "solution").
READ = {key for keys in [*FORMATS, *QUESTION, *CONTEXT, *FACTS] for key in keys.split()}
READ |= {"stem", *(key for ways in FORMATS.values() for key in ways)}


def made_plain(path: Path, rows: dict[int, dict], labels_path: Path) -> dict[int, dict]:
    """The rows of a file, by the numbers of their lines. All must be in one format, and their
    answers are read in the one way that fits all of them. Raises ValueError.
    """
    if labels_path.is_file():
        labels = [label for label in read_lines(labels_path) if label]
        if len(labels) != len(rows):
            raise ValueError(f"{labels_path}: {len(labels)} labels for {len(rows)} questions")
        pairs = zip(rows.items(), labels, strict=True)
        for (number, row), label in pairs:
            own = as_text(row.get("label"))
            if "label" not in FORMATS[format_of(row)] or own not in (label, *NO_ANSWER):
                raise ValueError(f"{labels_path}: the questions have other answers of their own")
            rows[number] = row | {"label": label}
    plain, formats, ways, places_in, unread = {}, set(), set(WAYS), {}, {}
    for number, row in rows.items():
        with blaming(f"{path}, line {number}"):
            plain[number], places_in[number], keys, more = to_plain(row)
            unread |= dict.fromkeys(more)
            formats.add(keys)
            if len(formats) > 1:
                raise ValueError("in another format than the lines before")
            ways &= places_in[number].keys() or ways
            if not ways:
                raise ValueError("the answer is counted in another way than in the lines before")
    for number, places in places_in.items():
        if len({places[way] for way in ways if places}) > 1:
            raise ValueError(f"{path}: no line tells what answers are: {' or '.join(sorted(ways))}")
        with blaming(f"{path}, line {number}"):
            leave_out_empty(plain[number], places[min(ways)] if places else None)
    if unread:
        print(f"note      {path}: not read: {printable(', '.join(unread))}")
    return plain


def leave_out_empty(row: dict, place: int | None) -> None:
    """Choices without a word are there where others have more; `place` is that of the answer."""
    said = [bool(choice["text"].strip()) for choice in row["choices"]]
    row["choices"] = [c for c, is_said in zip(row["choices"], said, strict=True) if is_said]
    if place is not None:
        if not said[place]:
            raise ValueError("the right choice is empty")
        row["AnswerKey"] = LETTERS[sum(said[:place])]


def to_plain(row: dict) -> tuple[dict, dict[str, int], str, list[str]]:
    """A line without its answer, the answer's place by each way that it may be meant, the keys of
    its choices, and keys of texts that aren't read.
    """
    if isinstance(row.get("question"), dict):  # CommonsenseQA has the choices in it
        row = row | row["question"] | {"question": row["question"].get("stem")}
    keys = format_of(row)
    pairs = choices_of(row, keys)
    choices = [text(pair, "text") for pair in pairs]
    plain = {
        "context": first_text(row, [*CONTEXT, ""]), "question": first_text(row, QUESTION),
        "choices": [{k: pair[k] for k in ("text", "knowledge") if k in pair} for pair in pairs],
        "knowledges": [fact for key in FACTS for fact in texts(row, key)],
    }  # fmt: skip
    labels = [text(pair, "label") for pair in pairs]
    known = [(row, READ), *((pair, {"text", "label", "knowledge"}) for pair in pairs)]
    unread = [key for part, read in known for key, value in part.items()
              if key not in read and " " in str(value).strip()]  # fmt: skip
    texts_read = plain["context"] + " " + plain["question"]
    unread += [key for key in " ".join([*CONTEXT, *QUESTION]).split()
               if " " in (said := as_text(row.get(key))) and said not in texts_read]  # fmt: skip
    return plain, places_of(row, FORMATS[keys], labels, choices), keys, unread


def format_of(row: dict) -> str:
    """The keys of a line's choices. Raises ValueError where FORMATS hasn't got them."""
    for keys in FORMATS:
        if row.get(keys.split()[0]) is not None:
            return keys
    raise ValueError(f"has no choices in any of: {', '.join(FORMATS)}")


def choices_of(row: dict, keys: str) -> list[dict]:
    """A "label" and a "text" for each choice, and maybe its "knowledge"."""
    value = row[keys] if keys in row else [text(row, key) for key in keys.split()]
    if keys.startswith("correct_answer"):  # its place must not be learned
        random.Random(str(row.get("question"))).shuffle(value)
    if isinstance(value, dict) and "text" in value:  # {"text": ["mice", ...], "label": ["A", ...]}
        columns = [*value.values()]
        if not all(isinstance(c, list) for c in columns) or len({*map(len, columns)}) > 1:
            raise ValueError(f'"{keys}" must have lists of the same length')
        value = [dict(zip(value, pair, strict=True)) for pair in zip(*columns, strict=True)]
    elif isinstance(value, dict):  # {"A": "mice", ...}
        value = [{"label": key, "text": text} for key, text in value.items() if text is not None]
    elif not isinstance(value, list):
        raise ValueError(f'"{keys}" is missing or not a list')
    if any(isinstance(pair, list) for pair in value):
        raise ValueError(f'"{keys}" must be a list of texts, or of objects with a "text"')
    pairs = [pair if isinstance(pair, dict) else {"text": pair} for pair in value]
    pairs = [{"label": p["key"], "text": p.get("value")} if "key" in p else p for p in pairs]
    pairs = [p | {k: as_text(p[k]) for k in ("text", "label") if k in p} for p in pairs]
    if len(pairs) < 2:
        raise ValueError(f"needs at least two choices, has {len(pairs)}")
    return [{"label": LETTERS[i]} | pair for i, pair in enumerate(pairs)]


def places_of(
    row: dict, ways: dict[str, list[str]], labels: list[str], choices: list[str]
) -> dict[str, int]:
    """The place of the answer, from 0, by each way that it may be meant; none without an answer."""
    said = {key: as_text(row.get(key)) for key in ways}
    keys = [key for key in ways if said[key] not in NO_ANSWER
            or (TEXT in ways[key] and said[key] and said[key] in choices)]  # fmt: skip
    if not keys:
        return {}
    numbers = [str(i) for i in range(len(choices) + 1)]
    names = {LABEL: labels, FROM_0: numbers[:-1], FROM_1: numbers[1:], TEXT: choices,
             TEXTS: [str([text]) for text in choices]}  # fmt: skip
    by_key = []
    for key in keys:
        counts = {way: names[way].count(said[key]) for way in ways[key]}
        found = {way: names[way].index(said[key]) for way, count in counts.items() if count == 1}
        if not found and any(counts.values()) and key == keys[0]:
            raise ValueError(f'"{key}" is {row[key]!r}, which is said of several choices')
        by_key += [found] if found or key == keys[0] else []
    if not by_key[0]:
        allowed = " or ".join(", ".join(names[way]) for way in ways[keys[0]])
        raise ValueError(f"the answer must be one of {allowed}, not {row[keys[0]]!r}")
    if not all({*by_key[0].values()} & {*found.values()} for found in by_key):
        raise ValueError(f"{' and '.join(keys)} name different answers")
    return by_key[0]


def as_text(value: object) -> object:
    """A number as it is written, 2.0 as 2, a text without spaces around it, null as an empty one;
    a list of one text as Python writes it. What is none of these stays as it is.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, dict):
        return value or ""
    return str(value).strip()


def first_text(row: dict, names: list[str]) -> str:
    """The first of these that has a word; several keys make one text, no key makes an empty one."""
    found = [" ".join(text(row, key) for key in keys).strip() for keys in map(str.split, names)
             if all(row.get(key) is not None for key in keys)]  # fmt: skip
    if found:
        return next(filter(None, found), "")
    raise ValueError(f"has no question in any of: {', '.join(names)}")
