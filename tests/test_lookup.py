"""Folders of questions, and the facts that are looked up for them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qa.lookup import baselines, by_meaning, exchanged, read_splits, retrieve
from qa.questions import Question
from tests.common import FORMATS, OWL, write_lines


def write_folder(folder: Path, *names: str) -> None:
    """In each file one question that brings a fact, and one that doesn't."""
    bare = FORMATS["release"] | {"knowledges": []}
    for name in names:
        write_lines(folder / f"{name}.jsonl", FORMATS["release"], bare)


@pytest.mark.parametrize("valid", ["valid", "dev", "validation"])
def test_a_folder_has_two_splits_or_three(valid: str, tmp_path: Path) -> None:
    write_folder(tmp_path, valid, "train")
    assert list(read_splits(tmp_path, None)) == ["train", "valid"]
    write_lines(tmp_path / "test.jsonl", FORMATS["release"] | {"AnswerKey": ""})
    splits = read_splits(tmp_path, None)
    assert list(splits) == ["train", "valid", "test"]
    assert splits["train"][0].answer == 0
    assert splits["test"][0].answer is None


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_a_folder_without_questions_is_told_what_it_needs(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path, name)
    with pytest.raises(FileNotFoundError, match=r"needs train.jsonl and one of .* facts.txt$"):
        read_splits(tmp_path, None)


def test_the_report_says_whose_facts_there_are(tmp_path: Path) -> None:
    write_folder(tmp_path, "train", "valid")
    said, path = [], tmp_path / "facts.txt"
    read_splits(tmp_path, None, say=said.append)
    assert said == ["facts     2 questions bring their own"]
    with pytest.raises(FileNotFoundError, match=r"facts.txt: no such file, but 2 questions need"):
        read_splits(tmp_path, 1)
    write_lines(path, "mice fear owls", "", "oaks and rain")
    said.clear()
    splits = read_splits(tmp_path, 1, say=said.append)
    assert [q.facts[0] for q in splits["train"]] == [["Owls eat mice."], ["mice fear owls"]]
    out_of = f"get theirs out of 2 in {path}; blank lines skipped: 1"
    assert said == ["facts     2 questions bring their own", f"facts     2 questions {out_of}"]
    said.clear()
    splits = read_splits(tmp_path, 1, always=True, say=said.append)
    assert [q.facts[0] for q in splits["train"]] == [["mice fear owls"]] * 2
    assert said == [f"facts     4 questions {out_of}"]


def test_blank_lines_and_questions_without_any_fact_are_counted(tmp_path: Path) -> None:
    write_folder(tmp_path, "train", "valid")
    with open(tmp_path / "valid.jsonl", "a") as file:
        file.write("\n \n")
    write_lines(tmp_path / "facts.txt", "the sea is salty")
    said = []
    read_splits(tmp_path, 1, say=said.append)
    assert said[0] == f"skipped   2 blank lines in {tmp_path / 'valid.jsonl'}"
    assert said[2].endswith("facts.txt; nothing was found for 2")


# ---- facts


def test_a_fact_goes_to_the_choice_that_it_speaks_for() -> None:
    facts = ["Owls eat mice.", "Oaks are trees.", "Rain falls.", "Mice eat an oak.", "Mice fear."]
    question = Question("", *OWL, 0, [[]])
    retrieve([question], facts, 2)
    assert question.facts == [["Owls eat mice."], ["Mice eat an oak."], []]
    retrieve([question], facts, 1)
    assert question.facts == [["Owls eat mice."], [], []], "in a shorter fact a word counts more"


def test_words_of_the_question_speak_for_no_choice() -> None:
    question = Question("An owl hunts.", "What does it hunt?", ["an owl", "mice"], 1, [[]])
    retrieve([question], ["The owl hunts.", "Some hunt mice."], 2)
    assert question.facts == [[], ["Some hunt mice."]]


def test_equal_facts_take_one_place() -> None:
    question = Question("", *OWL, 0, [[]])
    retrieve([question], ["Owls eat mice.", "Rain.", "Owls eat mice.", "Owls fear mice."], 2)
    assert question.facts[0] == ["Owls eat mice.", "Owls fear mice."]


def meaning(texts: list[str]) -> np.ndarray:
    """Vectors of a very small sentence encoder: whether a text is of birds, and of trees."""
    birds = [("owl" in text) + ("bird" in text) for text in texts]
    trees = [("oak" in text) + ("tree" in text) for text in texts]
    found = np.stack([birds, trees, [0.1] * len(texts)], -1)
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def test_with_a_sentence_encoder_a_fact_goes_where_it_is_alike() -> None:
    asked = Question("", "What eats mice?", ["the oak", "the owl"], 1, [[]])
    facts = ["Mice are small.", "Mice fear birds.", "Birds sing.", "Mice live in trees and birds."]
    facts += ["Mice live in trees."]
    retrieve([asked], facts, 2, meaning)
    assert asked.facts == [["Mice live in trees."], ["Mice fear birds."]]
    retrieve([asked], facts, 9, meaning)
    assert not any("Birds sing." in found for found in asked.facts), "no word in common"
    other = Question("", "Where are birds?", ["oak", "ash", "elm"], 0, [[]])
    retrieve([asked, other], facts, 1, meaning)
    assert other.facts == [[], ["Mice fear birds."], []]


@pytest.mark.parametrize("embed", [None, meaning])
def test_where_nothing_is_found_there_are_no_facts(embed: Callable | None) -> None:
    asked = Question("", "What eats mice?", ["oaks", "owls"], 1, [["An old one."]])
    retrieve([asked], ["The sea is salty."], 2, embed)
    assert asked.facts == [[], []]


def test_a_sentence_encoder_ranks_the_first_that_words_find() -> None:
    asked = Question("", "What eats mice?", ["owls", "oaks"], 0, [[]])
    facts = ["Mice fear a bird that hunts at night.", "Mice eat.", "Mice eat mice."]
    found = list(by_meaning([asked], facts, meaning, candidates=2))
    assert [places for places, _ in found] == [[1, 2]]
    assert found[0][1].shape == (2, 2)


def test_wrong_facts_are_those_of_the_next_question() -> None:
    facts = [[["a"], ["b"]], [["c"]], [["d"], ["e"], ["f"]]]
    part = [Question("", "?", list("xyz")[:n], 0, f) for n, f in zip((2, 3, 3), facts, strict=True)]
    wrong = [[["c"]], [["d"], ["e"], ["f"]], [["a"], ["b"], ["a"]]]
    assert [q.facts for q in exchanged(part)] == wrong
    assert [q.facts for q in part] == facts, "the questions are as they were"


def test_baselines_are_what_rules_without_learning_reach() -> None:
    facts = [["the coat is blue"]]
    coat = Question("", "?", ["red hat", "blue coat"], 1, facts)
    coats = [coat, coat, replace(coat, answer=0)]
    hat = Question("a hat", "red?", ["coat", "red hat"], 1, [[]])
    assert baselines([coat], coats) == "always choice 2: 66.7%, most common words: 66.7%"
    assert baselines(coats, [hat]) == "always choice 2: 100.0%, most common words: 100.0%"
    own = replace(coat, facts=[["a red hat", "a red cap"], ["a blue coat", "a coat", "blue"]])
    assert baselines(coats, [own, replace(own, answer=0)]) == (
        "always choice 2: 50.0%, most common words: 50.0%, most facts: 50.0%"
    )
    few = replace(own, facts=[["a hat", "a cap"], ["a blue coat"]])
    assert baselines(coats, [few]).endswith("most common words: 100.0%, most facts: 0.0%")
