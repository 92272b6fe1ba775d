"""Question files: those of the project's own format, and those of other sets."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from qa.questions import Question, read_facts, read_questions, split_paths
from tests.common import FACTS, FORMATS, OWL, write_lines

ANSWERS = ("AnswerKey", "answerKey", "answer_idx", "answer", "label", "cop")
RELEASE = FORMATS["release"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_recognised_by_its_keys(name: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", FORMATS[name])
    if name == "social_iqa":
        write_lines(tmp_path / "train-labels.lst", "1")
    [found] = read_questions(path)
    assert found.choices[found.answer] == OWL[1][0]
    if name == "sciq":  # which shuffles them
        found = replace(found, choices=[*OWL[1], "snow"], answer=0)
    choices = [*OWL[1], "snow"][: len(found.choices)]
    assert found == Question("", OWL[0], choices, 0, FACTS.get(name, [[]]))


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "sciq"])
@pytest.mark.parametrize("left", [{}, dict.fromkeys(ANSWERS), {"label": -1, "answer": ""}])
def test_only_a_test_set_may_lack_answers(name: str, left: dict, tmp_path: Path) -> None:
    row = {key: value for key, value in FORMATS[name].items() if key not in ANSWERS} | left
    path = write_lines(tmp_path / "test.jsonl", FORMATS[name], row)
    assert read_questions(path, answers_needed=False)[1].answer is None
    with pytest.raises(ValueError, match=r"test.jsonl, line [12]: the answer is missing"):
        read_questions(path)


@pytest.mark.parametrize("choices", [2, 30, 100])
def test_a_line_of_ours_is_read_as_if_it_had_a_key_too_many(choices: int, tmp_path: Path) -> None:
    texts = [{"text": f" c {i}", "knowledge": [f"Fact {i}."] * (i % 3)} for i in range(choices)]
    row = {"context": " Once. ", "question": " What? ", "choices": texts, "knowledges": "All."}
    row["AnswerKey"] = chr(ord("A") + choices - 1)
    bare = {"question": "Who?", "choices": [{"text": "Mira"}, {"text": "Hugo"}], "id": 7}
    facts = [["All.", *[f"Fact {i}."] * (i % 3)] for i in range(choices)]
    expected = [Question("Once.", "What?", [t["text"].strip() for t in texts], choices - 1, facts)]
    expected += [Question("", "Who?", ["Mira", "Hugo"], answer, [[]]) for answer in (0, None)]
    for more in ({}, {"source": "x"}):  # with it, by way of formats.py
        rows = [more | line for line in (row, bare | {"AnswerKey": "A"}, bare)]
        assert read_questions(write_lines(tmp_path / "test.jsonl", *rows), False) == expected


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("race", {"article": "Owls hunt."}, {"context": "Owls hunt."}),
        ("release", {"context": "Owls hunt."}, {"asked": f"Owls hunt. {OWL[0]}"}),
        ("release", {"context": None}, {"asked": OWL[0]}),
        ("mmlu", {"context": None}, {"asked": OWL[0]}),
        ("hellaswag", {"ctx": None, "ctx_b": ""}, {"question": "What"}),
        ("swag", {"sent1": "What eats mice?", "sent2": ""}, {"question": "What eats mice?"}),
        ("sciq", {"support": ["Owls.", "Mice."]}, {"facts": [["Owls.", "Mice."]]}),
        ("sciq", {"support": ""}, {"facts": [[]]}),
        ("mmlu", {"context": " ", "passage": "Owls hunt."}, {"context": "Owls hunt."}),
        ("medqa", {"options": {"A": "owl", "B": "oak", "C": float("nan")}},
         {"choices": ["owl", "oak"]}),
        ("mmlu", {"choices": ["-1", "0"], "answer": "-1"}, {"answer": 0}),
        ("mmlu", {"choices": ["2", "2", "8"], "answer": 2}, {"answer": 2}),
        ("medqa", {"options": {"A": "a", "B": "a"}, "answer": "a", "answer_idx": "B"},
         {"answer": 1}),
        ("release", {"knowledges": [" ", "Mice."]}, {"facts": [["Mice."]]}),
        ("mmlu", {"hint": "Owls hunt."}, {"context": "Owls hunt."}),
        ("mmlu", {"explanation": "Owls eat mice."}, {"facts": [[]]}),  # it gives the answer away
        ("release, facts of each choice", {"knowledges": "Owls eat mice."}, {"facts": [
            ["Owls eat mice.", fact] for [fact] in FACTS["release, facts of each choice"]]}),
    ],
)  # fmt: skip
def test_texts_have_several_keys(name: str, change: dict, found: dict, tmp_path: Path) -> None:
    [question] = read_questions(write_lines(tmp_path / "x.jsonl", FORMATS[name] | change), False)
    assert {key: getattr(question, key) for key in found} == found


def answers(path: Path, name: str, key: str, said: list) -> list[int | None]:
    write_lines(path, *[FORMATS[name] | {"answer": None, key: answer} for answer in said])
    return [q.answer for q in read_questions(path)]


SAID = {  # that the answers are the third choice, the first, the second; or of two the second
    ("release", "AnswerKey"): ["CAB", "312", [3, 1, 2]],
    ("release, number from 0", "answer_idx"): ["CAB", [2, 0, 1]],
    ("stem", "answerKey"): ["312"], ("openbookqa, hub", "answerKey"): ["CAB"],
    ("medqa", "answer_idx"): ["CAB"], ("medqa, pairs", "answer_idx"): [[2, 0, 1]],
    ("medqa, bigbio", "answer"): [[[OWL[1][i]] for i in (2, 0, 1)]],
    ("mmlu", "answer"): [[2, 0, 1], [2.0, 0.0, 1.0], "CAB", [OWL[1][i] for i in (2, 0, 1)]],
    ("race", "answer"): ["CAB", ["C\n", "A ", "B"]], ("swag", "label"): [[2, 0, 1]],
    ("hellaswag", "label"): ["201", [2, 0, 1]],
    ("cosmos", "label"): [[2, 0, 1]], ("social_iqa", "label"): ["312", "CAB"],
    ("medmcqa", "cop"): [[2, 0, 1], [3, 1, 2, 4]],
    ("piqa", "label"): ["10", [1, 0]], ("winogrande", "answer"): ["21"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "key"), SAID)
def test_answers_are_counted_as_their_format_says(name: str, key: str, tmp_path: Path) -> None:
    for said in SAID[name, key]:
        right = [1, 0] if len(said) == 2 else [2, 0, 1]
        assert answers(tmp_path / "train.jsonl", name, key, said)[:3] == right


def test_an_answer_that_nobody_has_told_is_none(tmp_path: Path) -> None:
    rows = [FORMATS["mmlu"] | {"answer": a} for a in (1, None, "", -1, -1.0, "-1", float("nan"))]
    found = read_questions(write_lines(tmp_path / "x.jsonl", *rows), False)
    assert [q.answer for q in found] == [1, *[None] * 6]


def test_choices_without_a_word_are_left_out(tmp_path: Path) -> None:
    """They stand where others have more choices. The answer's place is that among the others."""
    mmlu, texts = FORMATS["mmlu"] | {"choices": ["rain", " ", None, 7, ""]}, ["rain", " ", "", "7"]
    ours = FORMATS["release"] | {"choices": [{"text": text} for text in texts]}
    for row, right, empty in ((mmlu, {"answer": 3}, {"answer": 1}),
                              (ours, {"AnswerKey": "D"}, {"AnswerKey": "B"})):  # fmt: skip
        [q] = read_questions(write_lines(tmp_path / "x.jsonl", row | right))
        assert (q.choices, q.answer) == (["rain", "7"], 1)
        with pytest.raises(ValueError, match="line 1: the right choice is empty"):
            read_questions(write_lines(tmp_path / "x.jsonl", row | empty))


