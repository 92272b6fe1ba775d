"""Questions as people have them, in the formats of several data sets, and facts to answer them by.

    read_questions    a file with one JSON object a line -> a list of Question
    read_facts        a text file with one fact a line
    retrieve          gives each question the facts that BM25 finds for it

A sixth format is one more function beside `release`, `social_iqa`, `stem` and `medqa`, and one more
line in `format_of`.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from parts.retrieval import BM25, best


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

LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def release(row: dict, _: str | None) -> Question:
    """The Kformer release: {"context", "question", "choices": [{"text", "knowledge"}], "AnswerKey"
    or "answer_idx", "knowledges"}; facts for all choices are "knowledges", for one "knowledge".
    """
    pairs = get(row, "choices", list)
    choices = [get(pair, "text", str) for pair in pairs]
    facts = [texts(row, "knowledges")]
    if any("knowledge" in pair for pair in pairs):
        facts = [facts[0] + texts(pair, "knowledge") for pair in pairs]
    answer = place(row.get("AnswerKey", row.get("answer_idx")), LETTERS[: len(choices)])
    context, question = get(row, "context", str, ""), get(row, "question", str)
    return Question(context, question, choices, answer, facts)


def social_iqa(row: dict, label: str | None) -> Question:
    """Social IQA (Sap et al. 2019) as released: {"context", "question", "answerA", "answerB",
    "answerC"}; the label is 1, 2 or 3 and stands in a file of its own.
    """
    choices = [get(row, f"answer{letter}", str) for letter in "ABC"]
    context, question = get(row, "context", str), get(row, "question", str)
    return Question(context, question, choices, place(label, ["1", "2", "3"]), [[]])


def stem(row: dict, _: str | None) -> Question:
    """CommonsenseQA, OpenBookQA, ARC: {"question": {"stem", "choices": [{"label", "text"}]},
    "answerKey"}, where the answer is one of the labels.
    """
    question = get(row, "question", dict)
    pairs = get(question, "choices", list)
    choices = [get(pair, "text", str) for pair in pairs]
    answer = place(row.get("answerKey"), [get(pair, "label", str) for pair in pairs])
    return Question("", get(question, "stem", str), choices, answer, [[]])


def medqa(row: dict, _: str | None) -> Question:
    """MedQA (Jin et al. 2020): {"question", "options": {"A": ...}, "answer_idx"}."""
    options = get(row, "options", dict)
    choices = [get(options, letter, str) for letter in options]
    answer = place(row.get("answer_idx"), list(options))
    return Question("", get(row, "question", str), choices, answer, [[]])


def format_of(row: dict) -> Callable[[dict, str | None], Question]:
    """Which of the above a line is, by its keys. Raises ValueError where they fit none."""
    if "answerA" in row:
        return social_iqa
    if isinstance(row.get("question"), dict):
        return stem
    if "options" in row:
        return medqa
    if "choices" in row:
        return release
    raise ValueError('has neither "choices" nor "question.stem", "options" or "answerA"')


def get(row: dict, key: str, kind: type, default: object = None) -> object:
    """row[key], if it's of this kind. Raises ValueError."""
    value = row.get(key, default) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        name = {str: "a text", list: "a list", dict: "an object"}[kind]
        raise ValueError(f'"{key}" is missing or not {name}')
    if kind is str:
        value.encode("utf-8")  # a ValueError for half a surrogate pair
    return value


def texts(row: dict, key: str) -> list[str]:
    """row[key], a text or a list of texts; none if it isn't there."""
    value = row.get(key, [])
    value = [value] if isinstance(value, str) else get(row, key, list, [])
    if not all(isinstance(fact, str) for fact in value):
        raise ValueError(f'"{key}" must be a list of texts')
    return value


def place(answer: object, labels: list[str]) -> int | None:
    """Which label the answer is, from 0; None without an answer."""
    if answer in (None, ""):
        return None
    if answer not in labels:
        raise ValueError(f"the answer must be one of {', '.join(labels)}, not {answer!r}")
    return labels.index(answer)


