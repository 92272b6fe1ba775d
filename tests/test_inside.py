"""A look inside."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import chain

import pytest
import torch

from kformer import KformerForMultipleChoice
from lab.page import page
from qa import inside
from qa.effects import edited, gold, removed
from qa.questions import Question
from test_kformer import tiny
from tests.common import ask, tiny_tokenizer

LONG = "w5 " * 10 + "w6"
QUESTION = Question("w9", "w10", ["w15", "w12 w13 w14", "w11"], None, [[LONG, "w7"]])
WILD = "\x1b[2J\u202e\u200f\0 <script>alert('\"&')</script> http://example.org\n"


def shown(model: KformerForMultipleChoice, question: Question) -> list[str]:
    return list(inside.show(model, tiny_tokenizer(), question, torch.float32))


def seen(model: KformerForMultipleChoice, question: Question) -> list[inside.Seen]:
    return inside.look_into(model, tiny_tokenizer(), question, torch.float32)


def test_the_facts_that_were_kept_are_named() -> None:
    tokenizer = tiny_tokenizer()
    facts = [[f"w{i} w{i + 1}" for i in range(5, 12)], [f"w{i}" for i in range(20, 22)]]
    question = Question("", "w5 w6 w7", ["w8", "w20"], 0, facts)
    for inject, kept in (("none", 0), ("ffn", 3), ("concat", 3)):
        model = tiny(inject, num_facts=3).float()
        [(probabilities, used)] = inside.answers(model, tokenizer, [question], torch.float32)
        likeliest = probabilities.index(max(probabilities))
        assert len(used) == min(kept, len(facts[likeliest]))
        assert set(used) <= set(facts[likeliest])


def test_a_fact_with_padding_in_its_text_is_still_named() -> None:
    question = Question("", "w5", ["w8", "w20"], 0, [["w5 [PAD] w6", "w7"]])
    model = tiny("ffn").float()
    [(_, used)] = inside.answers(model, tiny_tokenizer(), [question], torch.float32)
    assert used == ["w5 [PAD] w6", "w7"]


def test_facts_that_are_the_same_to_the_model_are_told_apart() -> None:
    """Their words aren't in the vocabulary."""
    facts = ["w5 owls", "w5 mice", "w7"]
    question = Question("", "w5", ["w8", "w20"], 0, [facts])
    [(_, used)] = inside.answers(tiny("ffn").float(), tiny_tokenizer(), [question], torch.float32)
    assert used == facts


def test_a_picture_has_a_cell_for_each_fact_and_token() -> None:
    fired = torch.tensor([[4.0, 0.0], [-0.1, 1.0], [2.0, 0.4]])
    lines = list(inside.picture(fired, ["[CLS]", "owl", "?"], ["an owl", "mice"], " .:*#", 100))
    name = " " * 40
    assert lines == [
        name + "[CLS] owl ?",
        "    4.00  an owl                        #####     :",
        "    1.00  mice                                ...  ",
    ]
    named = inside.picture(fired, ["[CLS]", "owl"], ["an owl"], " .:*#", 100, "  > owl", 8.0)
    title, row = named
    assert title == "  > owl".ljust(40) + "[CLS] owl"
    assert row[40:] == ":::::    ", "as dark as a common scale has it"
    narrow = list(inside.picture(fired, ["[CLS]", "owl", "?"], ["an owl", "mice"], " .:*#", 49))
    assert [line[40:] for line in narrow] == ["[CLS] owl", "#####    ", "      ...", "?", ":", " "]


