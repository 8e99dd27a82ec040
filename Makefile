# A convenience over `osteojax <verb>`. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Compiled sources are kept also where the environment forbids it: workers and the many processes
# that tests start would compile JAX and the rest anew, 6 s of processor time each.
PYTEST := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(abspath $(VENV))/pycache \
          $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-slow lint lock clean

demo: $(STAMP)            ## the whole main job on a small simulated cohort
	$(BIN)/osteojax demo --out demo

test: $(STAMP)            ## the fast test suite
	$(PYTEST)

test-slow: $(STAMP)       ## the tests that take minutes
	$(PYTEST) -m slow

lint: $(STAMP)            ## lint, format check, type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# uv lives inside the environment it builds, so nothing is installed outside this folder.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "OsteoJAX needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet -r requirements.lock -e .
	touch $(STAMP)

lock:                     ## write requirements.lock anew from pyproject.toml
	uv pip compile pyproject.toml --universal --extra dev --extra reference --generate-hashes --no-emit-index-url -o requirements.lock

clean:
	rm -rf $(VENV) demo
