"""Facts found by the words that they share with a text: BM25.

    words    a text -> the words that count, without their endings
    BM25     ranks facts
    best     the places of the largest scores
"""

import re
from collections import Counter, defaultdict

import numpy as np

STOPWORDS = frozenset(
    "a an the of is are was were be been to in for on at by from with into and or not as that this "
    "these those it its they their he she his her him you your i we what which who whom how when "
    "where why would could should can will do does did has have had if then than".split()
)


def words(text: str) -> list[str]:
    """Words in small letters without the most common ones, and without their endings: "The owls
    were hunting" -> ["owl", "hunt"]
    """
    found = re.findall(r"\w+", text.lower())
    return [re.sub(r"(?<=\w{3})(ing|ies|ed|es|s)$", "", w) for w in found if w not in STOPWORDS]


class BM25:
    """Ranks facts by the words they share with a text: Robertson and Zaragoza 2009, "The
    Probabilistic Relevance Framework: BM25 and Beyond", with the idf of Lucene, which is never
    negative.

    A word that occurs n times in a fact of l words, and in f of the F facts, adds
    log(1 + (F - f + 1/2) / (f + 1/2)) * n (k1 + 1) / (n + k1 (1 - b + b l / mean l)).
    What each word adds to each fact is worked out once, here.
    """

    def __init__(self, facts: list[str], k1: float = 1.2, b: float = 0.75) -> None:
        self.num_facts, found, lengths = len(facts), defaultdict(list), np.zeros(len(facts))
        for i, fact in enumerate(facts):
            counts = Counter(words(fact))
            lengths[i] = counts.total()
            for word, n in counts.items():
                found[word].append((i, n))
        damping = k1 * (1 - b + b * lengths / max(1e-9, lengths.mean()))
        self.index = {}  # word -> facts that have it, what it adds to their scores
        for word, pairs in found.items():
            at, n = np.array(pairs).T
            idf = np.log(1 + (len(facts) - len(at) + 0.5) / (len(at) + 0.5))
            self.index[word] = at, (idf * n * (k1 + 1) / (n + damping[at])).astype(np.float32)

    def scores(self, text: str) -> np.ndarray:
        """One score a fact; those of two texts add up."""
        total = np.zeros(self.num_facts, np.float32)
        for word in words(text):
            if word in self.index:
                at, score = self.index[word]
                total[at] += score
        return total


def best(scores: np.ndarray, n: int) -> list[int]:
    """Places of the n largest scores above 0, largest first; of equals the first one."""
    places = np.flatnonzero(scores)
    if len(places) > n:
        least = np.partition(scores[places], -n)[-n]
        places = places[scores[places] >= least]
    return places[np.argsort(-scores[places], kind="stable")][:n].tolist()
