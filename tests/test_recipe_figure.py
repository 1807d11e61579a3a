"""CONTRIBUTING's recipe for a figure, followed to the letter in a copy of the project."""

import re
import shutil

import pytest
from test_recipes import ROOT, Copy

TOY = """def toy_figure(
    record: Record,  # of a run
) -> Figure:
    "The distilled student's PSNR of every image, in its own line style."
    with figure_style():
        fig = blank_figure(WIDTHS["column"], 1)
        axes = place_axes(fig, 0.4, 0.1, 2.8, 0.7)
        axes.plot([row.psnr_y for row in record.rows if row.method == "distilled"], **line_style("distilled"))
    return fig


"""
PLACE = """{% if toy %}
<figure>
<div class="plot">{{ toy }}</div>
<figcaption>Look at the toy.{{ files_of("toy") }}</figcaption>
</figure>
{% endif %}
"""


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "fakd")


def test_a_figure(copy, tmp_path):
    copy.put("58_look.results", "    NONE,\n    THEMES,", "    NONE,\n    THEMES,\n    line_style,")
    copy.put("58_look.results", "def gain_figure(", f"{TOY}def gain_figure(")
    for notebook in ("71_report.figure_files", "75_report.run"):
        last = "from fakd.run_folder import Run, read_history"
        copy.put(notebook, last, f"{last}\nfrom fakd.look.results import toy_figure")
    entry = '    found["toy"] = "toy-of-all", toy_figure(record)'
    copy.put("71_report.figure_files", "    return found", f"{entry}\n    return found")
    links = '    parts["figures"] = figure_links(run)'
    copy.put("75_report.run", links, f'    parts["toy"] = inline_svg(toy_figure(record), "toy", "a toy")\n{links}')
    page = copy.root / "fakd/static/run.html.j2"
    place = "{% if image_tables %}"
    text = page.read_text(encoding="utf-8")
    assert text.count(place) == 1
    page.write_text(text.replace(place, PLACE + place), encoding="utf-8")
    copy.run("nbdev_export")
    run = shutil.copytree(ROOT / "reports/default-x4/seed0", tmp_path / "seed0")
    copy.python("from fakd.report.run import run_page; from fakd.run_folder import Run; "
                f"run_page(Run.open({str(run)!r}))")
    made = (run / "report.html").read_text(encoding="utf-8")
    figure = re.search(r'<div class="plot">(.*?)</div>\s*<figcaption>Look at the toy\.(.*?)</figcaption>', made, re.S)
    assert figure and 'aria-label="a toy"' in figure[1] and "var(--accent)" in figure[1]
    assert 'href="figures/toy-of-all.pdf"' in figure[2] and 'href="figures/toy-of-all.png"' in figure[2]
    assert (run / "figures/toy-of-all.pdf").stat().st_size > 1000 and (run / "figures/toy-of-all.png").exists()
    assert "toy-of-all" in made.partition("Figures for papers")[2]
