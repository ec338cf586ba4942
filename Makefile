# Two commands do all the set-up themselves: `make try` and `make test`. Needs Python 3.11+ with pip, nothing else.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: try test lint types pytest bench train drafters evaluate wheel clean slow mirror wire storm soak kill law coverage neovim vscode emacs pictures browser ray torchao

# A real coder is fetched once (491 MB); its canvas completes one place, its ar route three. Where it cannot be had, nano does.
CODER := qwen2.5-coder-0.5b-instruct
PLACES := examples/wordcount.py:4:25 examples/wordcount.py:24:25 examples/records.py:14:9

try: $(VENV)/run
	$(BIN)/fimserver complete examples/wordcount.py:4:25 --model dllm --dllm-card nano --show-steps
	@if $(BIN)/fimserver models get $(CODER); \
	then $(BIN)/fimserver complete examples/records.py:14:9 --model dllm --dllm-card $(CODER) --show-steps; \
	else echo "without it: the small model nano, which comes with fimserver, completes these places"; fi
	$(BIN)/fimserver complete --model ar $(PLACES)

test: lint types pytest

lint: $(VENV)/check
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	@if command -v luacheck >/dev/null; then luacheck -q --config editors/nvim/.luacheckrc editors/nvim; \
	else echo "editors/nvim is not linted: tests/editors/install_luacheck.sh"; fi

types: $(VENV)/check
	$(BIN)/mypy

pytest: $(VENV)/check
	$(BIN)/pytest -q -n 2 --dist loadfile

# The long forms of tests that run in short in `make test`.
slow: mirror wire storm soak kill law coverage

mirror wire storm soak kill law coverage: export OMP_NUM_THREADS = 1

mirror: $(VENV)/check
	MIRROR_EDITS=1000000 $(BIN)/pytest -q -s tests/front/documents/test_mirror.py

wire: $(VENV)/check
	WIRE_MESSAGES=100000 $(BIN)/pytest -q -s tests/features/test_wire.py

storm: $(VENV)/check
	STORM_RATE=1000 STORM_S=60 $(BIN)/pytest -q -s tests/features/test_endurance.py -k storm

soak: $(VENV)/check
	SOAK_EDITS=100000 $(BIN)/pytest -q -s tests/features/test_endurance.py -k "memory or tables"

kill: $(VENV)/check
	KILLS=20 $(BIN)/pytest -q -s tests/features/test_two_windows.py

law: $(VENV)/check
	LAW_RUNS=200000 $(BIN)/pytest -q -s tests/engine/test_distribution.py

coverage: $(VENV)/check
	AB_SIMULATIONS=1000 $(BIN)/pytest -q tests/ab/analysis/test_statistics.py tests/test_confidence_sequence.py

# Real Ray in an environment of its own, which sees this one's packages.
ray: $(VENV)/check
	$(PYTHON) -m venv $(VENV)/ray
	$(VENV)/ray/bin/python -c "import pathlib, sysconfig; \
	pathlib.Path(sysconfig.get_path('purelib'), 'outer.pth').write_text('$(CURDIR)\n$(abspath $(VENV))/lib/' + \
	pathlib.Path(sysconfig.get_path('purelib')).parent.name + '/site-packages\n')"
	$(VENV)/ray/bin/pip install -q --disable-pip-version-check -c constraints.txt 'ray[serve]>=2.60,<3'
	OMP_NUM_THREADS=1 $(VENV)/ray/bin/python -m pytest -q -s tests/deploy

# The real torchao, in the same way: with it installed, transformers imports it at every start.
torchao: $(VENV)/check
	$(PYTHON) -m venv $(VENV)/torchao
	$(VENV)/torchao/bin/python -c "import pathlib, sysconfig; \
	pathlib.Path(sysconfig.get_path('purelib'), 'outer.pth').write_text('$(CURDIR)\n$(abspath $(VENV))/lib/' + \
	pathlib.Path(sysconfig.get_path('purelib')).parent.name + '/site-packages\n')"
	$(VENV)/torchao/bin/pip install -q --disable-pip-version-check --no-deps 'torchao>=0.18'
	OMP_NUM_THREADS=1 $(VENV)/torchao/bin/python -m pytest -q tests/engine/test_quantise.py

