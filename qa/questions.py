"""Questions as people have them, in the formats of many data sets.

    read_questions    a file with one JSON object a line -> a list of Question
    read_facts        a text file with one fact a line

One more format is one more line in `FORMATS`, and maybe a key in the lines below it.
"""

import json
import random
from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Question:
    context: str
    question: str
    choices: list[str]
    answer: int | None  # place of the right choice, from 0; None where nobody has told
    facts: list[list[str]]  # candidates, best first: one list for all choices, or one for each

    @property
    def asked(self) -> str:
        """All that stands before the choices."""
        return f"{self.context} {self.question}".strip()


def of_choice(lists: list, choice: int) -> object:
    """Of lists like `Question.facts`: that of this choice, or the one that all choices share."""
    return lists[choice if len(lists) > 1 else 0]


# ------------------------------------------------------------------------------------- formats

# How an answer names a choice: by its label (A, B, ... where it has none), by its place from 0 or
# from 1, by its text, by a list of this text alone. Of several ways a file has one.
WAYS = LABEL, FROM_0, FROM_1, TEXT, TEXTS = "label", "place from 0", "place from 1", "text", "list"
FORMATS = {  # keys of the choices -> key of the answer -> how it names a choice
    "choices": {  # Kformer release, CommonsenseQA, OpenBookQA, QASC, ARC; the last one is MMLU's
        "AnswerKey": [LABEL, FROM_1], "answerKey": [LABEL], "answer_idx": [LABEL, FROM_0],
        "answer": [LABEL, FROM_0, TEXTS],
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
CONTEXT = ["context", "article"]
FACTS = ["knowledges", "fact1", "fact2", "support", "exp", "explanation"]


def to_question(row: dict) -> tuple[Question, dict[str, int]]:
    """A question, its answer left open, and the answer's place by each way that it may be meant."""
    keys = format_of(row)
    context, question = first_text(row, [*CONTEXT, ""]), first_text(row, QUESTION)
    pairs = choices_of(row, keys)
    choices = [get(pair, "text", str) for pair in pairs]
    if len(choices) < 2:
        raise ValueError(f"needs at least two choices, has {len(choices)}")
    facts = [texts(row, FACTS)]
    if any("knowledge" in pair for pair in pairs):
        facts = [facts[0] + texts(pair, ["knowledge"]) for pair in pairs]
    labels = [get(pair, "label", str) for pair in pairs]
    places = places_of(row, FORMATS[keys], labels, choices)
    return Question(context, question, choices, None, facts), places


def format_of(row: dict) -> str:
    """The keys of a line's choices. Raises ValueError where FORMATS hasn't got them."""
    for keys in FORMATS:
        if row.get(keys.split()[0]) is not None:
            return keys
    raise ValueError(f"has no choices in any of: {', '.join(FORMATS)}")


def choices_of(row: dict, keys: str) -> list[dict]:
    """A "label" and a "text" for each choice, and maybe its "knowledge"."""
    value = row[keys] if keys in row else [get(row, key, str) for key in keys.split()]
    if keys.startswith("correct_answer"):  # its place must not be learned
        random.Random(str(row.get("question"))).shuffle(value)
    if isinstance(value, dict) and "text" in value:  # {"text": ["mice", ...], "label": ["A", ...]}
        columns = [get(value, key, list) for key in value]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(f'"{keys}" has lists of different lengths')
        value = [dict(zip(value, pair, strict=True)) for pair in zip(*columns, strict=True)]
    elif isinstance(value, dict):  # {"A": "mice", ...}
        value = [{"label": key, "text": text} for key, text in value.items() if text is not None]
    elif not isinstance(value, list):
        raise ValueError(f'"{keys}" is missing or not a list')
    pairs = [pair if isinstance(pair, dict) else {"text": pair} for pair in value]
    pairs = [{"label": p["key"], "text": p.get("value")} if "key" in p else p for p in pairs]
    return [{"label": chr(ord("A") + i)} | pair for i, pair in enumerate(pairs)]


def places_of(
    row: dict, ways: dict[str, list[str]], labels: list[str], choices: list[str]
) -> dict[str, int]:
    """The place of the answer, from 0, by each way that it may be meant; none without an answer."""
    key = next((key for key in ways if row.get(key) not in (None, "", -1, "-1")), None)
    if key is None:
        return {}
    answer, numbers = str(row[key]), [str(i) for i in range(len(choices) + 1)]
    names = {LABEL: labels, FROM_0: numbers[:-1], FROM_1: numbers[1:], TEXT: choices}
    names[TEXTS] = [str([text]) for text in choices]
    names = {way: names[way] for way in ways[key]}
    places = {way: known.index(answer) for way, known in names.items() if answer in known}
    if not places:
        allowed = " or ".join(", ".join(known) for known in names.values())
        raise ValueError(f"the answer must be one of {allowed}, not {row[key]!r}")
    return places


def get(row: dict, key: str, kind: type) -> object:
    """row[key], if it's of this kind. Raises ValueError."""
    value = row.get(key)
    if not isinstance(value, kind):
        raise ValueError(f'"{key}" is missing or not {"a text" if kind is str else "a list"}')
    if kind is str:
        value.encode("utf-8")  # a ValueError for half a surrogate pair
    return value


def first_text(row: dict, names: list[str]) -> str:
    """The first of these that is there; several keys make one text, no key makes an empty one."""
    for keys in map(str.split, names):
        if all(row.get(key) is not None for key in keys):
            return " ".join(get(row, key, str) for key in keys).strip()
    raise ValueError(f"has no question in any of: {', '.join(names)}")


def texts(row: dict, keys: list[str]) -> list[str]:
    """Under each of these keys is a text, a list of texts, or nothing."""
    found = []
    for key in keys:
        value = row.get(key) or []
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f'"{key}" must be a list of texts')
        found += [text for text in value if text.strip()]
    return found


# --------------------------------------------------------------------------------------- files

def read_questions(path: Path, answers_needed: bool = True) -> list[Question]:
    """One question a line, all in the same format; labels, if any, in NAME-labels.lst beside it.

    Answers are read in the one way that fits all lines. Raises FileNotFoundError or ValueError.
    """
    questions, formats, answers = [], set(), {way: [] for way in WAYS}
    for number, line, label in labelled_lines(path):
        try:
            row = to_row(line, label)
            question, places = to_question(row)
            formats.add(format_of(row))
            if len(formats) > 1:
                raise ValueError("in another format than the lines before")
            if answers_needed and not places:
                raise ValueError(f"the answer is missing: {' or '.join(FORMATS[format_of(row)])}")
            answers = {w: found for w, found in answers.items() if w in places or not places}
            if not answers:
                raise ValueError("the answer is counted in another way than in the lines before")
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {' '.join(str(error).split())}") from None
        questions.append(question)
        for way, found in answers.items():
            found.append(places.get(way))
    first, *others = answers.values()
    if any(other != first for other in others):
        raise ValueError(f"{path}: no line tells what answers are: {' or '.join(answers)}")
    for question, answer in zip(questions, first, strict=True):
        question.answer = answer
    return questions


def to_row(line: str, label: str | None) -> dict:
    """A line's object and its label; what stands in its question, as the choices may, taken out."""
    row = None if line.startswith("[") else json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("must be a JSON object, one a line; jq -c '.[]' makes them of a list")
    if isinstance(row.get("question"), dict):
        inner = row["question"]
        row |= inner | {"question": inner.get("stem")}
    return row if label is None else row | {"label": label}


def labelled_lines(path: Path) -> list[tuple[int, str, str | None]]:
    """Number, text and label of each line that isn't blank."""
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line]
    labels, labels_path = [None] * len(lines), path.with_name(f"{path.stem}-labels.lst")
    if labels_path.is_file():
        labels = [label for label in read_lines(labels_path) if label]
    if not lines:
        raise ValueError(f"{path}: is empty")
    if len(labels) != len(lines):
        raise ValueError(f"{labels_path}: {len(labels)} labels for {len(lines)} questions")
    return [(*line, label) for line, label in zip(lines, labels, strict=True)]


def read_facts(path: Path) -> list[str]:
    """One fact a line, "" for a blank one. Raises FileNotFoundError or ValueError."""
    facts = read_lines(path)
    if not any(facts):
        raise ValueError(f"{path}: no facts in it")
    return facts


def read_lines(path: Path) -> list[str]:
    """The lines without what ends them and without a byte-order mark, "" for a blank one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    lines = []
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).splitlines(), 1):
        try:
            lines.append(line.decode("utf-8").strip())
        except UnicodeDecodeError:
            raise ValueError(f"{path}, line {number}: not UTF-8 text") from None
    return lines
