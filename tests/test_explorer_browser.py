"""The explorer as a person uses it: in a real JupyterLab and as a static page, in headless Chromium.

What is on the canvas is compared with the affinity computed in Python. Debian's and other systems' Chromium is used as
it is found; without one these tests are skipped and say so.
"""
from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import skimage.data
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell
from PIL import Image

from fakd.core import static
from fakd.distil.affinity import affinity_row
from fakd.images import write_image
from fakd.look.explorer import ExploreConfig, Explorer, explore, open_explorer, still_picture
from fakd.look.page import explorer_page
from fakd.look.training import AffinityProgress
from fakd.nets.zoo import make_net

ROOT = Path(__file__).parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine, so the explorer was not tried in a browser "
                             "(Debian and Ubuntu: apt-get install chromium)")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]


# What is asked of any page


class Watch:
    "Everything that a page complains of or asks for."

    def __init__(self, page: Any):
        self.faults: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda m: self.faults.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        page.on("request", lambda request: self.requests.append(request.url))

    def check(self) -> None:
        "No error, and nothing asked of another machine."
        assert self.faults == []
        asked = [url for url in map(urlparse, self.requests) if url.scheme not in ("data", "blob", "file")]
        assert {url.hostname for url in asked} <= {"127.0.0.1"}


class Widget:
    "The explorer on a page, and the same in Python to compare with."

    def __init__(self, page: Any, same: Explorer):
        self.page, self.same = page, same
        self.root = page.locator(".fakd-explorer").first
        self.root.locator(".fx-map canvas").first.wait_for(timeout=60_000)

    def wait(self, **data: str) -> None:
        "Until the drawn frame belongs to this query or tap."
        for name, value in data.items():
            self.page.wait_for_function(
                "([name, value]) => document.querySelector('.fakd-explorer').dataset[name] === value",
                arg=[name, value])
        self.settle()

    def settle(self) -> None:
        "Until two frames of the screen are over."
        self.page.evaluate("() => new Promise(end => requestAnimationFrame(() => requestAnimationFrame(end)))")

    @property
    def query(self) -> tuple[int, int]:
        y, x = (self.root.get_attribute("data-query") or "").split(",")
        return int(y), int(x)

    def at(self, canvas: Any, y: float, x: float) -> tuple[float, float]:
        "Where a position lies on the screen, while the whole image is shown."
        canvas.scroll_into_view_if_needed()
        box, (h, w) = canvas.bounding_box(), self.same._info["size"]
        return box["x"] + (x + 0.5) / w * box["width"], box["y"] + (y + 0.5) / h * box["height"]

    def click(self, y: int, x: int) -> None:
        self.page.mouse.click(*self.at(self.root.locator(".fx-image canvas"), y, x))
        self.wait(query=f"{y},{x}")

    def pixels(self, number: int, places: list[list[int]]) -> tuple[list[np.ndarray], float, float]:
        "A heat map's colours as the steps of 0 to 255 that have them (rarely two), and the colour bar's ends."
        h, w = self.same._info["size"]
        found = self.root.locator(".fx-map canvas").nth(number).evaluate(
            """(canvas, at) => { const context = canvas.getContext('2d'), {width, height} = canvas;
                const rgb = ([y, x]) => [...context.getImageData(x * width, y * height, 1, 1).data].slice(0, 3);
                return {low: +canvas.dataset.low, high: +canvas.dataset.high, rgb: at.map(rgb),
                        delta: canvas.ariaLabel.includes(', \u0394')}; }""",
            [[(y + 0.5) / h, (x + 0.5) / w] for y, x in places])
        name = self.root.locator(".fx-choice:has-text('Colours') select").input_value()
        colours = mpl.colormaps["RdBu_r" if found["delta"] else name](np.arange(256), bytes=True)[:, :3]
        steps = [np.flatnonzero((colours == rgb).all(1)) for rgb in found["rgb"]]
        assert all(map(len, steps)), "a colour that is not of the map"
        return steps, found["low"], found["high"]

    def row(self, number: int, query: tuple[int, int]) -> np.ndarray:
        "The row of a network, computed in Python."
        features = self.same.exhibit.features
        maps = [m[features.tap(str(self.root.get_attribute("data-tap")))] for m in features.maps.values()]
        return affinity_row(maps[number], *query)[0].double().numpy()

    def value(self, number: int, query: tuple[int, int], y: int, x: int, difference: bool = False) -> float:
        "One value of it, or of its difference to the teacher's."
        return float(self.row(number, query)[y, x] - (self.row(0, query)[y, x] if difference else 0))

    def check(self, seed: int, count: int = 10, difference: bool = False) -> None:
        "The query is like itself, and random positions have the value that Python computes, to 1/255 of the bar."
        query, (h, w) = self.query, self.same._info["size"]
        places = [list(query), *np.random.default_rng(seed).integers(0, (h, w), (count, 2)).tolist()]
        for number in range(len(self.same.exhibit.nets)):
            delta = difference and number > 0
            found, low, high = self.pixels(number, places)
            for steps, (y, x) in zip(found, places, strict=True):
                wanted = (self.value(number, query, y, x, delta) - low) / (high - low) * 255
                assert np.abs(steps - np.clip(wanted, 0, 255)).min() <= 1, (number, query, y, x)
            assert set(found[0]) & ({127, 128} if delta else {255})  # like itself: the bar's end, or its middle

    def choose(self, label: str, value: str) -> None:
        self.root.locator(f".fx-choice:has(> span:text-is('{label}')) select").select_option(value)
        self.settle()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def save(self, button: str) -> bytes:
        with self.page.expect_download() as download:
            self.root.get_by_role("button", name=button).click()
        return Path(download.value.path()).read_bytes()

    def colours(self) -> list[str]:
        return self.root.evaluate("e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright: pip install fakd[dev]")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "An image of one's own."
    path = tmp_path_factory.mktemp("images") / "mine.png"
    write_image(path, skimage.data.chelsea()[:160, :240])
    return path


