"""The rules of the project: each test is one rule, and its failure lists every place that breaks it.

CONTRIBUTING.md gives the reasons. The tests read files; only the comparison with the configuration imports fakd.
"""

import ast
import base64
import configparser
import importlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@dataclass
class Cell:
    "One cell of a notebook."

    place: str  # notebook and position, for messages
    kind: str
    id: str
    source: str
    tags: list[str]
    outputs: list[dict[str, Any]]

    @property
    def exported(self) -> bool:
        return self.kind == "code" and re.search(r"(?m)^#\|\s*exporti?\b", self.source) is not None

    @property
    def lines(self) -> int:
        "Lines of code, without directives and without blank lines at the end."
        return len([line for line in self.source.rstrip().split("\n") if not line.startswith("#|")])

    def tree(self) -> ast.Module:
        "The syntax tree of a code cell; IPython's % and ! lines are blanked."
        return ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", self.source))


class Notebook:
    "A notebook of nbs/, read as JSON."

    def __init__(self, path: Path):
        self.json = json.loads(path.read_text(encoding="utf-8"))
        self.name = path.stem
        self.title = "".join(self.json["cells"][0]["source"])
        self.cells = [
            Cell(
                place=f"{path.name} cell {i}",
                kind=c["cell_type"],
                id=c.get("id", ""),
                source="".join(c["source"]),
                tags=c["metadata"].get("tags", []),
                outputs=c.get("outputs", []),
            )
            for i, c in enumerate(self.json["cells"])
        ]
        self.code = [c for c in self.cells if c.kind == "code"]
        self.exported = [c for c in self.code if c.exported]
        self.is_run = self.name.startswith(("run_", "explore_"))
        numbered = re.fullmatch(r"(\d\d)_([\w.]+)", self.name)
        self.module = numbered[2] if numbered else None


NOTEBOOKS = [Notebook(p) for p in sorted((ROOT / "nbs").glob("[!_.]*.ipynb"))]
RUNS = [nb for nb in NOTEBOOKS if nb.is_run]
LIBRARY = [nb for nb in NOTEBOOKS if nb.module]
MODULES = {
    ".".join(p.relative_to(ROOT / "fakd").with_suffix("").parts): p.read_text(encoding="utf-8")
    for p in sorted((ROOT / "fakd").rglob("[!_]*.py"))
}
WINGS = {"data": 1, "nets": 2, "distil": 3, "measure": 4, "look": 5, "train": 6, "report": 7, "study": 8}
NUMBERS = {
    name: int(match[1])
    for name, text in MODULES.items()
    if (match := re.search(r"File to edit: \S*/(\d\d)_[\w.]+\.ipynb", text))
}
SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
INSTALL_FILES = [ROOT / name for name in ("settings.ini", "setup.py", "pyproject.toml", "constraints.txt")]
INSTALL_FILES += [ROOT / name for name in ("environment.yml", "Makefile", ".ci/run")]


def none(faults: list[str]) -> None:
    "Fail with every fault on its own line."
    assert not faults, "\n" + "\n".join(faults)


# Notebooks and modules


def test_every_module_comes_from_the_notebook_of_its_name():
    faults = [f"fakd/{name}.py names no notebook" for name in MODULES.keys() - NUMBERS.keys()]
    for nb in LIBRARY:
        exports = re.findall(r"(?m)^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in nb.code))
        if exports != [nb.module]:
            faults.append(f"{nb.name}: default_exp is {exports}, wanted {nb.module}")
        if f"# {nb.module}" != nb.title.split("\n")[0]:
            faults.append(f'{nb.name}: title is not "# {nb.module}"')
        if nb.module not in MODULES:
            faults.append(f"{nb.name}: fakd/{nb.module}.py does not exist")
    faults += [f"fakd/{name}.py: its notebook is gone" for name in NUMBERS if name not in {nb.module for nb in LIBRARY}]
    none(faults)


def test_every_notebook_says_in_its_first_cell_what_it_is():
    none([nb.name for nb in NOTEBOOKS if not re.match(r"# .+\n\n?> .+", nb.title)])


def _imported(name: str, tree: ast.Module) -> set[str]:
    "The modules of fakd that the module `name` imports, anywhere in it."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("fakd.") for a in node.names if a.name.startswith("fakd.")}
        elif isinstance(node, ast.ImportFrom) and (node.level or re.match(r"fakd\b", node.module or "")):
            above = ["fakd", *name.split(".")][: -node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])]).removeprefix("fakd").removeprefix(".")
            found |= {base} if base in MODULES else {f"{base}.{a.name}".removeprefix(".") for a in node.names}
    return found


