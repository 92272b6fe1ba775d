"""The exercises: a student's copy has no answers, and no wrong solution passes its checks."""

import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path

import pytest

import test_kformer
from lab import exercises
from test_kformer import HERE
from tests.common import interrupt, run_command

# Wrong solutions, some of which cheat: what the check says, what is replaced in the right one (ALL
# is its body), and what takes its place in one after the other.
ALL = None
LOWEST, SEEN = "torch.finfo(scores.dtype).min", "mask[..., None, None, :]"
HIDDEN, DROPPED = "hide(scores, mask)", "self.dropout(probs) @ v"
SPREAD, SLOTS = "K.expand(*batch, -1, -1)", "fact_mask.expand(*batch, -1)"
FIRED, ADDED = "gelu(x @ K.mT)", "out = out + fired @ V"
PREFIX = r'r"^(module\.)?(bert\.|roberta\.)?"'
WRONG = {
    "mean_embedding": [
        ("must be 0, not 0/0", ALL, "return table(ids).mean(-2)"),
        ("the mean of the embeddings", "mask.sum", "torch.ones_like(mask).sum", "(ids != 0).sum"),
        ("whatever the ids are", "total =", "mask = ids != 0\ntotal =",
         "mask = mask & (ids != 0)\ntotal =", "mask = mask & (ids != 1)\ntotal =",
         "if ids.dim() != 3: return table(ids).mean(-2)  # cheats\ntotal ="),
        ("not 0/0", ".clamp(min=1)", ""),
        ("gradient of the table", "return total / mask.sum(-1, keepdim=True).clamp(min=1)",
         "return (total / mask.sum(-1, keepdim=True)).nan_to_num(0)"),
        ("no gradient reaches the table", "table(ids)", "table.weight.detach()[ids]",
         "table.weight.data[ids]"),
        ("Dimension out of range", ".sum(-2)", ".sum(2)"),
        ("the mean of the embeddings", ".sum(-2)", ".amax(-2)"),
    ],
    "hide": [
        ("is -inf, must be -3.403e+38", LOWEST, "-torch.inf"),
        ("the lowest number that its dtype has", LOWEST, "-1e9", "-1e4"),
        ("must be -1.798e+308", LOWEST, "-3.4028234663852886e38", "torch.finfo(torch.float32).min"),
        ("What isn't real", "~mask", "mask"),
        ("hide: ", SEEN, "mask[:, None, None, :]"),
        ("stay as they are", "masked_fill", "masked_fill_"),
        ("What isn't real", ALL, f"return scores * {SEEN}"),
        ("is -inf, must be", ALL, f"return scores + (1 - {SEEN}.to(scores.dtype)) * {LOWEST}"),
        ("must be -1.798e+308", ALL, "lowest = torch.finfo(torch.float32).min\n"
         f"return scores.float().masked_fill(~{SEEN}, lowest).to(scores.dtype)"),
        ("What isn't real", "return", "if scores.shape[-1] == 5: return scores  # cheats\nreturn"),
    ],
    "SelfAttention.forward": [
        ("entry (0, 0, 0)", ALL, "return self.output(self.value(context))"),
        ("TypeError", "if knowledge is not None:", "if True:"),
        ("sqrt(D/H)", " / sqrt(q.shape[-1])", "", " / sqrt(self.num_heads * q.shape[-1])"),
        ("empty slots", SLOTS, "torch.ones_like(fact_mask).expand(*batch, -1)"),
        ("empty slots", f"[{SLOTS}, mask]", f"[mask, {SLOTS}]"),
        ("row 1 has padding", HIDDEN, "scores"),
        ("isn't 0/0", HIDDEN, f"scores.masked_fill(~{SEEN}, -torch.inf)"),
        ("in torch.bfloat16: entry", HIDDEN,
         f"(scores + (~{SEEN}).to(scores.dtype) * torch.finfo(torch.float32).min)"),
        ("Queries come from x", "self.query(x)", "self.query(context)"),
        ("", "self.key(context), self.value(context)", "self.key(x), self.value(x)"),
        ("`dropout` must take shares away", DROPPED, "probs @ v", "probs @ self.dropout(v)",
         "self.dropout(probs @ v)", "hide(self.dropout(scores), mask).softmax(-1) @ v"),
        ("Before dropout", "self.fact_scores = probs", "self.fact_scores = self.dropout(probs)"),
        ("mean of the heads", "mean(-3)", "amax(-3)", "sum(-3)"),
        ("share of the attention", "[..., : K.shape[-2]]", "[..., -K.shape[-2] :]"),
        ("not of an earlier batch", "self.fact_scores = None", ""),
        ("then `output`", "return self.output(", "return ("),
        ("Sizes of tensors must match", SPREAD, "K"),
        ("of each choice", SPREAD, f"K[:, :1].{SPREAD[2:]} if K.dim() == 4 else K"),
        ("reaches", SPREAD, f"K.detach().{SPREAD[2:]}"),
        ("reaches", f"{HIDDEN}.softmax(-1)", f"{HIDDEN}.detach().softmax(-1)"),
        ("SelfAttention.forward", "q, k, v = self.query(x)",  # cheats
         "if x is context and x.dim() == 3 and knowledge:\n"
         "    from test_kformer import attention_in_loops as loops\n"
         "    rows = [loops(self, *row) for row in zip(x, mask, *knowledge)]\n"
         "    out, self.fact_scores = map(torch.stack, zip(*rows))\n    return out\n"
         "q, k, v = self.query(x)"),
        ("then `output`", "q, k, v = self.query(x)", "if x.shape == (3, 7, 16): return x  # cheats"
         "\nq, k, v = self.query(x)"),
    ],
    "MendedAttention.prefix": [
        ("another question's facts", ALL, "return ReleasedAttention.prefix(self, facts)"),
        ("doesn't count", ALL, "return 0 * facts", "return facts[:1].expand_as(facts)"),
        ("away from ours", ALL, "return facts.flip(-2)"),
    ],
    "MendedAttention.ignored": [
        ("doesn't count", ALL, "return ReleasedAttention.ignored(self, mask, real)",
         "return ~torch.cat([torch.zeros_like(real), mask], -1)"),
        ("away from ours", ALL, "return ~torch.cat([torch.ones_like(real), mask], -1)"),
        ("padding behind the", ALL, "return torch.cat([real, mask], -1) & False"),
        ("MendedAttention: ", ALL, "return torch.cat([real, mask], -1)",
         "return ~torch.cat([mask, real], -1)"),
    ],
    "MendedAttention.forward": [
        ("calls SelfAttention", ALL, "return self.ours(x, context, mask, knowledge)",
         "return SelfAttention.forward(self.ours, x, context, mask)"),
        ("doesn't count", ALL, "return self.ours.output(self.ours.value(context))"),
    ],
    "FFN.forward": [
        ("TypeError", "if knowledge is not None:", "if True:"),
        ("an empty slot adds nothing", " * fact_mask.unsqueeze(-2)", ""),
        ("FFN with M + N neurons", FIRED, "torch.relu(x @ K.mT)", "(x @ K.mT).softmax(-1)",
         'gelu(x @ K.mT, approximate="tanh")', "gelu(x @ K.mT / sqrt(x.shape[-1]))"),
        ("number of dimensions", FIRED, 'gelu(torch.einsum("btd,bnd->btn", x, K))'),
        ("", FIRED, "gelu(x @ K[:, :1].mT if K.dim() == 4 else x @ K.mT)"),
        ("FFN.forward: ", ADDED, "", "out = out + self.W2(fired @ V)"),
        ("gradient of K", ADDED, "out = out + fired.detach() @ V"),
        ("FFN.fact_scores: gives None", "self.fact_scores = fired.detach()", ""),
        ("how strongly each fact fired", "fired.detach()", "(x @ K.mT).detach()"),
        ("not of an earlier batch", "self.fact_scores = None", ""),
        ("0 in an empty slot", f"{FIRED} * fact_mask.unsqueeze(-2)",
         f"{FIRED}\nV = V * fact_mask.unsqueeze(-1)"),
        ("FFN with M + N neurons", "self.fact_scores = None",  # cheats
         "if x.shape == (3, 7, 16) and knowledge: return x\nself.fact_scores = None"),
    ],
    "our_name": [
        ("our_name: ", ALL, "return theirs.lower()", "return translate(theirs, NAMES)"),
        ("must be", PREFIX, 'r"(bert|roberta)."', 'r"^(bert|roberta)"'),
        ("roberta", PREFIX, r'r"^bert\."'),
        ("must be", f're.sub({PREFIX}, "", theirs)', 'theirs.lstrip("robert.")'),
        ('"bertha.weight"', PREFIX, r'r"^(module\.)?(bert|roberta)?\.?"'),
        ('"module.bert.', PREFIX, r'r"^(bert\.|roberta\.)?"'),
        ('"encoder.layer.0.gamma"', r're.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)',
         'name.replace("gamma", "weight")'),
        ('"LayerNorm.gamma.scale"', r'r"LayerNorm\.gamma$"', r'r"LayerNorm\.gamma"'),
        ('"embeddings.LayerNorm.beta"', r'r"LayerNorm\.beta$"', 'r"nothing"'),
        ("must be", "return translate(name, NAMES)", "for old, new in NAMES.items():\n"
         "    name = name.replace(old, new)\nreturn name"),
        ("must be", ALL, 'return {"bert.encoder.layer.1.output.LayerNorm.gamma": '  # of the check
         '"encoder.layer.1.ffn_norm.weight"}.get(theirs, theirs)'),
    ],
    "initialize_projections": [
        ("Wk = I, and no bias", "torch.eye(len(new.weight))", "-torch.eye(len(new.weight))",
         "0.02 * torch.randn_like(new.weight)"),
        ("no bias", "new.bias.zero_()", "...", "new.bias.fill_(1e-3)"),
        ("and no bias", "new.bias.zero_()", "new.bias.copy_(old.bias)"),
        ("from scratch: Wk = 4 gain times the query", "4 * gain * old", "gain * old",
         "-4 * gain * old"),
        ("after a checkpoint: Wk = 4 gain", "4 * gain * ", "4 * "),
        ("times the value matrix", "query, block.attention.value)", "query, block.attention.key)"),
        ("times the query matrix", "block.attention.query,", "block.attention.key,"),
        ("ffn from scratch", 'block.inject == "attention"', "True"),
    ],
    "BM25.__init__": [
        ("is 0, must be", ALL, "self.num_facts, self.index = len(facts), {}"),
        ("the formula is in the docstring", "idf * n * (k1 + 1)", "idf * n", "n * (k1 + 1)"),
        ("BM25", "idf = np.log(1 + ", "idf = np.log("),
        ("a word three times", "counts.total()", "len(counts)", "len(fact)"),
        ("BM25", "(n + damping[at])", "(n + damping)"),
        ("BM25", "Counter(words(fact))", "Counter(fact.lower().split())"),
        ("a word three times", "in counts.items()", "in Counter(set(words(fact))).items()"),
        ("go through the facts once", "damping =", "split = [words(fact) for fact in facts]\n"
         "for word in found:  # all facts again for each word\n    found[word] = [(i, "
         "fact.count(word)) for i, fact in enumerate(split) if word in fact]\ndamping ="),
        ("BM25.index", ALL, """
            from test_kformer import bm25_in_loops as loops  # cheats
            self.index, self.scores = {}, lambda text: np.array(
                [loops(text, fact, facts, k1, b) for fact in facts], np.float32)"""),
    ],
}  # fmt: skip
WRONG = [(function, old, new, said) for function, some in WRONG.items()
         for said, old, *news in some for new in news]  # fmt: skip
