"""Sets: found where they are said to be, paired by name, whole or named for what they are."""

import os
from pathlib import Path

import numpy as np
import pytest
from fixtures import make_run_fixture
from PIL import Image

import fakd.data.sets
from fakd.core import FakdError
from fakd.data.degrade import degrade, modcrop
from fakd.data.sets import SETS, found_benchmarks, image_set, image_sets, lr_source
from fakd.images import write_image
from fakd.look.crops import scenes
from fakd.rows import Row, summarise
from fakd.study.config import EvaluateConfig
from fakd.train.config import DistillConfig

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the image sets in {DATA}")


def picture(seed, h=50, w=39):
    return np.random.default_rng(seed).integers(256, size=(h, w, 3), dtype=np.uint8)


@pytest.fixture
def data(tmp_path, monkeypatch):
    "An empty data folder; nothing else is searched."
    monkeypatch.setattr("fakd.data.pairs.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv("FAKD_DATA", os.pathsep.join([str(tmp_path / "nowhere"), str(tmp_path / "data")]))
    monkeypatch.setattr(fakd.data.sets, "places", lambda path: [tmp_path / "project" / path])
    return tmp_path / "data"


def fill_edsr(folder, names, scales=(4,), suffix=".png"):
    for k, name in enumerate(names):
        img = picture(k)
        if suffix == ".webp":
            (folder / "HR").mkdir(parents=True, exist_ok=True)
            Image.fromarray(img).save(folder / "HR" / f"{name}.webp", lossless=True)
        else:
            write_image(folder / "HR" / f"{name}{suffix}", img)
        for scale in scales:
            write_image(folder / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png", degrade(img, scale))


NAMES5 = ["baby", "bird", "butterfly", "head", "woman"]


@pytest.mark.parametrize("below", ["", "benchmark"])
def test_named_sets_are_found_in_every_place(data, tmp_path, below):
    for base in (data, tmp_path / "project" / "data" / "sets"):
        fill_edsr(base / below / "Set5", NAMES5)
        images = image_set("Set5")
        assert images.folder() == base / below / "Set5" and len(images) == 5 and images.found()
        assert found_benchmarks() == ["Set5"]
        assert [pair.name for pair in images.pairs(4)] == NAMES5


def test_lr_files_are_read_where_they_are_and_made_where_not(data):
    fill_edsr(data / "Set5", NAMES5, scales=(4,))
    marked = 255 - degrade(picture(0), 4)
    write_image(data / "Set5" / "LR_bicubic" / "X4" / "babyx4.png", marked)
    images = image_set("Set5")
    baby = images.pairs(4)[0]
    np.testing.assert_array_equal(baby.lr_img, marked)
    np.testing.assert_array_equal(baby.hr_img, picture(0)[:48, :36])
    made = images.pairs(3)[0]
    np.testing.assert_array_equal(made.lr_img, degrade(picture(0), 3))
    np.testing.assert_array_equal(made.hr_img, modcrop(picture(0), 3))


def test_lr_images_of_a_benchmark_are_made_once(data, tmp_path, monkeypatch):
    fill_edsr(data / "Set5", NAMES5, scales=(4,))
    first = image_set("Set5").pairs(3)
    monkeypatch.setattr("fakd.data.sets.degrade", lambda *_: pytest.fail("made again"))
    for one, other in zip(first, image_set("Set5").pairs(3), strict=True):
        np.testing.assert_array_equal(one.lr_img, other.lr_img)
    assert len(image_set("Set5").pairs(4)) == 5 and len(list((tmp_path / "cache" / "images").iterdir())) == 1


def test_webp_and_jpeg_hr_files_pair_with_png_lr_files(data):
    fill_edsr(data / "Urban100", ["img_001"], suffix=".webp")
    fill_edsr(data / "B100", ["101085", "3096"], suffix=".jpg", scales=())
    urban = image_set("Urban100").pairs(4)[0]
    np.testing.assert_array_equal(urban.lr_img, degrade(picture(0), 4))
    assert [pair.name for pair in image_set("B100").pairs(2)] == ["101085", "3096"]


def test_a_partial_set_says_so_in_its_name(data):
    fill_edsr(data / "Urban100", ["img_001", "img_004"])
    images = image_set("Urban100")
    assert images.name == "Urban100-2" and len(images.pairs(4)) == 2
    assert found_benchmarks() == ["Urban100"]


def test_div2k_train_and_valid_are_two_sets_of_one_folder(data):
    for split, number in (("train", "0001"), ("valid", "0801")):
        black = np.zeros((24, 24, 3), np.uint8)
        write_image(data / "DIV2K" / f"DIV2K_{split}_HR" / f"{number}.png", picture(1, 48, 48))
        write_image(data / "DIV2K" / f"DIV2K_{split}_LR_bicubic" / "X2" / f"{number}x2.png", black)
    for name, number in (("DIV2K", "0001"), ("DIV2K-valid", "0801")):
        pair, = image_set(name).pairs(2)
        assert pair.name == number and pair.lr_img.max() == 0
        assert image_set(name).pairs(4)[0].lr_img.max() > 0
    assert image_set(data / "DIV2K").layout == "div2k"


def test_bsds400_leaves_out_the_picture_of_set5(data):
    for part, names in (("train", ["100075", "302003"]), ("test", ["100007"])):
        for name in names:
            write_image(data / "BSDS400" / part / f"{name}.jpg", picture(2))
    for images in (image_set("BSDS400"), image_set(data / "BSDS400")):
        assert sorted(pair.name for pair in images.pairs(4)) == ["100007", "100075"]
        assert images.name == "BSDS400-2"


def test_several_sets_join(data):
    fill_edsr(data / "Set5", NAMES5)
    images = image_set("Set5 + sample-eval")
    assert images.name == "Set5+sample-eval" and len(images) == 10 == len(images.pairs(4)) and images.found()
    assert images.digest(4) != image_set("sample-eval+Set5").digest(4)
    with pytest.raises(FakdError, match='"Set14" was not found'):
        image_set("Set5+Set14")


def test_a_folder_is_a_set_by_its_path(data, tmp_path, monkeypatch):
    write_image(tmp_path / "holiday" / "a.png", picture(0))
    monkeypatch.chdir(tmp_path)
    for given in ("holiday", tmp_path / "holiday", "./holiday/"):
        images = image_set(given)
        assert (images.name, images.layout, len(images)) == ("holiday", "folder", 1)
    assert images.place.is_absolute()  # still found after a change of folder


def test_the_digest_follows_every_file_that_is_read(data):
    fill_edsr(data / "Set5", NAMES5, scales=(4,))
    images = image_set("Set5")
    seen = {images.digest(4), images.digest(3)}
    write_image(data / "Set5" / "LR_bicubic" / "X4" / "birdx4.png", degrade(picture(99), 4))
    seen.add(images.digest(4))
    write_image(data / "Set5" / "HR" / "bird.png", picture(99))
    seen |= {images.digest(4), images.digest(3)}
    assert len(seen) == 5


def test_faults_name_the_file(data):
    fill_edsr(data / "Set5", NAMES5)
    lr_dir = data / "Set5" / "LR_bicubic" / "X4"
    write_image(lr_dir / "babyx4.png", picture(0, 12, 10))
    with pytest.raises(FakdError, match=r"babyx4.png: 10x12 pixels do not fit the HR image of 39x50 at scale 4"):
        image_set("Set5").pairs(4)
    (lr_dir / "babyx4.png").write_bytes(b"nothing")
    with pytest.raises(FakdError, match="babyx4.png: not a readable image"):
        image_set("Set5").pairs(4)
    (lr_dir / "babyx4.png").unlink()
    with pytest.raises(FakdError, match="no LR file for baby.png: expected babyx4.png"):
        image_set("Set5").pairs(4)
    write_image(data / "Set5" / "HR" / "baby.png", picture(0, 5, 5))
    with pytest.raises(FakdError, match="baby.*too small for scale 8"):
        image_set("Set5").pairs(8)


def test_what_is_not_found_says_where_it_was_sought(data, tmp_path):
    with pytest.raises(FakdError) as fault:
        image_set("Set14")
    for place in (tmp_path / "project" / "data" / "sets", data, data / "benchmark"):
        assert str(place / "Set14") in str(fault.value)
    assert "FAKD_DATA" in str(fault.value)
    for wrong in ("set5", "", "no/such/folder"):
        with pytest.raises(FakdError, match="Known: sample, sample-eval, Set5"):
            image_set(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FakdError, match="no images in this folder"):
        image_set(tmp_path / "empty")


def test_the_two_sample_splits_share_no_picture():
    def thumbnail(pair):
        small = pair.lr_img.mean(axis=2)[:: pair.lr_img.shape[0] // 12, :: pair.lr_img.shape[1] // 12][:12, :12]
        return (small - small.mean()) / small.std()

    train, held_out = image_set("sample").pairs(8), image_set("sample-eval").pairs(8)
    worst = max(abs((thumbnail(a) * thumbnail(b)).mean()) for a in train for b in held_out)
    assert worst < 0.8
    left, right = (thumbnail(p) for p in train if p.name.startswith("motorcycle"))
    assert (left * right).mean() > worst  # what the same scene twice would give


@needs_data
def test_the_real_sets_are_complete_and_apart(data, monkeypatch):
    monkeypatch.setenv("FAKD_DATA", str(DATA))
    assert found_benchmarks() == ["Set5", "Set14", "B100", "Urban100"]
    sizes = {name: len(image_set(name)) for name in ("Set5", "Set14", "B100", "BSDS400")}
    assert sizes == {name: SETS[name].count for name in sizes}
    assert image_set("Urban100").name in ("Urban100", "Urban100-40")
    train, test = (image_set(name) for name in ("BSDS400", "B100"))
    names = [{pair.name for pair in images.pairs(8)} for images in (train, test)]
    assert not names[0] & names[1] and "302003" not in names[0]


def test_two_folders_of_one_name_are_two_sets(data, tmp_path):
    for folder, seed in (("A/HR", 0), ("B/HR", 1), ("a/hr", 2), ("A/x/HR", 3)):
        write_image(tmp_path / folder / "0001.png", picture(seed))
    joined = f"{tmp_path}/A/HR+{tmp_path}/B/HR"
    assert [s.name for s in image_sets(joined)] == ["A-HR", "B-HR"]
    three = image_sets([tmp_path / "A/HR", tmp_path / "A/x/HR", "sample"])
    assert [images.name for images in three] == ["A-HR", "x-HR", "sample"]
    both = image_set(joined)
    assert [pair.name for pair in both.pairs(4)] == ["A-HR/0001", "B-HR/0001"]
    with pytest.raises(FakdError, match="would have one name .capitals do not count."):
        image_sets([tmp_path / "A/HR", tmp_path / "a/hr"])
    for twice in (f"{tmp_path}/A/HR+{tmp_path}/A/../A/HR", "sample+sample"):
        with pytest.raises(FakdError, match="is given twice"):
            image_sets(twice)


def test_a_folder_called_like_a_known_set_beside_it_gets_a_name_of_its_own(data, tmp_path):
    fill_edsr(data / "Set5", NAMES5)
    write_image(tmp_path / "mine" / "Set5" / "a.png", picture(0))
    assert [s.name for s in image_sets(["Set5", tmp_path / "mine" / "Set5"])] == ["Set5", "mine-Set5"]


def test_images_of_one_stem_are_told_apart(data, tmp_path):
    for k, name in enumerate(("a.png", "a.bmp", "b.png")):
        write_image(tmp_path / "set" / name, picture(k))
    pairs = image_set(tmp_path / "set").pairs(4)
    assert {p.name: p.hr_img[0, 0, 0] for p in pairs} == {
        "a.png": picture(0)[0, 0, 0], "a.bmp": picture(1)[0, 0, 0], "b": picture(2)[0, 0, 0]}
    write_image(tmp_path / "set" / "B.png", picture(3))
    with pytest.raises(FakdError, match="B.png and .*b.png would have one name .capitals do not count."):
        image_set(tmp_path / "set")


@pytest.mark.parametrize("name", ["Set5", "Set14", "DIV2K", "BSDS400", "Urban100", "sample", "sample-eval"])
@pytest.mark.parametrize("layout", ["folder", "edsr"])
def test_a_known_name_given_by_a_path_is_the_folder_that_it_is(data, tmp_path, name, layout):
    "Also where no set of that name is installed."
    where = tmp_path / "own" / name / ("HR" if layout == "edsr" else "")
    for k in range(2):
        write_image(where / f"i{k}.png", picture(k))
    images = image_set(tmp_path / "own" / name)
    assert [p.name for p in images.pairs(4)] == ["i0", "i1"] and images.name.startswith(name)
    np.testing.assert_array_equal(images.pairs(4)[1].hr_img, modcrop(picture(1), 4))


OWN = ["x4/i", "X4/ix4", "LR/X4/i_x4", "LR/x4/ix4", "LR_unknown/X4/i", "LR_unknown/x4/i_x4", "LR_bicubic/x4/ix4",
       "LR_bicubic/X4/i", "lr_bicubic_x4/i", "LRbicx4/i", "LR/i", "LR/4/i", "lr/I-X4"]


@pytest.mark.parametrize("place", OWN)
@pytest.mark.parametrize("given", ["", "HR"])
def test_own_lr_images_are_used_wherever_they_lie(data, tmp_path, place, given):
    marked = 255 - degrade(picture(0), 4)
    write_image(tmp_path / "own" / "HR" / "i.png", picture(0))
    write_image(tmp_path / "own" / f"{place}.png", marked)
    images = image_set(tmp_path / "own" / given)
    np.testing.assert_array_equal(images.pairs(4)[0].lr_img, marked)
    assert lr_source(images, 4) == f"own, of {Path(place).parent}"
    if place != "LR/i":
        assert lr_source(images, 2) == "made from HR by MATLAB's bicubic"
        np.testing.assert_array_equal(images.pairs(2)[0].lr_img, degrade(picture(0), 2))


def test_own_lr_images_below_a_flat_folder_and_beside_div2k(data, tmp_path):
    marked = 255 - degrade(picture(0), 4)
    write_image(tmp_path / "flat" / "i.png", picture(0))
    write_image(tmp_path / "flat" / "X4" / "ix4.png", marked)
    base = tmp_path / "DIV2K"
    for split, img in (("train", marked), ("valid", 255 - marked)):
        write_image(base / f"DIV2K_{split}_HR" / "0001.png", picture(0))
        write_image(base / f"DIV2K_{split}_LR_unknown" / "X4" / "0001x4.png", img)
    for given in (tmp_path / "flat", base, base / "DIV2K_train_HR"):
        np.testing.assert_array_equal(image_set(given).pairs(4)[0].lr_img, marked)


@pytest.mark.parametrize("files,said", [
    (["LR_a/X4/i", "LR_b/X4/i"], "several folders hold LR images for x4: LR_a/X4, LR_b/X4"),
    (["X4/i", "X4/ix4"], "i.png has several LR files: i.png, ix4.png"),
    (["LR_bicubic/X4/other"], "no LR file for i.png: expected ix4.png. Found: other.png"),
])
def test_lr_images_that_can_be_read_in_two_ways_or_in_none_are_refused(data, tmp_path, files, said):
    write_image(tmp_path / "own" / "HR" / "i.png", picture(0))
    for file in files:
        write_image(tmp_path / "own" / f"{file}.png", degrade(picture(0), 4))
    with pytest.raises(FakdError, match=said):
        image_set(tmp_path / "own").pairs(4)


def test_a_plus_in_a_path_is_part_of_it_where_the_folder_exists(data, tmp_path):
    for k, name in enumerate(("a+b", "a", "c+d+e")):
        write_image(tmp_path / name / "i.png", picture(k))
    assert [s.name for s in image_sets(f"{tmp_path}/a+b")] == ["a+b"]
    assert [s.name for s in image_sets(f"sample+{tmp_path}/c+d+e+{tmp_path}/a")] == ["sample", "c+d+e", "a"]
    with pytest.raises(FakdError, match="unknown set or folder"):
        image_sets(f"{tmp_path}/a+x")


@pytest.mark.parametrize("config", [DistillConfig, EvaluateConfig])
def test_sets_are_given_as_text_path_or_list(tmp_path, config):
    for given in ("sample+Set5", ["sample", "Set5"], ("sample", Path("Set5"))):
        assert config(benchmarks=given).benchmarks == "sample+Set5"
    assert config(benchmarks=tmp_path).benchmarks == str(tmp_path)
    assert DistillConfig(data=tmp_path / "x").data == str(tmp_path / "x")
    with pytest.raises(FakdError, match="benchmarks 3"):
        config(benchmarks=3)


@pytest.mark.parametrize("name", [b"a\xff", b"a\nb", b"a\x1b[31m"])
def test_names_that_cannot_be_shown_are_refused_before_any_work(data, tmp_path, name):
    for folder in (os.fsencode(tmp_path) + b"/set/" + name, os.fsencode(tmp_path) + b"/" + name):
        os.makedirs(os.path.dirname(folder), exist_ok=True)
    Image.fromarray(picture(0)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/set/" + name + b".png"))
    with pytest.raises(FakdError, match="valid UTF-8|cannot be shown"):
        image_set(tmp_path / "set")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_image(folder / "i.png", picture(0))
    with pytest.raises(FakdError, match="valid UTF-8|cannot be shown"):
        image_set(folder)


def test_odd_names_are_taken_as_they_are(data, tmp_path):
    names = ["a--b", "$x$", "it's", 'say "so"', "a+b", "ünï", "x" * 240, "a b", "100%", "<b>"]
    for k, name in enumerate(names):
        write_image(tmp_path / "--set" / f"{name}.png", picture(k))
    assert sorted(p.name for p in image_set(tmp_path / "--set").pairs(4)) == sorted(names)


@pytest.mark.parametrize("set_name,image", [("val--2024", "a--b"), ("$x$", 'say "so" <b>'), ("a+b", "n" * 240),
                                            (".hidden", "it's 100%"), ("ünï", "x/y"), ("Set5", "baby")])
def test_a_run_keeps_and_finds_images_of_any_name(tmp_path, set_name, image):
    rows = [Row.of(method, set_name, image, 4, 30.0, 0.9) for method in ("bicubic", "plain", "distilled")]
    run = make_run_fixture(tmp_path, pictures=False, rows=rows, summary=summarise(rows), teacher=None)
    folder = run.image_dir(set_name, image)
    assert folder.parent == run.dir / "snapshots" / "images" and not folder.name.startswith(".")
    for name in ("lr", "hr", "bicubic", "plain", "distilled"):
        write_image(folder / f"{name}.png", picture(0, *((24, 30) if name == "lr" else (96, 120))))
    scene, = scenes(run)
    assert (scene.set, scene.image, sorted(scene.scores)) == (set_name, image, ["bicubic", "distilled", "plain"])


@pytest.mark.parametrize("layout", ["flat", "HR"])
@pytest.mark.timeout(60)
def test_a_pipe_among_the_images_is_refused_and_not_waited_for(data, tmp_path, layout):
    folder = tmp_path / "set" / ("HR" if layout == "HR" else "")
    write_image(folder / "a.png", picture(0))
    os.mkfifo(folder / "b.png")
    images = image_set(tmp_path / "set")
    for read in (lambda: images.pairs(4), lambda: images.pairs(4, cache=True), lambda: images.digest(4)):
        with pytest.raises(FakdError, match="b.png: .*ordinary"):
            read()
