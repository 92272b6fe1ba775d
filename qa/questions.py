"""Questions in files: one JSON object a line, in the format of the Kformer release.

    {"context": "", "question": "Who sells kites?",
     "choices": [{"text": "Mira", "knowledge": []}, {"text": "Hugo"}],
     "AnswerKey": "A", "knowledges": ["Mira sells kites."]}

"knowledges" are facts for all choices, "knowledge" those of one. They and the context may be
missing, and in a test set the answer. formats.py makes such lines of those of other data sets.
"""

import json
from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path

from qa.errors import blaming

NO_FACTS = "no question brings facts; python -m lab.retrieve looks them up in a facts.txt"
LETTERS = [chr(ord("A") + i) for i in range(1000)]


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


def split_paths(folder: Path) -> dict[str, Path]:
    """The files of "train", of "valid" and, last, of "test" if there is one."""
    names = {"train": ["train"], "valid": ["valid", "dev", "validation"], "test": ["test"]}
    files = [(split, folder / f"{name}.jsonl") for split in names for name in names[split]]
    found = [(split, path) for split, path in files if path.is_file()]
    paths = dict(found)
    if len(paths) < len(found):
        raise ValueError(f"{folder}: several files of validation questions; keep one of them")
    if not {"train", "valid"} <= paths.keys():
        raise FileNotFoundError(
            f"{folder}: needs train.jsonl and one of valid.jsonl, dev.jsonl and validation.jsonl, "
            "and may have test.jsonl"
        )
    return paths


def read_questions(path: Path, answers_needed: bool = True) -> list[Question]:
    """Raises FileNotFoundError, or ValueError with the number of the line that is wrong."""
    rows, questions = {}, []
    for number, line in enumerate(read_lines(path), 1):
        if line:
            with blaming(f"{path}, line {number}"):
                if not line.startswith("["):
                    rows[number] = json.loads(
                        line, object_pairs_hook=each_key_once, parse_constant=lambda _: None
                    )  # NaN, as pandas writes a gap, is null
                if not isinstance(rows.get(number), dict):
                    raise ValueError("must be a JSON object; jq -c '.[]' makes lines of a list")
    if not rows:
        raise ValueError(f"{path}: is empty")
    labels = path.with_name(f"{path.stem}-labels.lst")  # as Social IQA has them
    if labels.is_file() or not all(map(is_plain, rows.values())):
        from qa.formats import made_plain  # most files don't need it

        rows = made_plain(path, rows, labels)
    for number, row in rows.items():
        with blaming(f"{path}, line {number}"):
            questions.append(to_question(row))
            if answers_needed and questions[-1].answer is None:
                raise ValueError("the answer is missing")
    return questions


def each_key_once(pairs: list[tuple[str, object]]) -> dict:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def is_plain(row: dict) -> bool:
    """Whether this is a line of the format above, and no other key has to be looked at."""
    choices = row.get("choices")
    return (
        row.keys() <= {"context", "question", "choices", "AnswerKey", "knowledges", "id"}
        and isinstance(row.get("question"), str)
        and isinstance(choices, list)
        and all(isinstance(c, dict) and c.keys() <= {"text", "knowledge"} for c in choices)
        and all(str(c.get("text", "")).strip() for c in choices)
        and row.get("AnswerKey") in (None, *LETTERS[: len(choices)])
    )


def to_question(row: dict) -> Question:
    choices, answer = row["choices"], row.get("AnswerKey")
    if len(choices) < 2:
        raise ValueError(f"needs at least two choices, has {len(choices)}")
    facts = [texts(row, "knowledges")]
    if any("knowledge" in choice for choice in choices):
        facts = [facts[0] + texts(choice, "knowledge") for choice in choices]
    return Question(
        "" if row.get("context") is None else text(row, "context").strip(),
        text(row, "question").strip(),
        [text(choice, "text").strip() for choice in choices],
        None if answer is None else LETTERS.index(answer), facts,
    )  # fmt: skip


def text(row: dict, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f'"{key}" is missing or not a text')
    value.encode("utf-8")  # a ValueError for half a surrogate pair
    return value


def texts(row: dict, key: str) -> list[str]:
    """Under the key is a text, a list of texts, or nothing."""
    value = row.get(key) or []
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f'"{key}" must be a list of texts')
    return [one for one in value if one.strip()]


def read_facts(path: Path) -> list[str]:
    """One fact a line, without blank lines. Raises FileNotFoundError or ValueError."""
    facts = [line for line in read_lines(path) if line]
    if not facts:
        raise ValueError(f"{path}: no facts in it")
    return facts


def read_lines(path: Path) -> list[str]:
    """The lines without what ends them and without a byte-order mark, "" for a blank one."""
    if not path.exists():  # it may be a pipe
        raise FileNotFoundError(f"{path}: no such file")
    lines = []
    for number, line in enumerate(path.read_bytes().removeprefix(BOM_UTF8).splitlines(), 1):
        with blaming(f"{path}, line {number}"):
            lines.append(line.decode("utf-8").strip())
    return lines