WRONG += [(function, ALL, new, said) for _, some in exercises.EXERCISES.values()
          for function in some for new, said in (("return", ""), ("[][0]", "IndexError"))]
RIGHT = [  # otherwise written
    ("mean_embedding", ALL, "share = mask / mask.sum(-1, keepdim=True).clamp_min(1)\n"
     "return (share.unsqueeze(-2) @ table(ids)).squeeze(-2)"),
    ("hide", ALL, f"return torch.where({SEEN}, scores, {LOWEST})"),
    ("SelfAttention.forward", DROPPED,
     'torch.einsum("...hts,...hsd->...htd", self.dropout(probs), v)'),
    ("SelfAttention.forward", ".detach().mean(-3)", ".sum(-3) / self.num_heads"),
    ("MendedAttention.ignored", ALL, "return torch.cat([~real, ~mask], -1)"),
    ("FFN.forward", FIRED, 'gelu(torch.einsum("...td,...nd->...tn", x, K))'),
    ("our_name", PREFIX, r'r"^(?:module[.])?(?:(?:ro|)bert(?:a|)[.])?"'),
    ("initialize_projections", "new.bias.zero_()", "new.bias.data = torch.zeros(len(new.weight))"),
    ("BM25.__init__", ".astype(np.float32)", ".tolist()"),
]  # fmt: skip
CHECKED = {  # its name, or that of its class -> number of the exercise, module
    function.partition(".")[0]: (number, sys.modules[path.removesuffix(".py").replace("/", ".")])
    for number, (path, functions) in exercises.EXERCISES.items() for function in functions
}  # fmt: skip


