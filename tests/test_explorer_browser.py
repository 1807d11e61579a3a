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
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import matplotlib as mpl
import nbformat
import numpy as np
import pytest
import skimage.data
from nbformat.v4 import new_code_cell
from PIL import Image

from fakd.affinity import affinity_row
from fakd.core import write_image
from fakd.explorer import ExploreConfig, Explorer, open_explorer

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
        "A heat map's colours as the steps of 0 to 255 that have them (rarely two), and the scale's ends."
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

    def value(self, number: int, query: tuple[int, int], y: int, x: int, difference: bool = False) -> float:
        "The same computed in Python."
        features = self.same.exhibit.features
        maps = [m[features.tap(str(self.root.get_attribute("data-tap")))] for m in features.maps.values()]
        own, teacher = (float(affinity_row(m, *query)[0, y, x]) for m in (maps[number], maps[0]))
        return own - teacher if difference else own

    def check(self, seed: int, count: int = 10, difference: bool = False) -> None:
        "The query is like itself, and random positions have the value that Python computes, to 1/255 of the scale."
        query, (h, w) = self.query, self.same._info["size"]
        places = [list(query), *np.random.default_rng(seed).integers(0, (h, w), (count, 2)).tolist()]
        for number in range(len(self.same.nets)):
            delta = difference and number > 0
            found, low, high = self.pixels(number, places)
            for steps, (y, x) in zip(found, places, strict=True):
                wanted = (self.value(number, query, y, x, delta) - low) / (high - low) * 255
                assert np.abs(steps - np.clip(wanted, 0, 255)).min() <= 1, (number, query, y, x)
            assert set(found[0]) & ({127, 128} if delta else {255})  # like itself: the scale's end, or its middle

    def choose(self, label: str, value: str) -> None:
        self.root.locator(f".fx-choice:has-text('{label}') select").select_option(value)
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
    (base / "work").mkdir()
    nbformat.write(nb, base / "work" / "explore.ipynb")
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
             "--IdentityProvider.token=T", f"--ServerApp.root_dir={base / 'work'}", "--LabApp.news_url=None",
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
    dropped = page.evaluate_handle("""text => { const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
        data.items.add(new File([bytes], 'mine.png', {type: 'image/png'})); return data; }""",
        base64.b64encode(mine.read_bytes()).decode())
    w.root.dispatch_event("drop", {"dataTransfer": dropped})
    page.wait_for_function("() => document.querySelector('.fx-status').textContent.includes('60 \u00d7 40 positions')")
    w.settle()
    w.same.look_at(mine, "mine.png")
    w.same.tap = "group0"
    w.click(11, 50)
    w.check(seed=6)

    saved = json.loads(w.save("Save queries"))
    assert (saved["query"], saved["tap"], saved["width"], saved["height"]) == ([11, 50], "group0", 60, 40)
    assert Image.open(io.BytesIO(w.save("Save PNG"))).size[0] > 1000
    watch.check()
    page.close()


# The static page


@pytest.fixture(scope="module")
def static_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Explorer]:
    same = open_explorer(ExploreConfig(tap="group1"))
    return same.to_html(tmp_path_factory.mktemp("page") / "explorer.html").as_uri(), same


def open_static(browser: Any, static_page: tuple[str, Explorer], **how: Any) -> tuple[Widget, Watch]:
    page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **how})
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
        w.choose("Show", "similarity")
    for name in ("cividis", "magma", "gray"):
        w.choose("Colours", name)
        w.check(seed=7, count=3)
    w.choose("Scale to", "0.5")
    assert w.pixels(0, [[0, 0]])[2] == 0.5
    w.choose("Scale to", "")

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

    with w.page.expect_file_chooser() as chooser:
        w.root.get_by_role("button", name="Own image").click()
    chooser.value.set_files(mine)
    w.settle()
    assert "This page has no kernel" in w.root.locator(".fx-status").text_content()
    watch.check()
    w.page.close()


def test_zoom_and_pan_by_keys_wheel_and_pointer(browser: Any, static_page: tuple[str, Explorer]) -> None:
    w, watch = open_static(browser, static_page)
    w.click(32, 32)
    view = "() => explorer.get('view')"
    w.press("+", "+")
    zoom, y, x = w.page.evaluate(view)
    assert zoom == pytest.approx(2.25) and y == pytest.approx(32.5 / 64, abs=0.01)
    w.press("Alt+ArrowRight")
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
    assert label.startswith(f"Distilled: affinity of every position to row {y}, column {x}, mean |")
    w.page.wait_for_function("said => document.querySelector('[aria-live=polite]').textContent.includes(said)",
                             arg=f"row {y}, column {x}")
    assert w.root.locator("[role=status]").count() == 1
    watch.check()
    w.page.close()
