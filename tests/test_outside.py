"fakd as an installed package, used in a folder that has nothing to do with its clone."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIZES = 'student="rcan(n_resgroups=3,n_resblocks=1,n_feats=16,reduction=4)", steps=2, batch_size=2, patch_px=16'


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    "A folder with the package as pip installs it from its wheel."
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("fakd", "data/weights", "data/published"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-w", "out"], cwd=folder, check=True)
    (wheel,) = (folder / "out").iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    "A user's folder: inside a repository of her own, under settings of another program."
    folder = tmp_path_factory.mktemp("thesis")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "thesis"], cwd=folder, check=True)
    (folder / "settings.ini").write_bytes("[DEFAULT]\nname = thesis\n".encode("utf-16"))
    (folder / "work").mkdir()
    return folder / "work"


def python(code: str, installed: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    "Run code with the installed package."
    env = {**os.environ, "PYTHONPATH": str(installed), "FAKD_DATA": "", "XDG_CACHE_HOME": str(cwd / ".cache")}
    call = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)


def test_a_package_distils_evaluates_and_reports_in_any_folder(installed, elsewhere):
    done = python(f"""
import fakd
from fakd.look.networks import published_tables
from fakd.study.evaluation import evaluate_weights
from fakd.runs import distill
print(fakd.__file__)
run = distill({SIZES}, benchmarks="sample-eval")
run = evaluate_weights(weights=f"{{run.dir}}+data/weights/student-x4-plain.safetensors", repeats=0, out_dir="scores",
                       benchmarks="sample-eval")
published_tables(run.record)
""", installed, elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(str(installed)), "the clone was imported, not the installed package"
    (folder,) = (elsewhere / "reports/runs").iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["teacher"]["source"] == "data/weights/rcan-mini-x4.safetensors"
    assert record["environment"]["git"] is None
    assert record["environment"]["no_git"] == "fakd was installed as a package"
    assert record["environment"]["versions"]["fakd"]
    assert (folder / "report.html").is_file() and (folder / "explorer.html").is_file()
    (scores,) = (elsewhere / "scores").iterdir()
    evaluation = json.loads((scores / "record.json").read_text())
    sources = [net["source"] for net in evaluation["student"]["nets"].values()]
    assert sources[-1] == "data/weights/student-x4-plain.safetensors"
    assert sources[0] == str(folder / "weights/distilled.safetensors")
    assert (scores / "report.html").is_file()


def test_the_published_numbers_of_the_wheel_are_those_of_the_clone(installed):
    for name in ("published/fakd_table.csv", "published/bicubic.csv", "weights/rcan-mini-x3.safetensors"):
        assert (installed / "fakd/shipped/data" / name).read_bytes() == (ROOT / "data" / name).read_bytes()
    assert not [p for p in (installed / "fakd/shipped/data").rglob("*") if p.name.startswith(".")]
