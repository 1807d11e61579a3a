"""Do the tests notice? One fault at a time is put into a copy of the project, and the tests that should fail are run.

    make mutants                                   all of tests/mutants.toml; ends with those that survive: none may
    python tests/mutants.py ema-swapped rows-shave    some of them
    python tests/mutants.py --list                 their names, and what each one breaks

A mutant names a file of fakd/, a text that stands in it once, and what replaces it. Its tests are files of tests/, or
notebooks whose checks are run with the same fault in their cells; they are named fastest first, and the first failure
ends a mutant. Where a text is no longer found, the list has to follow the change that moved it.
"""
from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("fakd", "nbs", "tests", "data", "settings.ini", "setup.py", "pyproject.toml", "constraints.txt", "Makefile",
          "environment.yml", "CITATION.cff", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
TIMEOUT = 1800  # seconds for one test; one that hangs is noticed
ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "FAKD_THREADS": "1", "MPLBACKEND": "Agg"}
# imported once, not for each mutant
PRELOADED = ["torch", "torch.optim.swa_utils", "torch.utils._python_dispatch", "seaborn", "scipy.stats", "skimage.data",
             "pydantic", "pytest", "hypothesis", "anywidget", "pooch", "nbformat", "jinja2", "tifffile", "png"]


@dataclass(frozen=True)
class Mutant:
    "One fault."

    id: str
    what: str                            # the fault, in words
    file: str                            # in fakd/
    edits: tuple[tuple[str, str], ...]   # text before and after
    tests: tuple[str, ...]               # `test_losses::test_x`, `test_losses` or `38_distil.loss`, fastest first

    def faults(self) -> list[str]:
        "Why it cannot be applied."
        path = ROOT / "fakd" / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = [f"{self.id}: stands {text.count(before)} times in fakd/{self.file}, not once: {before.strip()}"
                 for before, _ in self.edits if text.count(before) != 1]
        found += [f"{self.id}: there is no {place(test)}" for test in self.tests if not _is_there(test)]
        if not found and path.suffix == ".py":
            try:
                compile(self.applied(text), self.file, "exec", dont_inherit=True)
            except SyntaxError as fault:  # any test would notice that
                found = [f"{self.id}: fakd/{self.file} would be no Python: {fault}"]
        return found

    def applied(self, text: str) -> str:
        "The file with the fault."
        for before, after in self.edits:
            text = text.replace(before, after)
        return text


def place(
    test: str,  # `test_losses::test_x`, `test_losses` or `38_distil.loss`
) -> str:
    "What pytest or nbdev_test is given."
    file, colons, function = test.partition("::")
    return f"tests/{file}.py{colons}{function}" if file.startswith("test_") else f"nbs/{file}.ipynb"


def _is_there(test: str) -> bool:
    "Whether there is such a file, with such a function."
    file, _, function = place(test).partition("::")
    return (ROOT / file).is_file() and f"def {function}" in (ROOT / file).read_text(encoding="utf-8")


def read_mutants() -> list[Mutant]:
    "The list."
    with open(ROOT / "tests" / "mutants.toml", "rb") as file:
        entries = tomllib.load(file)["mutant"]
    edits = [tuple((edit["before"], edit["after"]) for edit in e["edit"]) for e in entries]
    return [Mutant(e["id"], e["what"], e["file"], pairs, tuple(e["tests"]))
            for e, pairs in zip(entries, edits, strict=True)]


def copy_project(folder: Path) -> Path:
    "A copy to be broken; what lies beside the checkout is seen from there too."
    copy = folder / ROOT.name
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        elif source.exists():
            shutil.copy2(source, copy / name)
    if (ROOT.parent / "shared").exists():
        (folder / "shared").symlink_to((ROOT.parent / "shared").resolve())
    return copy


@contextmanager
def broken(copy: Path, mutant: Mutant) -> Iterator[None]:
    "While open, the copy has the fault: in the module, and in the notebooks that are its tests."
    module, notebooks = copy / "fakd" / mutant.file, [copy / place(t) for t in mutant.tests if t[0].isdigit()]
    whole = {path: path.read_text(encoding="utf-8") for path in (module, *notebooks)}
    module.write_text(mutant.applied(whole[module]), encoding="utf-8")
    for path in notebooks:
        notebook = json.loads(whole[path])
        for cell in notebook["cells"]:
            cell["source"] = mutant.applied("".join(cell["source"]))
        path.write_text(json.dumps(notebook), encoding="utf-8")
    try:
        yield
    finally:
        for path, text in whole.items():
            path.write_text(text, encoding="utf-8")