def test_a_question_is_shown_with_what_fired_for_the_taken_choice_and_the_runner_up() -> None:
    model = tiny("ffn", inject_layers=(1,)).float()
    choices = seen(model, QUESTION)
    order = sorted(range(3), key=lambda i: -choices[i].probability)
    assert order[0], "the first choice would be a poor test"
    fired = [choice.fired["layer 1 of 0 to 2"] for choice in choices]
    for answer in (order[1], order[0]):
        lines = shown(model, replace(QUESTION, answer=answer))
        assert lines[0] == "w9 w10"
        for i, row in enumerate(lines[1:4]):
            assert row.startswith("  > ") == (i == order[0])
            assert row.endswith("<- right") == (i == answer)
            assert f"{choices[i].probability:.1%}" in row
        facts = zip(QUESTION.facts[0], choices[0].writes, strict=True)
        assert lines[4:6] == [f"    {fact:<28}  -> {words}" for fact, words in facts], "not cut"
        assert "words nearest" in lines[6]
        assert "layer 1 of 0 to 2" in lines[6]
        assert lines[7].startswith("  The darker a cell, the more strongly the fact fired")
        assert lines[8] == "  layer 1 of 0 to 2"
        for i, start in ((order[0], 9), (order[1], 12)):
            mark = ">" if i == order[0] else " "
            assert lines[start].startswith(f"  {mark} {QUESTION.choices[i]}  ")
            assert lines[start].split()[-2] == QUESTION.choices[i].split()[-1], "its own tokens"
            rows, most = lines[start + 1 : start + 3], fired[i].amax(0).tolist()
            assert [row[:10].strip() for row in rows] == [f"{n:.2f}" for n in most]
        assert len(lines) == 15
    assert max(map(len, lines)) <= 100
    wild = Question("", WILD + 500 * "w", [WILD, "w7"], None, [[f"w6 {WILD}"]])
    lines = shown(model, wild)
    assert "".join(lines).isprintable()
    assert max(map(len, lines)) <= 300


def test_the_pictures_of_a_layer_have_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    choices = [
        inside.Seen(text, p, ["owl"], ["an owl"], [""], {"layer 0": torch.tensor([[most]])})
        for text, p, most in (("taken", 0.9, 2.0), ("second", 0.1, 4.0))
    ]
    monkeypatch.setattr(inside, "look_into", lambda *_: choices)
    taken, second = [line for line in shown(tiny("ffn"), QUESTION) if line.endswith((":::", "###"))]
    assert taken.split() == ["2.00", "an", "owl", ":::"]
    assert second.split() == ["4.00", "an", "owl", "###"]


def test_what_fired_is_what_the_model_has_whichever_slots_are_empty() -> None:
    own = [["w5", "w6"], ["w7"], ["\u200b", "w8"]]  # of each choice; the tokenizer drops \u200b
    for inject in ("attention", "ffn"):
        model = tiny(inject, inject_layers=(0, 2)).float()
        choices = seen(model, replace(QUESTION, facts=own))
        assert [c.facts for c in choices] == [["w5", "w6"], ["w7"], ["w8"]]
        slots = [[0, 1], [0], [1]]
        for layer, scores in inside.fact_scores(model).items():
            for i, choice in enumerate(choices):
                length = len(ask(QUESTION).input_ids[i])
                expected = scores[0, i, :length, slots[i]]
                assert torch.equal(choice.fired[f"layer {layer} of 0 to 2"], expected)
    assert [[*c.fired] for c in choices] == [["layer 0 of 0 to 2", "layer 2 of 0 to 2"]] * 3


def test_a_layer_that_does_not_tell_facts_apart_is_left_out_and_a_line_says_so() -> None:
    for inject in ("attention", "ffn"):
        model = tiny(inject, inject_layers=(0, 2)).float()
        model.encoder.layer[2].Wk.weight.data.zero_()  # all keys are the bias
        lines = shown(model, QUESTION)
        [line] = [line for line in lines if "layer 2 of 0 to 2: left out" in line]
        two = sorted(seen(model, QUESTION), key=lambda choice: -choice.probability)[:2]
        most = max(float(choice.fired["layer 2 of 0 to 2"].max()) for choice in two)
        assert lines[-1] == line
        assert f"at most {inside.number(most)}" in line
        assert "  layer 0 of 0 to 2" in lines
        one = shown(model, replace(QUESTION, facts=[["w7"]]))
        assert "  layer 2 of 0 to 2" in one, "of a single fact it shows where it fires"


