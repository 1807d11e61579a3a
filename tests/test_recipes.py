"""CONTRIBUTING's recipes, followed to the letter in a copy of the project: what they promise is then there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from fakd.images import write_image

ROOT = Path(__file__).parents[1]


class Copy:
    "A copy of the project in which notebooks are changed."

    def __init__(self, folder: Path):
        self.root = folder
        for name in ("nbs", "fakd", "data/weights", "data/published"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder / name)

    def put(self, notebook: str, before: str, after: str) -> None:
        "Replace the one place of a notebook that reads so."
        path = self.root / "nbs" / f"{notebook}.ipynb"
        nb = json.loads(path.read_text(encoding="utf-8"))
        (cell,) = (c for c in nb["cells"] if before in "".join(c["source"]))
        cell["source"] = "".join(cell["source"]).replace(before, after).splitlines(keepends=True)
        path.write_text(json.dumps(nb), encoding="utf-8")

    def run(self, *command: str) -> str:
        "What a command prints, in the copy and with its package."
        scripts = sysconfig.get_path("scripts")
        env = os.environ | {"PYTHONPATH": str(self.root), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
        env.pop("FAKD_TEST_CLAIMS", None)  # this is no share of `make test`
        env.pop("FAKD_DATA", None)
        done = subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    def python(self, code: str) -> str:
        "What a program prints."
        return self.run(sys.executable, "-W", "ignore", "-c", code)


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path / "fakd")


def test_a_set(copy):
    line = '"Toy3": ImageSet("Toy3", "edsr", 3, source="drawn", note="noise", benchmark=True),'
    copy.put("15_data.sets", '    "BSDS400": ImageSet(', f'    {line}\n    "BSDS400": ImageSet(')
    copy.run("nbdev_export")
    for k in range(3):
        img = np.random.default_rng(k).integers(256, size=(48, 52, 3), dtype=np.uint8)
        write_image(copy.root / "data/sets/Toy3/HR" / f"{k}.png", img)
    cli = "import sys; from fakd.cli import main; sys.exit(main({}))"
    listed = copy.python(cli.format(['data', 'list'])).splitlines()
    assert [row.split()[:3] for row in listed if row.startswith("Toy3")] == [["Toy3", "3", "3"]]
    assert "Toy3: no faults" in copy.python(cli.format(['data', 'verify', 'Toy3']))
    told = copy.python("""
from fakd.data.sets import image_set
from fakd.measure.evaluate import bicubic_rows
from fakd.train.config import DistillConfig
print(DistillConfig().resolve().benchmarks)
print(*(row.image for row in bicubic_rows([image_set("Toy3")], 4)))
try:
    image_set("Toy4")
except ValueError as fault:
    print(fault)
""").splitlines()
    assert told[:2] == ["sample-eval+Toy3", "0 1 2"] and 'Did you mean "Toy3"?' in told[2]