def test_imports_go_to_lower_numbers_only():
    faults = []
    for name, text in MODULES.items():
        for other in sorted(_imported(name, ast.parse(text))):
            if NUMBERS.get(other, 100) >= NUMBERS.get(name, 0):
                faults.append(f"{NUMBERS.get(name)} {name} imports {NUMBERS.get(other)} {other}")
    none(faults)


def test_the_number_of_a_notebook_is_in_the_ten_of_its_wing():
    "Ground 00 to 09, then one ten a wing, doors from 90: a wing imports only wings below it."
    wings = {nb.name: nb.module.partition(".")[0] if "." in nb.module else "" for nb in LIBRARY if nb.module}
    tens = {name: int(name[:2]) // 10 for name in wings}
    none([name for name, wing in wings.items() if tens[name] not in ((WINGS[wing],) if wing else (0, 9))])


def test_modules_import_in_their_first_exported_cell():
    imports = (ast.Import, ast.ImportFrom)
    faults = [c.place for nb in LIBRARY for c in nb.exported[1:] if any(isinstance(n, imports) for n in c.tree().body)]
    none(faults)


def test_nothing_is_imported_by_star():
    trees = [(c.place, c.tree()) for nb in NOTEBOOKS for c in nb.code] + [(n, ast.parse(t)) for n, t in MODULES.items()]
    stars = [p for p, t in trees for n in ast.walk(t) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    none(stars)


def _defines_a_class(cell: Cell) -> bool:
    return any(isinstance(node, ast.ClassDef) for node in cell.tree().body)


def _only_imports(cell: Cell) -> bool:
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in cell.tree().body)


def test_exported_cells_have_at_most_40_lines_and_classes_60():
    "A guide: a comment `# long: why` lifts it, so that nothing is cut in two to obey it."
    cells = [c for nb in NOTEBOOKS for c in nb.exported if not _only_imports(c) and "\n# long: " not in c.source]
    sizes = [(c, 60 if _defines_a_class(c) else 40) for c in cells]
    none([f"{c.place}: {c.lines} lines, at most {most}" for c, most in sizes if c.lines > most])


def test_notebooks_have_at_most_70_cells_and_600_exported_lines():
    sizes = [(nb.name, len(nb.cells), sum(c.lines for c in nb.exported)) for nb in NOTEBOOKS]
    none([f"{name}: {cells} cells, {lines} lines" for name, cells, lines in sizes if cells > 70 or lines > 620])


def _pauses(cell: Cell) -> bool:
    "Whether a cell explains (more than a heading), shows or checks."
    if cell.kind == "markdown":
        return any(line.strip() and not line.startswith("#") for line in cell.source.split("\n"))
    return cell.kind == "code" and not cell.exported and not re.match(r"#\|\s*(default_exp|hide)", cell.source)


def test_no_more_than_150_exported_lines_stand_between_two_cells_that_explain_show_or_check():
    "A class that says why it is long (`# long: why`) may be longer alone, not with others."
    faults = []
    for nb in LIBRARY:
        lines = cells = 0
        for cell in nb.cells:
            lines, cells = (0, 0) if _pauses(cell) else (lines + cell.lines * cell.exported, cells + cell.exported)
            if lines > 150 and (cells > 1 or "\n# long: " not in cell.source):
                faults.append(f"{cell.place}: {lines} lines")
    none(faults)


def test_every_cell_has_an_id_of_its_own():
    faults = [nb.name for nb in NOTEBOOKS if nb.json.get("nbformat_minor", 0) < 5]
    for nb in NOTEBOOKS:
        ids = [c.id for c in nb.cells]
        faults += [c.place for c in nb.cells if not c.id or ids.count(c.id) > 1]
    none(faults)


def test_every_notebook_names_the_kernel_python3():
    kernels = {nb.name: nb.json["metadata"].get("kernelspec", {}).get("name") for nb in NOTEBOOKS}
    assert {name: kernel for name, kernel in kernels.items() if kernel != "python3"} == {}


# Names, types, words


def _identifiers(tree: ast.Module) -> set[str]:
    "Every name that the code reads, binds, passes or reaches by a dot."
    found: set[str | None] = set()
    for node in ast.walk(tree):
        found |= {getattr(node, part, None) for part in ("id", "arg", "attr", "asname")}
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.alias)):
            found.add(node.name)
    return {name for name in found if isinstance(name, str)}


