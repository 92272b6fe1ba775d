"""The toy world: small mysteries that only the facts can solve. Written by this script alone.

    python data/make_toy.py                                   # data/toy, as committed
    python data/make_toy.py --level two-hops --out runs/hops  # a harder one, anywhere
    python data/make_toy.py --depth 6 --out runs/deep         # for a model of six layers

Each question draws a world of its own: two people, two relations, four values, one fact each.

    Mira's school is in Norwick.    <- who and what are right: the answer
    Mira's garden is in Elmsford.   <- the same person, another relation
    Hugo's school is in Oakham.     <- the same relation, another person
    Hugo's garden is in Stonebury.  <- neither
    Where is Mira's school?  Norwick / Elmsford / Oakham / Stonebury

The four values are the four choices, and everything else is drawn evenly: without the facts nothing
tells them apart, and person, relation or value alone don't either. README.md beside this file has
the figures. Standard library only; the same seed gives the same bytes on every platform.
"""

import argparse
import json
import random
import re
from pathlib import Path

PEOPLE = """Alma Anna Ben Bruno Celia Clara Dario David Edith Ella Felix Finn Greta Hugo Ida Jonas
Kira Leo Mira Nora Oscar Paula Quentin Rosa Sam Tilda Tom Ugo Vera Will Yara Zeno""".split()

# kind: (what follows "is", how it is asked for, {relation: how it is asked in other words}, values)
KINDS = {
    "town": ("in", "Where is {who} {relation}?", {
        "home": "In which town does {name} live?",
        "school": "In which town does {name} study?",
        "office": "In which town does {name} work?",
        "garden": "In which town does {name} grow flowers?",
    }, """Ashcombe Birchwood Clayton Dunmore Elmsford Fairhaven Greenhill Hazelton
        Kingsbridge Larkspur Millbrook Norwick Oakham Redcliff Stonebury Thornfield"""),
    "animal": ("a", "Which animal is {who} {relation}?", {
        "pet": "Which animal does {name} feed every day?",
        "costume": "Which animal does {name} dress up as?",
        "toy": "Which animal does {name} take to bed?",
        "tattoo": "Which animal does {name} have on one arm?",
    }, """badger bear camel deer dolphin fox goat heron
        kitten lizard monkey parrot rabbit swan tiger wolf"""),
    "food": ("", "What is {who} {relation}?", {
        "breakfast": "What does {name} eat in the morning?",
        "lunch": "What does {name} eat at noon?",
        "supper": "What does {name} eat in the evening?",
        "dessert": "What does {name} eat after a meal?",
    }, """apples bread cheese cherries dumplings grapes honey noodles
        pancakes pears porridge pudding rice salad soup toast"""),
    "colour": ("", "Which colour is {who} {relation}?", {
        "hat": "Which colour does {name} wear against the sun?",
        "boat": "Which colour does {name} sail in?",
        "door": "Which colour does {name} knock on?",
        "bicycle": "Which colour does {name} ride?",
    }, """beige black blue brown crimson golden green grey
        orange pink purple red silver turquoise white yellow"""),
    "trade": ("a", "What is the trade of {who} {relation}?", {
        "mother": "Which trade did the woman follow who raised {name}?",
        "brother": "Which trade did the boy learn who grew up with {name}?",
        "neighbour": "Which trade has the person next door to {name}?",
        "teacher": "Which trade had the person who taught {name}?",
    }, """baker barber carpenter dentist farmer gardener lawyer miller
        nurse painter pilot potter sailor singer tailor writer"""),
    "thing": ("a", "What is {who} {relation}?", {
        "prize": "What has {name} won?",
        "gift": "What was {name} given?",
        "invention": "What has {name} designed?",
        "souvenir": "What has {name} brought home from a journey?",
    }, """basket candle clock compass drum flute kite ladder
        lantern mirror pillow puzzle scarf teapot telescope wallet"""),
}
LINKS = ("friend", "cousin")  # who leads to whom, where there are two hops
LEVELS = ("plain", "crowd", "reworded", "two-hops")
CONFIG = {  # of the model that train.py trains on this world
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 3,  # --depth
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 128,
    "type_vocab_size": 3,
    "pad_token_id": 0,
    "sep_token_id": 3,
}
SIZES = {"train": 10_000, "valid": 1_000, "test": 4_000}
SEED = 2022


def values_of(kind: str) -> list[str]:
    return KINDS[kind][3].split()


def allowed(person: int, kind: str, split: str) -> list[str]:
    """The values that a person may have: half of all in training, a quarter in each other split.

    Person number + value number, modulo 4, decides. So every person and every value is seen in
    training, and no (person, value) pair of a validation or test fact is.
    """
    residues = {"train": (0, 1), "valid": (2,), "test": (3,)}[split]
    return [v for i, v in enumerate(values_of(kind)) if (person + i) % 4 in residues]


def fact(person: int, relation: str, kind: str, value: str) -> str:
    before = KINDS[kind][0]
    return " ".join(f"{PEOPLE[person]}'s {relation} is {before} {value}.".split())


