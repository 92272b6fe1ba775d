"""How many answers are right, what they owe to the facts, and what is right without learning."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, product
from statistics import fmean

from qa.batches import Answerer
from qa.questions import Question, of_choice

# ------------------------------------------------------------------------------- changed facts

# A name stands alone, between spaces and such signs: not in "O'Neil", "can't", "5 000", "C++".
BEFORE = r"(?<![^\s\"'“‘«„(\[{¿¡—…])(?<!\w['’])(?<!\d\s(?=\d))"
AFTER = (
    r"(?![^\s\"'’”»)\]}.,;:!?—…])(?![.,:]+\w)(?!['’](?:t|re|ve|ll|d|m|\d)\b)"
    r"(?!(?<=\d)(?:['’]|\s?[%‰°]|\s\d))"
)
SPACES = r"\s+"


def renamed(q: Question, fact: str, old: int, new: int) -> str:
    """The fact with choice `new` where it names choice `old`, by their places; else as it is.

    "10" isn't named by "10.5", "5" by "-5", "C" by "C++", "us" by "US", and "Ann" not by "Ann Lee"
    where that's a choice, too. Of two choices with the same text, none is named.
    """
    longest_first = (map(re.escape, c.split()) for c in sorted(q.choices, key=len, reverse=True))
    pattern = f"{BEFORE}({'|'.join(map(SPACES.join, longest_first))}){AFTER}"

    def key(name: str) -> tuple[list[str], bool]:
        return name.casefold().split(), name.isupper()

    def rename(found: re.Match) -> str:
        places = [i for i, choice in enumerate(q.choices) if key(choice) == key(found.group())]
        return q.choices[new] if places == [old] else found.group()

    return re.sub(pattern, rename, fact, flags=re.IGNORECASE)


def gold(q: Question) -> str | None:
    """The one fact that names the right choice. None if there isn't one, or more than one, or where
    two choices have the same text.
    """
    if q.answer is None or len({choice.casefold() for choice in q.choices}) < len(q.choices):
        return None
    other = (q.answer + 1) % len(q.choices)
    own = of_choice(q.facts, q.answer)
    facts = {fact for fact in own if renamed(q, fact, q.answer, other) != fact}
    return facts.pop() if len(facts) == 1 else None


def with_facts(q: Question, change: Callable[[list[str]], list[str]]) -> Question:
    return replace(q, facts=[change(facts) for facts in q.facts])


def with_fact(q: Question, old: str, new: str) -> Question:
    return with_facts(q, lambda facts: [new if fact == old else fact for fact in facts])


def edited(q: Question) -> Question:
    """The gold fact names another choice: the right answer now, which also gets that fact."""
    old, answer = gold(q), (q.answer + 1) % len(q.choices)
    new = renamed(q, old, q.answer, answer)
    q = with_fact(q, old, new)
    if new not in of_choice(q.facts, answer):
        q.facts[answer].insert(0, new)
    return replace(q, answer=answer)


def edited_elsewhere(q: Question) -> Question | None:
    """A fact that named a wrong choice names another wrong one; None if there is no such fact."""
    wrong = [i for i in range(len(q.choices)) if i != q.answer]
    others = dict.fromkeys(chain(*removed(q).facts))
    for fact, (old, new) in product(others, zip(wrong, wrong[1:] + wrong[:1], strict=True)):
        changed = renamed(q, fact, old, new)
        if changed != fact and old != new:
            return with_fact(q, fact, changed)
    return None


def removed(q: Question) -> Question:
    """Without the gold fact."""
    old = gold(q)
    return with_facts(q, lambda facts: [fact for fact in facts if fact != old])


def exchanged(questions: list[Question]) -> list[Question]:
    """Each with the facts of the next one that shares none with it, or without any if none of the
    next 500 is such a one. Its first choice has those of that one's first.
    """
    found, sets = [], [set().union(*q.facts) for q in questions]
    for i, q in enumerate(questions):
        places = ((i + k) % len(questions) for k in range(1, min(500, len(questions))))
        others = (questions[k].facts for k in places if sets[k] and sets[k].isdisjoint(sets[i]))
        other = next(others, [[]])
        needed = 1 if len(other) == 1 else len(q.choices)
        found.append(replace(q, facts=[other[k % len(other)] for k in range(needed)]))
    return found


# ----------------------------------------------------------------------------------- measuring


def measure(answerer: Answerer, questions: list[Question]) -> dict[str, object]:
    """Accuracy beside chance; with facts, the accuracy with those of another question instead, and
    how many answers differ. Of right answers with a gold fact, the share that follows when it's
    edited (efficacy) and the share that stays when another fact is (locality: Meng et al. 2022,
    arXiv 2202.05262). Of all questions with a gold fact, the accuracy without it.
    """

    def answered_right(version: list[Question]) -> list[bool]:
        return answerer.answered_right(answerer.encode(version))

    right = answered_right(questions)
    found = {"test_accuracy": fmean(right), "chance": chance(questions)}
    found["answered_right"] = [*map(int, right)]
    control = exchanged(questions) if answerer.model.config.inject != "none" else []
    if any(any(q.facts) for q in control):
        instead = answered_right(control)
        differ = sum(was != now for was, now in zip(right, instead, strict=True))
        found |= {"exchanged_accuracy": fmean(instead), "exchanged_differ": differ}
        found["exchanged_none"] = sum(not any(q.facts) for q in control)

    with_gold = [(q, was) for q, was in zip(questions, right, strict=True) if gold(q)]
    if not with_gold:
        return found
    before = [q for q, was in with_gold if was]
    follow = answered_right([edited(q) for q in before])
    stay = answered_right([e for q in before if (e := edited_elsewhere(q))])
    found |= {"gold_facts": len(with_gold), "flip_rate": fmean(follow or [0])}
    if stay:
        found["locality"] = fmean(stay)
    without = answered_right([removed(q) for q, _ in with_gold])
    return found | {"removed_accuracy": fmean(without)}


def lines_of_result(name: str, count: int, result: dict) -> Iterator[str]:
    """What `measure` found for `count` questions, in words."""
    test, least = result["test_accuracy"], result["chance"]
    yield f"{name:10}{test:.1%} of {count:,} questions, chance is {least:.1%}"
    if count < 50:
        yield "          too few questions to tell it from chance"
    elif test < least + 2 * (least * (1 - least) / count) ** 0.5:
        yield "          no better than chance: what it learned does not answer new questions"
    if "exchanged_accuracy" in result:
        exchanged = result["exchanged_accuracy"]
        clear = (test - exchanged) * count > 2 * result["exchanged_differ"] ** 0.5
        doubt = "" if clear else ", too close to say that its own help"
        none = f" (none for {lacking:,})" if (lacking := result.get("exchanged_none")) else ""
        yield f"          with the facts of another question: {exchanged:.1%}{none}{doubt}"
    if "flip_rate" in result:
        yield (
            f"edited    {result['flip_rate']:.1%} of right answers follow when the gold fact names "
            f"another choice ({result['gold_facts']:,} questions have one)"
        )
        if "locality" in result:
            yield f"          {result['locality']:.1%} of them stay when another fact is edited"
        yield f"          right without the gold fact: {result['removed_accuracy']:.1%}"


# ------------------------------------------------------------------------------ without learning


def chance(questions: list[Question]) -> float:
    """The accuracy of guessing."""
    return fmean(1 / len(q.choices) for q in questions)


def rules(train: list[Question], held_out: list[Question]) -> str:
    """The accuracy of the place that is most often right in training, and of the choice with the
    most words in common with its facts or, where there are none, with the question.
    """
    place = Counter(q.answer for q in train).most_common(1)[0][0]
    always = fmean(q.answer == place for q in held_out)
    common = fmean(q.answer == most_common_words(q) for q in held_out)
    return f"always choice {place + 1}: {always:.1%}, most common words: {common:.1%}"


def most_common_words(q: Question) -> int:
    """Words are the same here if their first five letters are; those of one or two don't count."""

    def words(text: str) -> set[str]:
        return {word[:5] for word in re.findall(r"\w{3,}", text.lower())}

    known = [words(" ".join(facts) or q.asked) for facts in q.facts]
    common = [len(of_choice(known, i) & words(choice)) for i, choice in enumerate(q.choices)]
    return common.index(max(common))
