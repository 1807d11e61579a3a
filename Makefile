# Everything is installed into .venv and runs there; nothing needs to be activated.
# PYTHON chooses the interpreter that makes it: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TORCH = $(shell grep '^torch==' constraints.txt)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test mutants lab export hooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

demo: $(INSTALLED) ## distil a student on embedded images, about 5 minutes on 2 cores, and print the report's path
	@echo "Running nbs/run_distill.ipynb at scale 4: prepare, train without and with the teacher, score, report."
	@echo "The executed notebook is out.ipynb."
	@$(BIN)/papermill nbs/run_distill.ipynb out.ipynb -p scale 4
	@echo "The report, one self-contained page for any browser:"
	@$(BIN)/python -m fakd.project last-report

test: $(INSTALLED) ## run every check; ends with "N passed, N failed"
	@$(BIN)/python -m fakd.project checks

mutants: $(INSTALLED) ## put faults into a copy, one at a time, and see that the tests notice: half an hour; ARGS="--list"
	@$(BIN)/python tests/mutants.py $(ARGS)

lab: $(INSTALLED) ## open JupyterLab at the main notebook; options: make lab ARGS="--no-browser --port 8890"
	@echo "Opening JupyterLab; stop it with Ctrl-C"
	@$(BIN)/jupyter-lab --ServerApp.root_dir="$(CURDIR)" $(ARGS) nbs/run_distill.ipynb

export: $(INSTALLED) ## after editing a notebook: write fakd/, clean the notebooks, render README.md
	@echo "Exporting nbs/*.ipynb to fakd/"
	@$(BIN)/nbdev_export
	@echo "Cleaning the notebooks"
	@$(BIN)/nbdev_clean
	@echo "Rendering README.md from nbs/index.ipynb"
	@$(BIN)/python -m fakd.project readme

hooks: $(INSTALLED) ## optional: git and Jupyter hooks that keep notebooks clean and merge them
	@echo "Installing nbdev's hooks: .gitconfig, .git/hooks/post-merge, and ~/.jupyter/jupyter_*_config.py"
	@$(BIN)/nbdev_install_hooks

clean: ## remove .venv and caches; runs, data and weights stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

# pip's resolver must see the pinned torch first: a bare "torch" may bring gigabytes that the pin does not need.
# spandrel wants torchvision, which must be built for exactly this torch and which fakd does not need: for the tests
# it is put into a folder of its own, without what it wants, where only tests/conftest.py looks.
$(INSTALLED): settings.ini setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make $(MAKECMDGOALS) PYTHON=<Python 3.11 or newer>"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make $(MAKECMDGOALS) PYTHON=python3.11" % v)'
	@echo "[1/3] Making $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "[2/3] Installing $(TORCH): 200 MB for a CPU, several GB for CUDA"
	@$(BIN)/python -m pip install "$(TORCH)" -c constraints.txt
	@echo "[3/3] Installing fakd and what it needs, about 150 packages: a few minutes"
	@$(BIN)/python -m pip install --quiet -e ".[dev]" -c constraints.txt
	@$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/extra spandrel einops -c constraints.txt
	@touch $@
