"""The page that runs the model, in a real browser."""

import json
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lab import page
from load_weights import load_pretrained, open_folder
from qa.batches import Answerer
from qa.evaluation import edited, gold, removed
from qa.inside import look_into
from qa.questions import Question
from qa.tokenizer import WordPiece
from test_kformer import HERE, tiny
from tests.browser import FOUND, Browser, browser
from tests.common import REFERENCE, tiny_answerer

in_browser = pytest.mark.skipif(not FOUND, reason="Chromium is not installed")
WORLD = Question("w5", "w6", ["w7", "w8", "w9"], 1, [["w5 w7", "w6 w8", "w10"]])
OWN = replace(WORLD, facts=[["w5 w7", "w6"], ["w6", "w8", "w5 w7"], ["w9 w9"]])
MANY = replace(WORLD, facts=[[f"w{n} w{n + 20}" for n in range(5, 15)]])
WILD = "</script><script>window.bad = 1</script> \"'&<b>"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found
        assert not found.errors
        assert all(url.startswith("file:") for url in found.requests), "nothing leaves the page"


def show(
    browser: Browser, path: Path, runs: list[tuple[str, Answerer]], *questions: Question
) -> None:
    path.write_text(page.page(runs, [*questions], WILD), encoding="utf-8")
    browser.open(path)
    while not browser.run("Boolean(runs)"):
        pass


def said(browser: Browser, run: int = 0, q: str = "state") -> list[dict]:
    """For each choice its probability, its facts and what they did, by layer."""
    return json.loads(browser.run(
        f"JSON.stringify(answer(runs[{run}], {q}).map((c) => ({{probability: c.probability, facts: "
        "c.facts.map((f) => f.text), tokens: c.tokens, "
        "fired: c.layers.map((l) => [l.layer, l.factScores])})))"
    ))  # fmt: skip


def agree(found: list[dict], answerer: Answerer, q: Question) -> None:
    for now, seen in zip(found, look_into(answerer, q), strict=True):
        assert now["probability"] == pytest.approx(seen.probability, abs=1e-5)
        fired = {layer: torch.tensor(scores) for layer, scores in now["fired"]}
        assert fired.keys() == seen.fired.keys()
        for layer, scores in seen.fired.items():
            torch.testing.assert_close(fired[layer], scores, atol=1e-5, rtol=1e-5)
        if answerer.model.config.inject != "concat":
            assert now["tokens"] == seen.tokens
        if answerer.model.config.inject != "none":
            assert now["facts"] == seen.facts


def lively(inject: str, **fields: object) -> Answerer:
    """Random weights that mind their facts, and scores that differ."""
    answerer = tiny_answerer(inject, **fields)
    for name, parameter in answerer.model.named_parameters():
        parameter.data *= 5 if name.startswith(("classifier", "pooler")) else 1
    return answerer


@in_browser
@pytest.mark.parametrize("inject", ["none", "concat", "attention", "ffn"])
def test_the_page_says_what_torch_says(inject: str, opened: Browser, tmp_path: Path) -> None:
    answerer = lively(inject, inject_layers=(0, 2), num_facts=3)
    questions = [WORLD, OWN, MANY, replace(WORLD, facts=[[]], context="", question="W6, w5? W99!")]
    if inject != "concat":  # for which it's too long
        questions.append(replace(WORLD, facts=[["w9 " + "w5 w8 " * 40, "w6 w8"]]))
    show(opened, tmp_path / "page.html", [("run", answerer)], *questions)
    for n, q in enumerate(questions):
        opened.run(f"open({n})")
        agree(said(opened), answerer, q)
        assert gold(q) or n > 0
        for m, version in enumerate([q, removed(q), edited(q)] if gold(q) else []):
            opened.click(f"#version-{m}")
            agree(said(opened), answerer, version)


@in_browser
def test_the_page_reads_words_as_the_tokenizer_does(opened: Browser, tmp_path: Path) -> None:
    letters = [*string.ascii_lowercase, *string.punctuation, *"中字ßéu\u0e01からな한", "ab", "xx"]
    words = [*letters, *(f"##{letter}" for letter in letters)]
    tokenizer = WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    model = tiny("ffn", vocab_size=len(tokenizer.vocab)).float()
    show(opened, tmp_path / "page.html", [("run", Answerer(model, tokenizer, "float32"))], WORLD)
    texts = [
        "abc xxx abxx",
        "Ｗｉｄｅ Ünïcödé \u0130İ ǅ ß",
        "a\u00adb\u200bc\x00d\ufffd",
        "中文字 と かな",
        "don't [MASK]it [SEP] [sep] a[PAD]b",
        "5€ + <3 ^_^ `x` ~y~ $z|",
        "x" * 100,
        "x" * 101,
        "tab\tnew\nline\u2028a\u3000b",
        "\U0001f600 \ud7a3 \u0e01\u0e34 e\u0301",
        "«a»…—b¿c§",
    ]
    for text in texts:
        found = opened.run(f"runs[0].tokenizer.encode({json.dumps(text)})")
        assert found == tokenizer.encode(text), text
    assert len({*tokenizer.encode(" ".join(texts))}) > 30, "or it's a poor test"


