"Networks of other projects, read by spandrel."

import importlib.util
from pathlib import Path

import pytest
import torch
from fixtures import prepared

from fakd.core import FakdError
from fakd.data.sets import image_set
from fakd.measure.evaluate import evaluate
from fakd.nets.foreign import _spandrel, load_any
from fakd.report.run import run_page
from fakd.rows import summarise
from fakd.runs import distill

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = SHARED / "weights"
HAS_SPANDREL = importlib.util.find_spec("spandrel") is not None
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"needs the published weights in {WEIGHTS}")
needs_spandrel = pytest.mark.skipif(not HAS_SPANDREL, reason="needs spandrel: pip install fakd[spandrel]")
SMALL = {"data": "sample", "benchmarks": "sample-eval", "steps": 2, "batch_size": 2, "patch_px": 16, "compare": False,
         "precision": "fp32", "device": "cpu", "student": "rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)"}


@needs_weights
@needs_spandrel
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"needs the benchmark images in {SHARED / 'data'}")
def test_dctlsa_has_its_known_score_on_set5(monkeypatch):
    monkeypatch.setenv("FAKD_DATA", str(SHARED / "data"))
    net = load_any(WEIGHTS / "dctlsa_x4.pt")
    assert net.scale == 4 and net.spec == "dctlsa" and not net.training
    mean = summarise(evaluate({"n": net}, [image_set("Set5")], 4, progress=False))["n"]["Set5"]
    assert mean["psnr_y"] == pytest.approx(32.5232, abs=1e-3)
    assert mean["ssim_y"] == pytest.approx(0.89902, abs=1e-4)


@needs_weights
@needs_spandrel
def test_a_foreign_network_takes_any_size_and_any_batch():
    net = load_any(WEIGHTS / "dctlsa_x4.pt")
    with torch.inference_mode():
        lr_imgs = torch.randint(0, 256, (2, 3, 1, 13)).float()
        sr_imgs = net(lr_imgs)
        assert sr_imgs.shape == (2, 3, 4, 52)
        assert torch.allclose(net(lr_imgs[1:]), sr_imgs[1:], atol=1e-2)
        flat = net(torch.full((1, 3, 24, 24), 200.0))[..., 32:64, 32:64]
    assert flat.mean().item() == pytest.approx(200, abs=3)


@needs_weights
def test_a_file_that_no_reader_knows_says_so():
    words = "spandrel does not know it either" if HAS_SPANDREL else r"pip install fakd\[spandrel\]"
    with pytest.raises(FakdError, match=words):
        load_any(WEIGHTS / "carn_m_x234.pth")


@needs_spandrel
def test_a_file_that_only_spandrel_knows_teaches(tmp_path):
    "A network of another project with random weights, its images 0..1, its layers in one flat list."
    compact = _spandrel().architectures.Compact.Compact
    torch.manual_seed(0)
    torch.save({"params": compact(num_feat=12, num_conv=6, upscale=2).state_dict()}, tmp_path / "compact.pth")
    net = load_any(tmp_path / "compact.pth")
    assert (net.scale, net.spec) == (2, "realesrgan compact")
    run = distill(**SMALL, scale=2, teacher=str(tmp_path / "compact.pth"), out_dir=str(tmp_path / "runs"),
                  loss="0.5*DS+0.5*TS+10*SA+FitNet+0.1*CSD")
    about = run.record.teacher
    assert about["network"] == "realesrgan compact" and about["source"] == str(tmp_path / "compact.pth")
    assert list(about["taps"].values())[:2] == [[12, 16, 16]] * 2
    assert "REALESRGAN COMPACT" in run_page(run).read_text(encoding="utf-8")


@needs_weights
@needs_spandrel
def test_dctlsa_is_tapped_at_its_thirds_without_being_told(tmp_path):
    file = str(WEIGHTS / "dctlsa_x4.pt")
    setup = prepared(**SMALL, scale=4, teacher=file, out_dir=str(tmp_path))
    assert setup.config.taps == ["group0=c2", "group1=c4", "last=upsampler.input"]
    assert "c2 (55, 16, 16)" in repr(setup)
    with pytest.raises(FakdError, match=r'tap "c9": no such place in dctlsa. Did you mean "c'):
        prepared(**SMALL, scale=4, teacher=file, out_dir=str(tmp_path), taps="[last=c9]")
    with pytest.raises(FakdError, match="CA needs equal channels; the student's group0 has 8, the teacher's c2 has 55"):
        prepared(**SMALL, scale=4, teacher=file, out_dir=str(tmp_path), loss="DS+CA")
    with pytest.raises(FakdError, match="for scale 4, the run for scale 2"):
        prepared(**SMALL, scale=2, teacher=file, out_dir=str(tmp_path))