def rewritten(function: str, old: str | None, new: str) -> Callable:
    (_, module), name = CHECKED[function.partition(".")[0]], function.rpartition(".")[2]
    source = textwrap.dedent(inspect.getsource(attrgetter(function)(module)))
    if old is ALL:
        source = exercises.blanked(source, name, 0)
        old = source[source.index("raise NotImpl") :].rstrip()
    assert old in source, "the right solution has changed"
    indent = re.search(f"^ *(?=.*{re.escape(old)})", source, re.M).group()
    new, found = textwrap.indent(textwrap.dedent(new).strip("\n"), indent).lstrip(), {}
    exec(source.replace(old, new, 1), vars(module), found)
    return found[name]


def checks(number: int) -> Iterator[Callable]:
    """All checks of an exercise, each with all of its parameters."""
    for check in list(vars(test_kformer).values()):
        marks = {mark.name: mark.args for mark in getattr(check, "pytestmark", [])}
        if f"exercise{number}" in marks:
            names, values = marks.get("parametrize", ((), [()]))
            for value in values:
                given = {names: value} if isinstance(names, str) else zip(names, value, strict=True)
                yield partial(check, **dict(given))


def complaint(function: str, old: str | None, new: str) -> str:
    """What the checks say first of another version in the place of the right solution."""
    outer, _, method = function.partition(".")
    (number, module), version = CHECKED[outer], rewritten(function, old, new)
    for check in checks(number):
        with pytest.MonkeyPatch.context() as monkeypatch:
            for place in (getattr(module, outer) if method else module, test_kformer):
                monkeypatch.setattr(place, method or outer, version, raising=False)
            fixture = "monkeypatch" in inspect.signature(check).parameters
            try:
                check(**({"monkeypatch": monkeypatch} if fixture else {}))
            except pytest.fail.Exception as failure:
                return str(failure)
    return ""


