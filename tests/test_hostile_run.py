"What a run folder holds is shown as text: no tag, attribute, formula or type-setting command of its gets into a page."

import csv
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import skimage.data
from fixtures import make_run_fixture

from fakd.images import write_image
from fakd.look.crops import crop_figure
from fakd.look.curves import curve_figure
from fakd.look.networks import pareto_figure
from fakd.look.results import gain_figure
from fakd.report.evaluation import evaluation_page
from fakd.report.pages import index_page
from fakd.report.run import run_page
from fakd.rows import Row, summarise
from fakd.run_folder import Run
from fakd.study.evaluation import Way

EVIL = "'\"><script>window.pwned=1</script><img src=x onerror=window.pwned=1><!--{{7*7}}--></style></svg>javascript:1"
ODD = ["$\\frac{1}{", "$x$", "a_b^c", "line\nbreak\ttab", "\U0001f600 \u202e\u0645", "x" * 300, "-->", "=1+2", "%s{}"]
TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2", "h3", "p", "br",
    "code", "figure", "figcaption", "div", "span", "small", "table", "thead", "tbody", "tr", "th", "td", "em", "a",
    "details", "summary", "ul", "li", "i", "b", "img", "pre", "footer", "strong", "svg", "defs", "g", "path", "use",
    "text", "clippath", "rect", "tspan",
}


class Seen(HTMLParser):
    "Every tag and attribute of a page."

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        self.attributes |= {(tag, name) for name, _ in attrs}
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src")]


def check(text: str) -> None:
    "Nothing but the page's own tags; ids of letters and digits; links into the run's folder."
    seen = Seen(text)
    assert seen.tags <= TAGS, seen.tags - TAGS
    assert not [a for a in seen.attributes if a[1].startswith("on")]
    assert all(re.fullmatch(r"[\w-]+", name) for name in seen.ids) and len(seen.ids) == len(set(seen.ids))
    assert all(re.match(r"data:image/|#[\w-]+$|[\w%][\w%./-]*$", link) for link in seen.links)
    assert "49" not in text.partition("{{7*7}}")[0][-40:] and "{{7*7}}" in text  # templates are not run
    assert text.count("<style") == text.count("</style>") and text.count("<!--") == 0


