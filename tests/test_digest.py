"The digest of the code: what decides a result changes it, what is only seen does not."
import re
import shutil
from pathlib import Path

import pytest

import fakd.digest
from fakd.digest import DECIDES, code_digest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A copy of the package, which `code_digest` reads instead."
    shutil.copytree(ROOT / "fakd", tmp_path / "fakd", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fakd.digest.resources, "files", lambda name: tmp_path / name)
    return tmp_path / "fakd"


def change(file, before, after):
    text = file.read_text(encoding="utf-8")
    assert len(re.findall(before, text)) >= 1
    file.write_text(re.sub(before, after, text, count=1), encoding="utf-8")


def test_a_colour_does_not_change_the_digest(package):
    before = code_digest()
    change(package / "look/figures.py", r'"#[0-9a-f]{6}"', '"#123456"')
    change(package / "static/explorer.css", r"#[0-9a-f]{3,6}", "#123456")
    assert code_digest() == before


def test_the_eps_of_the_affinity_changes_the_digest(package):
    before = code_digest()
    change(package / "distil/affinity.py", r"eps: float = 1e-8", "eps: float = 1e-7")
    assert code_digest() != before


def test_prose_does_not_change_the_digest(package):
    before = code_digest()
    change(package / "distil/affinity.py", r'^"""[^"]*"""', '"""Other words."""')
    change(package / "nets/rcan.py", r"\n\n\n", "\n\n\n# a remark\n")
    assert code_digest() == before


@pytest.mark.parametrize("name", DECIDES)
def test_each_module_that_decides_is_there(name):
    assert (ROOT / "fakd" / f"{name.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("name", [name for name in DECIDES if not name.startswith("train.")])
def test_what_decides_holds_no_html_no_colour_and_no_bar(name):
    text = (ROOT / "fakd" / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
    looks = r"<t[drh]>|<table|_repr_html_|import html|matplotlib|seaborn|\"#[0-9a-fA-F]{6}\"|\bBar\b|tqdm|print\("
    assert re.findall(looks, text) == []