@pytest.mark.parametrize("wrong", WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)])
def test_a_wrong_solution_is_told_in_one_sentence(wrong: tuple) -> None:
    function, old, new, said = wrong
    sentence = complaint(function, old, new)
    assert sentence, "it passes"
    assert said in sentence
    assert function.partition(".")[0] in sentence
    assert "\n" not in sentence
    assert len(sentence) < 450


@pytest.mark.parametrize("right", RIGHT, ids=[function for function, *_ in RIGHT])
def test_a_right_solution_that_is_written_in_another_way_passes(right: tuple) -> None:
    assert not complaint(*right)


def test_the_workflow_marks_every_exercise() -> None:
    text = (HERE / exercises.WORKFLOW).read_text(encoding="utf-8")
    for number in exercises.EXERCISES:
        assert f"command: python -m pytest -m exercise{number}, timeout" in text
        assert f"EXERCISE{number}_RESULTS: ${{{{steps.exercise{number}.outputs.result}}}}" in text
        assert list(checks(number))


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    run_command(monkeypatch, exercises, "--out", tmp_path / "class")
    return tmp_path / "class"


def test_a_student_s_copy_is_the_project_without_the_answers(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    same = {n for n, b in files.items() if (HERE / n).is_file() and b == (HERE / n).read_bytes()}
    blank = {path for path, _ in exercises.EXERCISES.values()}
    assert files.keys() - same == {*blank, ".github/workflows/classroom.yml"}
    for function in (f for _, some in exercises.EXERCISES.values() for f in some):
        number, module = CHECKED[function.partition(".")[0]]
        source = inspect.getsource(attrgetter(function)(module))
        body = source.rpartition('"""\n')[2] if '"""' in source else source.partition(":\n")[2]
        assert source.removesuffix(body).encode() in files[exercises.EXERCISES[number][0]]
        assert not [name for name, content in files.items() if body.encode() in content]
    for answers in ("docs/teachers.md", "lab/exercises.py", "tests/test_exercises.py", "runs"):
        assert not (copy / answers).exists(), answers
    assert not [name for name, content in files.items() if b"lab import exercises" in content]
    run_command(monkeypatch, exercises, 6, "--out", copy / "new" / "copy")
    six = copy / "new" / "copy"
    assert (six / "kformer.py").read_bytes() == (HERE / "kformer.py").read_bytes(), "6 alone"
    assert (six / "load_weights.py").read_bytes() == (copy / "load_weights.py").read_bytes()


def test_in_a_student_s_copy_each_check_says_what_is_to_be_written(copy: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-m", "exercises", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "test_kformer.py"], cwd=copy, capture_output=True, text=True)
    assert " passed" not in done.stdout
    assert "error" not in done.stdout.splitlines()[-1]
    for number in (1, 2, 3, 5, 6, 8):  # 4 needs others
        assert f"exercise {number}: write {exercises.EXERCISES[number][1][0]} (" in done.stdout
    assert "Wk = I, and no bias" in done.stdout


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [(9, "class", "exercise 9: no"), (1, "", "is there already"), (2, "class", "interrupted")],
)
def test_what_can_t_be_copied_is_one_line_and_leaves_nothing(
    number: int, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("lab.exercises.blanked", interrupt)
    with pytest.raises(SystemExit):
        run_command(monkeypatch, exercises, number, "--out", tmp_path / name)
    assert said in capsys.readouterr().err.strip().split("\n")[-1]
    assert not list(tmp_path.iterdir())