def small_pictures(run: Run, names: list[str]) -> None:
    img = skimage.data.chelsea()[100:148, 100:164]
    for name in names:
        for method in ("lr", "hr", "bicubic", "plain", "distilled"):
            shown = img[::4, ::4] if method == "lr" else img
            write_image(run.dir / "snapshots" / "images" / name / f"{method}.png", shown)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Run:
    "A run whose every text is an attack, with what a run usually has: rows, history, images, affinity."
    tight = EVIL.replace("/", "\u2215")  # a name of a folder
    rows = [Row.of(m, name, image, 4, 25 + k, 0.8) for name in (EVIL, tight[:60]) for image in (EVIL, tight, *ODD)
            for k, m in enumerate(("bicubic", "teacher", "plain", "plain_equal_time", "distilled"))]
    rows += [Row(method="plain", set="S", image=EVIL, scale=4, psnr_y=None, ssim_y=None, note=EVIL)]
    net = {"network": EVIL, "spec": EVIL, "params": 10, "macs": 10, "macs_input": [48, 48], "source": EVIL,
           "digest": EVIL, "assumptions": [EVIL], "taps": {EVIL: [1, 2, 3]}}
    run = make_run_fixture(
        tmp_path_factory.mktemp("hostile") / "runs", pictures=False, rows=rows, summary=summarise(rows), error=EVIL,
        given={EVIL: EVIL, "loss": EVIL, "data": EVIL}, resolved={EVIL: EVIL, "loss": EVIL, "data": EVIL, "seed": EVIL,
                                                                  "scale": EVIL, "steps": EVIL, "taps": [EVIL]},
        environment={"python": EVIL, "cpu": EVIL, "versions": {EVIL: EVIL}, "git": {"commit": EVIL, "clean": False},
                     "no_git": EVIL},
        teacher=net, student=net, digest=EVIL, code_digest=EVIL, created=EVIL, finished=EVIL,
        data=[{"name": EVIL, "role": "evaluate", "count": 1, "digest": EVIL}],
        artefacts=[{"path": p, "bytes": 1, "sha256": EVIL} for p in (EVIL, "javascript:alert(1)", "//example.org/x")],
        history={"plain": {"step": 2, "time_s": 1.0}, "distilled": {"step": 2, "time_s": 2.0}})
    with open(run.dir / "history.csv", "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["method", "step", "time_s", "learn_rate", "loss", EVIL, "$\\frac{", "SA", "psnr_y"])
        out.writerows([m, step, step, 1e-3, 3, 1, 1, 1, 25] for m in ("plain", "distilled") for step in (1, 2, 3))
    small_pictures(run, [f"{tight[:60]}--{tight}"[:250], "S--$\\frac{1}{", "S--\U0001f600"])
    taps = [f"{EVIL}={EVIL}", "$\\frac{=x"]
    maps = {f"{m}/{i}": np.full((1, 6, 8), 0.5, np.float16) for m in ("teacher", "plain", "distilled") for i in (0, 1)}
    np.savez(run.dir / "snapshots" / "affinity.npz", image=np.zeros((6, 8, 3), np.uint8), queries=np.array([[1, 2]]),
             taps=np.array(taps), **maps)
    for method in ("plain", "distilled"):
        np.savez(run.dir / "snapshots" / f"progress-{method}.npz", steps=np.array([1, 2]), distances=np.ones((2, 2)),
                 taps=np.array(taps), query=np.array([1, 2]), image=np.zeros((6, 8, 3), np.uint8),
                 compared=np.array([48, 9]), **{f"rows/{i}": np.zeros((2, 6, 8)) for i in (0, 1)},
                 **{f"teacher/{i}": np.zeros((6, 8)) for i in (0, 1)})
    return run


def test_no_text_of_a_hostile_run_becomes_part_of_the_page(hostile):
    text = run_page(hostile).read_text(encoding="utf-8")
    check(text)
    assert text.count('<div class="plot">') >= 5  # the curves are there
    check(index_page(hostile.dir.parent.parent).read_text(encoding="utf-8") + "{{7*7}}")


def test_a_browser_runs_nothing_of_a_hostile_run(hostile):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or pytest.skip("needs Chromium")
    page_file = hostile.dir / "report.html"
    if not page_file.is_file():
        run_page(hostile)
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(page_file.as_uri())
        assert page.evaluate("[window.pwned, document.scripts.length, document.querySelectorAll('[onerror]').length]") \
            == [None, 0, 0]
        browser.close()


def test_the_page_of_a_hostile_evaluation_is_text_too(tmp_path):
    ways = {name: Way(name)._asdict() for name in (EVIL, "$\\frac{")}
    net = {"network": EVIL, "spec": EVIL, "scale": 4, "params": 10, "macs": 10, "macs_input": [48, 48], "source": EVIL,
           "digest": EVIL, "assumptions": [EVIL], "latency": None, "peak_memory": 5, "measured_at": [9, 9]}
    rows = [Row.of(m, name, image, 4, 25 + k, 0.8) for name in (EVIL, "Set5") for image in (EVIL, "b")
            for k, m in enumerate(("bicubic", *ways))]
    found = [{"method": m, "set": EVIL, "image": EVIL, "scale": 4, EVIL: 0.5} for m in ("bicubic", *ways)]
    run = make_run_fixture(tmp_path, pictures=False, kind="evaluate", rows=rows, summary=summarise(rows), teacher=None,
                           student={"nets": {name: net for name in ways}, "ways": ways, "perception": found})
    check(evaluation_page(run).read_text(encoding="utf-8"))


def test_a_spreadsheet_computes_nothing(tmp_path):
    names = ["=1+2", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "a=1"]
    rows = [Row.of("plain", name, name, 4, -3.5, -0.25) for name in names]
    run = make_run_fixture(tmp_path, rows=rows, summary=summarise(rows), pictures=False)
    run_page(run)
    with open(run.dir / "report.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["image"] for line in lines] == [f"'{n}" if n != "a=1" else n for n in names]
    assert {(line["psnr_y"], line["ssim_y"]) for line in lines} == {("-3.5", "-0.25")}  # numbers stay numbers


@pytest.mark.parametrize("name", [EVIL, *ODD])
def test_figures_show_any_name(name, tmp_path):
    "Dollars set no mathematics, line ends and emoji break nothing."
    rows = [Row.of(m, name, i, 4, 25 + k, 0.8) for k, m in enumerate(("plain", "distilled")) for i in "ab"]
    img = skimage.data.chelsea()[:40, :40]
    history = [{"method": "plain", "step": s, "loss": 2.0, name: 1.0, "SA": 1.0} for s in (1.0, 2.0)]
    for fig in (gain_figure(rows), pareto_figure({name: 30.0, "b": 31.0}, {name: {name: 5, "b": 9}}, 29.0),
                crop_figure({"hr": img, name: img}, scores={name: name}), curve_figure(history)):
        fig.savefig(tmp_path / "figure.png", dpi=40)
        fig.savefig(tmp_path / "figure.svg")
    assert "mathtext" not in (tmp_path / "figure.svg").read_text()