# JupyterLab


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "The address of a JupyterLab that shows nbs/explore_affinity.ipynb, with cells of a test behind it."
    base = tmp_path_factory.mktemp("lab")
    nb = nbformat.read(ROOT / "nbs" / "explore_affinity.ipynb", 4)
    nb.cells.insert(0, new_code_cell(f"import os\nos.chdir({str(ROOT)!r})"))
    nb.cells += [new_code_cell("explorer.query = (5, 6)"), new_code_cell("print('SEEN', explorer.query, explorer.tap)")]
    (base / "lab").mkdir()
    nbformat.write(nb, base / "lab" / "explore.ipynb")
    settings = base / "settings" / "@jupyterlab"
    for name, values in {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
                         "notebook-extension/tracker": {"windowingMode": "defer"}}.items():
        (settings / name).parent.mkdir(parents=True)
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTERLAB_SETTINGS_DIR": "settings", "IPYTHONDIR": "ipython",
              "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "JUPYTER_RUNTIME_DIR": "runtime"}
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {k: str(base / v) for k, v in places.items()}
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0", "--allow-root",
             "--IdentityProvider.token=T", f"--ServerApp.root_dir={base / 'lab'}", "--LabApp.news_url=None",
             "--LabApp.expose_app_in_browser=True"]
    with open(base / "log", "w") as log:
        program = Path(sys.executable).parent / "jupyter-lab"
        server = subprocess.Popen([program, *words], env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api/status?token=T", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        else:
            pytest.fail((base / "log").read_text()[-2000:])
        yield f"{address}/lab/tree/explore.ipynb?token=T&reset"
    finally:
        server.terminate()
        server.wait(20)


def run_cells(page: Any, command: str) -> None:
    "Run a command of the notebook and wait until every cell that ran has ended."
    page.evaluate("command => window.jupyterapp.commands.execute(command)", command)
    page.wait_for_timeout(300)
    page.wait_for_function("""() => ![...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
        .some(prompt => prompt.innerText.includes('*'))
        && document.querySelector('.jp-Notebook-ExecutionIndicator').dataset.status === 'idle'""", timeout=120_000)


def run_last(page: Any, back: int) -> None:
    "Run one of the last cells, counted from the end."
    page.evaluate("""back => { const content = window.jupyterapp.shell.currentWidget.content;
        content.activeCellIndex = content.widgets.length - back; }""", back)
    run_cells(page, "notebook:run-cell")


def open_lab(browser: Any, address: str) -> tuple[Any, Watch]:
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    watch = Watch(page)
    page.goto(address)
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
    page.wait_for_function("""() => ![undefined, 'No Kernel'].includes(
        document.querySelector('.jp-KernelName')?.innerText)""")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=60_000)
    return page, watch


