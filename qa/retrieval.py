"""Facts found by the words that they share with a text: BM25.

    words    a text -> the words that count, without their endings
    BM25     ranks facts
    best     the places of the largest scores
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection
from functools import cache
from itertools import pairwise

import numpy as np
from tqdm import tqdm

STOPWORDS = frozenset(
    "a an the of is are was were be been to in for on at by from with into and or not as that this "
    "these those it its they their he she his her him you your i we what which who whom how when "
    "where why would could should can will do does did has have had if then than".split()
)
# Vowel signs and accents that follow a letter: \w lacks them.
MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
WORD, CHARACTER = re.compile(rf"[\w{MARKS}]+"), re.compile(rf"\w[{MARKS}]*")
# Thai and Lao, Burmese, Khmer, Japanese, Chinese are written without spaces.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u9fff\U00020000-\U0003ffff]+"
)
# Soft hyphens, joiners, and the dot that is left of a Turkish capital I with a dot.
UNSEEN = re.compile("[\u00ad\u200c\u200d]|(?<=i)\u0307")


def words(text: str) -> list[str]:
    """Words in small letters without the most common ones, and without their endings: "The owls
    were hunting" -> ["owl", "hunt"]. Without spaces, each character and each pair is a word.
    """
    text = UNSEEN.sub("", unicodedata.normalize("NFKC", text).lower())
    found, text = [], text.replace("_", " ")  # alarm_clock, as knowledge graphs write it
    for word in WORD.findall(UNSPACED.sub(r" \g<0> ", text)):
        if UNSPACED.match(word):
            characters = CHARACTER.findall(word)
            found += characters + [a + b for a, b in pairwise(characters)]
        elif word not in STOPWORDS:
            found.append(stem(word))
    return found


@cache
def stem(word: str) -> str:
    """Without its ending: "class" meets "classes", "fly" "flies", "make" "making", "run" "running".
    """
    word = re.sub(r"(?<=\w{3})(ing|ed|es|(?<![isu])s|e)$", "", word)
    return re.sub(r"(?<=\w\w)y$", "i", re.sub(r"(?<=\w\w)([a-z])\1$", r"\1", word))


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
        for i, fact in enumerate(tqdm(facts, "indexing", leave=False, disable=None, delay=2)):
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

    def scores(self, text: str, without: Collection[str] = ()) -> np.ndarray:
        """One score a fact, for the words of the text but those in `without`."""
        total = np.zeros(self.num_facts, np.float32)
        for word in words(text):
            if word in self.index and word not in without:
                at, score = self.index[word]
                total[at] += score
        return total


def best(scores: np.ndarray, n: int) -> list[int]:
    """Places of the n largest scores that aren't 0, largest first; of equals the first one."""
    places = np.flatnonzero(scores)
    if len(places) > n:
        least = np.partition(scores[places], -n)[-n]
        places = places[scores[places] >= least]
    return places[np.argsort(-scores[places], kind="stable")][:n].tolist()