def make_question(rng: random.Random, split: str, level: str) -> dict:
    """One line of a split, in the format of the Kformer release.

    Training questions bring 1 to 4 of the four facts, always the right one: the easy questions are
    what is learned first. Validation and test bring all.
    """
    kind = rng.choice(list(KINDS))
    right, other = rng.sample(list(KINDS[kind][2]), 2)
    asked = rng.randrange(len(PEOPLE))
    # People whose numbers agree modulo 4 may have the same values: the choices suit both alike.
    peers = [p for p in range(len(PEOPLE)) if p % 4 == asked % 4 and p != asked]
    rng.shuffle(peers)
    values = rng.sample(allowed(asked, kind, split), 4)

    who = [asked, peers[0]] if level != "two-hops" else peers[:2]
    pairs = [(who[0], right), (who[0], other), (who[1], right), (who[1], other)]
    facts = [fact(p, relation, kind, v) for (p, relation), v in zip(pairs, values, strict=True)]
    if split == "train":
        facts = facts[:1] + rng.sample(facts[1:], rng.randrange(4))
    if level == "crowd":
        facts += unrelated_facts(rng, [asked, *peers[:2]], kind, split)
    if level == "two-hops":
        links = rng.sample(LINKS, 2)
        facts += [f"{PEOPLE[asked]}'s {links[i]} is {PEOPLE[who[i]]}." for i in (0, 1)]
    rng.shuffle(facts)

    name = f"{PEOPLE[asked]}'s" + (f" {links[0]}'s" if level == "two-hops" else "")
    asks = KINDS[kind][2][right] if level == "reworded" else KINDS[kind][1]
    choices = rng.sample(values, 4)
    return {
        "context": "",
        "question": asks.format(who=name, name=PEOPLE[asked], relation=right),
        "choices": [{"text": choice} for choice in choices],
        "AnswerKey": "ABCD"[choices.index(values[0])],
        "knowledges": facts,
    }


def unrelated_facts(rng: random.Random, people: list[int], kind: str, split: str) -> list[str]:
    """Eight true things about the same people that have nothing to do with the question."""
    pairs = [(p, k, r) for p in people for k in KINDS if k != kind for r in KINDS[k][2]]
    return [fact(p, r, k, rng.choice(allowed(p, k, split))) for p, k, r in rng.sample(pairs, 8)]


def vocabulary() -> list[str]:
    """Every word of every level, so that all share one vocab.txt."""
    text = " ".join([*PEOPLE, *LINKS, "'s is a ."])
    for before, asks, reworded, values in KINDS.values():
        text += " ".join(["", before, asks, *reworded, *reworded.values(), values])
    words = set(re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}", " ", text).lower()))
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]


def write_world(
    folder: Path, level: str = "plain", seed: int = SEED, depth: int = CONFIG["num_hidden_layers"]
) -> None:
    """Writes train.jsonl, valid.jsonl, test.jsonl, vocab.txt and config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        rng = random.Random(f"{seed} {level} {split}")
        lines = [json.dumps(make_question(rng, split, level)) for _ in range(size)]
        (folder / f"{split}.jsonl").write_bytes(("\n".join(lines) + "\n").encode("utf-8"))
    vocab = vocabulary()
    (folder / "vocab.txt").write_bytes(("\n".join(vocab) + "\n").encode("utf-8"))
    config = CONFIG | {"num_hidden_layers": depth, "vocab_size": len(vocab)}
    (folder / "config.json").write_bytes((json.dumps(config, indent=2) + "\n").encode("utf-8"))


def shortcuts(questions: list[dict]) -> dict[str, float]:
    """The accuracy of rules that look at a part of the facts only; a rule that leaves several
    choices takes one of them at random, and any if it leaves none.
    """
    rules = {
        "a choice that a fact names": lambda who, relation, words: True,
        "... and the fact names the person": lambda who, relation, words: who in words,
        "... and the fact names the relation": lambda who, relation, words: relation in words,
        "... and the fact names both": lambda who, relation, words: {who, relation} <= words,
    }
    accuracy = dict.fromkeys(rules, 0.0)
    for question in questions:
        words = set(re.findall(r"\w+", question["question"]))
        facts = [re.findall(r"\w+", fact) for fact in question["knowledges"]]
        choices = [choice["text"] for choice in question["choices"]]
        answer = choices["ABCD".index(question["AnswerKey"])]
        for name, rule in rules.items():
            # Mira's school is in Norwick -> Mira, s, school, is, in, Norwick
            left = {fact[-1] for fact in facts if rule(fact[0], fact[2], words)} & set(choices)
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
    depth = CONFIG["num_hidden_layers"]
    parser.add_argument("--depth", type=int, default=depth, help="layers in config.json")
    parser.add_argument("--out", type=Path, default=here / "toy", help="folder to write into")
    args = parser.parse_args()
    write_world(args.out, args.level, args.seed, args.depth)
    sizes = ", ".join(f"{size:,} {split}" for split, size in SIZES.items())
    print(f"wrote {sizes} questions to {args.out}; accuracy of shortcuts on the test split:")
    lines = (args.out / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for rule, accuracy in shortcuts([json.loads(line) for line in lines]).items():
        print(f"  {rule:36} {accuracy:6.1%}")


if __name__ == "__main__":
    main()
