"What a person sees of a page: on a phone, on a screen and on paper, with long names and tall images."
from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from fixtures import make_run_fixture
from matplotlib.text import Text

from fakd.images import write_image
from fakd.look.networks import pareto_figure
from fakd.look.results import gain_figure
from fakd.report.evaluation import evaluation_page
from fakd.report.pages import index_page
from fakd.report.run import run_page
from fakd.rows import Row, summarise
from fakd.run_folder import Run
from fakd.study.evaluation import Way

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LONG = "a_very_long_file_name_of_a_holiday_picture_2019_07_23_18_42_11_HDR_edited_final_v2"
NETS = [f"distill_x4_rcan_ds_ts_sa_s{k}_1f3c9a2e/plain_equal_time" for k in range(7)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright: pip install fakd[dev]")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine, so no page was looked at")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "A run with long names and an image five times as tall as wide."
    rows = [Row.of(m, "mine", image, 4, 25 + k, 0.8) for image in (LONG, "tower")
            for k, m in enumerate(("bicubic", "teacher", "plain", "plain_equal_time", "distilled"))]
    seen = {LONG: f"{LONG}, a piece"}
    run = make_run_fixture(
        tmp_path_factory.mktemp("seen") / "runs", pictures=False, rows=rows, summary=summarise(rows),
        data=[{"name": "mine", "role": "evaluate", "count": 2, "digest": "d", "trained_on": seen}])
    img = skimage.data.astronaut()[:480, 100:196]
    for method in ("lr", "hr", "bicubic", "plain", "distilled"):
        shown = img[::4, ::4] if method == "lr" else img
        write_image(run.dir / "snapshots" / "images" / "mine--tower" / f"{method}.png", shown)
    run_page(run)
    return run


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    "An evaluation of many networks with long names."
    net = {"network": "rcan", "spec": "rcan(n_resgroups=3,n_resblocks=5,n_feats=48,reduction=8)", "scale": 4,
           "params": 10, "macs": 10, "macs_input": [48, 48], "source": f"runs/{LONG}.safetensors", "digest": "0f" * 32,
           "assumptions": [], "latency": None, "peak_memory": 5e6, "measured_at": [9, 9]}
    rows = [Row.of(m, name, image, 4, 25 + k, 0.8) for name in ("Set5", "mine") for image in (LONG, "b")
            for k, m in enumerate(("bicubic", *NETS))]
    run = make_run_fixture(tmp_path_factory.mktemp("compared") / "runs", pictures=False, kind="evaluate", rows=rows,
                           summary=summarise(rows), teacher=None,
                           student={"nets": dict.fromkeys(NETS, net), "ways": {n: Way(n)._asdict() for n in NETS}})
    evaluation_page(run)
    return run


def page_of(browser: Any, path: Path, **how: Any) -> Any:
    page = browser.new_page(**how)
    page.goto(path.as_uri())
    return page


def test_no_page_is_wider_than_a_phone(browser: Any, tall: Run, compared: Run) -> None:
    "Tables scroll in themselves; long names are broken."
    for path in (tall.dir / "report.html", compared.dir / "report.html", index_page(tall.dir.parent.parent)):
        page = page_of(browser, path, viewport={"width": 400, "height": 800}, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") == 400, path
        page.close()


def test_a_tall_image_fits_on_a_screen_and_keeps_its_shape(browser: Any, tall: Run) -> None:
    for width in (400, 1200):
        page = page_of(browser, tall.dir / "report.html", viewport={"width": width, "height": 800})
        whole, image = page.locator(".whole").bounding_box(), page.locator(".whole img").bounding_box()
        assert whole["height"] <= 800 and image == pytest.approx(whole, abs=1)  # the window lies on it in per cent
        assert image["width"] / image["height"] == pytest.approx(96 / 480, rel=0.01)
        page.close()


def test_paper_shows_every_column(browser: Any, tall: Run, compared: Run) -> None:
    "What is right of the page's edge cannot be scrolled to there."
    for run in (tall, compared):
        page = page_of(browser, run.dir / "report.html", viewport={"width": 658, "height": 900})  # A4 less its margins
        page.emulate_media(media="print")
        ends = page.evaluate(
            "[...document.querySelectorAll('th, td, .crop')].map(e => e.getBoundingClientRect().right)")
        assert len(ends) > 50 and max(ends) <= 658.5
        page.close()


def test_the_list_of_runs_tells_both_gains_and_the_best_network(tall: Run, compared: Run) -> None:
    text = index_page(tall.dir.parent.parent).read_text(encoding="utf-8")
    assert '<td class="n">29.00</td><td class="n">+2.00</td><td class="n">+1.00</td>' in text
    text = index_page(compared.dir.parent.parent).read_text(encoding="utf-8")
    assert "<td>7 networks</td>" in text and '<td class="n">32.00</td>' in text


def boxes(fig: Any) -> list[Any]:
    fig.draw_without_rendering()
    return [Text.get_window_extent(text) for axes in fig.axes for text in axes.texts]


@pytest.mark.parametrize("cost", [[1, 1, 1, 1, 1, 1, 1], [1, 1.01, 1.02, 2, 2, 2.01, 9], [1, 2, 4, 8, 16, 32, 64]])
def test_no_name_in_a_figure_covers_another_or_leaves_it(cost: list[float]) -> None:
    "Also where networks are of one size and nearly of one quality. Its letters count, not the line to its point."
    psnr = {name: 29 + 0.01 * k for k, name in enumerate(NETS)}
    fig = pareto_figure(psnr, {"Parameters": {n: 1e5 * c for n, c in zip(NETS, cost, strict=True)}}, 27.0)
    found = boxes(fig)
    assert len(found) == len(NETS) + 1  # and bicubic
    letters = [box.shrunk(0.98, 0.7) for box in found]
    assert not [(a, b) for i, a in enumerate(letters) for b in letters[:i] if a.overlaps(b)]
    panel = fig.axes[0].get_window_extent()
    assert all(panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1 for box in found)


def test_the_two_lines_of_a_set_stay_apart() -> None:
    rows = [Row.of(m, s, i, 4, 25 + k, 0.8) for s in "AB" for i in "xy"
            for k, m in enumerate(("plain", "plain_equal_time", "distilled"))]
    bars = [line.get_ydata() for line in gain_figure(rows).axes[0].lines if line.get_marker() == "None"][1:]
    assert len(bars) == 4  # equal steps and equal time of two sets
    ends = sorted((min(y), max(y)) for y in bars)
    assert all(above[1] < below[0] for above, below in zip(ends, ends[1:], strict=False))
    assert ends[0][0] > -0.5 and ends[-1][1] < 1.5  # within the panel
