"An evaluation as a user runs it: papermill on the notebook, with tiny networks."

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from fakd.core import static
from fakd.measure.perceptual import _stages
from fakd.nets.weights import save_weights
from fakd.nets.zoo import make_net
from fakd.run_folder import find_runs

ROOT = Path(__file__).parents[1]
PAPERMILL = Path(sys.executable).parent / "papermill"


def papermill(out, **parameters):
    words = [str(PAPERMILL), "--no-progress-bar", str(ROOT / "nbs" / "run_evaluate.ipynb"), str(out)]
    for name, value in parameters.items():
        words += ["-p", name, str(value)]
    env = os.environ | {"FAKD_DATA": ""}
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, env=env)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    for scale in (2, 4):
        net = make_net("edsr(n_resblocks=1,n_feats=8)", scale)
        save_weights(net, folder / "weights" / f"tiny-x{scale}.safetensors")
    layers = {f"features.{key.partition('.')[2]}": value for key, value in _stages("alex").state_dict().items()}
    torch.save(layers, folder / "alexnet.pth")
    return {"weights": folder / "weights", "benchmarks": "sample-eval", "out_dir": folder / "runs", "device": "cpu",
            "input_px": 16, "repeats": 2}


def test_run_evaluate_leaves_a_valid_record_and_a_page(tiny, tmp_path):
    done = papermill(tmp_path / "out.ipynb", **tiny, ensemble=True, tile=48,
                     backbones=Path(tiny["out_dir"]).parent / "alexnet.pth")
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = find_runs(tiny["out_dir"])
    record = json.loads((run.dir / "record.json").read_text())
    jsonschema.validate(record, json.loads(static("record.schema.json")))
    assert record["kind"] == "evaluate" and list(record["student"]["nets"]) == ["tiny-x2", "tiny-x4"]
    ways = {f"tiny-x{scale}{way}" for scale in (2, 4) for way in ("", "+", ", tiles of 48")}
    assert set(record["summary"]) == {"bicubic"} | ways
    seen = record["student"]["perception"]
    assert len(seen) == 2 * 2 * 5 and all(row["LPIPS (AlexNet)"] > 0 for row in seen)
    files = [p.name for p in (run.dir / "figures").iterdir()]
    figures = {name.rpartition("-")[0] if name.startswith("crops") else name for name in files}
    assert figures == {f"pareto-x{k}.{kind}" for k in (2, 4) for kind in ("pdf", "png")} | {
        f"crops-x{k}-sample-eval" for k in (2, 4)}
    kept = {p.relative_to(run.dir / "snapshots/images").parts for p in (run.dir / "snapshots/images").rglob("*.png")}
    assert {(scale, name) for scale, _, name in kept} == {
        (f"x{k}", f"{name}.png") for k in (2, 4) for name in ("lr", "hr", "bicubic", f"tiny-x{k}")}
    page = (run.dir / "report.html").read_text()
    assert page.count('<figure class="compare"') == 2 and "LPIPS (AlexNet)" in page and "DISTS</th>" not in page
    assert 'href="figures/pareto-x2.pdf"' in page
    assert 'href="explorer.html"' in page and (run.dir / "explorer.html").stat().st_size > 100_000
    assert "2 networks compared" in page and "papermill nbs/run_evaluate.ipynb" in page and "http://" not in page
    assert len((run.dir / "report.csv").read_text().splitlines()) == 1 + len(record["rows"])
    assert "image/png" in (tmp_path / "out.ipynb").read_text() and (run.dir / "notebook.ipynb").is_file()


@pytest.mark.parametrize("parameters, message", [
    ({"weigths": "x"}, 'unknown setting "weigths". Did you mean "weights"?'),
    ({"weights": "nowhere.pt"}, "weights nowhere.pt: no weights file there"),
    ({"backbones": "nowhere.pth"}, "nowhere.pth: no such file. Give torchvision's"),
])
def test_a_wrong_value_stops_before_any_measuring(tiny, tmp_path, parameters, message):
    done = papermill(tmp_path / "out.ipynb", **tiny | {"out_dir": tmp_path / "runs"} | parameters)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "runs").exists()
