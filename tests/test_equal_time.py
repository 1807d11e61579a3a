"The plain student that trains for the time of the distilled run: how long, from where, and what is refused."

from pathlib import Path
from statistics import mean

import pytest
import torch
from fixtures import prepared
from torch import nn

from fakd.core import FakdError
from fakd.nets.weights import read_state, save_weights
from fakd.nets.zoo import make_net
from fakd.record import read_record
from fakd.runs import distill
from fakd.train.config import DistillConfig
from fakd.train.presets import PRESETS
from fakd.train.run import Fitted, equal_time_steps, fit


@pytest.fixture
def small(tmp_path):
    teacher = tmp_path / "teacher.safetensors"
    save_weights(make_net("rcan(n_resgroups=5,n_resblocks=4,n_feats=16,reduction=4)", 2, seed=5), teacher)
    return {"scale": 2, "data": "sample", "benchmarks": "sample-eval", "steps": 6, "batch_size": 2, "patch_px": 16,
            "student": "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)", "teacher": str(teacher),
            "precision": "fp32", "device": "cpu", "out_dir": str(tmp_path / "runs")}


def test_it_is_the_plain_student_with_as_many_steps_as_the_time_allows(small):
    run = distill(**small)
    history = run.record.history
    steps = equal_time_steps([Fitted(method, nn.Identity(), [line]) for method, line in history.items()])
    assert history["plain_equal_time"]["step"] == steps > history["plain"]["step"]
    ratio = history["plain"]["steps_per_s"] / history["distilled"]["steps_per_s"]
    assert steps == round(6 * ratio)
    longer = prepared(**small | {"steps": steps, "equal_time": False})
    fit(longer, "plain")  # the same start, batches and schedule as a plain run of that length
    expected = read_state(longer.run.dir / "weights/plain.safetensors")[0]
    found = read_state(run.dir / "weights/plain_equal_time.safetensors")[0]
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    images = {method: {r.image for r in run.record.rows if r.method == method} for method in history}
    assert images["plain_equal_time"] == images["plain"] == images["distilled"]
    metadata = read_state(run.dir / "weights/plain_equal_time.safetensors")[1]
    assert metadata["method"] == "plain_equal_time" and metadata["steps"] == str(steps)


def test_presets_decide_where_nothing_is_said(small):
    assert DistillConfig().resolve().equal_time is True
    assert DistillConfig(equal_time=False).resolve().equal_time is False
    assert DistillConfig(compare=False).resolve().equal_time is False
    assert DistillConfig(loss="DS").resolve().equal_time is False
    assert PRESETS["small"]("rcan", 4)["equal_time"] is False and "equal_time" not in PRESETS["paper"]("rcan", 4)


@pytest.mark.parametrize("more", [{"compare": False}, {"loss": "DS"}])
def test_it_is_refused_where_there_is_nothing_to_compare(more):
    with pytest.raises(FakdError, match="equal_time .* needs compare=True and a loss with a teacher"):
        DistillConfig(equal_time=True, **more).resolve()


def test_it_cannot_come_before_both_students(small):
    setup = prepared(**small)
    with pytest.raises(FakdError, match="train the plain and the distilled student first"):
        fit(setup, "plain_equal_time")


def test_what_the_run_notebook_says_of_the_gain_is_what_the_records_say():
    root = Path(__file__).parents[1]
    records = [read_record(path) for path in sorted((root / "reports/default-x4").glob("seed*.json"))]
    steps, time = (mean(r.summary["distilled"]["Set5"]["psnr_y"] - r.summary[base]["Set5"]["psnr_y"] for r in records)
                   for base in ("plain", "plain_equal_time"))
    assert len(records) == 3 and steps > 0 > time
    words = f"gains {steps:.2f} dB on Set5 at equal steps, and is {-time:.2f} dB behind the plain one at equal time"
    assert words in (root / "nbs/run_distill.ipynb").read_text(encoding="utf-8")