@in_browser
def test_a_run_of_the_toy_world_has_the_probabilities_of_torch(
    toy: dict[str, list[Question]], opened: Browser, tmp_path: Path
) -> None:
    runs, path = [], tmp_path / "page.html"
    for inject in ("concat", "attention", "ffn"):
        model, tokenizer, _ = open_folder(HERE / "data" / "encoder", inject=inject)
        torch.manual_seed(0)
        model.classifier.weight.data.normal_()
        runs.append((inject, Answerer(model.eval(), tokenizer, "float32")))
    some = toy["test"][:20]
    show(opened, path, runs[-1:], *some)
    assert path.stat().st_size < 1_000_000
    show(opened, path, runs, *some)
    for n, q in enumerate(some):
        opened.run(f"open({n})")
        for r, (_, answerer) in enumerate(runs):
            agree(said(opened, r), answerer, q)
            shown = opened.run(f"document.getElementById('bar-{r}-1').firstChild.textContent")
            assert shown == f"{look_into(answerer, q)[1].probability:.1%}"


@in_browser
def test_everything_can_be_typed_and_taken_back(opened: Browser, tmp_path: Path) -> None:
    answerer = lively("ffn")
    show(opened, tmp_path / "page.html", [("run", answerer)], WORLD)
    steps = [
        (lambda: opened.type("#facts li:nth-child(2) .field input", "w6 w9"),
         first := replace(WORLD, facts=[["w5 w7", "w6 w9", "w10"]])),
        (lambda: opened.type("#question .field:last-child input", "w12 ?"),
         second := replace(first, question="w12 ?")),
        (lambda: opened.type("#choices tr:nth-child(3) input:not([type])", "w14"),
         third := replace(second, choices=["w7", "w8", "w14"])),
        (lambda: opened.click("#on-0"), replace(third, facts=[["w6 w9", "w10"]])),
        (lambda: opened.click("#down-0"), replace(third, facts=[["w6 w9", "w10"]])),
        (lambda: opened.click("#delete-2"), replace(third, facts=[["w6 w9"]])),
        (lambda: opened.click("#add"), replace(third, facts=[["w6 w9"]])),
        (lambda: opened.type("#facts li:nth-child(3) .field input", "w14 w12"),
         replace(third, facts=[["w6 w9", "w14 w12"]])),
    ]  # fmt: skip
    for step, q in steps:
        step()
        agree(said(opened), answerer, q)
        assert opened.run("document.getElementById('undo').disabled") is False
    changed = opened.run("document.querySelectorAll('.bar small:not(:empty)').length")
    assert changed > 0, "what it was stands beside what it is"
    for _ in range(len(steps)):
        opened.click("#undo")
    agree(said(opened), answerer, WORLD)
    assert opened.run("document.getElementById('undo').disabled") is True
    opened.click("#on-1")
    opened.click("#reset")
    agree(said(opened), answerer, WORLD)


@in_browser
def test_words_that_the_vocabulary_lacks_are_marked(opened: Browser, tmp_path: Path) -> None:
    show(opened, tmp_path / "page.html", [("run", lively("ffn"))], WORLD)
    opened.type("#facts li:nth-child(1) .field input", "w5 kettle, w7")
    marks = "[...document.querySelectorAll('mark')].map((m) => m.textContent)"
    assert opened.run(marks) == ["kettle", ","]
    note = "document.getElementById('note').textContent"
    assert opened.run(note) == "unknown words, read as [UNK], one like the other: kettle, ,"
    opened.type("#facts li:nth-child(1) .field input", "w5 [MASK] w7")
    assert opened.run(marks) == []
    opened.type("#facts li:nth-child(1) .field input", "w5 " * 40)
    assert "too long" not in opened.run(note)
    opened.type("#question .field:last-child input", "w5 " * 70)
    assert opened.run(note) == "run: the text is too long, 64 tokens can be read"
    assert opened.run("document.querySelector('.bar').textContent").startswith("too long")


@in_browser
def test_another_question_can_be_taken_back_and_what_is_right_is_marked(
    opened: Browser, tmp_path: Path
) -> None:
    answerer = lively("ffn")
    show(opened, tmp_path / "page.html", [("run", answerer)], WORLD, MANY)
    right = (
        "[...document.querySelectorAll('#choices tr')].map((r) => r.classList.contains('right'))"
    )
    notes = "[...document.querySelectorAll('#facts small')].map((n) => n.textContent)"
    assert opened.run(right) == [False, True, False]
    assert opened.run(notes) == ["", "gold", ""]
    opened.type("#facts li:nth-child(2) .field input", "w6 w9")
    assert opened.run(right) == [False, False, True], "it is the file's own edited version now"
    assert opened.run(notes) == ["", "edited", ""]
    opened.type("#facts li:nth-child(2) .field input", "w6 w8 w5")
    assert opened.run(right) == [False] * 3
    opened.click("#next")
    agree(said(opened), answerer, MANY)
    assert opened.run(notes).count("not read") == 5
    assert opened.run("document.querySelectorAll('.bar small:not(:empty)').length") == 0
    opened.click("#undo")
    agree(said(opened), answerer, replace(WORLD, facts=[["w5 w7", "w6 w8 w5", "w10"]]))
    opened.click("#all")
    agree(said(opened), answerer, replace(WORLD, facts=[[]]))
    head = "document.querySelector('#picture h2').textContent"
    assert opened.run(head) == "No fact is read. The model reads:"
    opened.click("#all")
    agree(said(opened), answerer, replace(WORLD, facts=[["w5 w7", "w6 w8 w5", "w10"]]))


