"Means, gains, best networks and tables of a set go over the same images for all its methods."

import csv
import json
import math

import numpy as np
import pytest
import skimage.data
from fixtures import make_run_fixture
from torch import nn

from fakd.core import FakdError
from fakd.data.pairs import ImagePair
from fakd.images import write_image
from fakd.look.networks import mean_tables, perception_table, published_tables, variant_tables
from fakd.look.results import result_table
from fakd.nets.weights import save_weights
from fakd.nets.zoo import make_net
from fakd.record import read_record
from fakd.report.cards import card
from fakd.report.evaluation import evaluation_finding, evaluation_page
from fakd.report.finding import finding
from fakd.report.run import run_page
from fakd.rows import Row, compare_sets, gains, left_out, summarise
from fakd.run_folder import Run
from fakd.study.evaluation import Way, evaluate_weights
from fakd.train.run import _last, held_out_psnr
from fakd.train.trainer import Diverged

INF, NAN = math.inf, math.nan
NET = {"network": "edsr", "spec": "edsr()", "scale": 4, "params": 1, "macs": 1, "macs_input": [48, 48],
       "source": "a.pt", "digest": "ab", "assumptions": []}


def rows_of(name: str, scale: int = 4, **psnr: dict) -> list[Row]:
    "Rows from PSNR by method and image; SSIM is a hundredth of it."
    return [Row.of(method, name, image, scale, value, 1.0 if value == INF else value / 100)
            for method, values in psnr.items() for image, value in values.items()]


def test_an_image_counts_for_all_methods_or_for_none():
    rows = rows_of("S", bicubic={"a": 20, "b": 30, "black": INF}, net={"a": 22, "b": 34, "black": 45},
                   other={"a": 21, "b": NAN, "black": 50})
    means = summarise(rows)
    assert {m: means[m]["S"] for m in means} == {
        m: {"psnr_y": v, "ssim_y": pytest.approx(v / 100), "images": 1}
        for m, v in (("bicubic", 20), ("net", 22), ("other", 21))}
    why = {"b": "psnr_y is nan, ssim_y is nan for other", "black": "psnr_y is inf for bicubic"}
    assert left_out(rows) == {"S": why}
    assert gains(rows, "S", "net", "bicubic") == {"a": 2}


def test_a_missing_ssim_or_row_leaves_an_image_out_too():
    rows = rows_of("S", plain={"a": 20, "b": 30, "c": 40}, distilled={"a": 21, "b": 31})
    rows += [Row(method="distilled", set="S", image="c", scale=4, psnr_y=41, ssim_y=None)]
    assert summarise(rows)["distilled"]["S"] == {"psnr_y": 26, "ssim_y": 0.26, "images": 2}
    assert gains(rows, "S") == {"a": 1, "b": 1}
    assert left_out(rows) == {"S": {"c": "no value for distilled"}}
    assert left_out(rows[:-1]) == {"S": {"c": "not measured for distilled"}}


def test_names_that_stand_twice_are_named_and_not_averaged():
    rows = rows_of("S", plain={"a": 20, "b": 30}, distilled={"a": 21, "b": 31}) + rows_of("S", plain={"b": 50})
    assert summarise(rows)["plain"]["S"] == {"psnr_y": 20, "ssim_y": 0.2, "images": 1}
    assert left_out(rows) == {"S": {"b": "2 rows of this name for plain"}}


def test_scales_of_one_set_are_never_mixed():
    rows = rows_of("S", 2, bicubic={"a": 30}, net={"a": 31}) + rows_of("S", 4, bicubic={"a": 20}, net={"a": 22})
    assert summarise(rows)["net"] == {f"S, x{s}": {"psnr_y": v, "ssim_y": v / 100, "images": 1}
                                      for s, v in ((2, 31), (4, 22))}
    assert [found.scale for found in compare_sets(rows).values()] == [2, 4]


def test_a_set_on_which_no_image_counts_has_no_mean():
    rows = rows_of("S", plain={"a": INF}, distilled={"a": 31})
    assert summarise(rows)["distilled"]["S"] == {"psnr_y": None, "ssim_y": None, "images": 0}
    assert gains(rows, "S") == {}