@pytest.mark.parametrize("inject", ["none", "concat"])
def test_without_pictures_the_facts_are_shown(inject: str) -> None:
    lines = shown(tiny(inject).float(), QUESTION)
    assert lines[4:] == [f"    {LONG}", "    w7"]


def test_the_words_nearest_to_what_a_fact_writes() -> None:
    for inject in ("attention", "ffn"):
        model = tiny(inject, hidden_size=48, inject_layers=(0, 1)).float()
        words, block = model.embeddings.word_embeddings.weight.data, model.encoder.layer[1]
        words.copy_(torch.eye(50, 48))
        words[9] *= 0.1  # by cosine it's as near as a longer one
        model.fact_embeddings.weight.data.copy_(words)
        block.Wv.weight.data.copy_(torch.eye(48))
        block.Wv.bias.data.zero_()
        block.Wv.bias.data[[2, 20, 21]] = torch.tensor([9.0, 0.02, 0.01])  # 2 is [CLS]: no word
        [first, *_] = seen(model, replace(QUESTION, facts=[["w9", "w7"]]))
        assert first.writes == ["w9, w20, w21", "w7, w20, w21"]
        block.Wv.weight.data.zero_()
        block.Wv.bias.data.zero_()
        [first, *_] = seen(model, replace(QUESTION, facts=[["w9", "w7"]]))
        assert first.writes == ["nothing, V is 0"] * 2


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_shades(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """qa/command.py has what stands for them where its encoding lacks them."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    text = "\n".join(shown(tiny("ffn").float(), QUESTION))
    assert ("█" in text, "#" in text) == (terminal, not terminal)


class Page(HTMLParser):
    """A page's tags with their attributes and texts, in order. Each must be closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        assert len(attributes) == len(dict(attributes))
        self.found.append([tag, dict(attributes), ""])
        if tag not in ("meta", "input"):
            self.open.append(self.found[-1])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, text: str) -> None:
        for element in self.open:
            element[2] += text

    def all(self, tag: str) -> Iterator[tuple[dict, str]]:
        return ((attributes, text) for name, attributes, text in self.found if name == tag)


def page_of(model: KformerForMultipleChoice, *questions: Question) -> tuple[str, Page]:
    lines = page(model, tiny_tokenizer(), list(questions), torch.float32, WILD)
    text = "\n".join(lines)
    return text, Page(text)


GOLDEN = replace(QUESTION, answer=1, facts=[["w12 w13 w14 w7", "w7 w15"]])


@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_a_page_has_the_numbers_of_the_model(inject: str) -> None:
    model = tiny(inject, inject_layers=(0, 2)).float()
    _, html = page_of(model, GOLDEN, QUESTION)
    versions = [GOLDEN, removed(GOLDEN), edited(GOLDEN), QUESTION]
    choices = [choice for version in versions for choice in seen(model, version)]
    assert gold(GOLDEN)
    assert gold(QUESTION) is None
    assert len(list(html.all("section"))) == 2
    names = ["with the gold factw12 w13 w14 w7", "without itw12 w13 w14 w7", "with it editedw11 w7",
             "as it is"]  # fmt: skip
    assert [text for _, text in html.all("h3")] == names
    bars = [(a["style"], text) for a, text in html.all("label") if "style" in a]
    right = [c.text == v.choices[v.answer] if v.answer is not None else False
             for v in versions for c in seen(model, v)]  # fmt: skip
    assert bars == [
        (f"--share:{c.probability:.1%}", f"{c.text}{' ✓' * r}{c.probability:.1%}")
        for c, r in zip(choices, right, strict=True)
    ]
    layers = ["layer 0 of 0 to 2", "layer 2 of 0 to 2"]
    assert [text for _, text in html.all("caption")] == layers * len(choices)
    rows = [row for c in choices for layer in layers for row in c.fired[layer].T.tolist()]
    cells = [a for a, _ in html.all("td") if "title" in a]
    assert [a["title"] for a in cells] == [inside.number(score) for row in rows for score in row]
    most = [text for a, text in html.all("td") if not a]
    assert most == [inside.number(max(row)) for row in rows]
    shades = iter([a.get("style", "--share:0.00").removeprefix("--share:") for a in cells])
    assert [a.get("class") == "below" for a in cells if "style" in a].count(True) == sum(
        score < 0 for a, score in zip(cells, chain(*rows), strict=True) if "style" in a
    )
    most = [{n: max(float(c.fired[n].abs().max()) for c in some) for n in layers}
            for some in (choices[:9], choices[9:])]  # fmt: skip
    for i, choice in enumerate(choices):
        for n in layers:
            for score in choice.fired[n].T.flatten().tolist():
                assert next(shades) == f"{abs(score) / most[i >= 9][n]:.2f}", "a scale for each"
    tokens = [token for c in choices for _ in layers for token in c.tokens]
    heads = [text for _, text in html.all("th")]
    assert not Counter(tokens) - Counter(heads)
    writes = [f"→ {words}" for c in choices for words in c.writes]
    assert [text for _, text in html.all("small") if text.startswith("→")] == writes
    assert {text for _, text in html.all("b")} == {"w12 w13 w14 w7", "w11 w7"}


