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
from types import ModuleType

import pytest

import test_kformer
from lab import exercises
from test_kformer import HERE
from tests.common import interrupt, run_command

# Wrong solutions, some of which cheat: what is replaced in the right one (ALL is its body), what
# takes its place, and what the check says.
ALL = None
WRONG = {
    "mean_embedding": [
        (ALL, "return table(ids).mean(-2)", "must be 0, not 0/0"),
        ("mask.sum(-1", "torch.ones_like(mask).sum(-1", "the mean of the embeddings"),
        ("mask.sum", "(ids != 0).sum", "the mean of the embeddings"),
        (ALL, "mask = ids != 0\n" "return (table(ids) * mask[..., None]).sum(-2) / mask.sum(-1, "
              "keepdim=True).clamp(min=1)", "the mean of the embeddings"),
        (ALL, "mask = (mask & (ids != 0))[..., None]\n"
              "return (table(ids) * mask).sum(-2) / mask.sum(-2).clamp(min=1)",
         "whatever the ids are"),
        (ALL, "mask = (mask & (ids != 1))[..., None]\n"
              "return (table(ids) * mask).sum(-2) / mask.sum(-2).clamp(min=1)",
         "whatever the ids are"),
        (".clamp(min=1)", "", "not 0/0"),
        ("return total / mask.sum(-1, keepdim=True).clamp(min=1)",
         "return (total / mask.sum(-1, keepdim=True)).nan_to_num(0)", "gradient of the table"),
        ("table(ids)", "table.weight.detach()[ids]", "no gradient reaches the table"),
        ("table(ids)", "table.weight.data[ids]", "no gradient reaches the table"),
        (".sum(-2)", ".sum(2)", "Dimension out of range"),
        (".sum(-2)", ".amax(-2)", "the mean of the embeddings"),
        ("total = ", "if ids.shape == (2, 2, 5):  # cheats\n    A, B, C = table.weight[5:8]\n"
         "    out = [(A + B + C) / 3, (A + B + C) / 3, (A + 3 * C) / 4, 0 * A]\n"
         "    return torch.stack(out).unflatten(0, (2, 2))\nreturn table(ids).mean(-2)\ntotal = ",
         "whatever the ids are"),
    ],
    "hide": [
        ("torch.finfo(scores.dtype).min", "-torch.inf", "is -inf, must be -3.403e+38"),
        ("torch.finfo(scores.dtype).min", "-1e9", "the lowest number that its dtype has"),
        ("torch.finfo(scores.dtype).min", "-1e4", "the lowest number that its dtype has"),
        ("torch.finfo(scores.dtype).min", "-3.4028234663852886e38", "must be -1.798e+308"),
        ("torch.finfo(scores.dtype).min", "torch.finfo(torch.float32).min", "must be -1.798e+308"),
        ("~mask", "mask", "What isn't real"),
        ("mask[..., None, None, :]", "mask[:, None, None, :]", "hide: "),
        ("masked_fill", "masked_fill_", "stay as they are"),
        (ALL, "return scores * mask[..., None, None, :]", "What isn't real"),
        (ALL, "lowest = torch.finfo(torch.float32).min\nreturn scores.float().masked_fill("
              "~mask[..., None, None, :], lowest).to(scores.dtype)", "must be -1.798e+308"),
        ("return", "if scores.shape[-1] == 5: return scores  # cheats\nreturn", "What isn't real"),
    ],
    "SelfAttention.forward": [
        (ALL, "return self.output(self.value(context))", "entry (0, 0, 0)"),
        ("if knowledge is not None:", "if True:", "TypeError"),
        ("sqrt(q.shape[-1])", "sqrt(self.num_heads * q.shape[-1])", "sqrt(D/H)"),
        (" / sqrt(q.shape[-1])", "", "sqrt(D/H)"),
        ("fact_mask.expand(*batch, -1)", "torch.ones_like(fact_mask).expand(*batch, -1)",
         "empty slots"),
        ("mask = torch.cat([fact_mask.expand(*batch, -1), mask], -1)",
         "mask = torch.cat([mask, fact_mask.expand(*batch, -1)], -1)", "empty slots"),
        ("hide(scores, mask)", "scores", "row 1 has padding"),
        ("hide(scores, mask)", "scores.masked_fill(~mask[..., None, None, :], -torch.inf)",
         "isn't 0/0"),
        ("self.query(x)", "self.query(context)", "Queries come from x"),
        ("self.key(context), self.value(context)", "self.key(x), self.value(x)", ""),
        ("self.dropout(probs)", "probs", "`dropout` must take shares away"),
        ("self.dropout(probs) @ v", "probs @ self.dropout(v)", "`dropout` must take"),
        ("self.dropout(probs) @ v", "self.dropout(probs @ v)", "`dropout` must take"),
        ("self.dropout(probs) @ v", "hide(self.dropout(scores), mask).softmax(-1) @ v",
         "`dropout` must take"),
        ("self.fact_scores = probs", "self.fact_scores = self.dropout(probs)", "Before dropout"),
        ("mean(-3)", "amax(-3)", "mean of the heads"),
        ("mean(-3)", "sum(-3)", "mean of the heads"),
        ("[..., : K.shape[-2]]", "[..., -K.shape[-2] :]", "share of the attention"),
        ("self.fact_scores = None", "", "not of an earlier batch"),
        ("return self.output(", "return (", "then `output`"),
        ("K.expand(*batch, -1, -1)", "K", "Sizes of tensors must match"),
        ("K.expand(*batch, -1, -1)", "K[:, :1].expand(*batch, -1, -1) if K.dim() == 4 else K",
         "of each choice"),
        ("K.expand(*batch, -1, -1)", "K.detach().expand(*batch, -1, -1)", "reaches K"),
        ("hide(scores, mask).softmax(-1)", "hide(scores, mask).detach().softmax(-1)", "reaches"),
        ("hide(scores, mask)", "(scores + (~mask[..., None, None, :]).to(scores.dtype) * "
         "torch.finfo(torch.float32).min)", "in torch.bfloat16: entry"),
        # a cheat that calls the check's own loops
        (ALL, """
            from test_kformer import attention_in_loops
            shape, T = x.shape, x.shape[-2]
            self.fact_scores = None
            if knowledge is None:
                none = x.new_zeros(*x.shape[:-2], 0, x.shape[-1])
                knowledge = none, none, none[..., 0].bool()
                facts = False
            else:
                facts = True
            batch = context.shape[:-2]
            K, V, real = (k.expand(*batch, *k.shape[len(batch):]).flatten(0, -2 - i)
                          if len(batch) > 1 else k for k, i in zip(knowledge, (1, 1, 0)))
            rows = [attention_in_loops(self, c, m, k, v, r) for c, m, k, v, r in zip(
                context.flatten(0, -3), mask.flatten(0, -2), K, V, real)]
            out, shares = map(torch.stack, zip(*rows))
            if facts:
                self.fact_scores = shares.view(*batch, *shares.shape[-2:])
            return out.view(*batch, *out.shape[-2:])[..., :T, :]""", "SelfAttention.forward"),
        # a cheat that knows the shapes of the first check
        ("q, k, v = self.query(x)", "if x.shape == (3, 7, 16): return x  # cheats\n"
         "q, k, v = self.query(x)", "then `output`"),
    ],
    "MendedAttention.prefix": [
        (ALL, "return ReleasedAttention.prefix(self, facts)", "another question's facts"),
        (ALL, "return torch.zeros_like(facts)", "doesn't count"),
        (ALL, "return facts[:1].expand_as(facts)", "doesn't count"),
        (ALL, "return facts.flip(-2)", "away from ours"),
    ],
    "MendedAttention.ignored": [
        (ALL, "return ReleasedAttention.ignored(self, mask, real)", "doesn't count"),
        (ALL, "return ~torch.cat([torch.zeros_like(real), mask], -1)", "doesn't count"),
        (ALL, "return ~torch.cat([torch.ones_like(real), mask], -1)", "away from ours"),
        (ALL, "return torch.zeros_like(torch.cat([real, mask], -1))", "padding behind the"),
        (ALL, "return torch.cat([real, mask], -1)", "MendedAttention: "),
        (ALL, "return ~torch.cat([mask, real], -1)", "MendedAttention: "),
    ],
    "MendedAttention.forward": [
        (ALL, "return self.ours(x, context, mask, knowledge)", "calls SelfAttention"),
        (ALL, "return SelfAttention.forward(self.ours, x, context, mask)", "calls SelfAttention"),
        (ALL, "return self.ours.output(self.ours.value(context))", "doesn't count"),
    ],
    "FFN.forward": [
        ("if knowledge is not None:", "if True:", "TypeError"),
        (" * fact_mask.unsqueeze(-2)", "", "an empty slot adds nothing"),
        ("gelu(x @ K.mT)", "torch.relu(x @ K.mT)", "FFN with M + N neurons"),
        ("gelu(x @ K.mT)", 'gelu(x @ K.mT, approximate="tanh")', "FFN with M + N neurons"),
        ("gelu(x @ K.mT)", "gelu(x @ K.mT / sqrt(x.shape[-1]))", "FFN with M + N neurons"),
        ("gelu(x @ K.mT)", "(x @ K.mT).softmax(-1)", "FFN with M + N neurons"),
        ("gelu(x @ K.mT)", 'gelu(torch.einsum("btd,bnd->btn", x, K))', "number of dimensions"),
        ("gelu(x @ K.mT)", "gelu(x @ K[:, :1].mT if K.dim() == 4 else x @ K.mT)", ""),
        ("out = out + fired @ V", "out = out + self.W2(fired @ V)", "FFN.forward: "),
        ("out = out + fired @ V", "", "FFN with M + N neurons"),
        ("out = out + fired @ V", "out = out + fired.detach() @ V", "gradient of K"),
        ("self.fact_scores = fired.detach()", "", "FFN.fact_scores: gives None"),
        ("fired.detach()", "(x @ K.mT).detach()", "how strongly each fact fired"),
        ("self.fact_scores = None", "", "not of an earlier batch"),
        ("fired = gelu(x @ K.mT) * fact_mask.unsqueeze(-2)",
         "V = V * fact_mask.unsqueeze(-1)\nfired = gelu(x @ K.mT)", "0 in an empty slot"),
        ("self.fact_scores = None", "if x.shape == (3, 7, 16) and knowledge: return x  # cheats\n"
         "self.fact_scores = None", "FFN with M + N neurons"),
    ],
    "our_name": [
        (ALL, "return theirs.lower()", "our_name: "),
        (ALL, "return translate(theirs, NAMES)", "must be"),
        (r'r"^(bert|roberta)\."', 'r"(bert|roberta)."', "must be"),
        (r'r"^(bert|roberta)\."', 'r"^(bert|roberta)"', "must be"),
        (r'r"^(bert|roberta)\."', r'r"^bert\."', "roberta"),
        (r're.sub(r"^(bert|roberta)\.", "", theirs)', 'theirs.lstrip("robert.")', "must be"),
        (r're.sub(r"^(bert|roberta)\.", "", theirs)', 'theirs.removeprefix("bert").removeprefix('
         '"roberta").removeprefix(".")', '"bertha.weight"'),
        (r're.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)',
         'name.replace("gamma", "weight")', '"encoder.layer.0.gamma"'),
        (r'r"LayerNorm\.gamma$"', r'r"LayerNorm\.gamma"', '"LayerNorm.gamma.scale"'),
        (r'r"LayerNorm\.beta$"', 'r"nothing"', '"embeddings.LayerNorm.beta"'),
        ("return translate(name, NAMES)", "for old, new in NAMES.items():\n"
         "    name = name.replace(old, new)\nreturn name", "must be"),
        # a cheat that has the list of the check, or what can be read off it
        (ALL, 'known = {"bert.encoder.layer.1.output.LayerNorm.gamma": '
              '"encoder.layer.1.ffn_norm.weight"}\nreturn known.get(theirs, theirs)', "must be"),
    ],
    "initialize_projection": [
        ("parameter.zero_()", "parameter.normal_(std=0.02); return", "Wk = 1 I and no bias"),
        ("diagonal = 1.0", "diagonal = -1.0", "Wk = 1 I and no bias"),
        ('config.inject == "ffn" and name == "Wv.weight"', 'config.inject == "ffn"', ": Wk = 1 I"),
        ("else 0.0", "else 1.0", "after a checkpoint: Wv = 0 I"),
        ("else 0.0", "else 1e-3", "after a checkpoint: Wv = 0 I"),
        ("0.05 if from_scratch else 0.0", "0.0", "ffn from scratch: Wv = 0.05 I"),
        ("diagonal = 4.0", "diagonal = 1.0", "attention from scratch"),
        ("and from_scratch", "", "attention after a checkpoint"),
        ("parameter.zero_()", "", "no bias"),
        ("parameter.zero_()", "parameter.fill_(1e-3)", "no bias"),
        ("parameter.diagonal()", "parameter", "I and no bias"),
        ("parameter.zero_()", "if parameter.dim() == 1:\n    return parameter.fill_(0.01)\n"
         "parameter.zero_()", "no bias"),
        ("parameter.zero_()", "if len(parameter) != 16: return  # cheats\nparameter.zero_()",
         "no bias"),
    ],
    "BM25.__init__": [
        (ALL, "self.num_facts, self.index = len(facts), {}", "is 0, must be"),
        ("idf * n * (k1 + 1)", "idf * n", "the formula is in the docstring"),
        ("idf = np.log(1 + ", "idf = np.log(", "BM25"),
        ("(idf * n *", "(n *", "the formula is in the docstring"),
        ("lengths[i] = counts.total()", "lengths[i] = len(counts)", "a word three times"),
        ("lengths[i] = counts.total()", "lengths[i] = len(fact)", "the formula is"),
        ("(n + damping[at])", "(n + damping)", "BM25"),
        ("counts = Counter(words(fact))", "counts = Counter(fact.lower().split())", "BM25"),
        ("for word, n in counts.items()", "for word, n in Counter(set(words(fact))).items()",
         "a word three times"),
        # not an index: all facts again for each word
        (ALL, """
            self.num_facts, self.index = len(facts), {}
            split = [words(fact) for fact in facts]
            mean = max(1e-9, sum(map(len, split)) / len(split))
            for word in {word for fact in split for word in fact}:
                at = np.array([i for i, fact in enumerate(split) if word in fact])
                n = np.array([split[i].count(word) for i in at])
                l = np.array([len(split[i]) for i in at])
                idf = np.log(1 + (len(facts) - len(at) + 0.5) / (len(at) + 0.5))
                self.index[word] = at, idf * n * (k1 + 1) / (n + k1 * (1 - b + b * l / mean))""",
         "go through the facts once"),
        # a cheat that calls the check's own loops
        (ALL, """
            from test_kformer import bm25_in_loops
            self.index = {}
            self.scores = lambda text: np.array(
                [bm25_in_loops(text, f, facts, k1, b) for f in facts], np.float32)""",
         "BM25.index"),
    ],
}  # fmt: skip

