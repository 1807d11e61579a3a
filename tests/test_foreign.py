"Networks of other projects, read by spandrel."

import importlib.util
from pathlib import Path

import pytest
import torch

from fakd.benchmarks import image_set
from fakd.core import FakdError
from fakd.evaluate import evaluate
from fakd.foreign import load_any
from fakd.record import summarise

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = SHARED / "weights"
HAS_SPANDREL = importlib.util.find_spec("spandrel") is not None
needs_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"needs the published weights in {WEIGHTS}")
needs_spandrel = pytest.mark.skipif(not HAS_SPANDREL, reason="needs spandrel: pip install fakd[spandrel]")


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
