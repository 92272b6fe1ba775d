"""What a run says."""

from pathlib import Path

import pytest

from parts import report
from parts.batches import Encoded
from parts.questions import Question


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
