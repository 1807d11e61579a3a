"""Before training: every image is read, and test images among the training images are found, whole or in part."""

import io
import shutil

import numpy as np
import pytest
from fixtures import prepared
from PIL import Image
from skimage import data

from fakd.core import FakdError
from fakd.data.degrade import imresize
from fakd.data.screening import check_set, data_use, screen
from fakd.data.sets import image_set, image_sets
from fakd.images import read_image, write_image
from fakd.report.run import run_page
from fakd.study.config import EvaluateConfig
from fakd.study.evaluation import prepare_evaluation
from fakd.train.run import complete

TINY = {"student": "rcan(n_resgroups=1,n_resblocks=1,n_feats=8,reduction=4)", "loss": "DS", "steps": 1, "batch_size": 2,
        "patch_px": 16, "precision": "fp32"}
TEST = data.astronaut()[:240, 100:420]
VIEWS = [lambda x: x[:, ::-1], lambda x: x[::-1], lambda x: x.swapaxes(0, 1), lambda x: x[::-1].swapaxes(0, 1)]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr("fakd.data.prints.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("fakd.data.pairs.cache_dir", lambda: tmp_path / "cache")


@pytest.fixture
def found(tmp_path):
    "What the record says of two test images, the second a rocket, when some images are trained on."
    write_image(tmp_path / "test" / "a.png", TEST)
    write_image(tmp_path / "test" / "b.png", data.rocket()[:200, :200])

    def look(*imgs, suffix=".png"):
        for k, img in enumerate([data.coffee()[:200, :300], *imgs]):
            write_image(tmp_path / "train" / f"t{k}{suffix}", np.ascontiguousarray(img))
        train = image_set(tmp_path / "train")
        use = screen(train, train.pairs(4), [("evaluate", image_set(tmp_path / "test"))], 4)[1]
        assert bool(use.warning) == bool(use.trained_on)
        return use.trained_on

    return look


pytestmark = pytest.mark.filterwarnings("ignore:.*among the training images")


def test_other_pictures_are_other_pictures(found):
    assert found(data.chelsea(), data.astronaut()[260:, :300]) == {}


@pytest.mark.parametrize("view", VIEWS)
def test_the_whole_picture_is_found_in_any_view(found, view):
    assert found(view(TEST)) == {"a": "t1, the whole picture"}


@pytest.mark.parametrize("view", [lambda x: x, *VIEWS])
@pytest.mark.parametrize("side,top,left", [(128, 37, 53), (64, 101, 18), (48, 7, 200)])
def test_a_piece_is_found_wherever_it_was_cut(found, view, side, top, left):
    assert found(view(TEST[top:top + side, left:left + side])) == {"a": "t1, a piece"}


def test_what_the_test_image_was_cut_from_is_found(found):
    assert found(data.astronaut()) == {"a": "t1, a piece"}


def test_pieces_that_only_overlap_are_found(found):
    assert found(data.astronaut()[150:330, 50:250]) == {"a": "t1, a piece"}


def test_a_piece_inside_a_collage_is_found(found):
    collage = np.ascontiguousarray(np.tile(data.chelsea()[:200, :200], (2, 2, 1)))
    collage[90:170, 130:230] = TEST[50:130, 60:160]
    assert found(collage) == {"a": "t1, a piece"}


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".webp"])
def test_another_lossless_format_hides_nothing(found, tmp_path, suffix):
    (tmp_path / "train").mkdir()
    Image.fromarray(TEST).save(tmp_path / "train" / f"other{suffix}", lossless=True)
    assert found() == {"a": "other, the whole picture"}


def test_flat_pictures_count_only_as_a_whole(found):
    "A page that is nearly white shares white with every other."
    white = np.full((200, 240, 3), 255, np.uint8)
    assert found(white) == {}