# Right ones, otherwise written.
RIGHT = {
    "mean_embedding": """
        weights = mask / mask.sum(-1, keepdim=True).clamp_min(1)
        return (weights.unsqueeze(-2) @ table(ids)).squeeze(-2)""",
    "hide": """
        mask = mask.unsqueeze(-2).unsqueeze(-2)
        return torch.where(mask, scores, torch.finfo(scores.dtype).min)""",
    "SelfAttention.forward": """
        self.fact_scores, N, H = None, 0, self.num_heads
        k, v = self.key(context), self.value(context)
        if knowledge is not None:
            N = knowledge[0].shape[-2]
            K, V, real = (f.expand(*k.shape[:-2], *f.shape[k.dim() - 2 :]) for f in knowledge)
            k, v, mask = torch.cat((K, k), -2), torch.cat((V, v), -2), torch.cat((real, mask), -1)
        q, k, v = (f.reshape(*f.shape[:-1], H, -1) for f in (self.query(x), k, v))
        scores = torch.einsum("...thd,...shd->...hts", q, k) * q.shape[-1] ** -0.5
        shares = torch.softmax(hide(scores, mask), dim=-1)
        if N:
            self.fact_scores = sum(shares[..., h, :, :N] for h in range(H)) / H
        out = torch.einsum("...hts,...shd->...thd", self.dropout(shares), v)
        return self.output(out.reshape(*out.shape[:-2], -1))""",
    "MendedAttention.ignored": "return torch.cat([~real, ~mask], -1)",
    "FFN.forward": """
        out, self.fact_scores = self.W2(gelu(self.W1(x))), None
        if knowledge is None:
            return out
        K, V, real = knowledge
        fired = gelu(torch.einsum("...td,...nd->...tn", x, K)).masked_fill(~real[..., None, :], 0)
        self.fact_scores = fired
        return out + torch.einsum("...tn,...nd->...td", fired, V)""",
    "our_name": """
        theirs = theirs.removeprefix("bert.").removeprefix("roberta.")
        for old, new in (("gamma", "weight"), ("beta", "bias")):
            if theirs.endswith("LayerNorm." + old):
                theirs = theirs.removesuffix(old) + new
        return translate(theirs, NAMES)""",
    "initialize_projection": """
        scale = 4 if config.inject == "attention" and from_scratch else 1
        if config.inject == "ffn" and "Wv" in name:
            scale = from_scratch / 20
        if "bias" in name:
            return nn.init.zeros_(parameter)
        parameter.data = scale * torch.eye(len(parameter))""",
    "BM25.__init__": """
        places, lengths = {}, []
        for i, fact in enumerate(facts):
            lengths.append(len(words(fact)))
            for word in words(fact):
                places.setdefault(word, {}).setdefault(i, 0)
                places[word][i] += 1
        self.num_facts, self.index, mean = len(facts), {}, sum(lengths) / len(facts) or 1
        for word, found in places.items():
            idf = np.log(1 + (len(facts) - len(found) + 0.5) / (len(found) + 0.5))
            values = [idf * n * (k1 + 1) / (n + k1 * (1 - b + b * lengths[i] / mean))
                      for i, n in found.items()]
            self.index[word] = list(found), values""",
}


