"""Question files."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from qa.questions import Question, read_facts, read_questions
from tests.common import FACTS, FORMATS, OWL, write_lines

ANSWERS = ("AnswerKey", "answerKey", "answer_idx", "answer", "label", "cop")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_by_its_keys(name: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS[name])
    if name == "social_iqa":
        write_lines(tmp_path / "train-labels.lst", "1")
    [found] = read_questions(path)
    right = found.choices[found.answer]
    if name == "sciq":
        found = replace(found, choices=[*OWL[1], "snow"], answer=0)
    choices = [*OWL[1], "snow"][: len(found.choices)]
    assert found == Question("", OWL[0], choices, 0, FACTS.get(name, [[]]))
    assert right == OWL[1][0]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "sciq"])
@pytest.mark.parametrize("left", [{}, dict.fromkeys(ANSWERS), {"label": -1, "answer": ""}])
def test_a_test_set_needs_no_answers_but_training_does(
    name: str, left: dict, tmp_path: Path
) -> None:
    row = {key: value for key, value in FORMATS[name].items() if key not in ANSWERS} | left
    path = write_lines(tmp_path / "test.jsonl", row)
    assert read_questions(path, answers_needed=False)[0].answer is None
    with pytest.raises(ValueError, match=r"test.jsonl, line 1: the answer is missing"):
        read_questions(path)


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("race", {"article": "Owls hunt."}, {"context": "Owls hunt."}),
        ("social_iqa", {"context": "Owls hunt."}, {"context": "Owls hunt."}),
        ("mmlu", {"context": None}, {"context": ""}),
        ("hellaswag", {"ctx": None, "ctx_b": ""}, {"question": "What"}),
        ("swag", {"sent1": "What eats mice?", "sent2": ""}, {"question": "What eats mice?"}),
        ("medmcqa", {"exp": None}, {"facts": [[]]}), ("sciq", {"support": ""}, {"facts": [[]]}),
        ("sciq", {"support": " "}, {"facts": [[]]}), ("stem", {"fact1": None}, {"facts": [[]]}),
        ("release", {"knowledges": ["", "Mice."]}, {"facts": [["Mice."]]}),
        ("mmlu", {"explanation": ["Owls.", "Mice."]}, {"facts": [["Owls.", "Mice."]]}),
        ("release, facts of each choice", {"knowledges": "Owls eat mice."}, {"facts": [
            ["Owls eat mice.", fact] for [fact] in FACTS["release, facts of each choice"]]}),
    ],
)  # fmt: skip
def test_texts_stand_under_several_keys_and_may_be_missing(
    name: str, change: dict, found: dict, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS[name] | change)
    [question] = read_questions(path, answers_needed=False)
    assert {key: getattr(question, key) for key in found} == found


# ---- answers


def answers(path: Path, name: str, key: str, said: list) -> list[int | None]:
    """What answers are read where these stand in the file, a line each."""
    write_lines(path, *[FORMATS[name] | {key: answer} for answer in said])
    return [q.answer for q in read_questions(path)]


@pytest.mark.parametrize(
    ("name", "key", "said"),
    [
        ("release", "AnswerKey", "CAB"), ("release", "AnswerKey", "312"),
        ("release", "AnswerKey", [3, 1, 2]), ("release, number from 0", "answer_idx", "CAB"),
        ("release, number from 0", "answer_idx", [2, 0, 1]), ("stem", "answerKey", "312"),
        ("openbookqa, hub", "answerKey", "CAB"), ("medqa", "answer_idx", "CAB"),
        ("medqa, pairs", "answer_idx", [2, 0, 1]), ("medqa, bigbio", "answer", [[c] for c in
        (OWL[1][2], *OWL[1][:2])]), ("mmlu", "answer", [2, 0, 1]), ("mmlu", "answer", "CAB"),
        ("race", "answer", "CAB"), ("swag", "label", [2, 0, 1]), ("hellaswag", "label", "201"),
        ("hellaswag", "label", [2, 0, 1]), ("cosmos", "label", [2, 0, 1]),
        ("social_iqa", "label", "312"), ("social_iqa", "label", "CAB"),
        ("medmcqa", "cop", [2, 0, 1]), ("medmcqa", "cop", [3, 1, 2, 4]),
    ],
)  # fmt: skip
def test_answers_are_counted_as_their_format_says(
    name: str, key: str, said: list, tmp_path: Path
) -> None:
    assert answers(tmp_path / "train.jsonl", name, key, said)[:3] == [2, 0, 1]


def test_of_two_choices_the_second_is_right(tmp_path: Path) -> None:
    assert answers(tmp_path / "train.jsonl", "piqa", "label", [1, 0]) == [1, 0]
    assert answers(tmp_path / "train.jsonl", "winogrande", "answer", "21") == [1, 0]


def test_piqa_has_its_labels_from_0_in_a_file_of_their_own(tmp_path: Path) -> None:
    goal = {key: value for key, value in FORMATS["piqa"].items() if key != "label"}
    path = write_lines(tmp_path / "train.jsonl", goal, goal)
    write_lines(tmp_path / "train-labels.lst", "1", "0")
    assert [q.answer for q in read_questions(path)] == [1, 0]


def test_labels_of_a_line_may_differ_from_those_before(tmp_path: Path) -> None:
    """As in ARC, whose labels are letters in most lines and numbers in some."""
    letters, numbers = FORMATS["openbookqa, hub"], FORMATS["arc, hub"]
    path = write_lines(
        tmp_path / "train.jsonl", letters | {"answerKey": "B"}, numbers | {"answerKey": "3"}
    )
    assert [q.answer for q in read_questions(path)] == [1, 2]


def test_a_count_that_no_line_tells_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(ValueError, match=r"train.jsonl: no line tells .* from 0 or place from 1"):
        answers(path, "medmcqa", "cop", [1, 2, 3])
    for name, key, said in (
        ("medmcqa", "cop", [0, 1, 4]), ("release", "AnswerKey", ["A", 1]),
        ("release, number from 0", "answer_idx", [0, "A"]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"line \d: the answer is counted in another way"):
            answers(path, name, key, said)


def test_the_right_choice_of_sciq_may_stand_anywhere_but_always_there(tmp_path: Path) -> None:
    rows = [FORMATS["sciq"] | {"question": f"What eats {i} mice?"} for i in range(400)]
    path = write_lines(tmp_path / "train.jsonl", *rows)
    first, again = read_questions(path), read_questions(path)
    assert first == again
    counts = Counter(q.answer for q in first)
    assert all(70 < counts[place] < 130 for place in range(4)), counts


BAD_LINES = {
    "line 2: not JSON": "{",
    "line 2: must be a JSON object": "1",
    "line 2: must be a JSON object, one a line": "[",
    "line 2: has no choices in any of: choices, options, endings, ": {"question": "?"},
    "line 2: has no question in any of: question, ": {
        "premise": "?", "choices": ["a", "b"]
    },
    "line 2: has no question": {  # as RACE was released, several questions a file
        "article": "", "questions": ["?"], "options": [["a", "b"]], "answers": ["A"]
    },
    'line 2: "text" is missing or not a text': {"question": "?", "choices": [{"text": 1}] * 2},
    'line 2: "choices" is missing or not a list': {"question": "?", "choices": "ab"},
    'line 2: "label" is missing or not a list': {
        "question": "?", "choices": {"text": ["a", "b"], "label": "AB"}
    },
    'line 2: "choices" has lists of different lengths': {
        "question": "?", "choices": {"text": ["a", "b"], "label": ["A"]}
    },
    'line 2: "context" is missing or not a text': FORMATS["release"] | {"context": 1},
    'line 2: "answerB" is missing or not a text': {"question": "?", "answerA": "a"},
    'line 2: "knowledges" must be a list of texts': FORMATS["release"] | {"knowledges": [1]},
    'line 2: "support" must be a list of texts': FORMATS["release"] | {"support": 1},
    "line 2: needs at least two choices, has 1": {
        "question": "?", "choices": [{"text": "a"}], "AnswerKey": "A"
    },
    "line 2: needs at least two choices, has 0": {"question": "?", "choices": []},
    "line 2: the answer must be one of A, B, C or 1, 2, 3, not 'D'": FORMATS["release"]
    | {"AnswerKey": "D"},
    "line 2: the answer must be one of A, B, C or 1, 2, 3, not 0": FORMATS["release"]
    | {"AnswerKey": 0},
    "line 2: the answer must be one of A, B, C, not 1": FORMATS["openbookqa, hub"]
    | {"answerKey": 1},
    "line 2: the answer is missing: AnswerKey or ": FORMATS["release"] | {"AnswerKey": ""},
    "line 2: in another format than the lines before": FORMATS["medqa"],
    "surrogates not allowed": FORMATS["release"] | {"question": "\ud83e"},
    "line 2: the answer must be one of A B, b": FORMATS["medqa"]
    | {"options": {"A\nB": "a", "b": "b"}},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_LINES)
def test_a_bad_line_is_named(message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS["release"], BAD_LINES[message])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_questions(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(error.value)


# ---- files


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(FileNotFoundError, match=r"train.jsonl: no such file"):
        read_questions(path)
    for nothing in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
        path.write_bytes(nothing)
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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_of_any_system_and_editor_are_read(end: str, tmp_path: Path) -> None:
    """A byte-order mark, blank lines, the line ends of Windows."""
    row, path = json.dumps(FORMATS["social_iqa"]), tmp_path / "train.jsonl"
    path.write_bytes("".join(["\ufeff", row, end, end, row, end, " ", end]).encode())
    (tmp_path / "train-labels.lst").write_bytes("".join(["\ufeff1", end, "2", end, end]).encode())
    assert [q.answer for q in read_questions(path)] == [0, 1]
    path.write_bytes("".join(["\ufeff", row, end, end, "{", end]).encode())
    with pytest.raises(ValueError, match=r"train.jsonl, line 3: not JSON"):
        read_questions(path)
    facts = tmp_path / "facts.txt"
    facts.write_bytes("".join(["\ufeffOwls eat mice.", end, end, "Oaks are old."]).encode())
    assert read_facts(facts) == ["Owls eat mice.", "", "Oaks are old."]