def test_keys_that_hold_text_and_are_not_read_are_named_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mmlu = FORMATS["mmlu"] | {"solution": "It is A.", "subject": "owls", "id": 7}
    inner = RELEASE | {"choices": [c | {"para": "Owls hunt."} for c in RELEASE["choices"]]}
    stem = FORMATS["stem"] | {"question": FORMATS["stem"]["question"] | {"note": "At night."}}
    both = FORMATS["mmlu"] | {"context": "By day.", "passage": "By night."}  # the first one counts
    for row, keys in ((mmlu, "solution"), (inner, "para"), (stem, "note"), (both, "passage")):
        path = write_lines(tmp_path / "x.jsonl", row, row)
        read_questions(path)
        assert capsys.readouterr().out == f"note      {path}: not read: {keys}\n"


def test_labels_may_be_letters_in_most_lines_and_numbers_in_some(tmp_path: Path) -> None:
    rows = [FORMATS["openbookqa, hub"], FORMATS["arc, hub"] | {"answerKey": "3"}]
    assert [q.answer for q in read_questions(write_lines(tmp_path / "x.jsonl", *rows))] == [0, 2]


def test_a_count_that_no_line_tells_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(ValueError, match=r"train.jsonl: no line tells .* from 0 or place from 1"):
        answers(path, "medmcqa", "cop", [1, 2, 3])
    several = {"cop": ("medmcqa", [0, 1, 4]), "AnswerKey": ("release", ["A", 1])}
    several["answer_idx"] = ("release, number from 0", [0, "A"])
    for key, (name, said) in several.items():
        with pytest.raises(ValueError, match=r"line \d: the answer is counted in another way"):
            answers(path, name, key, said)


def test_the_right_choice_of_sciq_may_stand_anywhere_but_always_there(tmp_path: Path) -> None:
    rows = [FORMATS["sciq"] | {"question": f"What eats {i} mice?"} for i in range(400)]
    found, again = (read_questions(write_lines(tmp_path / "x.jsonl", *rows)) for _ in range(2))
    assert found == again
    counts = Counter(q.answer for q in found)
    assert all(70 < counts[place] < 130 for place in range(4)), counts


