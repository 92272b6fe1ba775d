"""The toy world: small mysteries that only the facts can solve. Written by this script alone.

    python data/make_toy.py                                   # data/toy, as committed
    python data/make_toy.py --level two-hops --out runs/hops  # a harder one, anywhere

Each question draws a world of its own: two verbs, two things, and four people, one for each pair.

    Mira sells kites.      <- verb and thing are right: the answer
    Hugo paints kites.     <- the same thing, another verb
    Vera sells drums.      <- the same verb, another thing
    Nora paints drums.     <- neither
    Who sells kites?  Hugo / Nora / Mira / Vera

The four people are the four choices, and everything else is drawn evenly: without the facts nothing
tells them apart, and verb, thing or person alone don't either. In the level "order" the words of a
fact don't either, without their order.

    Mira helps Tom.        <- the answer
    Tom helps Hugo.        <- verb and person are right, but it is Tom who helps
    Vera visits Tom.       Tom visits Nora.
    Who helps Tom?  Hugo / Nora / Mira / Vera

README.md beside this file has the figures. Standard library only; the same seed gives the same
bytes on every platform.
"""

import argparse
import json
import random
import re
from itertools import chain, product
from pathlib import Path

PEOPLE = """Alma Anna Anton Arno Bella Ben Boris Bruno Carl Celia Clara Cora Dario David Dora Edith
Ella Emil Erik Eva Felix Finn Flora Fred Gina Greta Hanna Hugo Ida Igor Ines Ivan Jana Jonas Julia
Kira Kurt Lena Leo Lola Lukas Marta Max Mira Nils Nina Nora Olga Oscar Otto Paula Petra Quentin Rita
Rosa Sam Tilda Tom Ugo Vera Vito Will Yara Zeno""".split()
VERBS = {  # and how the facts of "reworded" say it
    "buys": "purchases", "carries": "hauls", "draws": "sketches", "hides": "conceals",
    "mends": "repairs", "paints": "colours", "sells": "trades", "steals": "swipes",
}  # fmt: skip
BETWEEN = ("helps", "knows", "teaches", "visits")  # verbs between two people
THINGS = """baskets bells boats books bottles candles clocks coats cups desks drums flutes gloves
hats jars keys kites ladders lamps maps masks mirrors pens pipes plates puzzles rings ropes shoes
spoons tables tents""".split()
LEVELS = ("plain", "reworded", "order", "two-hops", "crowd", "control")
SIZES = {"train": 12_000, "valid": 500, "test": 1_000}
SEED = 2022


def partners(number: int, split: str) -> list[int]:
    """The people who may have to do with a thing or a person of this number: three quarters of all
    in training, an eighth in each other split.

    The sum of the two numbers, modulo 8, decides. So every person and every thing is seen in
    training, and no pair of a validation or test fact is, in neither order.
    """
    residues = {"train": range(6), "valid": [6], "test": [7]}[split]
    return [person for person in range(len(PEOPLE)) if (person + number) % 8 in residues]


def draw_people(rng: random.Random, split: str, numbers: list[int], taken: list[int]) -> list[int]:
    """For each number another person, who may have to do with it and isn't taken."""
    people = []
    for number in numbers:
        free = [i for i in partners(number, split) if i not in people + taken]
        people.append(rng.choice(free))
    return people


Mystery = tuple[str, list[int], list[list[str]]]  # question, choices, facts that belong together


def about_a_thing(rng: random.Random, split: str, level: str) -> Mystery:
    """Who sells kites? The first choice is right, and the first facts say so."""
    verbs, asked = rng.sample(list(VERBS), 2), rng.randrange(len(THINGS))
    peer = (asked + 8 * rng.randrange(1, 4)) % len(THINGS)  # the same people suit both alike
    people = draw_people(rng, split, [asked] * 4, taken=[])
    told = []
    for who, (thing, verb) in zip(people, product((asked, peer), verbs), strict=True):
        said = VERBS[verb] if level == "reworded" else verb
        told.append([f"{PEOPLE[who]} {said} {THINGS[thing]}."])
    if level != "two-hops":
        return f"Who {verbs[0]} {THINGS[asked]}?", people, told
    choices = draw_people(rng, split, people, taken=people)
    for facts, knows, who in zip(told, choices, people, strict=True):
        facts.append(f"{PEOPLE[knows]} knows {PEOPLE[who]}.")
    return f"Who knows the one who {verbs[0]} {THINGS[asked]}?", choices, told


