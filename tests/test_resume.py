"A run that is killed, interrupted or stopped goes on exactly where it was."
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from fixtures import prepared

from fakd.core import FakdError
from fakd.nets.weights import read_state, save_weights
from fakd.nets.zoo import make_net
from fakd.run_folder import Run
from fakd.runs import distill
from fakd.train.run import fit

NARROW = "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Parameters of a run that takes a few seconds."
    teacher = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_weights(make_net("rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)", 2, seed=5), teacher)
    return {"scale": 2, "data": "sample", "benchmarks": "sample-eval", "steps": 40, "batch_size": 2, "patch_px": 8,
            "precision": "fp32", "device": "cpu", "student": NARROW, "teacher": str(teacher), "ema": 0.9,
            "checkpoint_min": 0.0, "equal_time": False}


def start(parameters, out_dir):
    "The run in a process of its own, on one thread."
    code = f"from fakd import distill; distill(**{parameters | {'out_dir': str(out_dir)}!r})"
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=one_thread, stderr=subprocess.PIPE, text=True)


def wait_for_step(out_dir, method, step, process):
    "Wait until a checkpoint of at least this step lies there."
    for _ in range(1200):
        for path in out_dir.glob(f"*/checkpoints/{method}.pt"):
            if torch.load(path, weights_only=True)["step"] >= step:
                return path.parent.parent
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("no checkpoint appeared")


def tensors(folder):
    return {name: read_state(folder / "weights" / f"{name}.safetensors")[0] for name in ("plain", "distilled")}


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    "Weights of the run that is never interrupted."
    out_dir = tmp_path_factory.mktemp("whole")
    process = start(small, out_dir)
    assert process.wait(timeout=300) == 0, process.stderr.read()
    (folder,) = out_dir.iterdir()
    return tensors(folder)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_resume_after_a_signal_is_bit_identical(how, small, whole, tmp_path):
    out_dir = tmp_path / how.name
    process = start(small, out_dir)
    folder = wait_for_step(out_dir, "distilled", 7, process)
    process.send_signal(how)
    assert process.wait(timeout=60) != 0
    if how != signal.SIGKILL:
        assert "saved; start the same run again to continue" in process.stderr.read()
    assert not (folder / "record.json").exists()
    process = start(small, out_dir)
    assert process.wait(timeout=300) == 0, process.stderr.read()
    assert [p.name for p in out_dir.iterdir()] == [folder.name], "the unfinished run was not continued"
    found = tensors(folder)
    for method, state in whole.items():
        for name, value in state.items():
            assert torch.equal(value, found[method][name]), (method, name)
    record = json.loads((folder / "record.json").read_text())
    assert record["resumed_from_step"]["distilled"][0] >= 7
    assert [line["step"] for line in Run(folder).record.history.values()] == [40, 40]


def test_resuming_with_changed_settings_is_refused_and_more_steps_are_allowed(small, tmp_path):
    out_dir = tmp_path / "runs"
    process = start(small, out_dir)
    folder = wait_for_step(out_dir, "plain", 5, process)
    process.kill()
    process.wait()
    asked = small | {"out_dir": str(out_dir), "resume": str(folder)}
    with pytest.raises(FakdError, match=r"learn_rate: 0.001 -> 0.01"):
        fit(prepared(**asked | {"learn_rate": 0.01}), "plain")
    run = distill(**asked | {"steps": 44, "workers": 1})
    assert run.id == folder.name
    assert run.record.history["distilled"]["step"] == 44
    assert run.record.resumed_from_step["plain"][0] >= 5


def test_a_diverging_run_fails_with_a_record_and_keeps_its_checkpoint(small, tmp_path):
    from fakd.train.trainer import Diverged

    with pytest.raises(Diverged, match=r"plain, step \d+: DS is (nan|inf)"):
        distill(**small | {"out_dir": str(tmp_path / "runs"), "learn_rate": 1e12, "schedule": "constant"})
    (folder,) = (tmp_path / "runs").iterdir()
    assert Run(folder).record.state == "failed"
    assert "plain, step" in Run(folder).record.error
    assert (folder / "checkpoints/plain.pt").exists()
    assert not Run(folder).finished


def test_the_number_of_workers_does_not_change_the_run(small, tmp_path):
    asked = small | {"steps": 3, "compare": False}
    runs = [distill(**asked | {"out_dir": str(tmp_path / str(workers)), "workers": workers}) for workers in (1, 2)]
    assert runs[0].record.digest == runs[1].record.digest
    assert runs[0].record.artefacts[-1].path == runs[1].record.artefacts[-1].path
    first, second = (read_state(run.dir / "weights/distilled.safetensors")[0] for run in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
