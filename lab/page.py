"""A page of questions looked into, for a browser: one file that loads nothing and has no script.

One chooses a question by its number, and by its bar a choice whose picture is seen. Both are radio
buttons: behind them the style shows the n-th section, or figure, where the n-th is checked.
"""

from collections.abc import Iterator
from html import escape
from itertools import chain

from qa.batches import Answerer
from qa.errors import printable
from qa.evaluation import edited, gold, removed
from qa.inside import Seen, facts_of, look_into, two_digits
from qa.questions import Question, of_choice

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #111; --dim: #555; --line: #ccc;
  --bar: #bcd4f2; --above: 196, 48, 0; --below: 0, 70, 200 }
@media (prefers-color-scheme: dark) { :root { --page: #101216; --ink: #f4f4f4; --dim: #b4b8c0;
  --line: #3c424c; --bar: #29507f; --above: 255, 150, 40; --below: 110, 170, 255 } }
body { margin: 1.2rem; font: clamp(17px, 1.25vw, 30px)/1.3 system-ui, sans-serif;
  background: var(--page); color: var(--ink) }
h1, h3, p { margin: 0 0 .5rem; font-size: 1em }
h1, p, small, caption { color: var(--dim) }
h1, th, small, caption { font-weight: normal; text-align: left; overflow-wrap: anywhere }
h2, th, small, span { unicode-bidi: isolate }
section, figure { display: none }
input { position: absolute; opacity: 0 }
label { display: inline-flex; justify-content: space-between; gap: 1em; margin: 1px;
  padding: .2em .5em; border: 1px solid var(--line); cursor: pointer;
  background: linear-gradient(var(--bar) 0 0) 0 0 / var(--share, 0) 100% no-repeat }
input:checked + label { box-shadow: inset 0 0 0 3px var(--ink) }
input:focus-visible + label { outline: 3px solid rgb(var(--above)) }
section > div { display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)) }
article { min-width: 0 }
article > label, small { display: flex }
article:nth-of-type(2) h3 small { text-decoration: line-through }
figure { margin: 1rem 0 0; overflow-x: auto }
table { width: 100%; margin-bottom: 1.2rem; border-collapse: collapse; font-size: .9em }
tbody th { width: 100%; min-width: 6em }
thead th { padding: .3em 0; writing-mode: vertical-rl; transform: rotate(180deg); line-height: 1 }
td { min-width: 1em; border: 1px solid var(--line); --sign: var(--above);
  background: rgba(var(--sign), var(--share, 0)) }
td:first-of-type { padding: 0 .4em; border: 0; text-align: right }
.below { --sign: var(--below) }
"""


def page(answerer: Answerer, questions: list[Question], title: str) -> Iterator[str]:
    """Lines of HTML: a section for each question."""
    most = max(len(questions), *(len(q.choices) for q in questions))
    shown = ", ".join(f"input:nth-of-type({i}):checked ~ :is(section, figure):nth-of-type({i})"
                      for i in range(1, most + 1))  # fmt: skip
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{safe(title)}</title>'
    yield '<meta name="viewport" content="width=device-width">'
    yield f"<style>{STYLE}{shown} {{ display: block }}</style></head><body><h1>{safe(title)}</h1>"
    if answerer.model.config.inject in ("attention", "ffn"):
        yield "<p>The stronger a cell's colour, the more strongly the fact fired at that token or,"
        yield "with attention, the more of it it got; blue is below 0. The number: its row's most."
        yield "A click on a choice shows its cells.</p>"
    yield "<main>"
    for n, q in enumerate(questions, 1):
        yield button("q", n, n == 1, f'title="{safe(q.question)}"', str(n))
    for n, q in enumerate(questions, 1):
        yield f"<section><h2>{safe(q.asked)}</h2><div>"
        yield from versions(answerer, q, f"q{n}-v")
        yield "</div></section>"
    yield "</main></body></html>"


def versions(answerer: Answerer, q: Question, id: str) -> Iterator[str]:
    """An article for a question as it is; or three, with its gold fact, without, and edited."""
    some = [("as it is", "", q)]
    if old := gold(q):
        changed = edited(q)
        new = " ".join({*facts_of(changed)} - {*facts_of(q)})  # one, or none that is new
        some = [("with the gold fact", old, q), ("without it", old, removed(q)),
                ("with it edited", new, changed)]  # fmt: skip
    looks, most = [look_into(answerer, version) for *_, version in some], {}
    for layer, fired in chain(*(choice.fired.items() for choice in chain(*looks))):
        most[layer] = max(most.get(layer, 1e-9), float(fired.abs().max()))  # one scale
    for n, ((name, fact, version), seen) in enumerate(zip(some, looks, strict=True)):
        yield f"<article><h3>{name}<small>{safe(fact)}</small></h3>"
        likeliest = max(seen, key=lambda choice: choice.probability)
        for i, choice in enumerate(seen):
            share, right = f"{choice.probability:.1%}", " ✓" * (i == version.answer)
            text = f"<span>{safe(choice.text)}{right}</span><span>{share}</span>"
            yield button(f"{id}{n}", i, choice is likeliest, f'style="--share:{share}"', text)
        for i, choice in enumerate(seen):
            facts = [] if choice.fired else choice.facts or of_choice(version.facts, i)[:10]
            yield "<figure>" + "".join(f"<p>{safe(text)}</p>" for text in facts)
            for layer in choice.fired:
                yield from table(choice, layer, most[layer], fact)
            yield "</figure>"
        yield "</article>"


def table(choice: Seen, layer: int, most: float, marked: str) -> Iterator[str]:
    """Facts against tokens."""
    yield f'<table><caption>layer {layer}</caption><thead><tr><td colspan="2"></td>'
    yield "".join(f"<th>{safe(token)}</th>" for token in choice.tokens) + "</tr></thead><tbody>"
    for fact, row in zip(choice.facts, choice.fired[layer].T.tolist(), strict=True):
        name = f"<b>{safe(fact)}</b>" if fact == marked else safe(fact)
        cells = "".join(cell(score, most) for score in row)
        yield f"<tr><th>{name}</th><td>{two_digits(max(row))}</td>{cells}</tr>"
    yield "</tbody></table>"


def cell(score: float, most: float) -> str:
    share = f"{abs(score) / most:.2f}"
    shade = f' style="--share:{share}"' + ' class="below"' * (score < 0)
    return f'<td title="{two_digits(score)}"{shade * (share != "0.00")}></td>'


def button(group: str, n: int, checked: bool, attribute: str, content: str) -> str:
    radio = f'<input type="radio" name="{group}" id="{group}-{n}"{" checked" * checked}>'
    return f'{radio}<label for="{group}-{n}" {attribute}>{content}</label>'


def safe(text: str) -> str:
    return escape(printable(text, len(text)))