def test_a_run_says_which_images_count(tmp_path):
    sets = {"plain": {"a": 30, "b": 32, "black": INF}, "plain_equal_time": {"a": 31, "b": 33, "black": 60},
            "distilled": {"a": 30.5, "b": 32.5, "black": 48}}
    rows = rows_of("mine", **sets) + rows_of("other", **{m: {"x": v["a"]} for m, v in sets.items()})
    run = make_run_fixture(tmp_path, rows=rows, summary=summarise(rows), pictures=False)
    assert run.record.left_out == {"mine": {"black": "psnr_y is inf for plain"}}
    assert result_table(run.record).sets == [("mine", 2), ("other", 1)]
    said = "black of mine (psnr_y is inf for plain)"
    assert said in result_table(run.record).note and said in finding(run.record)
    assert "On mine (2 images) the distilled student reaches 31.50 dB, +0.50 dB" in finding(run.record)
    assert "and \u22120.50 dB at equal time" in finding(run.record)
    page = run_page(run).read_text()
    assert said in page and "in no mean: psnr_y is inf for plain" in page
    with open(run.dir / "report.csv", newline="", encoding="utf-8") as file:
        counts = {(line["set"], line["image"]): line["counts"] for line in csv.DictReader(file)}
    assert counts == {("mine", "a"): "yes", ("mine", "b"): "yes", ("other", "x"): "yes",
                      ("mine", "black"): "no: psnr_y is inf for plain"}


def test_an_old_record_gets_right_means_when_it_is_read(tmp_path):
    "Whatever its summary says: tables and findings are made from the rows."
    rows = rows_of("S", plain={"a": 30, "b": INF}, distilled={"a": 31, "b": 45})
    run = make_run_fixture(tmp_path, rows=rows, pictures=False, summary={
        "plain": {"S": {"psnr_y": 30.0, "ssim_y": 0.65, "images": 2}},
        "distilled": {"S": {"psnr_y": 38.0, "ssim_y": 0.38, "images": 2}}})
    old = json.loads((run.dir / "record.json").read_text())
    del old["left_out"]
    (run.dir / "record.json").write_text(json.dumps(old))
    record = read_record(run.dir / "record.json")
    assert record.left_out == {"S": {"b": "psnr_y is inf for plain"}}
    assert "reaches 31.00 dB, +1.00 dB" in finding(record)
    assert [row["cells"] for row in result_table(record).rows] == [
        [("30.00", "0.3000", "\u2013")], [("31.00", "0.3100", "+1.00")]]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_record_with_a_number_that_is_none_is_refused(tmp_path, value):
    run = make_run_fixture(tmp_path, pictures=False)
    text = (run.dir / "record.json").read_text()
    first = json.loads(text)["rows"][0]["psnr_y"]
    (run.dir / "record.json").write_text(text.replace(str(first), value, 1))
    with pytest.raises(FakdError, match="not a valid record"):
        read_record(run.dir / "record.json")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Run:
    "Two networks in several ways on a folder with a black image, which bicubic interpolation makes without fault."
    folder = tmp_path_factory.mktemp("evaluated")
    cat = skimage.data.chelsea()
    for name, img in {"one": cat[100:164, 100:180], "two": cat[60:124, 200:280], "black": 0 * cat[:64, :80]}.items():
        write_image(folder / "mine" / f"{name}.png", img)
    for seed in (0, 1):
        net = make_net("edsr(n_resblocks=1,n_feats=8)", 2, seed=seed)
        save_weights(net, folder / "nets" / f"net{seed}.safetensors")
    return evaluate_weights(weights=str(folder / "nets"), benchmarks=str(folder / "mine"), device="cpu", repeats=0,
                            precision="fp32+bf16", ensemble=True, tile=48, out_dir=str(folder / "runs"))


def test_an_evaluation_leaves_the_black_image_out_for_every_method(evaluated):
    record = evaluated.record
    assert record.left_out == {"mine": {"black": "psnr_y is inf for bicubic"}}
    for method, sets in record.summary.items():
        mine = [r for r in record.rows if r.method == method and r.image != "black"]
        assert sets["mine"]["images"] == len(mine) == 2
        assert sets["mine"]["psnr_y"] == pytest.approx(np.mean([r.psnr_y for r in mine]), abs=1e-9)
        assert sets["mine"]["ssim_y"] == pytest.approx(np.mean([r.ssim_y for r in mine]), abs=1e-9)
    for table in (*mean_tables(record), *variant_tables(record)):
        assert table.sets == [("mine", 2)] and "black of mine (psnr_y is inf for bicubic)" in table.note
    means = {m: sets["mine"]["psnr_y"] for m, sets in record.summary.items()}
    best = max(("net0", "net1"), key=lambda m: means[m])
    said = f"{means[best]:.2f} dB on mine ({means[best] - means['bicubic']:+.2f}".replace("-", "\u2212")
    assert said in evaluation_finding(record) and "black of mine" in evaluation_finding(record)
    assert "in no mean: psnr_y is inf for bicubic" in evaluation_page(evaluated).read_text()


def test_a_set_with_an_image_left_out_does_not_stand_beside_published_means(evaluated):
    rows = [row.model_copy(update={"set": "Set5", "scale": 4}) for row in evaluated.record.rows]
    record = evaluated.record.model_copy(update={"rows": rows})
    assert published_tables(record) == []
    whole = record.model_copy(update={"rows": [row for row in rows if row.image != "black"]})
    assert [table.sets for table in published_tables(whole)] == [[("Set5", 2)]]