def about_a_person(rng: random.Random, split: str) -> Mystery:
    """Who helps Tom? The level "order": the second fact has the same words as the first."""
    (verb, other), asked = rng.sample(BETWEEN, 2), rng.randrange(len(PEOPLE))
    choices = draw_people(rng, split, [asked] * 4, taken=[asked])
    a, b, c, d, tom = (PEOPLE[i] for i in (*choices, asked))
    told = [[f"{a} {verb} {tom}."], [f"{tom} {verb} {b}."]]
    told += [[f"{c} {other} {tom}."], [f"{tom} {other} {d}."]]
    return f"Who {verb} {tom}?", choices, told


def draw_mystery(rng: random.Random, split: str, level: str) -> Mystery:
    return about_a_person(rng, split) if level == "order" else about_a_thing(rng, split, level)


def make_question(rng: random.Random, split: str, level: str) -> dict:
    """One line of a split, in the format of the Kformer release.

    Training questions bring 1 to 4 of the four facts, always the right one: the easy questions are
    what is learned first. Validation and test bring all.
    """
    question, choices, told = draw_mystery(rng, split, level)
    others = unrelated_facts(rng, told, split) if level == "crowd" else []
    if split == "train":
        rest = rng.sample(told[1:], rng.randrange(4))
        if level == "order" and told[1] not in rest and rng.random() < 0.5:
            rest.append(told[1])  # it is what makes the level hard: three quarters have it
        told = told[:1] + rest
    facts = [*chain(*told), *others]
    if level == "control":
        facts = make_question(rng, split, "plain")["knowledges"]
    rng.shuffle(facts)
    shown = rng.sample(choices, 4)
    return {
        "context": "",
        "question": question,
        "choices": [{"text": PEOPLE[choice]} for choice in shown],
        "AnswerKey": "ABCD"[shown.index(choices[0])],
        "knowledges": facts,
    }


def unrelated_facts(rng: random.Random, told: list[list[str]], split: str) -> list[str]:
    """Eight facts that have neither a verb nor a thing of the question's own facts."""
    known = {word for fact in chain(*told) for word in re.findall(r"\w+", fact)}
    things = [number for number, thing in enumerate(THINGS) if thing not in known]
    pairs = product([verb for verb in VERBS if verb not in known], things)
    return [
        f"{PEOPLE[rng.choice(partners(thing, split))]} {verb} {THINGS[thing]}."
        for verb, thing in rng.sample(list(pairs), 8)
    ]


def vocabulary() -> list[str]:
    """Every word of all levels: 126, about twice as many as the model has dimensions."""
    words = {"who", "the", "one", ".", "?", *map(str.lower, PEOPLE)}
    words |= {*VERBS, *VERBS.values(), *BETWEEN, *THINGS}
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]


def write_world(folder: Path, level: str = "plain", seed: int = SEED) -> None:
    """Writes train.jsonl, valid.jsonl and test.jsonl into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rng = random.Random(f"{seed} {level} {split}")
        lines = [json.dumps(make_question(rng, split, level)) for _ in range(size)]
        (folder / f"{split}.jsonl").write_bytes(("\n".join(lines) + "\n").encode("utf-8"))


def shortcuts(questions: list[dict]) -> dict[str, float]:
    """The accuracy of rules that look at a part of the facts only; a rule that leaves several
    choices takes one of them at random, and any if it leaves none.

    `asked` are the words of a question: its last one is a thing, or in "order" a person.
    """
    rules = {
        "a choice that a fact names": lambda fact, asked: True,
        "... and the fact has the verb": lambda fact, asked: fact[1] in asked,
        "... and the fact has the thing": lambda fact, asked: asked[-1] in fact,
        "... and the fact has both": lambda fact, asked: {*asked[-2:]} <= {*fact},
        "... in the question's order": lambda fact, asked: asked[-2:] == fact[1:],
    }
    accuracy = dict.fromkeys(rules, 0.0)
    for question in questions:
        asked = re.findall(r"\w+", question["question"])
        facts = [re.findall(r"\w+", fact) for fact in question["knowledges"]]
        choices = [choice["text"] for choice in question["choices"]]
        answer = choices["ABCD".index(question["AnswerKey"])]
        for name, rule in rules.items():
            left = {word for fact in facts if rule(fact, asked) for word in fact} & set(choices)
            left = left or set(choices)
            accuracy[name] += (answer in left) / len(left) / len(questions)
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--level", choices=LEVELS, default="plain", help="which world")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed, another world")
    parser.add_argument("--out", type=Path, default=here / "toy", help="folder to write into")
    args = parser.parse_args()
    write_world(args.out, args.level, args.seed)
    sizes = ", ".join(f"{size:,} {split}" for split, size in SIZES.items())
    print(f"wrote {sizes} questions to {args.out}; accuracy of shortcuts on the test split:")
    lines = (args.out / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for rule, accuracy in shortcuts([json.loads(line) for line in lines]).items():
        print(f"  {rule:36} {accuracy:6.1%}")


if __name__ == "__main__":
    main()
