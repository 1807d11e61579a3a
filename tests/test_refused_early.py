"What cannot end well is refused before any training, and leaves nothing behind."
import unittest.mock

import pytest
from fixtures import prepared

from fakd.core import FakdError
from fakd.runs import distill
from fakd.study.config import EvaluateConfig
from fakd.train.config import DistillConfig, TeacherConfig
from fakd.train.setup import prepare

SMALL = {"student": "rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)", "steps": 2, "batch_size": 2,
         "patch_px": 16, "benchmarks": "sample-eval", "precision": "fp32", "device": "cpu"}


@pytest.mark.parametrize("given, message", [
    ({"batch_size": 10**6}, r"batch_size 1000000, patch_px 16: a step needs [\d,.]+ GB of memory; .*accumulate"),
    ({"teacher": ""}, 'teacher "": an empty text is no answer'),
    ({"out_dir": " "}, 'out_dir "": an empty text is no answer'),
    ({"out_dir": "~nobody-of-this-name/runs"}, "knows no home folder of ~nobody-of-this-name"),
    ({"workers": 10**6}, "workers 1000000: input should be less than or equal to 256"),
    ({"checkpoint_min": float("inf")}, "checkpoint_min inf: input should be a finite number"),
])
def test_a_run_that_cannot_work_leaves_nothing(given, message, tmp_path):
    with pytest.raises(FakdError, match=message):
        distill(**{**SMALL, "out_dir": str(tmp_path / "runs"), **given})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [DistillConfig, TeacherConfig, EvaluateConfig])
def test_a_place_that_cannot_be_written_is_refused_with_the_settings(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FakdError, match="file is a file. Give a folder"):
        config(out_dir=tmp_path / "file" / "runs").resolve()
    with unittest.mock.patch("os.access", lambda *_: False), pytest.raises(FakdError, match="nothing may be written"):
        config(out_dir=tmp_path / "runs").resolve()


def test_a_disk_that_is_nearly_full_is_refused(tmp_path):
    config = DistillConfig(**SMALL, out_dir=tmp_path / "runs")
    full = unittest.mock.patch("shutil.disk_usage", lambda _: unittest.mock.Mock(free=20 * 10**6))
    with full, pytest.raises(FakdError, match=r"this run needs about \d\d MB of disk, 20 MB are free there"):
        prepare(config.resolve())
    assert list(tmp_path.iterdir()) == []


def test_a_home_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    setup = prepared(**SMALL, out_dir="~/runs")
    assert setup.run.dir.parent == tmp_path / "runs"
    assert setup.given == {**SMALL, "out_dir": "~/runs"}


def test_names_of_any_length_make_a_folder(tmp_path):
    from fakd.nets.weights import save_weights
    from fakd.nets.zoo import make_net

    path = tmp_path / f"{'student-' * 29}.safetensors"
    save_weights(make_net(SMALL["student"], 4, seed=1), path)
    loss = "DS+TS+0.1*SA+0.1*AT+0.1*SP+0.1*CWD+0.1*FFT+0.1*NST"
    setup = prepared(**{**SMALL, "student": path}, loss=loss, out_dir=tmp_path / "runs")
    assert setup.run.dir.is_dir() and len(setup.run.id) < 150 and "-s0-" in setup.run.id