BAD_LINES = {
    "not JSON": "{", "must be a JSON object": "1", "must be a JSON object; jq": "[1]",
    "has no choices in any of: choices, options, endings, ": {"question": "?"},
    "has no question in any of: question, ": {"premise": "?", "choices": ["a", "b"]},
    '"text" is missing or not a text': {"question": "?", "choices": [{"text": 1}] * 2},
    '"choices" is missing or not a list': {"question": "?", "choices": "ab"},
    '"choices" must have lists of the same': RELEASE | {"choices": {"text": ["a"], "label": []}},
    '"choices" must have lists of the': RELEASE | {"choices": {"text": "owl", "label": ["A"] * 3}},
    "has no question in any of: question": {"choices": RELEASE["choices"]},
    '"context" is missing or not a text': RELEASE | {"context": 1},
    '"answerB" is missing or not a text': {"question": "?", "answerA": "a"},
    '"knowledges" must be a list of texts': RELEASE | {"knowledges": [1]},
    '"support" must be a list of texts': RELEASE | {"support": 1},
    "needs at least two choices, has 1": {"question": "?", "choices": [{"text": "a"}]},
    "the answer must be one of A, B, C or 1, 2, 3, not 'D'": RELEASE | {"AnswerKey": "D"},
    "the answer must be one of A, B, C or 1, 2, 3, not 0": RELEASE | {"AnswerKey": 0},
    "the answer must be one of A, B, C, not 1": FORMATS["openbookqa, hub"] | {"answerKey": 1},
    "the answer is missing": RELEASE | {"AnswerKey": ""},
    "in another format than the lines before": FORMATS["medqa"],
    "'utf-8' codec can't encode": RELEASE | {"question": "\ud83e"},
    "a key is there twice": '{"question": "?", "question": "!"}',
    '"options" must be a list of texts': FORMATS["race"] | {"options": [["a"], ["b"], ["c"]]},
    '"answer" is \'a\', which is said of several': FORMATS["mmlu"] | {
        "choices": ["a", "a", "b"], "answer": "a"},
    "answer_idx and answer name different": FORMATS["medqa"] | {"answer": OWL[1][1]},
    "the answer must be one of A B, b": FORMATS["medqa"] | {"options": {"A\nB": "a", "b": "b"}},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_LINES)
def test_a_bad_line_is_named(message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", RELEASE, BAD_LINES[message])
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: {message}")) as error:
        read_questions(path)
    assert "\n" not in str(error.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    for read in (read_questions, read_facts):
        path.unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match=r"train.jsonl: no such file"):
            read(path)
        for nothing in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
            path.write_bytes(nothing)
            with pytest.raises(ValueError, match=r"train.jsonl: (is empty|no facts in it)$"):
                read(path)
    path.write_bytes(json.dumps(RELEASE).encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: not UTF-8 text"):
        read_questions(path)
    write_lines(path, FORMATS["social_iqa"])
    write_lines(tmp_path / "train-labels.lst", "1", "2")
    with pytest.raises(ValueError, match=r"train-labels.lst: 2 labels for 1 questions"):
        read_questions(path)
    write_lines(tmp_path / "train-labels.lst", "1")
    for row in (RELEASE, FORMATS["social_iqa"] | {"label": "2"}):
        write_lines(path, row)
        with pytest.raises(ValueError, match=r"train-labels.lst: the questions have other answers"):
            read_questions(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_files_of_any_system_and_editor_are_read(end: str, tmp_path: Path) -> None:
    row, path = json.dumps(FORMATS["social_iqa"]), tmp_path / "train.jsonl"
    path.write_bytes("".join(["\ufeff", row, end, end, row, end, " ", end]).encode())
    (tmp_path / "train-labels.lst").write_bytes("".join(["\ufeff1", end, "2", end, end]).encode())
    assert [q.answer for q in read_questions(path)] == [0, 1]
    path.write_bytes("".join(["\ufeff", row, end, end, "{", end]).encode())
    with pytest.raises(ValueError, match=r"train.jsonl, line 3: not JSON"):
        read_questions(path)
    path.write_bytes("".join(["\ufeffOwls eat mice.", end, end, " Oaks are old."]).encode())
    assert read_facts(path) == ["Owls eat mice.", "Oaks are old."]


@pytest.mark.parametrize("valid", ["valid", "dev", "validation"])
def test_a_folder_has_two_splits_or_three(valid: str, tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("train", valid, "test")}
    for name in ("test", "train", valid):
        with pytest.raises(FileNotFoundError, match=r"needs train.jsonl and one of valid.jsonl, "):
            split_paths(tmp_path)
        paths[name].touch()
    assert [*split_paths(tmp_path).values()] == [*paths.values()]
    paths["test"].unlink()
    assert split_paths(tmp_path) == {"train": paths["train"], "valid": paths[valid]}
