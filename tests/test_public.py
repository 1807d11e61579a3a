"The public face: `import fakd` is instant, its names are there, and an editor knows them."
import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jedi
import pytest

import fakd
import fakd.train

ROOT = Path(__file__).parents[1]


def test_import_fakd_loads_neither_pytorch_nor_matplotlib():
    code = "import fakd, fakd.train, sys; print(sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "matplotlib", "numpy", "pydantic"} & set(ast.literal_eval(done.stdout))


@pytest.mark.parametrize("name", fakd.__all__)
def test_each_public_name_is_what_its_module_defines(name):
    value = getattr(fakd, name)
    assert value is getattr(import_module(f"fakd.{fakd._HOMES[name]}"), name)
    assert value.__module__ == f"fakd.{fakd._HOMES[name]}", "a name lives where it is defined"
    assert name in dir(fakd)


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(AttributeError, match="no attribute 'distil_'; it has distill, train_teacher"):
        fakd.distil_  # noqa: B018
    with pytest.raises(ImportError):
        exec("from fakd import distil_")


def test_type_checkers_are_told_of_the_same_names():
    tree = ast.parse((ROOT / "fakd/__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {a.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert told == fakd._HOMES


def test_the_wing_of_training_hands_out_the_two_whole_runs():
    assert (fakd.train.distill, fakd.train.train_teacher) == (fakd.distill, fakd.train_teacher)


@pytest.mark.parametrize("source", ["import fakd\nfakd.distill(", "from fakd.train import distill\ndistill("])
def test_an_editor_shows_the_settings(source):
    script = jedi.Script(source, project=jedi.Project(ROOT))
    (shown,) = script.get_signatures(2, len(source.splitlines()[1]))
    assert [p.name for p in shown.params] == list(inspect.signature(fakd.distill).parameters)


def test_an_editor_completes_the_names():
    found = {c.name for c in jedi.Script("import fakd\nfakd.", project=jedi.Project(ROOT)).complete(2, 5)}
    assert set(fakd.__all__) <= found
