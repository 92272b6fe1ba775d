"""Facts that are looked up: by words, by meaning, by the command lab.retrieve."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.profiler import profile

from kformer import Kformer, nearest_facts
from lab import retrieve
from qa.questions import Question, is_plain, read_questions
from qa.retrieval import BM25, best, words
from qa.sentences import SentenceEncoder
from test_kformer import TINY, B, D, L, tokens
from tests.common import KINDS, OWL, REFERENCE, run_command, sentence_encoder_of, write_lines


def test_the_best_facts_come_first_and_of_equals_the_first() -> None:
    scores = np.array([0, 2, 1, 3, 1, 1, 0], np.float32)
    assert best(scores, 4) == [3, 1, 2, 4]
    assert best(scores, 99) == [3, 1, 2, 4, 5], "a fact without a common word is none"
    many = np.tile(np.array([1, 2], np.float32), 500)
    assert best(many, 600) == [*range(1, 1000, 2), *range(0, 200, 2)]


def test_words_lose_endings_and_the_common_ones_are_left_out() -> None:
    assert words("The owls were hunting, isn't it?") == ["owl", "hunt", "isn", "t"]
    assert words("ing is us") == ["ing", "us"], "short words keep theirs"
    assert words("ก็ดี") == ["ก็", "ดี", "ก็ดี"], "a character keeps its marks"
    assert len(words("हिन्दी தமிழ் עִבְרִית")) == 3, "and so does a word"
    apart = "class clay bus bush fly flu box boy thing thin 100 10 news sing ring red bed"
    assert len(set(words(apart))) == len(apart.split()), "different words stay apart"
    assert words("/c/en/alarm_clock") == ["c", "en", "alarm", "clock"], "as in knowledge graphs"


def test_forms_of_a_word_meet() -> None:
    for forms in (
        "class classes", "movie movies", "bus buses", "make makes making", "run runs running",
        "carry carries carried carrying", "play plays played", "tree trees", "virus viruses",
        "İstanbul istanbul", "café cafe\u0301", "ＤＮＡ dna", "کتاب\u200cها کتابها",
    ):  # fmt: skip
        assert words(forms) == [words(forms)[0]] * len(forms.split())


def test_words_without_spaces_are_found() -> None:
    for question, *facts in (
        ("ペンギンは飛べますか", "富士山は高い", "ペンギンは鳥だが飛べない"),
        ("ນົກກິນຫຍັງ", "ຝົນຕົກ", "ນົກກິນໜູ"), ("猫", "山川", "大熊猫吃竹子"),
        ("នៅទីក្រុងភ្នំពេញ", "ឆ្មាស៊ីត្រី", "ភ្នំពេញជារាជធានី"),
        ("ဇီးကွက်ဘာစားလဲ", "မိုးရွာသည်", "ဇီးကွက်ကြွက်စားသည်"), ("𡈽", "光合作用", "𠮷𡈽の牛丼"),
        ("iPhone手机", "光合作用需要阳光", "iphone是一种手机"),
        ("大学", "学大小生", "小大学生"),  # two characters count more together than apart
    ):  # fmt: skip
        assert best(BM25(facts).scores(question), 1) == [1], question


def by_words(q: Question, facts: list[str], n: int) -> list[list[str]]:
    retrieve.retrieve([q], facts, n, retrieve.by_words([q], BM25(facts)))
    return q.facts


def test_a_fact_goes_to_the_choice_that_it_speaks_for() -> None:
    facts = ["Owls eat mice.", "Oaks are trees.", "Rain falls.", "Mice eat an oak.", "Mice fear."]
    owl = Question("", *OWL, 0, [["An old one."]])
    assert by_words(owl, facts, 2) == [["Owls eat mice."], ["Mice eat an oak."], []]
    assert by_words(owl, facts, 1) == [["Owls eat mice."], [], []], "the shorter one is first"
    hunt = Question("An owl hunts.", "What does it hunt?", ["an owl", "mice"], 1, [[]])
    assert by_words(hunt, ["The owl hunts.", "Some hunt mice."], 2) == [[], ["Some hunt mice."]]


def encoder_of(kind: str, tmp_path: Path) -> Path:
    return sentence_encoder_of(Path(shutil.copytree(REFERENCE / kind, tmp_path / "encoder")))


def vector(encoder: SentenceEncoder, text: str) -> np.ndarray:
    tokenizer = encoder.tokenizer
    ids = [tokenizer.cls_token_id, *tokenizer.encode(text), tokenizer.sep_token_id]
    mean = Kformer.forward(encoder.model, torch.tensor([ids]))[0].mean(0).detach().numpy()
    return mean / np.linalg.norm(mean)


FACTS = [f"{a} {b} {c}" for a in ("owl", "mice", "oak", "nest") for b in ("hunt", "eat", "old")
         for c in ("night", "owl", "mice", "oak", "nest")]  # fmt: skip


def by_cosines(q: Question, encoder: SentenceEncoder, n: int) -> list[list[str]]:
    """One by one, of the twenty facts that words find first for the question and each choice."""
    bm25, places, found = BM25(FACTS), set(), [[] for _ in q.choices]
    for choice in q.choices:
        scores = (bm25.scores(q.asked) + bm25.scores(choice)).tolist()
        places |= {i for i in sorted(range(60), key=lambda i: -scores[i])[:20] if scores[i] > 0}
    vectors = np.stack([vector(encoder, f"{q.asked} {choice}") for choice in q.choices])
    cosines = {i: vectors @ vector(encoder, FACTS[i]) for i in sorted(places)}
    for i in sorted(cosines, key=lambda i: -cosines[i].max())[:n]:
        found[cosines[i].argmax()].append(FACTS[i])
    return found


def test_a_file_with_facts_found_by_meaning_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path, out, folder = tmp_path / "a.jsonl", tmp_path / "out.jsonl", encoder_of("bert", tmp_path)
    hunts = {"question": '"Who" hunts?', "choices": [" the owl", "an oak\n", "a nest"], "answer": 2}
    old, more = {"question": "An old owl?", "choices": ["hunts", "happy"]}, [*map(str, range(30))]
    rain = {"question": "Rain, é?", "choices": more, "answer": 29}
    write_lines(path, hunts | {"context": " \u2028Mice "}, old, rain)
    write_lines(tmp_path / "facts.txt", *FACTS)
    run_command(monkeypatch, retrieve, path, "--out", out, "--encoder", folder, "--retrieve", 9)
    said = capsys.readouterr().out
    assert said.startswith("facts     60, ranked by meaning\n")
    assert said.endswith(f"\n{out}: facts for 3 of 3 questions; nothing was found for 1\n")
    expected, encoder = read_questions(path, answers_needed=False), SentenceEncoder(folder)
    for q in expected:
        q.facts = by_cosines(q, encoder, 9)
    assert read_questions(out, answers_needed=False) == expected
    nothing = retrieve.by_meaning(expected[2:], BM25(FACTS), FACTS, encoder)
    assert [places for places, _ in nothing] == [[]], "for no question at all"


def test_a_folder_with_facts_found_by_words_is_read_back(
    own_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out, facts = own_data / "out", ["the owl eats mice", "the oak is old", "mice fear rain"]
    write_lines(own_data / "facts.txt", *facts, "", facts[0])  # equal ones take one place
    run_command(monkeypatch, retrieve, own_data, "--out", out, "--retrieve", 2)
    said = capsys.readouterr().out
    assert said.startswith("facts     3, ranked by words in common\n")
    for name, count in (("train", 6), ("dev", 4), ("test", 3)):
        expected = read_questions(own_data / f"{name}.jsonl", answers_needed=False)
        assert [by_words(q, facts, 2) for q in expected] == [[facts[:1], [], facts[2:]]] * count
        assert read_questions(out / f"{name}.jsonl", answers_needed=False) == expected
        assert f"{name}.jsonl: facts for {count} of {count} questions; nothing was" in said
    assert all(is_plain(json.loads(row)) for row in (out / "dev.jsonl").read_text().splitlines())
    with pytest.raises(SystemExit):
        run_command(monkeypatch, retrieve, own_data, "--out", out)
    assert f"{out} is there already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_the_mean_of_the_last_states(kind: str, tmp_path: Path) -> None:
    encoder = SentenceEncoder(encoder_of(kind, tmp_path))
    texts = ["Owls eat mice.", "Oaks.", "Owls eat mice, and mice fear owls when night falls.", ""]
    expected = [vector(encoder, text) for text in texts] * 40  # three batches
    np.testing.assert_allclose(encoder.embed(texts * 40), expected, atol=1e-6)


def test_a_text_is_cut_to_what_the_model_or_its_files_allow(tmp_path: Path) -> None:
    folder = encoder_of("bert", tmp_path)
    for of_bert, of_tokenizer, most in (
        ({}, {}, 40), ({"max_seq_length": 99}, {}, 40), ({}, {"model_max_length": 7}, 7),
        ({"max_seq_length": 8}, {"model_max_length": 7}, 8),
    ):  # fmt: skip
        write_lines(folder / "sentence_bert_config.json", of_bert)
        write_lines(folder / "tokenizer_config.json", of_tokenizer)
        texts = ["owl " * n for n in (most - 3, most - 2, most - 1, 2 * most)]
        found = SentenceEncoder(folder).embed(texts).tolist()
        assert found[0] != found[1] == found[2] == found[3]


def test_what_is_no_sentence_encoder_is_refused(tmp_path: Path) -> None:
    folder, no = encoder_of("bert", tmp_path), "no sentence encoder: modules.json and the config"
    for more, pooling in (
        ([], {"pooling_mode": ["mean", "max"]}), (["Dense", "Normalize"], {}),
        ([], {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}),
    ):  # fmt: skip
        sentence_encoder_of(folder, *more, **pooling)
        with pytest.raises(ValueError, match=no):
            SentenceEncoder(folder)
    sentence_encoder_of(folder, pooling_mode="mean")  # as sentence-transformers 6.2 writes it
    assert SentenceEncoder(folder).most == 40
    for name in ("1_Pooling/config.json", "modules.json"):
        (folder / name).write_text("[1]")
        with pytest.raises(ValueError, match=f"{folder / name}: "):
            SentenceEncoder(folder)
    with pytest.raises(ValueError, match=f"bert: {no}"):
        SentenceEncoder(REFERENCE / "bert")


def test_other_poolings_prompts_and_cases_make_other_vectors(tmp_path: Path) -> None:
    folder, text = encoder_of("bert", tmp_path), "Owls eat mice."
    mean, prompts = SentenceEncoder(folder), folder / "config_sentence_transformers.json"

    def found() -> np.ndarray:
        return SentenceEncoder(folder).embed([text])[0]

    ids = torch.tensor([[mean.tokenizer.cls_token_id, *mean.tokenizer.encode(text), 3]])
    first = Kformer.forward(mean.model, ids)[0, 0].detach().numpy()
    for pooling in ({"pooling_mode": "cls"}, {"pooling_mode_cls_token": True}):
        sentence_encoder_of(folder, **pooling)
        np.testing.assert_allclose(found(), first / np.linalg.norm(first), atol=1e-6)
    sentence_encoder_of(folder)
    write_lines(prompts, {"prompts": {"q": "The nest: "}, "default_prompt_name": "q"})
    np.testing.assert_allclose(found(), vector(mean, "The nest: " + text), atol=1e-6)
    write_lines(prompts, {"truncate_dim": 8})
    with pytest.raises(ValueError, match='"truncate_dim" is 8'):
        found()
    prompts.unlink()
    write_lines(folder / "tokenizer_config.json", {"do_lower_case": False})
    assert abs(found() - vector(mean, text)).max() > 0.01
    write_lines(folder / "sentence_bert_config.json", {"do_lower_case": True})
    np.testing.assert_allclose(found(), vector(mean, text), atol=1e-6)
    sentence_encoder_of(folder, pooling_mode_mean_tokens=True, include_prompt=False)
    with pytest.raises(ValueError, match='"include_prompt" is False'):
        found()


def test_candidates_are_never_embedded_all_at_once() -> None:
    """Or 10,000 of them for one question would fill gigabytes: every fact is padded with words."""
    facts, table = tokens(B, 100, L), nn.Embedding(50, D)
    with profile(profile_memory=True) as done:
        nearest_facts(facts, table, torch.ones(B, D), TINY)
    assert max(operation.cpu_memory_usage for operation in done.function_events) == facts.nbytes
