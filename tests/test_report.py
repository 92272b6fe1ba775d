"""What a run says."""

from pathlib import Path

import pytest

from qa import report
from qa.batches import Encoded
from qa.questions import Question


def test_the_report_of_the_data_says_how_many_questions_were_cut() -> None:
    question = Question("", "w5", ["w8", "w9"], 0, [[]])
    rows, segments = [[2, 5, 3]] * 2, [[0, 0, 0]] * 2
    whole, cut = (Encoded(rows, segments, [[]], 0, shortened) for shortened in (False, True))
    lines = report.lines_of_data(Path("here"), {"train": [question]}, {"train": [whole]}, "train")
    assert next(lines) == "data      here: 1 train questions of 2 choices"
    assert next(lines).startswith("chance    50.0%; always choice 1: 100.0%")
    both = {"train": [question, question]}
    _, line, _ = report.lines_of_data(Path("here"), both, {"train": [whole, cut]}, "train")
    assert line == "          1 of them cut at the front to 3 tokens"


@pytest.mark.parametrize(
    ("count", "accuracy", "said"),
    [(1, 0.0, "too few"), (49, 0.25, "too few"), (49, 1.0, "too few"), (50, 0.25, "no better"),
     (50, 0.37, "no better"), (50, 0.38, None), (2000, 0.28, None)],
)  # fmt: skip
def test_fewer_than_fifty_questions_tell_nothing_and_more_may_be_no_better_than_chance(
    count: int, accuracy: float, said: str | None
) -> None:
    _, *more = report.lines_of_result("test", count, {"test_accuracy": accuracy, "chance": 0.25})
    if said is None:
        assert not more
    else:
        [line] = more
        assert line.strip().startswith(said)


@pytest.mark.parametrize(
    ("exchanged", "differ", "clear"), [(0.5, 24, True), (0.5, 25, False), (0.7, 10, False)]
)
def test_a_difference_that_may_be_luck_is_said_to_be_close(
    exchanged: float, differ: int, clear: bool
) -> None:
    """Of 100 answers 10 fewer are right: 17 lost and 7 gained is no luck, to one in twenty."""
    result = {"test_accuracy": 0.6, "chance": 0.25}
    result |= {"exchanged_accuracy": exchanged, "exchanged_differ": differ}
    _, line = report.lines_of_result("test", 100, result)
    doubt = "" if clear else ", too close to say that its own help"
    assert line == f"          with the facts of another question: {exchanged:.1%}{doubt}"