browser: $(VENV)/check
	tests/browser/install_chromium.sh
	$(BIN)/pytest -q tests/browser

neovim: $(VENV)/check
	tests/editors/install_neovim.sh
	$(BIN)/pytest -q tests/editors

# A real VS Code: what it needs is installed, the extension checked, built and packed, and the scenarios run in it.
vscode: $(VENV)/check
	tests/browser/install_chromium.sh
	tests/editors/install_vscode.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/editors -m vscode

emacs: $(VENV)/check
	tests/editors/install_emacs.sh
	$(BIN)/pytest -q tests/editors -m emacs

# The pictures of the READMEs, of both editors.
pictures: export OMP_NUM_THREADS = 1
pictures: export FIMSERVER_SHOTS = $(CURDIR)/editors/pictures
pictures: $(VENV)/check
	tests/browser/install_chromium.sh
	tests/editors/install_neovim.sh
	tests/editors/install_vscode.sh
	$(BIN)/pytest -q tests/editors/test_pictures.py -m neovim
	$(BIN)/pytest -q tests/editors/test_pictures.py -m vscode
	mv editors/pictures/neovim-ghost.png editors/nvim/ghost.png
	mv editors/pictures/vscode-ghost.png editors/vscode/media/ghost.png

bench: $(VENV)/check
	$(BIN)/python -m bench.engines
	$(BIN)/python -m bench.front
	$(BIN)/python -m bench.speculation --out bench/results/speculation.json
	$(BIN)/fimserver doctor --calibrate
	$(BIN)/python -m bench.policy

train: $(VENV)/run
	$(BIN)/python -m models.training.corpus
	$(BIN)/python -m models.training.train --minutes $(or $(MINUTES),100)

# What drafts for nano: MINUTES of windows that it writes, as much for each network, half as much for streaks.
drafters: MINUTES ?= 20
drafters: CACHE := $(HOME)/.cache/fimserver/training
drafters: $(VENV)/run
	$(BIN)/python -m models.training.windows --split valid --minutes 10 --count 1024
	$(BIN)/python -m models.training.windows --split train --minutes $(MINUTES)
	$(BIN)/python -m models.training.drafters heads --minutes $(MINUTES)
	$(BIN)/python -m models.training.drafters block --minutes $(MINUTES)
	$(BIN)/python -m models.training.drafters block --loss streak --minutes $$(( ($(MINUTES) + 1) / 2 )) \
		--init $(CACHE)/drafters/block-ce.safetensors
	$(BIN)/python -m models.training.train --hidden 128 --layers 2 --heads 2 --kv-heads 1 --mlp 384 --canvas-weight 0 \
		--minutes $(MINUTES) --folder $(CACHE)/draft --export $(CACHE)/draft/export
	$(BIN)/python -m models.training.acceptance \
		$(addprefix $(CACHE)/drafters/,block-ce.safetensors block-streak.safetensors heads-ce.safetensors)

evaluate: $(VENV)/run
	$(BIN)/python -m models.training.evaluate --spans 400 --samples 20

wheel: $(VENV)/run
	$(PIP) build
	$(BIN)/python -m build -q --wheel

clean:
	rm -rf $(VENV) dist build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing fimserver and its dependencies into $(VENV) (once). PyPI's torch for Linux brings CUDA with it, 3 GB to"
	@echo "download and 6 GB on disk. Without a GPU stop this and run first, which takes a tenth of it:"
	@echo "    $(BIN)/pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch"
	@$(filter-out -q,$(PIP)) -e .
	@touch $@

$(VENV)/check: $(VENV)/run
	@$(PIP) -e '.[test]'
	@touch $@
