# make test: a fresh machine with Python 3.10-3.13 is set up and every test is run. make demo: the whole story on phantoms.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: all venv lint types layers test check demo demo-short clean
.NOTPARALLEL:

all: test

venv: $(STAMP)

# On a machine without a GPU: make TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu" saves gigabytes.
$(STAMP): constraints.txt setup.py pyproject.toml
	@rm -f $(STAMP)
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear $(VENV)  # cleared where it was made with another Python
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	    set -ex; \
	    $(BIN)/python -m pip install -q -c constraints.txt $(TORCH); \
	    $(BIN)/python -m pip install -q --no-deps -r constraints.txt; \
	    $(BIN)/python -m pip install -q --no-deps torchvision==0.16.2; \
	    $(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install -q --no-deps triton==3.7.1 || \
	        echo "No Triton here: the tests of its kernels are skipped."; \
	    $(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .; \
	else \
	    echo "constraints.txt is made for Python 3.11: here pip chooses the versions."; \
	    set -ex; \
	    $(BIN)/python -m pip install -q --upgrade pip setuptools wheel; \
	    $(BIN)/python -m pip install -q torchvision $(TORCH); \
	    $(BIN)/python -m pip install -q -e '.[dev]'; \
	fi
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .

# The science layer, which needs nothing but torch and numpy, is typed strictly.
types: $(STAMP)
	$(BIN)/python tests/typed.py

layers: $(STAMP)
	$(BIN)/python -m pytest -q tests/test_layers.py

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=25 $(ARGS)

check: lint types layers test demo-short

demo: $(STAMP)
	$(BIN)/python -m nnunet_ssl.cli.main demo -o demo_output

demo-short: $(STAMP)
	$(BIN)/python -m nnunet_ssl.cli.main demo --shortest -o demo_output_short

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output demo_output_short .pytest_cache .mypy_cache .ruff_cache
