"The command under a report asks for the very settings of its run, whatever is in them."

import ast
import shlex
import subprocess

import pytest
from click.testing import CliRunner
from fixtures import make_run_fixture
from papermill import cli
from papermill.translators import PythonTranslator

from fakd.report.repeat import repetition
from fakd.settings import parameters
from fakd.study.config import EvaluateConfig
from fakd.train.config import DistillConfig, TeacherConfig

CONFIGS = {"distill": DistillConfig, "teacher": TeacherConfig, "evaluate": EvaluateConfig}
GIVEN = [
    ("distill", {}),
    ("distill", {"scale": 2, "steps": 7, "learn_rate": 1e-05, "clip_norm": 0.1, "compare": False, "seed": 3}),
    ("distill", {"loss": "DS+10*PSA(k=4)", "student": "rcan(n_feats=32, n_resblocks=4)", "taps": [1, "last", "a=b"]}),
    ("distill", {"data": "my images/it's \"mine\" $HOME `ls` & more", "benchmarks": "/tmp/x y+Set5", "out_dir": "007"}),
    ("distill", {"data": "True", "benchmarks": "1e3", "out_dir": "nan", "schedule": "step(at=[100,200],gamma=0.5)"}),
    ("distill", {"data": "-r", "benchmarks": "--help", "out_dir": "line\nbreak\t\u00fcber \U0001f600 \ufeff\u2028"}),
    ("distill", {"taps": ["a\nb", "\u0085", "\U0001f600", "null", "1", "yes", "{x}: [y]", "# c"]}),
    ("teacher", {"net": "edsr(n_feats=8)", "init": "data/weights/a b.safetensors", "ema": 0.5}),
    ("evaluate", {"weights": "a*b?+c d", "scales": [2, 4], "precision": "fp32+bf16", "ensemble": True, "tile": 64}),
]


def record_of(tmp_path, kind, given, **changes):
    student = {"student": {"nets": {}, "ways": {}}} if kind == "evaluate" else {}
    return make_run_fixture(tmp_path, pictures=False, kind=kind, given=given, **student, **changes).record


def from_papermill(text, monkeypatch):
    "What a notebook gets: papermill's options, its injected cell, and fakd's reading of that."
    seen = {}
    monkeypatch.setattr(cli, "execute_notebook", lambda **call: seen.update(call))
    words = shlex.split(text)
    result = CliRunner().invoke(cli.papermill, words[1:], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    if not seen["parameters"]:
        return {}
    space: dict = {}
    source = PythonTranslator.codify(seen["parameters"])
    exec(source, space)
    return parameters(["# Parameters\n" + source.partition("\n")[2]], space)


@pytest.mark.parametrize("kind, given", GIVEN)
def test_papermill_gets_the_same_config(tmp_path, monkeypatch, kind, given):
    found = repetition(record_of(tmp_path, kind, {**given, "resume": "never"}))
    assert found.text.startswith(f"papermill nbs/run_{kind}.ipynb out.ipynb")
    assert CONFIGS[kind](**from_papermill(found.text, monkeypatch)) == CONFIGS[kind](**given)


@pytest.mark.parametrize("kind, given", GIVEN)
def test_the_command_of_an_installed_package_gets_the_same_config(tmp_path, kind, given):
    from fakd.cli import _parser
    from fakd.commands import dashed, settings_of

    record = record_of(tmp_path, kind, given, environment={"git": None, "no_git": "fakd was installed as a package"})
    words = shlex.split(repetition(record).text)
    assert words[:2] == ["fakd", kind]
    found = settings_of(_parser().parse_args(dashed(words[1:])), CONFIGS[kind])
    assert CONFIGS[kind](**found) == CONFIGS[kind](**given)


@pytest.mark.parametrize("given", [
    {"student": {"module": "Mine(8)"}, "scale": 2, "loss": "0.5*DS+10*SA"}, {"data": "None"},
    {"teacher": [{"module": "rcan(n_feats=8)"}, {"module": "edsr()"}], "student": {"module": "x\n\"y'"}},
])
def test_what_no_command_can_say_is_python(tmp_path, given):
    found = repetition(record_of(tmp_path, "distill", given))
    assert "papermill" not in found.text and "Python" in found.where
    call = ast.parse(found.text).body[-1].value
    assert call.func.id == "distill"
    at_hand = {k.arg: k.value.id for k in call.keywords if isinstance(k.value, ast.Name)}
    values = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg not in at_hand}
    assert at_hand == {k: k for k, v in given.items() if not isinstance(v, (str, int))}
    assert values | {k: given[k] for k in at_hand} == given


def test_a_shell_reads_the_line_as_it_is_meant(tmp_path):
    given = GIVEN[3][1]
    text = repetition(record_of(tmp_path, "distill", given)).text
    words = subprocess.run(["sh", "-c", f"printf '%s\\0' {text}"], capture_output=True, text=True, check=True).stdout
    assert words.split("\0")[:-1] == shlex.split(text)
