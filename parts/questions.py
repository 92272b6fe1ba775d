"""Questions as people have them, in the formats of many data sets, and facts to answer them by.

    read_splits       a folder -> the questions of each split, with their facts
    read_questions    a file with one JSON object a line -> a list of Question
    read_facts        a text file with one fact a line
    retrieve          gives each question the facts that BM25 finds for it
    baselines         what is right by rules that learn nothing

One more format is one more line in `FORMATS`, and maybe a key in the lines below it.
"""

import json
import random
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from parts.retrieval import BM25, best, words


@dataclass
class Question:
    context: str
    question: str
    choices: list[str]
    answer: int | None  # place of the right choice, from 0; None where nobody has told
    facts: list[list[str]]  # candidates, best first: one list for all choices, or one for each


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

# Name of a file -> what its questions are for. Of several files for the same, the last one is read.
SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "dev": "valid", "test": "test"}


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


def read_splits(
    folder: Path,
    candidates: int | None,
    always: bool = False,
    wrong: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, list[Question]]:
    """The questions of "train", of "valid" and, last, of "test" if there is one.

    Those that bring no facts, or all if `always`, get as many `candidates` for each choice out of
    facts.txt; none are looked up where that is None. In the end, if `wrong`, each gets the facts of
    another.
    """
    files = [(split, folder / f"{name}.jsonl") for name, split in SPLITS.items()]
    paths = {split: path for split, path in files if path.exists()}
    if not {"train", "valid"} <= paths.keys():
        raise FileNotFoundError(
            f"{folder}: needs train.jsonl and one of valid.jsonl, dev.jsonl and validation.jsonl, "
            "and may have test.jsonl and facts.txt"
        )
    splits = {split: read_questions(path, split != "test") for split, path in paths.items()}
    for path in paths.values():
        if blank := read_lines(path).count(""):
            say(f"skipped   {blank:,} blank lines in {path}")
    everything = [q for part in splits.values() for q in part]
    bare = [q for q in everything if always or not any(q.facts)]
    if own := len(everything) - len(bare):
        say(f"facts     {own:,} questions bring their own")
    if bare and candidates is not None:
        say(f"facts     {look_up(bare, folder / 'facts.txt', candidates)}")
    if wrong:
        for part in splits.values():
            exchange_facts(part)
        say("facts     each question gets those of another")
    return splits


# --------------------------------------------------------------------------------------- facts


def look_up(questions: list[Question], path: Path, n: int) -> str:
    """Each choice gets n facts out of this file. Returns what there is to say about it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file, but {len(questions):,} questions need facts from it; "
            "--inject none needs no facts"
        )
    lines = read_facts(path)
    facts = [line for line in lines if line]
    retrieve(questions, facts, n)
    blank, missed = len(lines) - len(facts), sum(not any(q.facts) for q in questions)
    return (
        f"{len(questions):,} questions get theirs out of {len(facts):,} in {path}"
        + (f"; blank lines skipped: {blank:,}" if blank else "")
        + (f"; nothing was found for {missed:,}" if missed else "")
    )


def retrieve(questions: list[Question], facts: list[str], n: int) -> None:
    """Gives each choice of each question the n facts that BM25 ranks first for both together."""
    facts = list(dict.fromkeys(facts))  # equal ones take one place
    bm25 = BM25(facts)
    for q in tqdm(questions, "retrieving", unit="question", leave=False, disable=None):
        asked = bm25.scores(f"{q.context} {q.question}")
        found = [best(asked + bm25.scores(choice), n) for choice in q.choices]
        q.facts = [[facts[i] for i in places] for places in found]


def exchange_facts(questions: list[Question]) -> None:
    """Gives each question the facts of the next: its first choice those of that one's first."""
    lists = [q.facts for q in questions]
    for q, other in zip(questions, lists[1:] + lists[:1], strict=True):
        q.facts = [other[i % len(other)] for i in range(1 if len(other) == 1 else len(q.choices))]


def baselines(train: list[Question], held_out: list[Question]) -> str:
    """The accuracy of rules that learn nothing: the place that is most often right in training, and
    the choice with the most words in common with its facts, or with the question without facts.
    """
    place = Counter(q.answer for q in train).most_common(1)[0][0]
    overlap = 0
    for q in held_out:
        known = [set(words(" ".join(facts) or f"{q.context} {q.question}")) for facts in q.facts]
        common = [len(of_choice(known, i) & set(words(c))) for i, c in enumerate(q.choices)]
        overlap += common.index(max(common)) == q.answer
    majority = sum(q.answer == place for q in held_out) / len(held_out)
    overlap /= len(held_out)
    return f"always choice {place + 1}: {majority:.1%}, most common words: {overlap:.1%}"
