"""Makes the encoder that can read: a tiny BERT that has filled in the words of small stories.

    python data/make_reader.py --out runs/reader --seed 0
    python data/make_reader.py --out runs/deep-reader --seed 0 --depth 6

A story is running text between one [CLS] and one [SEP], all in one segment: facts of the toy world,
and some of them told again in another order, as a statement or as a question with its answer.

    mira paints clocks . hugo sells drums . who trades drums ? [MASK] . [MASK] paints clocks .
    tom helps vera . ann visits leo . tom [MASK] vera .

In each fact that is told again one word is masked, and only masked words are scored. What is told
again stands behind all facts or before them. The stories grow harder when the running accuracy on
masked people passes a threshold: two facts without a common word; four of them; the four facts of a
question of make_toy.py, told again with either word for the verb. No story has a pair of people, or
of person and thing, that validation and test have. None has choices, or a question of two hops.

What helps to leave "someone who is named": two heads, so that each can tell words apart. Positions
twice as loud, so that a word hears its neighbours. First scores that are small. A faster rate for
the word table. A masked verb may be either of its two words: as the scores come from the word
table, it learns that they mean the same. Above the encoder is BERT's head (dense, gelu, LayerNorm,
word table). It is saved, too: the file is what transformers calls a BertForMaskedLM. There is
no pooler and no classifier.
"""

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from data import make_toy as toy  # noqa: E402
from kformer import Kformer, KformerConfig  # noqa: E402
from load_weights import save_whole, their_name  # noqa: E402

CONFIG = {
    "model_type": "bert",
    "vocab_size": len(toy.vocabulary()),
    "hidden_size": 64,
    "num_hidden_layers": 3,  # --depth
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 128,
    "type_vocab_size": 3,
    "pad_token_id": 0,
    "sep_token_id": 3,
}
HEAD = {  # our names of the head's parameters -> BERT's
    f"{i}.{kind}": f"cls.predictions.transform.{theirs}.{kind}"
    for i, theirs in ((0, "dense"), (2, "LayerNorm")) for kind in ("weight", "bias")
}  # fmt: skip
ID = {word: i for i, word in enumerate(toy.vocabulary())}
PEOPLE = [person.lower() for person in toy.PEOPLE]
OTHER_WORD = toy.VERBS | {other: verb for verb, other in toy.VERBS.items()}
NAMES = torch.tensor([ID[person] for person in PEOPLE])
FACTS, LAST = (2, 4, 4), 2  # facts in a story of levels 0, 1, 2; the last level's share words
THRESHOLD = (0.8, 0.8, 0.95)  # of the accuracy on people: then comes the next level
RATE, WORDS_RATE, WARMUP, FALL, BATCH = 2e-3, 3e-3, 1000, 500, 64
LATEST = 8000  # from this step on the rate falls, whatever has been learned

Story = tuple[list[str], list[int]]  # its words, and the places that are masked


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[.?]", text.lower())


def draw_facts(rng: random.Random, level: int) -> list[list[str]]:
    """Facts such as ["mira", "paints", "clocks"] or, in many stories, ["tom", "helps", "vera"]."""
    people = rng.random() < (0.35 if level == LAST else 0.5)
    if level == LAST:
        _, _, told = toy.draw_mystery(rng, "train", "order" if people else "plain")
        facts = [words(fact)[:3] for [fact] in told]
    else:
        verbs, objects = (toy.BETWEEN, PEOPLE) if people else (list(toy.VERBS), toy.THINGS)
        verbs, numbers = (rng.sample(c, FACTS[level]) for c in (verbs, range(len(objects))))
        who = toy.draw_people(rng, "train", numbers, taken=numbers if people else [])
        rows = zip(who, verbs, numbers, strict=True)
        facts = [[PEOPLE[person], verb, objects[number]] for person, verb, number in rows]
    other = {verb for verb in toy.VERBS if rng.random() < 0.5}  # are told with their other word
    return [[who, OTHER_WORD[v] if v in other else v, what] for who, v, what in facts]


def draw_story(rng: random.Random, level: int) -> Story:
    facts = draw_facts(rng, level)
    again = rng.sample(facts, rng.randint(1, len(facts)) if level else 1)
    told = [([*fact, "."], None) for fact in rng.sample(facts, len(facts))]
    retold = []
    for who, verb, what in again:
        masked = rng.choices((0, 1, 2), (2, 1, 1) if level == LAST else (1, 1, 1))[0]
        if (masked == 1 or level == LAST) and rng.random() < 0.6:
            verb = OTHER_WORD.get(verb, verb)
        if rng.random() < 0.3:
            retold.append((["who", verb, what, "?", who, "."], (4, 1, 2)[masked]))
        else:
            retold.append(([who, verb, what, "."], masked))
    text, places = ["[CLS]"], []
    for sentence, masked in told + retold if rng.random() < 0.5 else retold + told:
        places += [] if masked is None else [len(text) + masked]
        text += sentence
    return [*text, "[SEP]"], places


