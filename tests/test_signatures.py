"The functions that do a whole run write their settings out, and these are the settings."
import inspect
import json
import pydoc
from pathlib import Path

import jedi
import pytest

from fakd.core import FakdError
from fakd.runs import distill, train_teacher
from fakd.study.config import EvaluateConfig
from fakd.study.evaluation import evaluate_weights
from fakd.train.config import DistillConfig, TeacherConfig

ROOT = Path(__file__).parents[1]
CALLS = {"distill": (distill, DistillConfig), "teacher": (train_teacher, TeacherConfig),
         "evaluate": (evaluate_weights, EvaluateConfig)}


@pytest.mark.parametrize("kind", CALLS)
def test_the_arguments_are_the_fields_of_the_config_in_the_notebooks_order(kind):
    call, config = CALLS[kind]
    arguments = dict(inspect.signature(call).parameters)
    arguments.pop("nets", None)  # of an evaluation, networks at hand: no setting
    defaults = {name: field.default for name, field in config.model_fields.items()}
    assert {name: argument.default for name, argument in arguments.items()} == defaults
    assert all(argument.annotation is not inspect.Parameter.empty for argument in arguments.values())
    cells = json.loads((ROOT / f"nbs/run_{kind}.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    lines = [line for line in "".join(cell["source"]).splitlines()[1:] if line]
    assert list(arguments) == [line.partition(":")[0] for line in lines]


def test_help_and_an_editor_show_the_settings():
    page = pydoc.plain(pydoc.render_doc(distill))
    assert "batch_size: 'int | None' = None" in page and "scale: 'int' = 4" in page and "leaves record" in page
    script = jedi.Script("from fakd import distill\ndistill(learn_", project=jedi.Project(ROOT))
    assert "learn_rate=" in [found.name_with_symbols for found in script.complete(2, 14)]
    script = jedi.Script("from fakd import distill\ndistill(", project=jedi.Project(ROOT))
    (shown,) = script.get_signatures(2, 8)
    assert [p.name for p in shown.params] == list(inspect.signature(distill).parameters)


def test_an_unknown_setting_has_its_nearest():
    with pytest.raises(FakdError, match='unknown setting "stpes". Did you mean "steps"'):
        distill(stpes=3)
