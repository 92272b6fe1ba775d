"""Folders to try things on."""

import shutil
from pathlib import Path

import pytest

from data import make_toy
from qa.questions import Question, read_questions
from test_kformer import HERE
from tests.common import FORMATS, KINDS, REFERENCE, change_json, write_lines


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a reference folder, to be changed."""
    return Path(shutil.copytree(REFERENCE / request.param, tmp_path / request.param))


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first lines of the toy world."""
    folder = tmp_path_factory.mktemp("small")
    for split in make_toy.SIZES:
        lines = (HERE / "data/toy" / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
        (folder / f"{split}.jsonl").write_text("\n".join(lines[:40]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """Social IQA as it comes: labels in files of their own, "dev", a test split without answers;
    and facts that no question refers to.
    """
    for split, answers in (("train", "123121"), ("dev", "1231"), ("test", "")):
        count = len(answers) or 3
        write_lines(tmp_path / f"{split}.jsonl", *[FORMATS["social_iqa"]] * count)
        if answers:
            write_lines(tmp_path / f"{split}-labels.lst", *answers)
    write_lines(tmp_path / "facts.txt", "the owl eats mice", "the oak is old", "", "rain at night")
    return tmp_path


@pytest.fixture(scope="module")
def toy() -> dict[str, list[Question]]:
    return {s: read_questions(HERE / "data/toy" / f"{s}.jsonl") for s in make_toy.SIZES}


@pytest.fixture
def dropout_world(small_world: Path, tmp_path: Path) -> Path:
    """The same beside the encoder, with dropout."""
    folder = Path(shutil.copytree(small_world, tmp_path / "world"))
    shutil.copytree(HERE / "data" / "encoder", folder, dirs_exist_ok=True)
    change_json(folder / "config.json", hidden_dropout_prob=0.1)
    return folder