def batch(stories: list[Story]) -> tuple[Tensor, Tensor]:
    """Ids with [MASK] and padding, and the words that were there: -100 where nothing is scored."""
    x = torch.zeros(len(stories), max(len(text) for text, _ in stories), dtype=torch.long)
    y = torch.full_like(x, -100)
    for row, (text, places) in enumerate(stories):
        x[row, : len(text)] = torch.tensor([ID[word] for word in text])
        y[row, places] = x[row, places]
        x[row, places] = ID["[MASK]"]
    return x, y


def score(model: Kformer, head: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(masked words, vocabulary)"""
    return head(model(x)[y >= 0]) @ model.embeddings.word_embeddings.weight.T


@torch.inference_mode()
def probe(model: Kformer, head: nn.Module, level: str, before: bool) -> float:
    """The share of right answers to "who V T ? [MASK] ." among four facts, all of held-out pairs;
    `before` the facts, or behind them.
    """
    rng, stories = random.Random(7), []
    for _ in range(500):
        question, choices, told = toy.draw_mystery(rng, "valid", level)
        asked = [*words(question), PEOPLE[choices[0]], "."]
        facts = [word for [fact] in rng.sample(told, 4) for word in words(fact)]
        text = ["[CLS]", *(asked + facts if before else facts + asked), "[SEP]"]
        stories.append((text, [5 if before else 5 + len(facts)]))
    x, y = batch(stories)
    return (score(model, head, x, y).argmax(-1) == y[y >= 0]).float().mean().item()


def report(model: Kformer, head: nn.Module) -> str:
    """How many questions of three levels are answered right, behind the facts and before them."""
    return ", ".join(
        f"{level} {probe(model, head, level, False):.1%} {probe(model, head, level, True):.1%}"
        for level in ("plain", "reworded", "order")
    )


def make(seed: int, depth: int) -> tuple[Kformer, nn.Sequential]:
    """Trains until masked people are known, then on while the learning rate falls to 0."""
    torch.manual_seed(seed)
    rng, start = random.Random(seed), time.time()
    model = Kformer(KformerConfig(**CONFIG | {"num_hidden_layers": depth}))
    head = new_head(model.config.hidden_size)
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.mul_(2)
        model.embeddings.token_type_embeddings.weight.zero_()
        head[2].weight.fill_(0.25)
    table, *rest = params = [*model.parameters(), *head.parameters()]  # word_embeddings come first
    groups = [{"params": [table], "full": WORDS_RATE}, {"params": rest, "full": RATE}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    level = step = since = known = falls = 0
    while not falls or step < falls + FALL:
        step, since = step + 1, since + 1
        share = 1 - (step - falls) / FALL if falls else min(1, step / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = share * group["full"]
        levels = [level if rng.random() < 0.75 else rng.randint(0, level) for _ in range(BATCH)]
        x, y = batch([draw_story(rng, i) for i in levels])
        right, said = y[y >= 0], score(model, head, x, y)
        optimizer.zero_grad()
        cross_entropy(said, right).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

        hit = (said.argmax(-1) == right)[torch.isin(right, NAMES)]
        known += 0.02 * (hit.float().mean().item() - known)
        passed = since > 50 and known > THRESHOLD[level]
        if not falls and (step == LATEST or (passed and level == LAST)):
            falls = step
        elif not falls and passed:
            level, since, known = level + 1, 0, 0.0
        if step % 250 == 0 or (falls and step == falls + FALL):
            seconds = f"{time.time() - start:4.0f} s, {time.process_time():4.0f} of CPU"
            state = f"level {level}{' falls' * (falls > 0)}, people {known:5.1%}"
            print(f"step {step:5}  {seconds}; {state}; {report(model, head)}", flush=True)
    return model, head


def new_head(D: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D))


def load_head(folder: Path) -> nn.Sequential:
    """The head of an encoder that was saved."""
    tensors, head = load_file(folder / "model.safetensors"), new_head(CONFIG["hidden_size"])
    head.load_state_dict({name: tensors[theirs] for name, theirs in HEAD.items()})
    return head


def save(model: Kformer, head: nn.Sequential, folder: Path) -> None:
    """As transformers saves a BertForMaskedLM."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {their_name(name, "bert"): tensor for name, tensor in model.state_dict().items()}
    tensors |= {HEAD[name]: tensor for name, tensor in head.state_dict().items()}
    tensors["cls.predictions.bias"] = torch.zeros(CONFIG["vocab_size"])
    save_whole(tensors, folder / "model.safetensors")
    config = CONFIG | {"num_hidden_layers": model.config.num_hidden_layers, "inject_layers": [0]}
    (folder / "config.json").write_bytes((json.dumps(config, indent=2) + "\n").encode("utf-8"))
    (folder / "vocab.txt").write_bytes(("\n".join(toy.vocabulary()) + "\n").encode("utf-8"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depth", type=int, default=CONFIG["num_hidden_layers"], help="layers")
    args = parser.parse_args()
    save(*make(args.seed, args.depth), args.out)
