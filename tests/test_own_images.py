"Images of the user's own folder appear in the report, and the image whose affinity is kept is the user's, or chosen."

import numpy as np
import pytest
import skimage.data
from fixtures import prepared

from fakd.core import FakdError
from fakd.data.sets import image_set, one_pair
from fakd.images import write_image
from fakd.look.crops import scenes
from fakd.look.maps import read_affinity
from fakd.look.training import read_progress
from fakd.nets.weights import save_weights
from fakd.nets.zoo import make_net
from fakd.report.run import run_page
from fakd.run_folder import Run
from fakd.train.config import DistillConfig
from fakd.train.run import complete
from fakd.train.setup import prepare


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("own")
    cat = skimage.data.chelsea()
    for name, img in {"a b": cat[100:148, 100:180], "c--d%": cat[60:124, 200:280], "$e": cat[:64, :64]}.items():
        write_image(folder / "mine" / f"{name}.png", img)
    teacher = make_net("rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)", 2, seed=5)
    save_weights(teacher, folder / "t.safetensors")
    return {"scale": 2, "data": "sample", "benchmarks": f"sample-eval+{folder / 'mine'}", "steps": 2, "batch_size": 1,
            "patch_px": 8, "student": "rcan(n_resgroups=3,n_resblocks=1,n_feats=4,reduction=4)", "device": "cpu",
            "teacher": str(folder / "t.safetensors"), "precision": "fp32", "equal_time": False,
            "out_dir": str(folder / "runs")}


@pytest.fixture(scope="module")
def run(asked) -> Run:
    setup = prepared(**asked)
    return complete(setup)


def test_own_images_are_kept_with_their_scores(run, asked):
    kept = scenes(run)
    assert [(s.set, s.image) for s in kept if s.set == "mine"] == [("mine", "$e"), ("mine", "a b"), ("mine", "c--d%")]
    assert len([s for s in kept if s.set == "sample-eval"]) == 4  # eight in all, half a set
    for scene in kept:
        assert set(scene.scores) == {"bicubic", "teacher", "plain", "distilled"}
        pair = one_pair(image_set(asked["benchmarks"].split("+")[scene.set == "mine"]), scene.image, 2)
        assert np.array_equal(scene.images["hr"], pair.hr_img) and np.array_equal(scene.images["lr"], pair.lr_img)
    page = run_page(run).read_text(encoding="utf-8")
    assert "c--d% of mine, ×2." in page and "$e of mine, ×2." in page


def test_the_affinity_is_that_of_the_users_first_image(run, asked):
    first = one_pair(image_set(asked["benchmarks"].split("+")[1]), None, 2).lr_img
    assert np.array_equal(read_affinity(run).image, first)
    assert list(read_progress(run)) == ["plain", "distilled"]


def test_another_image_can_be_chosen_and_is_refused_early(asked, tmp_path):
    config = DistillConfig(**asked | {"affinity_image": "mine/c--d%", "out_dir": str(tmp_path / "runs")})
    setup = prepare(config.resolve())
    assert np.array_equal(setup.looked_at, one_pair(setup.sets[1], "c--d%", 2).lr_img)
    with pytest.raises(FakdError, match="affinity_image mine/f: not in the evaluation sets. .*such as"):
        prepared(**asked | {"affinity_image": "mine/f"})


def test_known_sets_are_never_the_users_own(shared, monkeypatch):
    monkeypatch.setenv("FAKD_DATA", str(shared / "data"))
    assert not any(image_set(name).own for name in ("Set5", "Urban100", "sample-eval"))