@pytest.mark.parametrize("inject", ["none", "concat", "ffn"])
def test_a_page_loads_nothing_and_escapes_everything(inject: str) -> None:
    wild = Question(WILD, WILD, ["w9 " + WILD, "w15" + WILD], 0, [[WILD + "w9 " + WILD, WILD]])
    text, html = page_of(tiny(inject, vocab_size=50).float(), GOLDEN, wild)
    tags = {tag for tag, *_ in html.found}
    assert not tags & {"script", "link", "img", "iframe", "base", "object", "form", "a"}
    attributes = {(name, value) for _, found, _ in html.found for name, value in found.items()}
    assert {name for name, _ in attributes} <= {
        "lang", "charset", "name", "content", "type", "id", "checked", "for", "title", "style",
        "class", "colspan",
    }  # fmt: skip
    style = next(text for _, text in html.all("style"))
    assert not re.search(r"url|@import|http", style)
    assert all(re.fullmatch(r"--share:[\d.]+%?", value) for n, value in attributes if n == "style")
    assert all(c.isprintable() or c == "\n" for c in text)
    if inject != "ffn":
        lists = [version.facts[0] for version in (GOLDEN, removed(GOLDEN), edited(GOLDEN))]
        facts = [fact for facts in lists for _ in GOLDEN.choices for fact in facts]
        assert [text for _, text in html.all("p")][: len(facts)] == facts, "instead of pictures"
    shown = " ".join(text for tag, _, text in html.found if tag in ("h1", "h2", "th", "p", "span"))
    assert shown.count("<script>alert('\"&')</script>") >= 6, "as a text"


def test_every_button_of_a_page_has_its_picture() -> None:
    text, html = page_of(tiny("ffn").float(), GOLDEN, QUESTION, replace(GOLDEN, facts=[[]]))
    buttons = [a for a, _ in html.all("input")]
    ids = [a["id"] for a in buttons]
    assert len(ids) == len(set(ids))
    assert [a["for"] for a, _ in html.all("label")] == ids
    groups = Counter(a["name"] for a in buttons)
    checked = [a["name"] for a in buttons if "checked" in a]
    assert sorted(checked) == sorted(groups), "one of each group"
    assert groups.pop("q") == len(list(html.all("section"))) == 3
    assert sum(groups.values()) == len(list(html.all("figure"))) == 15
    for article in re.findall("<article>.*?</article>", text, re.DOTALL):
        shares = [float(share) for share in re.findall(r"--share:([\d.]+)%", article)]
        taken = ["checked" in button for button in re.findall("<input[^>]*>", article)].index(True)
        assert shares[taken] == max(shares)
    rules = re.findall(r"input:nth-of-type\((\d)\):checked ~ :is\(section, figure\)", text)
    assert rules == ["1", "2", "3"]