def test_in_jupyterlab_run_all_shows_it_and_everything_can_be_done(
    browser: Any, lab: str, mine: Path, tmp_path: Path,
) -> None:
    page, watch = open_lab(browser, lab)
    run_cells(page, "notebook:run-all-cells")
    assert "Traceback" not in page.inner_text(".jp-Notebook")
    assert page.locator(".jp-OutputArea img").count() >= 5
    cells = page.locator(".jp-Cell").count()
    w = Widget(page, open_explorer(ExploreConfig()))

    # state set by a cell; then click, drag and keys, which tell the kernel
    w.wait(query="5,6")
    w.check(seed=0)
    w.click(20, 30)
    w.check(seed=1)
    image = w.root.locator(".fx-image canvas")
    page.mouse.move(*w.at(image, 20, 30))
    page.mouse.down()
    page.mouse.move(*w.at(image, 30, 36), steps=5)
    page.mouse.move(*w.at(image, 41, 44), steps=5)
    page.mouse.up()
    w.wait(query="41,44")
    w.press("ArrowUp", "ArrowLeft", "Shift+ArrowRight", "ArrowDown", "ArrowDown")
    assert w.query == (42, 51)
    w.check(seed=2)
    w.press("d", "2", "0", "d", "2", "0")  # JupyterLab's own shortcuts, such as d d, do not hear them
    assert page.locator(".jp-Cell").count() == cells

    page.evaluate("""() => { window.ran = [];
        window.jupyterapp.commands.commandExecuted.connect((_, what) => window.ran.push(what.id)); }""")
    w.press("Control+s", "Control+Shift+c")  # a shortcut with a modifier is JupyterLab's
    page.wait_for_function("() => window.ran.includes('docmanager:save')")
    page.keyboard.press("Escape")
    w.root.locator(".fx-image canvas").focus()

    # another tap: the kernel sends its features
    w.choose("Tap", "group0")
    w.wait(tap="group0")
    w.check(seed=3)
    run_last(page, 1)
    assert "SEEN (42, 51) group0" in page.inner_text(".jp-Notebook")

    # a value under the cursor
    w.root.scroll_into_view_if_needed()
    page.mouse.move(*w.at(w.root.locator(".fx-map canvas").nth(1), 10, 12))
    w.settle()
    said = w.root.locator(".fx-readout").text_content()
    assert f"Not distilled {w.value(1, (42, 51), 10, 12):.2f}".replace("-", "\u2212") in said

    # the theme, then another width
    light = w.colours()
    page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")
    w.settle()
    assert all(a != b for a, b in zip(light, w.colours(), strict=True))
    w.check(seed=4, count=3)
    before = w.root.locator(".fx-map canvas").first.evaluate("c => c.width")
    page.set_viewport_size({"width": 1000, "height": 1000})
    page.wait_for_function("w => document.querySelector('.fx-map canvas').width !== w", arg=before)
    w.settle()
    w.check(seed=5, count=3)

    # an image of one's own
    w.root.dispatch_event("drop", {"dataTransfer": dropped(page, mine.read_bytes(), "mine.png", "image/png")})
    page.wait_for_function("() => document.querySelector('.fx-status').textContent.includes('60 \u00d7 40 positions')")
    w.settle()
    w.same.set_image(mine, "mine.png")
    w.same.tap = "group0"
    w.click(11, 50)
    w.check(seed=6)

    saved = json.loads(w.save("Save queries"))
    assert (saved["query"], saved["tap"], saved["width"], saved["height"]) == ([11, 50], "group0", 60, 40)
    assert Image.open(io.BytesIO(w.save("Save PNG"))).size[0] > 1000
    watch.check()

    # what is left without the kernel: the view as it is, and in the saved notebook a picture of it
    still = page.locator(".jp-OutputArea-child:has(img)").first
    assert not still.is_visible()
    wanted = still_picture(w.same.exhibit, "group0", [(11, 50)])
    page.wait_for_function("png => document.querySelector('.jp-OutputArea-child img').src.endsWith(png)",
                           arg=base64.b64encode(wanted).decode())
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()")
    page.wait_for_function("() => document.querySelector('.fx-status').textContent.startsWith('The kernel that gave')")
    assert not w.root.get_by_role("button", name="Own image").is_visible()
    w.click(30, 9)
    w.check(seed=7, count=3)
    page.close()
    kept = nbformat.read(next(tmp_path.parent.glob("lab*/lab/explore.ipynb")), 4)
    outputs = next(cell for cell in kept.cells if "open_explorer(config)" in cell.source).outputs
    *_, image, live = [output.data for output in outputs if output.output_type != "stream"]
    assert base64.b64decode(image["image/png"]) == wanted and "application/vnd.jupyter.widget-view+json" in live
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.goto(lab)  # opened anew, nothing run
    picture = page.locator(".jp-OutputArea-child:has(img)").first
    picture.wait_for(state="visible")
    page.wait_for_selector("text=model not found")
    assert picture.is_visible() and page.locator(".fakd-explorer").count() == 0
    page.close()
    html, _ = HTMLExporter().from_notebook_node(kept)
    assert base64.b64encode(wanted).decode() in html.replace("\n", "")