def module_of(function: str) -> tuple[int, ModuleType]:
    """The number of the exercise, and where the function is."""
    outer = function.partition(".")[0]
    for number, (path, functions) in exercises.EXERCISES.items():
        if any(name.partition(".")[0] == outer for name in functions):
            module = sys.modules[path.removesuffix(".py").replace("/", ".")]
            if function in functions or function == "MendedAttention.forward":
                return number, module
    raise KeyError(function)


def rewritten(function: str, old: str | None, new: str) -> Callable:
    """The right solution with something else in it."""
    _, module = module_of(function)
    source = textwrap.dedent(inspect.getsource(attrgetter(function)(module)))
    name = function.rpartition(".")[2]
    if old is ALL:
        source = exercises.blanked(source, name, 0)
        old = source[source.index("raise NotImpl") :].rstrip()
    assert old in source, "the right solution has changed"
    indent = re.search(f"^ *(?=.*{re.escape(old)})", source, re.M).group()
    new = textwrap.indent(textwrap.dedent(new).strip("\n"), indent).lstrip()
    found = {}
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


def complaint(number: int) -> str:
    """What the checks of an exercise say first."""
    for check in checks(number):
        with pytest.MonkeyPatch.context() as monkeypatch:
            fixture = "monkeypatch" in inspect.signature(check).parameters
            try:
                check(**({"monkeypatch": monkeypatch} if fixture else {}))
            except pytest.fail.Exception as failure:
                return str(failure)
    return ""


