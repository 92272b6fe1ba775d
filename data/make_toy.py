"""The toy world: small mysteries that only the facts can solve. Written by this script alone.

    python data/make_toy.py                                   # data/toy, as committed
    python data/make_toy.py --level two-hops --out runs/hops  # a harder one, anywhere
    python data/make_toy.py --depth 6 --out runs/deep         # for a model of six layers

Each question draws a world of its own: two verbs, two things, and four people, one for each pair.

    Mira sells kites.      <- verb and thing are right: the answer
    Hugo paints kites.     <- the same thing, another verb
    Vera sells drums.      <- the same verb, another thing
    Nora paints drums.     <- neither
    Who sells kites?  Hugo / Nora / Mira / Vera

The four people are the four choices, and everything else is drawn evenly: without the facts nothing
tells them apart, and verb, thing or person alone don't either. README.md beside this file has the
figures. Standard library only; the same seed gives the same bytes on every platform.
"""

import argparse
import json
import random
import re
from pathlib import Path

PEOPLE = """Alma Anna Ben Bruno Celia Clara Dario David Edith Ella Felix Finn Greta Hugo Ida Jonas
Kira Leo Mira Nora Oscar Paula Quentin Rosa Sam Tilda Tom Ugo Vera Will Yara Zeno""".split()
VERBS = {  # and how the facts of "reworded" say it
    "buys": "purchases", "carries": "hauls", "draws": "sketches", "hides": "conceals",
    "mends": "repairs", "paints": "colours", "sells": "trades", "steals": "swipes",
}  # fmt: skip
THINGS = """baskets bells boats books candles clocks drums flutes
hats kites ladders lamps maps masks mirrors puzzles""".split()
LEVELS = ("plain", "crowd", "reworded", "two-hops", "control")
CONFIG = {  # of the model that train.py trains on this world
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 3,  # --depth
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 128,
    "type_vocab_size": 3,
    "pad_token_id": 0,
    "sep_token_id": 3,
}
SIZES = {"train": 10_000, "valid": 500, "test": 1_000}
SEED = 2022


def owners(thing: int, split: str) -> list[int]:
    """The people who may have to do with a thing: three quarters of all in training, an eighth in
    each other split.

    Person number + thing number, modulo 8, decides. So every person and every thing is seen in
    training, and no (person, thing) pair of a validation or test fact is.
    """
    residues = {"train": range(6), "valid": [6], "test": [7]}[split]
    return [person for person in range(len(PEOPLE)) if (person + thing) % 8 in residues]


def make_question(rng: random.Random, split: str, level: str) -> dict:
    """One line of a split, in the format of the Kformer release.

    Training questions bring 1 to 4 of the four facts, always the right one: the easy questions are
    what is learned first. Validation and test bring all.
    """
    right, other = rng.sample(list(VERBS), 2)
    asked = rng.randrange(len(THINGS))
    peer = (asked + 8) % len(THINGS)  # the other thing, with the same owners: they suit both alike
    people = [PEOPLE[i] for i in rng.sample(owners(asked, split), 4)]
    pairs = [(right, asked), (other, asked), (right, peer), (other, peer)]
    said = VERBS if level == "reworded" else {verb: verb for verb in VERBS}
    told = [  # for each pair the facts that belong together
        [f"{who} {said[verb]} {THINGS[thing]}."]
        for who, (verb, thing) in zip(people, pairs, strict=True)
    ]
    question, choices = f"Who {right} {THINGS[asked]}?", people
    if level == "two-hops":
        question = f"Who knows the one who {right} {THINGS[asked]}?"
        choices = rng.sample([who for who in PEOPLE if who not in people], 4)
        for facts, knows, who in zip(told, choices, people, strict=True):
            facts.append(f"{knows} knows {who}.")
    if split == "train":
        told = told[:1] + rng.sample(told[1:], rng.randrange(4))
    facts = [fact for together in told for fact in together]
    if level == "crowd":
        facts += unrelated_facts(rng, {right, other}, {asked, peer}, split)
    if level == "control":
        facts = make_question(rng, split, "plain")["knowledges"]
    rng.shuffle(facts)
    shown = rng.sample(choices, 4)
    return {
        "context": "",
        "question": question,
        "choices": [{"text": choice} for choice in shown],
        "AnswerKey": "ABCD"[shown.index(choices[0])],
        "knowledges": facts,
    }


def unrelated_facts(rng: random.Random, verbs: set, things: set, split: str) -> list[str]:
    """Eight facts that have neither a verb nor a thing of the question's own facts."""
    pairs = [(v, t) for v in VERBS if v not in verbs for t in range(len(THINGS)) if t not in things]
    return [
        f"{PEOPLE[rng.choice(owners(thing, split))]} {verb} {THINGS[thing]}."
        for verb, thing in rng.sample(pairs, 8)
    ]


def vocabulary(level: str) -> list[str]:
    """Every word of a level. Those of "plain" are 64, as many as its model has dimensions."""
    words = {"who", ".", "?", *map(str.lower, PEOPLE), *VERBS, *THINGS}
    if level == "reworded":
        words |= set(VERBS.values())
    if level == "two-hops":
        words |= {"knows", "the", "one"}
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
    vocab = vocabulary(level)
    (folder / "vocab.txt").write_bytes(("\n".join(vocab) + "\n").encode("utf-8"))
    config = CONFIG | {"num_hidden_layers": depth, "vocab_size": len(vocab)}
    (folder / "config.json").write_bytes((json.dumps(config, indent=2) + "\n").encode("utf-8"))


def shortcuts(questions: list[dict]) -> dict[str, float]:
    """The accuracy of rules that look at a part of the facts only; a rule that leaves several
    choices takes one of them at random, and any if it leaves none.
    """
    rules = {
        "a choice that a fact names": lambda verb, thing, words: True,
        "... and the fact has the verb": lambda verb, thing, words: verb in words,
        "... and the fact has the thing": lambda verb, thing, words: thing in words,
        "... and the fact has both": lambda verb, thing, words: {verb, thing} <= words,
    }
    accuracy = dict.fromkeys(rules, 0.0)
    for question in questions:
        words = set(re.findall(r"\w+", question["question"]))
        facts = [re.findall(r"\w+", fact) for fact in question["knowledges"]]
        choices = [choice["text"] for choice in question["choices"]]
        answer = choices["ABCD".index(question["AnswerKey"])]
        for name, rule in rules.items():
            left = {fact[0] for fact in facts if rule(fact[1], fact[2], words)} & set(choices)
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