# The static page


@pytest.fixture(scope="module")
def static_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Explorer]:
    same = open_explorer(ExploreConfig(tap="group1"))
    return same.to_html(tmp_path_factory.mktemp("page") / "explorer.html").as_uri(), same


def open_static(browser: Any, static_page: tuple[str, Explorer], **how: Any) -> tuple[Widget, Watch]:
    page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **how})
    page.set_default_timeout(20_000)
    watch = Watch(page)
    page.goto(static_page[0])
    return Widget(page, static_page[1]), watch


def test_the_page_works_without_a_kernel(browser: Any, static_page: tuple[str, Explorer], mine: Path) -> None:
    w, watch = open_static(browser, static_page)
    assert "half precision (fp16)" in w.page.inner_text("body")
    for seed, tap in enumerate(("group1", "head", "last")):
        w.choose("Tap", tap)
        w.wait(tap=tap)
        w.click(9 + seed, 33)
        w.check(seed)
        w.choose("Show", "difference")
        w.check(seed, difference=True)
        w.choose("Show", "affinity")
    for name in ("cividis", "magma", "gray"):
        w.choose("Colours", name)
        w.check(seed=7, count=3)
    w.choose("Affinity colour bar", "0.5")
    assert w.pixels(0, [[0, 0]])[2] == 0.5
    w.choose("Affinity colour bar", "")

    # a second pixel: a second line of maps, and their affinity in words
    w.root.get_by_role("button", name="Second pixel").click()
    w.settle()
    assert w.root.locator(".fx-map").count() == 6
    w.page.mouse.click(*w.at(w.root.locator(".fx-map canvas").nth(4), 50, 20))
    w.settle()
    said = w.root.locator(".fx-readout").text_content()
    assert f"Teacher {w.value(0, w.query, 50, 20):.2f}".replace("-", "\u2212") in said
    w.root.get_by_role("button", name="Keep").click()
    w.settle()
    saved = json.loads(w.save("Save queries"))
    assert (saved["query2"], saved["queries"]) == ([50, 20], [[50, 20]])
    picture = np.asarray(Image.open(io.BytesIO(w.save("Save PNG"))).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500  # an image and six maps, not an empty canvas

    # nothing is offered that needs a kernel, and an image that is dropped all the same is answered
    assert not w.root.get_by_role("button", name="Own image").is_visible()
    w.root.dispatch_event("drop", {"dataTransfer": dropped(w.page, mine.read_bytes(), "mine.png", "image/png")})
    w.settle()
    assert "No kernel listens here" in w.root.locator(".fx-status").text_content()
    watch.check()
    w.page.close()


def test_one_colour_bar_of_differences_can_be_kept_over_taps_and_queries(
    browser: Any, static_page: tuple[str, Explorer],
) -> None:
    w, watch = open_static(browser, static_page)
    w.choose("Show", "difference")
    ends = {}
    for tap in ("head", "group1"):
        w.choose("Tap", tap)
        w.wait(tap=tap)
        ends[tap] = w.pixels(1, [[0, 0]])[2]
        assert ends[tap] == w.same._info["bars"][tap][1]
    assert ends["head"] != ends["group1"]  # what a tap needs differs, so colours mean another number
    w.choose("Δ colour bar", "0.3")
    for tap, query in (("head", (9, 9)), ("group1", (40, 20))):
        w.choose("Tap", tap)
        w.wait(tap=tap)
        w.click(*query)
        assert w.pixels(1, [[0, 0]])[1:] == (-0.3, 0.3) and w.pixels(0, [[0, 0]])[2] == 1  # the teacher's is its own
        w.check(seed=3, difference=True)
    assert "\u2265 0.3" in w.root.locator(".fx-legend").text_content()  # what lies beyond is said
    w.choose("Show", "affinity")
    assert w.pixels(1, [[0, 0]])[2] == 1
    watch.check()
    w.page.close()


def test_numbers_that_differ_in_kind_are_named_apart(browser: Any, static_page: tuple[str, Explorer]) -> None:
    w, watch = open_static(browser, static_page)
    teacher, own = w.row(0, w.query), w.row(1, w.query)
    far = np.abs(own - teacher).mean()
    notes = w.root.locator(".fx-map .fx-note").all_text_contents()
    assert notes[0] == f"mean affinity {teacher.mean():.2f}".replace("-0.00", "0.00").replace("-", "\u2212")
    assert notes[1] == f"mean affinity {own.mean():.2f}, mean |\u0394| {far:.3f}".replace("-", "\u2212")
    w.choose("Show", "difference")
    notes = w.root.locator(".fx-map .fx-note").all_text_contents()
    assert notes[0].startswith("mean affinity") and notes[1] == f"mean |\u0394| {far:.3f}"
    label = w.root.locator(".fx-map canvas").nth(1).get_attribute("aria-label")
    assert label.startswith("Not distilled, \u0394: affinity less the teacher's, of every position")
    watch.check()
    w.page.close()


STATE = "({query: explorer.get('query'), tap: explorer.get('tap'), mode: explorer.get('mode'), "\
        "shown: explorer.get('shown'), view: explorer.get('view'), top: explorer.get('difference_max')})"


def test_the_address_keeps_the_view(browser: Any, static_page: tuple[str, Explorer]) -> None:
    w, watch = open_static(browser, static_page)
    w.choose("Tap", "head")
    w.wait(tap="head")
    w.choose("Show", "difference")
    w.choose("Δ colour bar", "0.2")
    w.choose("Image", "teacher")
    w.click(12, 50)
    w.press("+")
    state = w.page.evaluate(STATE)
    w.page.wait_for_function("() => location.hash.includes('query=12,50')")
    address = w.page.url
    w.page.reload()
    again = Widget(w.page, static_page[1])
    again.wait(query="12,50", tap="head")
    assert w.page.evaluate(STATE) == {**state, "view": pytest.approx(state["view"], abs=1e-4)}
    other, other_watch = open_static(browser, (address, static_page[1]))  # shared with another reader
    other.wait(query="12,50", tap="head")
    other.page.evaluate("() => { location.hash = '#query=3,4&query2=5,6' }")  # the reader changes it
    other.wait(query="3,4", tap="group1")
    assert other.page.evaluate("explorer.get('query2')") == [5, 6]
    for one in (watch, other_watch):
        one.check()
    w.page.close()
    other.page.close()


HOSTILE = ["query=99,3", "query=-1,0", "query=1.5,2", "query=1e300,NaN", "query=1,2,3", "query=", "query2=64,64",
           "queries=" + ";".join(["1,1"] * 1001), "queries=1,1;99,99", "tap=__proto__", "tap=<img src=x onerror=a()>",
           "mode=constructor", "colour=difference", "colour=toString", "affinity_max=0", "affinity_max=Infinity",
           "scale_max=0.5", "difference_max=-1", "view=0,0,0", "view=1e9,0.5,0.5", "view=2,NaN,0.5",
           "shown=javascript:a()",
           "step=5", "_info=1", "status=hello", "__proto__=1", "%E0%A4%A", "&&==&=", "query=3,4%00"]


def test_a_hostile_address_changes_nothing(browser: Any, static_page: tuple[str, Explorer]) -> None:
    w, watch = open_static(browser, static_page)
    start = w.page.evaluate("JSON.stringify(explorer.start)")
    for address in HOSTILE:
        w.page.evaluate("address => { location.hash = address }", address)
        w.settle()
        now = "JSON.stringify({...explorer.state, _data: undefined})"
        assert w.page.evaluate(now) == start, address
    w.page.goto("about:blank")
    w.page.goto(f"{static_page[0]}#{'&'.join(HOSTILE)}&tap=head")  # what is right beside them holds
    Widget(w.page, static_page[1]).wait(tap="head")
    watch.check()
    w.page.close()


def dropped(page: Any, content: bytes, name: str, kind: str) -> Any:
    "A file as it is dropped."
    return page.evaluate_handle("""([text, name, type]) => { const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
        data.items.add(new File([bytes], name, {type})); return data; }""",
        [base64.b64encode(content).decode(), name, kind])


def test_saved_queries_are_loaded_and_others_refused(
    browser: Any, static_page: tuple[str, Explorer], tmp_path: Path,
) -> None:
    w, watch = open_static(browser, static_page)
    w.choose("Tap", "head")
    w.wait(tap="head")
    w.click(7, 8)
    w.root.get_by_role("button", name="Keep").click()
    w.click(50, 20)
    w.press("Enter")
    saved = w.save("Save queries")
    w.page.reload()
    w = Widget(w.page, static_page[1])
    w.page.evaluate("() => { location.hash = '' }")
    w.wait(tap="group1")

    def load(content: bytes) -> str:
        with w.page.expect_file_chooser() as chooser:
            w.root.get_by_role("button", name="Load queries").click()
        chooser.value.set_files({"name": "q.json", "mimeType": "application/json", "buffer": content})
        w.page.wait_for_timeout(100)
        w.settle()
        return str(w.root.locator(".fx-status").text_content())

    right = json.loads(saved)
    wrong = {"no JSON": b"{", "no queries": b"null",
             "as they are saved": json.dumps({**right, "queries": "x"}).encode(),
             "128 \u00d7 64 positions, not 64": json.dumps({**right, "width": 128}).encode(),
             "lie outside": json.dumps({**right, "queries": [[1, 1], [64, 0]]}).encode(),
             "query lie": json.dumps({**right, "query": [0, "<b>"]}).encode()}
    places = "JSON.stringify(['query', 'query2', 'queries', 'tap'].map(name => explorer.get(name)))"
    before = w.page.evaluate(places)
    for said, content in wrong.items():
        assert said in load(content)
        assert w.page.evaluate(places) == before
    assert load(saved) == "q.json: 2 kept queries loaded."
    w.wait(query="50,20", tap="head")
    assert w.root.locator(".fx-list li").count() == 2
    w.root.get_by_role("button", name="row 7, column 8", exact=True).click()
    w.wait(query="7,8")
    watch.check()
    w.page.close()


def test_names_and_titles_are_text_whatever_they_hold(browser: Any, tmp_path: Path) -> None:
    bad = "<img src=x onerror='globalThis.ran=1'></script><script>globalThis.ran=1</script>"
    nets = [make_net("rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)", 2, seed=s).eval() for s in (0, 1)]
    same = explore(nets[0], {bad: nets[1]}, skimage.data.coffee(), side=16)
    shown = replace(same.exhibit, title=bad, features=replace(same.exhibit.features, taps=[bad, *"bcd"]))
    path = explorer_page(shown, tmp_path / "bad.html", {"tap": bad, "status": bad})
    w, watch = open_static(browser, (path.as_uri(), same))
    w.press("d")
    w.root.locator(".fx-image canvas").click()
    w.settle()
    assert w.page.evaluate("globalThis.ran") is None and w.page.locator("img").count() == 0
    assert w.page.title() == bad and w.root.locator(".fx-title").nth(2).text_content() == bad
    assert w.root.locator(".fx-status").text_content() == bad
    watch.check()
    w.page.close()


def test_the_slider_steps_through_the_training(browser: Any, tmp_path: Path) -> None:
    same = open_explorer(ExploreConfig(tap="group1"))
    rng = np.random.default_rng(0)
    steps = {"plain": np.array([1, 10, 100, 400]), "distilled": np.array([1, 10, 100])}
    taps = same.exhibit.features.taps
    teacher, progress = [np.ones((64, 64))] * len(taps), {}
    for name, seen in steps.items():
        rows = [rng.uniform(0, 1, (len(seen), 64, 64)) for _ in taps]
        far, whole = np.ones((len(seen), len(taps))), [4096] * len(taps)
        progress[name] = AffinityProgress(seen, far, rows, teacher, (20, 30), taps, same.exhibit.features.image, whole)
    path = explorer_page(replace(same.exhibit, progress=progress), tmp_path / "run.html", {"tap": "group1"})
    w, watch = open_static(browser, (path.as_uri(), same))
    slider = w.root.get_by_role("slider", name="Training step")
    assert w.root.locator(".fx-training").text_content() == "Trainingfinished networks"
    w.check(seed=1, count=3)

    def shown(number: int, y: int, x: int) -> float:
        found, low, high = w.pixels(number, [[y, x]])
        return low + found[0].mean() / 255 * (high - low)

    slider.focus()
    w.press("ArrowLeft")
    w.wait(query="20,30")
    titles = w.root.locator(".fx-map .fx-title")
    assert titles.all_text_contents() == ["Teacher", "Not distilled, step 400", "Distilled, step 100"]
    w.press("Home")
    assert slider.get_attribute("aria-valuetext") == "step 1 of 400, at row 20, column 30"
    for y, x in ((0, 0), (31, 7), (63, 63)):
        for number, name in ((1, "plain"), (2, "distilled")):
            assert shown(number, y, x) == pytest.approx(progress[name].rows[taps.index("group1")][0, y, x], abs=0.006)
    assert shown(0, 5, 5) == pytest.approx(w.value(0, (20, 30), 5, 5), abs=0.006)  # the teacher does not change
    w.press("ArrowRight")
    w.page.wait_for_function("() => location.hash.includes('step=10')")
    w.page.reload()
    w = Widget(w.page, same)
    assert w.root.locator(".fx-map .fx-title").nth(1).text_content() == "Not distilled, step 10"
    w.click(3, 4)  # another query: the finished networks again, for the training was followed at one
    assert w.root.locator(".fx-map .fx-title").nth(1).text_content() == "Not distilled"
    w.check(seed=2, count=3)
    watch.check()
    w.page.close()


def test_keys_with_ctrl_meta_or_alt_are_never_taken(browser: Any, static_page: tuple[str, Explorer]) -> None:
    w, watch = open_static(browser, static_page)
    w.page.evaluate("""() => { globalThis.heard = [];
        addEventListener('keydown', e => { heard.push([e.key, e.defaultPrevented]); e.preventDefault(); }); }""")
    w.click(30, 30)
    before = w.page.evaluate(STATE)
    plain = ("s", "d", "2", "0", "ArrowLeft", "Enter", "i", "=")
    keys = [f"{modifier}+{key}" for modifier in ("Control", "Meta", "Alt") for key in plain]
    w.press(*keys, "Shift+Enter", "F5", "Tab")
    heard = [(key, taken) for key, taken in w.page.evaluate("heard") if key not in ("Control", "Meta", "Alt", "Shift")]
    assert len(heard) == len(keys) + 3 and not any(taken for _, taken in heard)
    assert w.page.evaluate(STATE) == before
    assert {"Shift", "2", "D", "Enter"} <= set(w.root.locator(".fx-keys kbd").all_text_contents())  # named in sight
    w.root.locator(".fx-image canvas").focus()
    for key in ("D", "d"):  # as it stands in sight, or with caps lock, and as it is typed
        w.press(key)
        assert w.page.evaluate("explorer.get('mode')") == ("difference" if key == "D" else "affinity")
    w.press("+", "+", "l", "l", "k")
    zoom, y, x = w.page.evaluate("explorer.get('view')")
    assert zoom > 2 and x > 0.5 and y > 0.49
    watch.check()
    w.page.close()


PHONE = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}