def test_screens_of_one_font_are_not_pieces_of_each_other(tmp_path):
    "Equal letters in other places are no shared piece."
    glyph, draw = np.kron(np.random.default_rng(0).integers(0, 2, (9, 7)), np.ones((2, 2))), np.random.default_rng(1)
    for name in ("train", "test"):
        page = np.full((300, 300, 3), 255, np.uint8)
        for _ in range(25):
            y, x = draw.integers(0, 280, 2)
            page[y:y + 18, x:x + 14] = (255 * (1 - glyph[:300 - y, :300 - x])).astype(np.uint8)[..., None]
        page[:, :, 1] ^= draw.integers(0, 2, page.shape[:2], dtype=np.uint8)  # scanned: no two pages have equal noise
        write_image(tmp_path / name / "p.png", page)
    train, test = (image_set(tmp_path / name) for name in ("train", "test"))
    assert screen(train, train.pairs(4), [("evaluate", test)], 4)[1].trained_on == {}


def test_what_is_not_found_is_what_the_notebook_says(found):
    "Resized and compressed again: other pixels."
    small = imresize(TEST, 0.5)
    Image.fromarray(TEST).save(buffer := io.BytesIO(), "JPEG", quality=80)
    assert found(small, np.asarray(Image.open(buffer))) == {}


def test_prints_are_kept_and_a_broken_file_is_made_anew(tmp_path):
    for k in range(6):
        write_image(tmp_path / "train" / f"{k}.png", data.astronaut()[k:400, :])
    images, test = image_set(tmp_path / "train"), image_set("sample-eval")

    def look():
        return screen(images, images.pairs(4), [("evaluate", test)], 4)[1].trained_on

    first = look()
    assert list(first) == ["astronaut"] and first["astronaut"].endswith("a piece")
    files = sorted((tmp_path / "cache" / "prints").iterdir())
    assert files
    for file in files:
        body = bytearray(file.read_bytes())
        body[len(body) // 2] ^= 4
        file.write_bytes(body)
    assert look() == first
    assert sorted((tmp_path / "cache" / "prints").iterdir()) == files


def ran(folder, **asked):
    "A run without its pages."
    setup = prepared(**TINY, **asked, out_dir=str(folder / "runs"))
    return complete(setup)


def test_a_run_that_trains_on_a_test_says_so_everywhere(tmp_path):
    with pytest.warns(UserWarning, match="5 of 5 images of sample-eval are among the training images"):
        run = ran(tmp_path, data="sample-eval", benchmarks="sample-eval")
    uses = {use.role: use for use in run.record.data}
    assert len(uses["evaluate"].trained_on) == len(uses["validate"].trained_on) == 5 and not uses["train"].trained_on
    page = run_page(run).read_text()
    assert "are among the training images" in page and "are not trained on" not in page
    with pytest.warns(UserWarning):
        setup = prepared(**TINY, data="sample-eval", benchmarks="sample-eval", out_dir=str(tmp_path))
    for shown in (repr(setup), setup._repr_html_()):
        assert "5 of 5 images of sample-eval are among the training images" in shown


def test_a_run_that_does_not_says_nothing_false(tmp_path):
    run = ran(tmp_path, data="sample", benchmarks="sample-eval")
    assert not any(use.trained_on for use in run.record.data)
    assert {use.lr_source for use in run.record.data} == {"made from HR by MATLAB's bicubic"}
    page = run_page(run).read_text()
    assert "are not trained on" in page and "among the training images: " not in page.replace("found among", "")


def broken(folder, kind):
    file = folder / "b.png"
    write_image(file, data.astronaut()[:96, :120])
    if kind == "cut off":
        file.write_bytes(file.read_bytes()[:5000])
    elif kind == "no image":
        file.write_bytes(b"hello")
    elif kind == "small":
        write_image(file, data.astronaut()[:18, :120])
    elif kind == "lr size":
        for name in "ab":
            write_image(folder / "X4" / f"{name}x4.png", np.zeros((24 - (name == "b"), 30, 3), np.uint8))
    elif kind == "pipe":
        file.unlink()
        file.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind,said", [
    ("cut off", "b.png: not a readable image"), ("no image", "b.png: not a readable image"),
    ("small", "b: 120x16 pixels are too few to be scored at x4, at least 19x19"),
    ("lr size", "bx4.png: 30x23 pixels do not fit"), ("pipe", "no ordinary file|not a readable image"),
])
def test_what_cannot_be_scored_is_refused_in_prepare(tmp_path, kind, said):
    write_image(tmp_path / "set" / "a.png", data.astronaut()[100:196, :120])
    broken(tmp_path / "set", kind)
    with pytest.raises(FakdError, match=said):
        prepared(**TINY, data="sample", benchmarks=tmp_path / "set", out_dir=str(tmp_path / "runs"))
    assert not list((tmp_path / "runs").rglob("*.pt"))
    if kind != "small":
        with pytest.raises(FakdError, match=said):
            prepared(**TINY, data=tmp_path / "set", benchmarks="sample-eval", out_dir=str(tmp_path))


