"""Facts found."""


import numpy as np

from parts.retrieval import best, words


def test_the_best_facts_come_first_and_of_equals_the_first() -> None:
    scores = np.array([0, 2, 1, 3, 1, 1, 0], np.float32)
    assert best(scores, 3) == [3, 1, 2]
    assert best(scores, 4) == [3, 1, 2, 4]
    assert best(scores, 99) == [3, 1, 2, 4, 5], "a fact without a common word is none"
    many = np.tile(np.array([1, 2], np.float32), 500)
    assert best(many, 600) == [*range(1, 1000, 2), *range(0, 200, 2)]


def test_words_lose_endings_and_the_common_ones_are_left_out() -> None:
    assert words("The owls were hunting, isn't it?") == ["owl", "hunt", "isn", "t"]
    assert words("ing is us") == ["ing", "us"], "short words keep theirs"