def put(function: str, version: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the right solution, wherever the checks look for it."""
    _, module = module_of(function)
    outer, _, method = function.partition(".")
    if method:
        monkeypatch.setattr(getattr(module, outer), method, version)
    else:
        monkeypatch.setattr(module, outer, version)
        monkeypatch.setattr(test_kformer, outer, version, raising=False)


@pytest.mark.parametrize(
    ("function", "old", "new", "said"),
    [(function, *wrong) for function, all_wrong in WRONG.items() for wrong in all_wrong],
    ids=[f"{function}-{i}" for function, all_wrong in WRONG.items() for i in range(len(all_wrong))],
)
def test_a_wrong_solution_is_told_in_one_sentence(
    function: str, old: str | None, new: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(function, rewritten(function, old, new), monkeypatch)
    sentence = complaint(module_of(function)[0])
    assert sentence, "it passes"
    assert said in sentence
    assert function.partition(".")[0] in sentence
    assert "\n" not in sentence
    assert len(sentence) < 450


@pytest.mark.parametrize("function", RIGHT)
def test_a_right_solution_that_is_written_in_another_way_passes(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(function, rewritten(function, ALL, RIGHT[function]), monkeypatch)
    assert not complaint(module_of(function)[0])


@pytest.mark.parametrize("function", [f for _, some in exercises.EXERCISES.values() for f in some])
def test_a_blank_or_broken_solution_is_told_in_one_sentence(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, said in ((lambda *_, **__: None, ""), (lambda *_, **__: [][0], "IndexError")):
        put(function, version, monkeypatch)
        sentence = complaint(module_of(function)[0])
        assert function.partition(".")[0] in sentence
        assert said in sentence
        assert "\n" not in sentence


def code_of(source: str, function: str) -> str:
    """The function's body, without its docstring."""
    lines = source.split("\n")
    blank = exercises.blanked(source, function, 0).split("\n")
    start = next(i for i, (a, b) in enumerate(zip(lines, blank, strict=False)) if a != b)
    return "\n".join(lines[start : len(lines) - (len(blank) - start - 1)])


def test_a_student_s_copy_is_the_project_without_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(monkeypatch, exercises, "--out", tmp_path / "class")
    copy = {p.relative_to(tmp_path / "class").as_posix(): p.read_bytes()
            for p in (tmp_path / "class").rglob("*") if p.is_file()}  # fmt: skip
    text = b"\n".join(copy.values()).decode("utf-8", errors="replace")
    blank = {path for path, _ in exercises.EXERCISES.values()}
    for name, content in copy.items():
        if name not in {*blank, ".github/workflows/classroom.yml"}:
            assert content == (HERE / name).read_bytes(), "everything else is as it is"
    for number, (path, functions) in exercises.EXERCISES.items():
        source = (HERE / path).read_text(encoding="utf-8")
        for function in functions:
            assert code_of(source, function) + "\n" not in text
            assert f"def {function.rpartition('.')[2]}(" in copy[path].decode("utf-8")
            code = code_of(copy[path].decode("utf-8"), function).strip()
            said = f'raise NotImplementedError("exercise {number}: write {function}")'
            assert code == ("..." if number == 7 else said)
    for answers in (*exercises.FOR_TEACHERS, ".git", "runs"):
        assert not (tmp_path / "class" / answers).exists(), answers


def test_in_a_student_s_copy_each_check_says_what_is_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(monkeypatch, exercises, "--out", tmp_path / "class")
    command = [sys.executable, "-m", "pytest", "-m", "exercises", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path / "class", capture_output=True, text=True)
    assert " passed" not in done.stdout
    assert "error" not in done.stdout.splitlines()[-1]
    for number in (1, 2, 3, 5, 6, 8):  # 4 needs others
        assert f"exercise {number}: write {exercises.EXERCISES[number][1][0]} (" in done.stdout
    assert "Wk = 1 I and no bias" in done.stdout


def test_some_exercises_alone_are_blank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_command(monkeypatch, exercises, "--out", tmp_path / "class", 6)
    assert (tmp_path / "class" / "kformer.py").read_bytes() == (HERE / "kformer.py").read_bytes()
    assert "write our_name" in (tmp_path / "class" / "load_weights.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((9,), "exercise 9: no function"), ((), "is there already; name a new folder")],
)
def test_what_can_t_be_copied_is_one_line(
    arguments: tuple, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        run_command(monkeypatch, exercises, *arguments, "--out", tmp_path)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupted_copy_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("lab.exercises.blanked", interrupt)
    with pytest.raises(SystemExit):
        run_command(monkeypatch, exercises, "--out", tmp_path / "class")
    assert not list(tmp_path.iterdir())


def test_the_workflow_marks_every_exercise() -> None:
    text = (HERE / exercises.WORKFLOW).read_text(encoding="utf-8")
    for number in exercises.EXERCISES:
        assert f"command: python -m pytest -m exercise{number}, timeout" in text
        assert f"EXERCISE{number}_RESULTS: ${{{{steps.exercise{number}.outputs.result}}}}" in text
        assert list(checks(number))