def test_only_what_can_be_done_is_named_and_long_names_fit(browser: Any, tmp_path: Path) -> None:
    nets = [make_net("rcan(n_resgroups=3,n_resblocks=1,n_feats=8,reduction=4)", 2, seed=s).eval() for s in (0, 1)]
    for students, how in (({}, {}), ({"a_network_with_a_name_of_many_letters" * 3: nets[1]}, PHONE)):
        same = explore(nets[0], students, skimage.data.coffee(), side=16)
        w, watch = open_static(browser, (same.to_html(tmp_path / "page.html").as_uri(), same), **how)
        assert w.root.locator("[data-key=D]").evaluate("e => e.hidden") == (not students)  # nothing to subtract
        said = w.root.locator(".fx-readout").text_content()
        assert ("second pixel" if how else "Point at a map") in said  # a finger does not hover
        assert w.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        watch.check()
        w.page.close()


def test_zoom_and_pan_by_keys_wheel_and_pointer(browser: Any, static_page: tuple[str, Explorer]) -> None:
    w, watch = open_static(browser, static_page)
    w.click(32, 32)
    view = "() => explorer.get('view')"
    w.press("+", "+")
    zoom, y, x = w.page.evaluate(view)
    assert zoom == pytest.approx(2.25) and y == pytest.approx(32.5 / 64, abs=0.01)
    w.press("l")
    assert w.page.evaluate(view)[2] > x
    w.page.mouse.wheel(0, -200)
    w.page.wait_for_function("z => explorer.get('view')[0] > z", arg=zoom)
    w.press("0")
    assert w.page.evaluate(view) == [1, 0.5, 0.5]
    w.press("+", "+", "+")
    _, y, x = w.page.evaluate(view)
    canvas = w.root.locator(".fx-map canvas").first.bounding_box()
    w.page.keyboard.down("Alt")
    w.page.mouse.move(canvas["x"] + 120, canvas["y"] + 120)
    w.page.mouse.down()
    w.page.mouse.move(canvas["x"] + 90, canvas["y"] + 100, steps=3)
    w.page.mouse.up()
    w.page.keyboard.up("Alt")
    w.settle()
    assert w.page.evaluate(view)[2] > x and w.page.evaluate(view)[1] > y and w.query == (32, 32)
    zoom, y, x = w.page.evaluate(view)  # the middle of the canvas shows what lies in the middle of the view
    row, column = int(y * 64), int(x * 64)
    canvas = w.root.locator(".fx-map canvas").first
    size = canvas.evaluate("c => [c.height, c.width]")
    at = [((p + 0.5) / 64 - (c - 0.5 / zoom)) * zoom * n for p, c, n in zip((row, column), (y, x), size, strict=True)]
    rgb = canvas.evaluate("(c, [y, x]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]", [int(v) for v in at])
    colours = mpl.colormaps["viridis"](np.arange(256), bytes=True)[:, :3].astype(int)
    step = int(np.abs(colours - np.array(rgb[:3])).sum(1).argmin())
    assert abs(step - (w.value(0, (32, 32), row, column) + 1) / 2 * 255) <= 1
    for _ in range(40):  # a query that leaves the view takes it along
        w.page.keyboard.press("ArrowUp")
    w.settle()
    assert w.query == (0, 32) and not w.root.locator(".fx-image .fx-mark1").evaluate("e => e.hidden")
    watch.check()
    w.page.close()


