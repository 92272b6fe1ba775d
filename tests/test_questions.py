"""Question files."""

import json
import re
from pathlib import Path

import pytest

from parts.questions import Question, read_facts, read_questions, retrieve
from tests.common import FORMATS, OWL, write_lines


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_by_its_keys(name: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS[name])
    if name == "social_iqa":
        write_lines(tmp_path / "train-labels.lst", "1")
    facts = {"release": [["Owls eat mice."]]}.get(name, [[]])
    if "each choice" in name:
        facts = [["About the owl."], ["About the oak."], ["About rain."]]
    assert read_questions(path) == [Question("", *OWL, 0, facts)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_test_set_needs_no_answers_but_training_does(name: str, tmp_path: Path) -> None:
    keys = ("AnswerKey", "answerKey", "answer_idx")
    row = {key: value for key, value in FORMATS[name].items() if key not in keys}
    path = write_lines(tmp_path / "test.jsonl", row)
    assert read_questions(path, answers_needed=False)[0].answer is None
    with pytest.raises(ValueError, match=r"test.jsonl, line 1: the answer is missing"):
        read_questions(path)


BAD_LINES = {
    "line 2: not JSON": "{",
    "line 2: must be a JSON object": "[]",
    'line 2: has neither "choices" nor "question.stem", "options" or "answerA"': {"question": "?"},
    'line 2: "text" is missing or not a text': {"question": "?", "choices": [{"text": 1}] * 2},
    'line 2: "choices" is missing or not a list': {"question": "?", "choices": "ab"},
    'line 2: "context" is missing or not a text': FORMATS["release"] | {"context": 1},
    'line 2: "knowledges" must be a list of texts': FORMATS["release"] | {"knowledges": [1]},
    "line 2: needs at least two choices, has 1": {
        "question": "?", "choices": [{"text": "a"}], "AnswerKey": "A"
    },
    "line 2: needs at least two choices, has 0": {"question": "?", "choices": []},
    "line 2: the answer must be one of A, B, C, not 'D'": FORMATS["release"] | {"AnswerKey": "D"},
    "line 2: the answer must be one of A, B, C, not 1": FORMATS["release"] | {"AnswerKey": 1},
    "line 2: the answer is missing": FORMATS["release"] | {"AnswerKey": ""},
    "line 2: in another format than the lines before": FORMATS["medqa"],
    "surrogates not allowed": FORMATS["release"] | {"question": "\ud83e"},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_LINES)
def test_a_bad_line_is_named(message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS["release"], BAD_LINES[message])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(FileNotFoundError, match=r"train.jsonl: no such file"):
        read_questions(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"train.jsonl: is empty"):
        read_questions(path)
    path.write_bytes(json.dumps(FORMATS["release"]).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: not UTF-8 text"):
        read_questions(path)
    write_lines(path, FORMATS["social_iqa"])
    write_lines(tmp_path / "train-labels.lst", "1", "2")
    with pytest.raises(ValueError, match=r"train-labels.lst: 2 labels for 1 questions"):
        read_questions(path)
    write_lines(tmp_path / "facts.txt", " ", "")
    with pytest.raises(ValueError, match=r"facts.txt: no facts in it"):
        read_facts(tmp_path / "facts.txt")


def test_each_choice_gets_the_facts_for_it_and_the_question() -> None:
    facts = ["Owls eat mice.", "Oaks are trees.", "Rain falls.", "Mice eat oaks."]
    question = Question("", *OWL, 0, [[]])
    retrieve([question], facts, 2)
    assert question.facts == [
        ["Owls eat mice.", "Mice eat oaks."],
        ["Mice eat oaks.", "Owls eat mice."],
        ["Rain falls.", "Owls eat mice."],
    ]