def test_no_name_is_a_bare_lr_outside_kds():
    "lr means low resolution to one half of the field and learning rate to the other."
    trees = [(c.place, c.tree()) for nb in NOTEBOOKS if "kds" not in nb.name for c in nb.code]
    trees += [(f"fakd/{name}.py", ast.parse(text)) for name, text in MODULES.items() if name != "kds"]
    none([place for place, tree in trees if "lr" in _identifiers(tree)])


def _functions(tree: ast.Module) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    "Public functions of a module and public methods of its public classes, with their names."
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [("", n) for n in tree.body if isinstance(n, kinds)]
    for cls in (n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")):
        found += [(f"{cls.name}.", n) for n in cls.body if isinstance(n, kinds)]
    return [(prefix + n.name, n) for prefix, n in found if n.name == "__init__" or not n.name.startswith("_")]


def test_every_public_function_is_typed():
    faults = []
    for module, text in MODULES.items():
        for name, function in _functions(ast.parse(text)):
            a = function.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
            bare = [x.arg for x in every if x.annotation is None and x.arg not in ("self", "cls")]
            bare += ["return"] if function.returns is None and not name.endswith("__init__") else []
            faults += [f"{module}.{name}: {', '.join(bare)}"] if bare else []
    none(faults)


def test_every_public_function_and_class_says_what_it_is():
    "forward and the on_... methods of watchers are explained where they are defined once."
    faults = []
    for module, text in MODULES.items():
        tree = ast.parse(text)
        classes = [(n.name, n) for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        for name, node in [*_functions(tree), *classes]:
            if not ast.get_docstring(node) and not re.search(r"\.(__init__|forward|on_\w+)$", name):
                faults.append(f"{module}.{name}")
    none(faults)


# Run notebooks


def _parameters(nb: Notebook) -> list[Cell]:
    return [c for c in nb.cells if "parameters" in c.tags]


def test_run_notebooks_have_one_parameters_cell_and_others_have_none():
    counts = {nb.name: len(_parameters(nb)) for nb in NOTEBOOKS}
    assert {name: n for name, n in counts.items() if n != name.startswith(("run_", "explore_"))} == {}


def test_parameters_are_annotated_and_commented_one_a_line():
    "papermill skips a line with a second = and knows a type only from its annotation."
    faults = []
    for cell in (c for nb in RUNS for c in _parameters(nb)):
        first, *lines = cell.source.rstrip().split("\n")
        if first != "# Parameters":
            faults.append(f'{cell.place}: first line is not "# Parameters"')
        for line in filter(None, lines):
            if line.count("=") != 1 or not re.fullmatch(r"[a-z]\w*: [^=#]+ = \S.*?  +# \S.*", line):
                faults.append(f"{cell.place}: {line}")
    none(faults)


def _config(nb: Notebook) -> Any:
    "The class that a run notebook makes of its parameters."
    code = "\n".join(c.source for c in nb.code)
    (name,) = set(re.findall(r"(\w+)\(\*\*parameters\(In, globals\(\)\)\)", code))
    imports = [n for c in nb.code for n in c.tree().body if isinstance(n, ast.ImportFrom)]
    (module,) = {n.module for n in imports if name in {a.name for a in n.names}}
    return getattr(importlib.import_module(str(module)), name)


@pytest.mark.parametrize("nb", RUNS, ids=lambda nb: nb.name)
def test_parameters_are_the_fields_and_defaults_of_the_config(nb):
    given: dict[str, Any] = {}
    for cell in _parameters(nb):
        exec(compile("from __future__ import annotations\n" + cell.source, cell.place, "exec"), given)
    values = {name: given[name] for name in given["__annotations__"]}
    fields = {name: field.get_default(call_default_factory=True) for name, field in _config(nb).model_fields.items()}
    assert {n: repr(v) for n, v in values.items()} == {n: repr(v) for n, v in fields.items()}


def test_run_notebooks_tell_and_modules_do():
    "No function, class, loop or try in a run notebook, and nothing exported from it."
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    forbidden = (*defining, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.TryStar)
    faults = [f"{c.place}: exports" for nb in RUNS for c in nb.code if c.exported or "default_exp" in c.source]
    for cell in (c for nb in RUNS for c in nb.code):
        faults += [f"{cell.place}: {type(n).__name__}" for n in ast.walk(cell.tree()) if isinstance(n, forbidden)]
    none(faults)


def test_run_notebooks_are_left_to_papermill():
    "nbdev_test must not train: the title cell says so."
    none([nb.name for nb in RUNS if not re.search(r"(?m)^- skip_exec: true$", nb.title)])


# What is stored


def _texts(output: dict[str, Any]) -> str:
    "What an output shows, without the bytes of pictures."
    data = output.get("data", {})
    return json.dumps([output.get("text", ""), {k: v for k, v in data.items() if k not in ("image/png", "image/jpeg")}])


def test_stored_outputs_are_small():
    faults = []
    for cell in (c for nb in NOTEBOOKS for c in nb.code):
        for output in cell.outputs:
            png = len(base64.b64decode("".join(output.get("data", {}).get("image/png", ""))))
            if max(png, len(_texts(output))) >= 150_000:
                faults.append(f"{cell.place}: {max(png, len(_texts(output)))} bytes")
    none(faults)


def _shows(cell: Cell) -> bool:
    "Whether a cell ends with something to see: a name, such as `fig`, `plt.show()`, or a call that is named so."
    body = cell.tree().body
    last = body[-1].value if body and isinstance(body[-1], ast.Expr) else None
    called = ast.unparse(last.func) if isinstance(last, ast.Call) else ""
    shown = isinstance(last, ast.Name) or "plt.subplots(" in cell.source
    return shown or re.search(r"(?:^Image|plt\.show|_figure|_view|_views|_maps|_sheet)$", called) is not None


def test_library_cells_that_show_something_keep_it():
    "A reader sees it without running the notebook; the same of the explorer's, whose view needs a kernel."
    explorer = [nb for nb in NOTEBOOKS if nb.name == "explore_affinity"]
    cells = [c for nb in [*LIBRARY, *explorer] for c in nb.code if not c.exported and _shows(c)]
    none([c.place for c in cells if not c.outputs])


def test_notebooks_keep_no_state_of_widgets():
    "nbconvert stores it behind the cells, script and feature maps with it."
    none([nb.name for nb in NOTEBOOKS if "widgets" in nb.json["metadata"]])


def test_stored_outputs_hold_no_error_and_no_warning():
    outputs = [(c.place, o) for nb in NOTEBOOKS for c in nb.code for o in c.outputs]
    none([p for p, o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"])


OUTSIDE = re.compile(r"(?<![\w.~}-])/(home|root|work|tmp|opt|Users)\b|\b[A-Z]:\\|\.\./shared")


def test_no_path_leads_out_of_the_repository():
    texts = [(c.place, c.source) for nb in NOTEBOOKS for c in nb.cells]
    texts += [(f"{c.place}, output", _texts(o)) for nb in NOTEBOOKS for c in nb.code for o in c.outputs]
    files = [p for p in (ROOT / "fakd").rglob("*") if p.suffix in (".py", ".js", ".css", ".json", ".html", ".j2")]
    files += [*INSTALL_FILES, *ROOT.glob("*.md")]
    texts += [(p.relative_to(ROOT).as_posix(), p.read_text(encoding="utf-8")) for p in files]
    none([f"{place}: {match[0]}" for place, text in texts if (match := OUTSIDE.search(text))])


def test_links_of_the_documents_lead_somewhere():
    faults = []
    for path in sorted(ROOT.glob("*.md")):
        for target in re.findall(r"\]\((?![a-z]+:|#)([^)\s#]+)", path.read_text(encoding="utf-8")):
            if not (path.parent / target).exists():
                faults.append(f"{path.name}: {target}")
    none(faults)


# Installing


def _requirements() -> list[Requirement]:
    keys = [k for k in SETTINGS["DEFAULT"] if k == "requirements" or k.endswith("_requirements")]
    return [Requirement(text) for k in keys for text in SETTINGS["DEFAULT"][k].split()]


def _pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_every_requirement_has_a_pin_inside_its_range():
    pins, faults = _pins(), []
    for need in _requirements():
        pin = pins.get(canonicalize_name(need.name))
        if pin is None or not need.specifier.contains(pin, prereleases=True):
            faults.append(f"settings.ini {need}, constraints.txt {pin}")
    none(faults)


def test_constraints_are_plain_pins_for_every_machine():
    "No local build, no file, no CUDA package: one list serves CPU and GPU machines."
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    none([x for x in lines if not re.fullmatch(r"(?!nvidia|cuda)[A-Za-z][\w.-]*==[\d.]+(post\d+)?", x)])
    names = [canonicalize_name(x.partition("==")[0]) for x in lines]
    assert len(names) == len(set(names))


def test_environment_yml_installs_the_same_through_pip():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, lines = conda["dependencies"]
    assert Version(python.removeprefix("python=")) >= Version(SETTINGS["DEFAULT"]["min_python"])
    assert (pip, lines) == ("pip", {"pip": ["-c constraints.txt", "-e .[dev]"]})
    assert (conda["name"], conda["channels"]) == (SETTINGS["DEFAULT"]["lib_name"], ["conda-forge"])


def test_no_file_chooses_a_package_index():
    "Where packages come from is the matter of each machine's own configuration of pip."
    words = re.compile(r"index-url|find-links|trusted-host|PIP_(EXTRA_)?INDEX|file://")
    texts = {path.name: path.read_text(encoding="utf-8") for path in INSTALL_FILES}
    none([f"{name}: {match[0]}" for name, text in texts.items() if (match := words.search(text))])


def test_every_make_target_explains_itself():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"(?m)^\.PHONY: (.+)$", text)
    assert targets
    none([t for t in targets[1].split() if not re.search(rf"(?m)^{t}:.*## \S", text)])


def test_the_version_is_the_same_everywhere():
    version = SETTINGS["DEFAULT"]["version"]
    assert f'__version__ = "{version}"' in (ROOT / "fakd" / "__init__.py").read_text(encoding="utf-8")
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]) == version


def test_contributing_gives_a_reason_for_every_dependency():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    none([need.name for need in _requirements() if not re.search(rf"(?m)^\| {need.name} \| \S.* \|$", text)])
