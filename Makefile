# A convenience over `osteojax <verb>`. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Compiled sources are kept also where the environment forbids it: workers and the many processes
# that tests start would compile JAX and the rest anew, 6 s of processor time each.
PYTEST := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(abspath $(VENV))/pycache \
          $(BIN)/python -m pytest -n auto --dist loadscope --no-loadscope-reorder

# The compilers for GPUs and TPUs: an environment that takes all else from VENV. JAX starts an
# installed plugin in every program, so they are not in VENV itself.
COMPILE       := .venv-compile
COMPILE_STAMP := $(COMPILE)/.installed

.PHONY: demo gpu test test-slow lint lock compile-env clean

demo: $(STAMP)            ## the whole main job on a small simulated cohort
	$(BIN)/osteojax demo --out demo

gpu:                      ## all that is claimed about a GPU, in nine minutes; PYTHON as it is
	$(PYTHON) -m launch.cli benchmark gpu --out gpu

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

compile-env: $(COMPILE_STAMP)  ## what `osteojax compile` runs in: 1.1 GB

$(COMPILE_STAMP): requirements-compile.lock $(STAMP)
	$(BIN)/python -m venv --without-pip $(COMPILE)
	$(BIN)/uv pip install --python $(COMPILE)/bin/python --quiet --no-deps -r requirements-compile.lock
	$(BIN)/python -c 'import sysconfig; ours = sysconfig.get_path("purelib"); print(f"import site; site.addsitedir({ours!r})")' \
	    > "$$($(COMPILE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/osteojax.pth"
	touch $(COMPILE_STAMP)

lock:                     ## write requirements.lock anew from pyproject.toml
	uv pip compile pyproject.toml --universal --extra dev --extra reference --generate-hashes --no-emit-index-url -o requirements.lock
	uv pip compile requirements-compile.in --no-deps --universal --generate-hashes --no-emit-index-url -o requirements-compile.lock

clean:
	rm -rf $(VENV) $(COMPILE) demo gpu