def test_by_touch_on_a_narrow_screen(browser: Any, static_page: tuple[str, Explorer]) -> None:
    how = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True, "color_scheme": "dark"}
    w, watch = open_static(browser, static_page, **how)
    assert w.page.evaluate("document.documentElement.scrollWidth") <= 400
    image = w.root.locator(".fx-image canvas")
    w.page.touchscreen.tap(*w.at(image, 12, 50))
    w.wait(query="12,50")
    w.check(seed=8, count=5)
    touch = w.page.context.new_cdp_session(w.page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        found = [{"x": a, "y": b, "id": i} for i, (a, b) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": found})

    w.page.evaluate("() => scrollTo(0, 0)")
    send("touchStart", w.at(image, 12, 50))
    send("touchMove", w.at(image, 30, 40))
    send("touchMove", w.at(image, 40, 20))
    send("touchEnd")
    w.wait(query="40,20")
    x, y = w.at(image, 32, 32)  # two fingers zoom
    send("touchStart", (x - 20, y), (x + 20, y))
    send("touchMove", (x - 60, y), (x + 60, y))
    send("touchEnd")
    w.settle()
    assert w.page.evaluate("explorer.get('view')[0]") > 2
    assert w.colours()[0] != "rgb(255, 255, 255)"  # dark, as the reader's system

    # a finger scrolls the page beside a picture, and never chooses a query there; on a picture it chooses
    def swipe(x: float, y: float, up: int) -> float:
        before = w.page.evaluate("scrollY")
        send("touchStart", (x, y))
        for way in range(10, 91, 10):
            send("touchMove", (x, y - up * way))
        send("touchEnd")
        w.page.wait_for_timeout(200)
        return abs(float(w.page.evaluate("scrollY") - before))

    w.press("0")
    for canvas, up in ((image, 1), (w.root.locator(".fx-map canvas").last, -1)):
        canvas.scroll_into_view_if_needed()
        query, box, root = w.query, canvas.bounding_box(), w.root.bounding_box()
        beside = root["x"] + root["width"] - 20
        assert beside > box["x"] + box["width"]
        assert swipe(beside, box["y"] + box["height"] / 2, up) > 50 and w.query == query
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert swipe(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, up) == 0
        w.settle()
        assert w.query != query
    watch.check()
    w.page.close()


def test_readers_who_do_not_see_it_are_told(browser: Any, static_page: tuple[str, Explorer]) -> None:
    w, watch = open_static(browser, static_page)
    for canvas in w.root.locator("canvas").all():
        assert canvas.get_attribute("aria-label") and canvas.get_attribute("role") in ("img", "application")
    for control in w.root.locator("button, select, input").all():
        name = control.evaluate("e => e.ariaLabel || e.textContent || e.labels?.[0]?.textContent")
        assert name and name.strip()
    w.root.locator(".fx-image canvas").focus()
    w.press("ArrowLeft", "ArrowLeft")
    y, x = w.query
    label = w.root.locator(".fx-map canvas").nth(2).get_attribute("aria-label")
    assert label.startswith(f"Distilled: affinity of every position to row {y}, column {x}, mean affinity ")
    w.page.wait_for_function("said => document.querySelector('[aria-live=polite]').textContent.includes(said)",
                             arg=f"row {y}, column {x}")
    assert w.root.locator("[role=status]").count() == 1
    watch.check()
    w.page.close()


def test_the_modules_link_as_they_are(browser: Any) -> None:
    "What each imports is there under its name, which joining them would not show."
    page, names = browser.new_page(), ("explorer.js", "explorer.frames.js", "explorer.rows.js")
    watch = Watch(page)
    page.route("**/*", lambda route: route.fulfill(
        content_type="text/javascript" if route.request.url.endswith(".js") else "text/html",
        body=static(route.request.url.rpartition("/")[2]) if route.request.url.endswith(".js") else "<p>"))
    page.goto("http://127.0.0.1/")
    assert page.evaluate("async () => Object.keys((await import('/explorer.js')).default)") == ["render"]
    assert [url.rpartition("/")[2] for url in watch.requests if url.endswith(".js")] == list(names)
    watch.check()
    page.close()
