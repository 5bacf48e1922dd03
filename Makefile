# Every target sets up what it needs first, so `make demo` and `make test` work on a fresh machine.

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: demo test check bench lock clean

demo: $(INSTALLED)
	$(PYTHON) -m examples.onboarding.demo

test: $(INSTALLED)
	$(PYTHON) -m pytest -q -n auto --maxprocesses 4 --dist loadfile

# pyright is a JavaScript program: without node it would try to download one of its own.
check: export PATH := $(CURDIR)/.venv/bin:$(PATH)
check: $(INSTALLED)
	@command -v node >/dev/null || { echo "make check needs Node.js (pyright runs on it): apt-get install nodejs" >&2; exit 1; }
	ruff check .
	ruff format --check .
	pyright
	lint-imports

bench: $(INSTALLED)
	$(PYTHON) -m benchmarks

# Keeps the versions that are locked where pyproject.toml allows; `make lock UPGRADE=--upgrade` takes the newest.
lock: $(INSTALLED)
	.venv/bin/uv --no-config pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--quiet $(UPGRADE) --output-file requirements/dev.txt

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements/install requirements/dev.txt pyproject.toml
	@bash requirements/install
