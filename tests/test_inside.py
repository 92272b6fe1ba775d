"""A look inside."""

from dataclasses import replace

import torch

from parts import inside
from parts.questions import Question
from test_kformer import tiny
from tests.common import ask, tiny_tokenizer


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


def test_a_picture_has_a_cell_for_each_fact_and_token() -> None:
    fired = torch.tensor([[4.0, 0.0], [-0.1, 1.0], [2.0, 0.4]])
    lines = list(inside.picture(fired, ["[CLS]", "owl", "?"], ["an owl", "mice"], " .:*#", 100))
    name = " " * 40
    assert lines == [
        name + "[CLS] owl ?",
        "    4.00  an owl                        #####     :",
        "    1.00  mice                                ...  ",
    ]
    narrow = list(inside.picture(fired, ["[CLS]", "owl", "?"], ["an owl", "mice"], " .:*#", 49))
    assert [line[40:] for line in narrow] == ["[CLS] owl", "#####    ", "      ...", "?", ":", " "]


def test_a_question_is_shown_with_what_fired_for_the_choice_that_was_taken() -> None:
    model, tokenizer = tiny("ffn", inject_layers=(1,)).float(), tiny_tokenizer()
    long = "w5 " * 10 + "w6"
    question = Question("w9", "w10", ["w15", "w12 w13 w14", "w11"], None, [[long, "w7"]])
    [(probabilities, _)] = inside.answers(model, tokenizer, [question], torch.float32, look=True)
    taken = probabilities.index(max(probabilities))
    assert taken, "the first choice would be a poor test"
    fired = model.encoder.layer[1].ffn.fact_scores[0, taken, : len(ask(question).input_ids[taken])]
    for answer in (taken - 1, taken):
        lines = list(inside.show(model, tokenizer, replace(question, answer=answer), torch.float32))
        assert lines[0] == "w9 w10"
        rows = lines[1:4]
        assert [row.startswith("  > ") for row in rows] == [i == taken for i in range(3)]
        assert [row.endswith("<- right") for row in rows] == [i == answer for i in range(3)]
        assert all(f"{p:.1%}" in row for p, row in zip(probabilities, rows, strict=True))
        assert lines[4:7] == [f"    {long}", "    w7", "  layer 1"], "facts that the rows cut"
        assert lines[7].split()[4] == question.choices[taken].split()[0]
        most = [f"{n:.2f}".replace("-0.00", "0.00") for n in fired.amax(0).tolist()]
        assert [row[:10].strip() for row in lines[8:]] == most
    short = replace(question, facts=[["w6", "w7"]])
    lines = list(inside.show(model, tokenizer, short, torch.float32))
    assert lines[4] == "  layer 1", "short facts stand in the rows"
    wild = replace(question, question="\x1b[2J\u202e" + 500 * "w", facts=[["w6\x07\x1b w7"]])
    lines = list(inside.show(model, tokenizer, wild, torch.float32))
    assert "".join(lines).isprintable()
    assert max(map(len, lines)) <= 300
