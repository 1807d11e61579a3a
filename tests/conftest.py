"Order of the tests, quiet plots, and the folder of reference data that a checkout may have beside it."

import os
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.append(str(Path(sys.prefix) / "extra"))  # spandrel without torchvision lies apart: see the Makefile

settings.register_profile("fakd", deadline=None, derandomize=True)  # same examples each time, no test of speed
settings.load_profile("fakd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Rules first, whole runs last; in between as collected."
    items.sort(key=lambda item: (item.path.stem != "test_rules", item.path.stem.startswith("test_run_")))


@cache
def claimed(name: str) -> bool:
    "Whether this process runs a file of tests: the first of those that share them (`make test`), or the only one."
    if folder := os.environ.get("FAKD_TEST_CLAIMS"):
        try:
            (Path(folder) / name).touch(exist_ok=False)
        except FileExistsError:
            return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    "Leave the tests of a file that another process has claimed to it."
    return None if claimed(item.path.name) else True


@pytest.fixture(scope="session")
def shared() -> Path:
    "The folder with golden values and benchmark images that lies beside the developers' checkout."
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the reference data beside the checkout (folder shared), which this machine does not have")
    return folder