def test_perception_needs_larger_images(tmp_path):
    write_image(tmp_path / "set" / "a.png", data.astronaut()[:24, :40])
    images, = image_sets(tmp_path / "set")
    assert len(check_set(images, 2)) == 1
    with pytest.raises(FakdError, match="at least 32x32"):
        check_set(images, 2, 32)


def test_a_use_says_where_lr_images_come_from(tmp_path):
    write_image(tmp_path / "own" / "HR" / "a.png", data.astronaut()[:96, :120])
    write_image(tmp_path / "own" / "LR_unknown" / "X4" / "ax4.png", data.astronaut()[:24, :30])
    use = data_use(image_set(tmp_path / "own"), "evaluate", 4)
    assert (use.lr_source, use.count) == ("own, of LR_unknown/X4", 1)
    assert read_image(tmp_path / "own" / "HR" / "a.png").shape == (96, 120, 3)


def test_an_evaluation_knows_what_its_networks_were_trained_on(tmp_path):
    "From the record beside the weights: the same set, and another that shares pixels with the training images."
    for k in range(5):
        write_image(tmp_path / "train" / f"{k}.png", data.astronaut()[k:500, :])
    write_image(tmp_path / "new" / "a.png", data.astronaut()[150:300, 100:300, :])
    write_image(tmp_path / "other" / "a.png", data.rocket()[:100, :100])
    run = ran(tmp_path, data=tmp_path / "train", benchmarks=tmp_path / "other")
    places = [tmp_path / "train", "sample-eval", tmp_path / "new", tmp_path / "other"]
    asked = EvaluateConfig(weights=str(run.dir), benchmarks=places, repeats=0, out_dir=str(tmp_path / "runs"))
    with pytest.warns(UserWarning, match="among the training images"):
        evaluation = prepare_evaluation(asked.resolve())
    uses = {use.name: use.trained_on for use in evaluation.data}
    assert len(uses["train"]) == 5 and list(uses["sample-eval"]) == ["astronaut"] and uses["other"] == {}
    assert uses["sample-eval"]["astronaut"].endswith(f"a piece, of {run.id}")  # as that run found
    assert uses["new"] == {"a": f"train of {run.id}, a piece"}  # found now
    assert "1 of 5 images of sample-eval are among the training images" in evaluation._repr_html_()
    shutil.copytree(run.dir, tmp_path / "runs" / "second")  # of two networks that saw it, both are named
    record = tmp_path / "runs" / "second" / "record.json"
    record.write_text(record.read_text().replace(run.id, "second"))
    with pytest.warns(UserWarning, match=f"astronaut .in .*, of {run.id}; in .*, of second"):
        both = {"weights": f"{run.dir}+{record.parent}", "benchmarks": "sample-eval"}
        prepare_evaluation(asked.model_copy(update=both).resolve())