def test_perception_is_averaged_over_what_every_method_has(tmp_path):
    found = [{"method": m, "set": "S", "image": i, "scale": 4, "LPIPS (VGG16)": v, "DISTS": v / 2}
             for m, values in (("bicubic", (0.2, 0.4, None)), ("net", (0.1, 0.3, 0.5)))
             for i, v in zip("abc", [v or 0.0 for v in values], strict=True)]
    found[2]["DISTS"] = None  # what JSON makes of NaN
    found = [line for line in found if (line["method"], line["image"]) != ("net", "b")]
    ways = {"net": Way("net")._asdict()}
    run = make_run_fixture(tmp_path, pictures=False, kind="evaluate",
                           student={"nets": {"net": NET}, "ways": ways, "perception": found})
    assert list(perception_table(run.record)) == [
        {"Set": "S, \u00d74", "Method": m, "Images": "1 (without b, c)", "LPIPS (VGG16)": v, "DISTS": w}
        for m, v, w in (("Bicubic", "0.2000", "0.1000"), ("net", "0.1000", "0.0500"))]


def test_an_exact_crop_is_the_best_one_and_a_nan_is_not(evaluated):
    from fakd.look.crops import Scene, cut_crops
    from fakd.report.evaluation import _comparison

    img = skimage.data.chelsea()[:64, :64]
    versions = {name: img for name in ("hr", "bicubic", "a", "b", "c")}
    scores = {r.method: r for r in rows_of("S", bicubic={"i": 30}, a={"i": NAN}, b={"i": INF}, c={"i": 40})}
    parts = _comparison(Scene("S", "i", versions, *cut_crops(versions), scores))
    assert [crop["method"] for crop in parts["crops"] if crop["kind"] == "distilled"] == ["b"]


def test_the_held_out_psnr_goes_over_the_same_crops_at_every_step():
    "A crop of one colour is exact for some networks; then a mean with it would be infinite for these alone."
    cat = skimage.data.chelsea()[100:148, 100:148]
    pairs = [ImagePair(n, img, img[::2, ::2].copy()) for n, img in (("flat", 0 * cat + 90), ("cat", cat))]
    repeat = nn.Upsample(scale_factor=2)
    assert held_out_psnr(repeat, pairs, "cpu") == held_out_psnr(repeat, pairs[1:], "cpu") < 40
    assert math.isnan(held_out_psnr(repeat, pairs[:1], "cpu"))
    with pytest.raises(Diverged, match="not finite"):
        held_out_psnr(nn.Threshold(1e9, NAN), pairs, "cpu")


def test_the_best_step_is_one_with_a_number():
    lines = [{"method": "plain", "step": i, "time_s": 1.0, "psnr_y": v} for i, v in enumerate([NAN, 25.0, None, 24.0])]
    assert (_last(lines)["best_psnr_y"], _last(lines)["best_step"]) == (25.0, 1)
    assert _last(lines[:1])["best_psnr_y"] is None


def test_every_figure_of_an_evaluation_has_its_files_and_none_is_needed(evaluated, tmp_path):
    text = evaluation_page(evaluated).read_text(encoding="utf-8")
    for path in (evaluated.dir / "figures").iterdir():
        assert text.count(f'href="figures/{path.name}"') == 2, path.name  # under its caption and in the list
    assert (evaluated.dir / "figures" / "pareto-x2.pdf").is_file()
    run = make_run_fixture(tmp_path, pictures=False, kind="evaluate", rows=[], summary={},
                           student={"nets": {"net": NET}, "ways": {}})
    assert "The run kept no images to compare." in evaluation_page(run).read_text(encoding="utf-8")


def test_a_card_has_the_means_of_the_images_that_count(tmp_path):
    rows = rows_of("S", bicubic={"a": 20, "black": INF}, teacher={"a": 22, "black": 45}) + rows_of(
        "T", bicubic={"x": INF}, teacher={"x": 30})
    settings = ("init", "steps", "batch_size", "patch_px", "learn_rate", "schedule", "ema", "loss", "seed", "precision")
    run = make_run_fixture(
        tmp_path, pictures=False, kind="teacher", rows=rows, summary={}, history={"teacher": {"time_s": 60.0}},
        resolved={"scale": 4, **dict.fromkeys(settings, 1)},
        data=[{"name": "sample", "role": "train", "count": 9, "digest": "ab"}])
    text = card(run.record)
    assert "| S | 1 | 22.00 dB | 0.2200 | 20.00 dB | 0.2000 |" in text
    assert "black of S (psnr_y is inf for bicubic); x of T (psnr_y is inf for bicubic)." in text