@in_browser
@pytest.mark.parametrize("inject", ["attention", "ffn"])
def test_the_numbers_below_the_picture_are_the_equation_s(
    inject: str, opened: Browser, tmp_path: Path
) -> None:
    answerer = lively(inject, inject_layers=(1,))
    show(opened, tmp_path / "page.html", [("run", answerer)], WORLD)
    opened.run("choice = 0; pick(1, 3, 2)")
    cells = "[...document.querySelectorAll('#detail td:nth-child(2)')].map((c) => c.textContent)"
    block, given = answerer.model.encoder.layer[1], []
    hook = block.register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    with torch.inference_mode():
        answerer.scores(answerer.encode([WORLD]), look=True)
        hook.remove()
        x, _, mask, facts = given
        K, V, _ = block.project(facts)
        key, value = K[0, 0, 2], V[0, 0, 2]
        if inject == "ffn":
            token = block.attention_norm(x + block.attention(x, x, mask))[0, 0, 3]
            fires = torch.nn.functional.gelu(token @ key)
            expected = [token @ key, fires, (fires * value).norm()]
        else:
            query, H = block.attention.query(x)[0, 0, 3].view(2, 8), 2
            keys = torch.cat([K[0, 0], block.attention.key(x)[0, 0]]).view(-1, 2, 8)
            scores = (query * keys).sum(-1) / 8**0.5  # (N + T, H)
            share = scores.softmax(0)[2]
            expected = [scores[2].mean(), share.mean(), (share[:, None] * value.view(H, 8)).norm()]
    shown = [float(number) for number in opened.run(cells)[:3]]
    assert shown == pytest.approx([float(number) for number in expected], abs=0.0051)


@in_browser
def test_the_keyboard_is_enough(opened: Browser, tmp_path: Path) -> None:
    show(
        opened,
        tmp_path / "page.html",
        [("a", lively("ffn")), ("b", lively("attention"))],
        WORLD,
        OWN,
    )
    opened.run("document.querySelector('#picture [tabindex=\"0\"]').focus()")
    place = opened.run("document.activeElement.id")
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", *["ArrowLeft"] * 9):
        opened.press(key)
    layer = place.split("-")[1]
    assert opened.run("document.activeElement.id") == f"cell-{layer}-0-0"
    opened.press("ArrowRight")
    assert opened.run("document.activeElement.id") == f"cell-{layer}-1-0"
    assert " at the token w5" in opened.run("document.getElementById('detail').textContent")
    found = said(opened)[opened.run("best(answer(runs[0], state))")]["fired"][0][1][1][0]
    assert opened.run("document.activeElement.textContent") == opened.run(f"two({found})")
    opened.click("#run-1")
    assert opened.run("document.activeElement.isConnected")
    assert "attention" in opened.run("document.querySelector('caption').textContent")
    names = opened.run("[...document.querySelectorAll('input, button, select')].filter((e) => "
                       "!e.ariaLabel && !e.textContent.trim()).length")  # fmt: skip
    assert names == 0, "all have a name"


@in_browser
def test_text_stays_text(opened: Browser, tmp_path: Path) -> None:
    wild = Question(WILD, WILD, [WILD, "w7 " + WILD], 0, [[WILD, "w8"]])
    show(opened, tmp_path / "page.html", [(WILD, lively("ffn")), ("b", lively("none"))], wild)
    assert opened.run("window.bad") is None
    assert opened.run("document.querySelectorAll('script').length") == 1
    assert opened.run("document.querySelectorAll('b b, main script').length") == 0
    assert opened.run("document.title") == opened.run("document.querySelector('h1').textContent")
    assert opened.run("document.title") == WILD
    assert opened.run("document.querySelector('#facts .field input').value") == WILD
    assert opened.run("document.querySelector('#runs button').textContent") == WILD


def test_what_a_page_can_t_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_pretrained(REFERENCE / "roberta", inject="ffn")
    with pytest.raises(ValueError, match="mine: a page can run BERT with WordPiece alone"):
        page.page([("mine", Answerer(model, tokenizer, "float32"))], [WORLD], "")
    monkeypatch.setattr(page, "MOST", 1000)
    with pytest.raises(ValueError, match=r"mine: [\d,]+ parameters, a page can run up to 1,000"):
        page.page([("mine", tiny_answerer("ffn"))], [WORLD], "")