# --------------------------------------------------------------------------------------- files


def read_questions(path: Path, answers_needed: bool = True) -> list[Question]:
    """One question a line, all in the same format; labels, if any, in NAME-labels.lst beside it.

    Raises FileNotFoundError or ValueError with file, line and key.
    """
    lines, labels_path = read_lines(path), path.with_name(f"{path.stem}-labels.lst")
    labels = read_lines(labels_path) if labels_path.is_file() else [None] * len(lines)
    if len(labels) != len(lines):
        raise ValueError(f"{labels_path}: {len(labels)} labels for {len(lines)} questions")
    questions, formats = [], set()
    for number, (line, label) in enumerate(zip(lines, labels, strict=True), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("must be a JSON object")
            to_question = format_of(row)
            formats.add(to_question)
            if len(formats) > 1:
                raise ValueError("in another format than the lines before")
            question = to_question(row, label)
            if len(question.choices) < 2:
                raise ValueError(f"needs at least two choices, has {len(question.choices)}")
            if answers_needed and question.answer is None:
                raise ValueError("the answer is missing")
            questions.append(question)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return questions


def read_facts(path: Path) -> list[str]:
    """One fact a line, "" for a blank one. Raises FileNotFoundError or ValueError."""
    facts = read_lines(path)
    if not any(facts):
        raise ValueError(f"{path}: no facts in it")
    return facts


def read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    lines = []
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8").strip())
        except UnicodeDecodeError:
            raise ValueError(f"{path}, line {number}: not UTF-8 text") from None
    if lines == [""]:
        raise ValueError(f"{path}: is empty")
    return lines


# ----------------------------------------------------------------------------------- retrieval


def retrieve(questions: list[Question], facts: list[str], n: int) -> None:
    """Gives each choice of each question the n facts that BM25 ranks first for both together."""
    bm25 = BM25(facts)
    for q in tqdm(questions, "retrieving", unit="question", leave=False, disable=None):
        asked = bm25.scores(f"{q.context} {q.question}")
        found = [best(asked + bm25.scores(choice), n) for choice in q.choices]
        q.facts = [[facts[i] for i in places] for places in found]


def read_splits(folder, candidates, always=False, say=print):
    paths = {split: folder / f"{split}.jsonl" for split in ("train", "valid", "dev", "test")}
    valid = paths["dev"] if paths["dev"].exists() else paths["valid"]
    questions = {"train": read_questions(paths["train"]), "valid": read_questions(valid)}
    if paths["test"].exists():
        questions["test"] = read_questions(paths["test"], answers_needed=False)
    if candidates is not None:
        look_up([q for part in questions.values() for q in part], folder / "facts.txt", candidates, always, say)
    return questions


def look_up(questions, path, candidates, always=False, say=print):
    bare = [q for q in questions if always or not any(q.facts)]
    if bare:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, but {len(bare):,} questions need facts from it; --inject none needs no facts")
        lines = read_facts(path)
        facts = [line for line in lines if line]
        blank = f"; blank lines skipped: {len(lines) - len(facts):,}" if "" in lines else ""
        say(f"facts     {len(bare):,} questions get theirs out of {len(facts):,} in {path}{blank}")
        retrieve(bare, facts, candidates)


def baselines(train, held_out):
    from parts.retrieval import words
    place = Counter(q.answer for q in train).most_common(1)[0][0]
    overlap = 0
    for q in held_out:
        known = [set(words(" ".join(facts) or f"{q.context} {q.question}")) for facts in q.facts]
        common = [len(of_choice(known, i) & set(words(c))) for i, c in enumerate(q.choices)]
        overlap += common.index(max(common)) == q.answer
    majority = sum(q.answer == place for q in held_out) / len(held_out)
    overlap /= len(held_out)
    return f"always choice {place + 1}: {majority:.1%}, most common words: {overlap:.1%}"
