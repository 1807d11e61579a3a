"Order of the tests, quiet plots, and the folder of reference data that a checkout may have beside it."

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.append(str(Path(sys.prefix) / "extra"))  # spandrel without torchvision lies apart: see the Makefile
if "PYTEST_XDIST_WORKER" in os.environ:  # workers with all threads each would starve one another
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("fakd", deadline=None, derandomize=True)  # same examples each time, no test of speed
settings.load_profile("fakd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Rules first, whole runs last; in between as collected."
    items.sort(key=lambda item: (item.path.stem != "test_rules", item.path.stem.startswith("test_run_")))


@pytest.fixture(scope="session")
def shared() -> Path:
    "The folder with golden values and benchmark images that lies beside the developers' checkout."
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the reference data beside the checkout (folder shared), which this machine does not have")
    return folder