def _pytest(copy: Path, tests: Sequence[str], log: Path) -> None:
    "Run tests in the copy; this process has the large packages already, but nothing of fakd."
    import pytest

    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)  # for processes that the tests start
    sys.path.insert(0, str(copy))
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(pytest.main(["-qx", "-p", "no:cacheprovider", "--tb=line", *map(place, tests)]))


def _nbdev(copy: Path, notebooks: Sequence[str], log: Path) -> None:
    "Run notebooks of the copy."
    command = [str(Path(sys.executable).parent / "nbdev_test"), "--n_workers", "0", "--path"]
    env = os.environ | {"PYTHONPATH": str(copy)}
    with open(log, "w", encoding="utf-8") as file:
        for notebook in notebooks:
            if subprocess.run([*command, place(notebook)], cwd=copy, env=env, stdout=file, stderr=file).returncode:
                print(f"FAILED {place(notebook)}", file=file)
                sys.exit(1)


def noticed(copy: Path, tests: Sequence[str]) -> str:
    "The first test that fails in the copy, or nothing."
    os.environ.update(ENVIRONMENT)
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    log = copy.parent / "log"
    for is_notebook, group in groupby(tests, lambda test: test[0].isdigit()):
        names = list(group)
        run = processes.Process(target=_nbdev if is_notebook else _pytest, args=(copy, names, log))
        run.start()
        run.join(TIMEOUT)
        if run.exitcode is None:
            run.kill()
            return f"{', '.join(names)} hangs"
        if run.exitcode:
            lines = log.read_text(encoding="utf-8").splitlines()
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR tests"))]
            return failed[0].split(" - ")[0].partition(" ")[2] if failed else ", ".join(map(place, names))
    return ""


def trial(mutant: Mutant, copies: SimpleQueue[Path]) -> tuple[str, float]:
    "What notices a mutant, and after how many seconds."
    copy, began = copies.get(), time.monotonic()
    try:
        with broken(copy, mutant):
            return noticed(copy, mutant.tests), time.monotonic() - began
    finally:
        copies.put(copy)


def survivors(mutants: Sequence[Mutant], jobs: int) -> list[Mutant]:
    "Those that no test notices; each is told as it is found."
    left = []
    with tempfile.TemporaryDirectory(prefix="fakd-mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for k in range(jobs):
            (Path(folder) / str(k)).mkdir()
            copies.put(copy_project(Path(folder) / str(k)))
        pending = {pool.submit(trial, mutant, copies): mutant for mutant in mutants}
        for number, done in enumerate(as_completed(pending), 1):
            mutant, (test, seconds) = pending[done], done.result()
            left += [] if test else [mutant]
            print(f"[{number}/{len(mutants)}] {mutant.id}: {test or 'SURVIVES'} ({seconds:.0f} s)", flush=True)
    return left


def healthy(mutants: Sequence[Mutant]) -> bool:
    "Whether the tests pass without any fault; else a failure would say nothing."
    tests = sorted({test for mutant in mutants for test in mutant.tests})  # notebooks first
    print(f"without a fault: {len(tests)} tests and notebooks", flush=True)
    with tempfile.TemporaryDirectory(prefix="fakd-mutants-") as folder:
        test = noticed(copy_project(Path(folder)), tests)
    if test:
        print(f"{test} fails without any fault: mend that first")
    return not test


def main() -> int:
    "0 if every mutant is noticed, 1 if one survives or the list does not fit the code."
    parser = argparse.ArgumentParser(description="Put one fault at a time into a copy of fakd and see who notices.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="mutants to try (default: all)")
    parser.add_argument("--list", action="store_true", help="show the mutants and stop")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    given = parser.parse_args()
    known = {mutant.id: mutant for mutant in read_mutants()}
    if unknown := [name for name in given.ids if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; --list shows the names")
    chosen = [known[name] for name in given.ids] or list(known.values())
    if given.list:
        print("\n".join(f"{m.id:32} {m.file:22} {m.what}" for m in chosen))
        return 0
    if faults := [fault for mutant in chosen for fault in mutant.faults()]:
        print("\n".join([*faults, "tests/mutants.toml does not fit the code any more"]))
        return 1
    if not healthy(chosen):
        return 1
    left = survivors(chosen, given.jobs)
    print("\n".join(f"survives: {m.id}: {m.what}" for m in left))
    print(f"{len(chosen)} mutants, {len(left)} survive")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
