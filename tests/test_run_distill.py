"The main job as a user runs it: papermill on the notebook, at reduced size."
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import nbformat
import pytest

from fakd.core import static
from fakd.nets.weights import save_weights
from fakd.nets.zoo import make_net
from fakd.run_folder import Run

ROOT = Path(__file__).parents[1]
PAPERMILL = Path(sys.executable).parent / "papermill"
STUDENT = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"
TEACHER = "rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)"


def papermill(notebook, out, cwd=ROOT, **parameters):
    "Run a notebook by the command line, as the README says."
    words = [str(PAPERMILL), "--no-progress-bar", str(ROOT / "nbs" / notebook), str(out)]
    for name, value in parameters.items():
        words += ["-p", name, str(value)]
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"FAKD_DATA": ""}  # figures as a user sees them
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600, env=env)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_weights(make_net(TEACHER, 2, seed=5), folder / "teacher.safetensors")
    return {"scale": 2, "student": STUDENT, "teacher": folder / "teacher.safetensors", "steps": 6, "batch_size": 2,
            "patch_px": 16, "benchmarks": "sample-eval", "out_dir": folder / "runs"}


def test_run_distill_leaves_a_valid_record_and_a_report(small):
    out = small["out_dir"].parent / "out.ipynb"
    done = papermill("run_distill.ipynb", out, **small)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = small["out_dir"].iterdir()
    record = json.loads((folder / "record.json").read_text())
    jsonschema.validate(record, json.loads(static("record.schema.json")))
    assert sorted(record["summary"]) == ["bicubic", "distilled", "plain", "plain_equal_time", "teacher"]
    images = {row["image"] for row in record["rows"]}
    assert images == {row["image"] for row in record["rows"] if row["method"] == "distilled"}
    for artefact in record["artefacts"]:
        assert (folder / artefact["path"]).stat().st_size == artefact["bytes"]
    weights = [f"weights/{method}.safetensors" for method in ("plain", "distilled", "plain_equal_time")]
    snapshots = ["snapshots/affinity.npz", "snapshots/progress-plain.npz", "snapshots/progress-distilled.npz"]
    for name in ["report.html", "explorer.html", "history.csv", "notebook.ipynb", *weights, *snapshots]:
        assert (folder / name).is_file(), name
    assert not list(folder.glob("checkpoints/*"))
    notebook = nbformat.read(out, 4)
    text = json.dumps(notebook.cells)
    assert "report.html" in text and "image/png" in text
    assert "Traceback" not in text
    kept = json.dumps(nbformat.read(folder / "notebook.ipynb", 4).cells)  # with its bars as they ended
    assert "plain: 100% 6/6" in kept and "distilled: 100% 6/6" in kept
    assert "0% 0/6" not in kept and "widget-view" not in kept
    page = (folder / "report.html").read_text()
    assert 'href="explorer.html"' in page and "How the students\u2019 affinity approached the teacher\u2019s" in page

    out = small["out_dir"].parent / "explore.ipynb"  # and the run can be explored
    done = papermill("explore_affinity.ipynb", out, run_dir=folder, tap="last")
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [o for c in nbformat.read(out, 4).cells if c.cell_type == "code" for o in c.outputs]
    shown = [o.get("data", {}) for o in outputs]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
    # seven figures, and the picture that stands where the widget was
    assert sum("image/png" in data or "data:image/png" in data.get("text/html", "") for data in shown) == 8


@pytest.mark.parametrize("parameters, message", [
    ({"stesp": 10}, 'unknown setting "stesp". Did you mean "steps"?'),
    ({"scale": 5}, "scale 5: choose 2, 3, 4 or 8"),
    ({"loss": "DS+SAA"}, 'unknown loss "SAA". Did you mean "SA"?'),
    ({"patch_px": 500}, "smaller than patch_px 500"),
    ({"taps": "[1, 9]"}, "tap 9: RCAN has taps 0 to 3"),
    ({"scale": 4}, "is for scale 2, the run is for scale 4"),
])
def test_a_wrong_value_stops_before_any_training(small, tmp_path, parameters, message):
    done = papermill("run_distill.ipynb", tmp_path / "out.ipynb", **small | {"out_dir": tmp_path / "runs"} | parameters)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / "runs").exists()


def test_run_teacher_makes_weights_that_a_run_from_nbs_can_use(small, tmp_path):
    size = {"steps": 4, "batch_size": 2, "patch_px": 8}
    done = papermill("run_teacher.ipynb", tmp_path / "out.ipynb", cwd=ROOT / "nbs", scale=2, net=TEACHER, data="sample",
                     benchmarks="sample-eval", out_dir=tmp_path / "runs", **size)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert Run(folder).record.kind == "teacher"
    assert (folder / "weights/teacher.safetensors").stat().st_size < 200_000
    assert (folder / "explorer.html").is_file()
