# Every target sets up what it needs first, so `make demo` and `make test` work on a fresh machine.

PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
TYPESCRIPT := sdks/typescript
TYPESCRIPT_INSTALLED := $(TYPESCRIPT)/node_modules/.installed
TYPESCRIPT_BUILT := $(TYPESCRIPT)/build/.built

# pyright is a JavaScript program: without node it would try to download one of its own.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# The tests start some thousand processes, and each would compile the same sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-python test-typescript nightly servers pythons bench bench-peers lock clean
.PHONY: check check-lint check-types check-imports check-typescript check-collection

demo: $(INSTALLED)
	$(PYTHON) -m examples.onboarding.demo

# One more than there are cores, since tests often wait for processes and the disk.
WORKERS := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# pytest comes last, so that its summary does. It needs the TypeScript packages, too: some tests run Node.js workers.
test: test-typescript test-python

test-typescript: $(TYPESCRIPT_BUILT)
	cd $(TYPESCRIPT) && PYTHON=$(CURDIR)/$(PYTHON) npm test

test-python: $(INSTALLED) $(TYPESCRIPT_BUILT)
	$(PYTHON) -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The long proofs: 110,200 seeds, every planted bug from the first seed on, every operation of the store's disk
# failing in every way, 1,000 processes killed by SIGKILL on each kind of store (0.2 s each on SQLite, 0.6 s on
# PostgreSQL, where some are stopped by SIGSTOP until another has taken over), every service of the guarantees, the
# docs and the example killed at every commit and effect; throughput after each fault of PostgreSQL, its nodes and the
# net; all of it behind PgBouncer; random histories of what people do beside a reference model, on each door; the
# guarantees with PostgreSQL as the store; and those on Debian's servers, if it has any. `make nightly ONLY="nodes
# server"` runs some of them, `make nightly SEEDS=5000` all with fewer seeds; one that fails stops no other.
nightly: $(INSTALLED)
	$(PYTHON) -m tests.nightly $(if $(SEEDS),--seeds $(SEEDS)) $(ONLY)

# What has to do with PostgreSQL, and the guarantees with it as the store, on each other server: folders with the programs
# of one, by default those that Debian has installed; `make servers SERVERS="/opt/16/bin /opt/17/bin"` names others.
SERVERS := $(dir $(wildcard /usr/lib/postgresql/*/bin/initdb))
servers: $(INSTALLED)
	@$(if $(SERVERS),,echo "Debian's postgresql is not installed, and SERVERS names none: nothing was tried")
	@failed=""; for server in $(SERVERS); do \
		$$server/postgres --version && export DOTDO_TEST_POSTGRES=$$server || exit 1; \
		$(PYTHON) -m pytest -q -n auto tests/store tests/contract_sql tests/simulation/test_simulation_on_a_server.py || \
			failed="$$failed $$server"; \
		$(PYTHON) -m pytest -q -n auto --store=postgres tests/guarantees || failed="$$failed $$server (guarantees)"; \
	done; test -z "$$failed" || { echo "failed on:$$failed"; exit 1; }

# All that is tested in Python, on other versions of it: commands or paths, by default those of the PATH;
# `make pythons PYTHONS=/opt/python3.14/bin/python3.14` names others. Each has its own environment, below .pythons.
PYTHONS := $(foreach version,3.11 3.12 3.13 3.14,$(shell command -v python$(version)))
pythons: $(TYPESCRIPT_BUILT)
	@$(if $(PYTHONS),,echo "No python3.11 to python3.14 is on the PATH, and PYTHONS names none: nothing was tried")
	@failed=""; for python in $(PYTHONS); do \
		venv=$(CURDIR)/.pythons/$${python##*/}; $$python --version && $$python -m venv --clear $$venv && \
		$$venv/bin/python -m pip install --quiet --require-hashes -r requirements/dev.txt && \
		$$venv/bin/python -m pip install --quiet --no-deps --no-build-isolation -e . && \
		PATH=$$venv/bin:$$PATH $$venv/bin/python -m pytest -q -n $(WORKERS) --maxprocesses 4 --dist loadfile || \
			failed="$$failed $$python"; \
	done; test -z "$$failed" || { echo "failed on:$$failed"; exit 1; }

check: check-lint check-types check-imports check-typescript

check-lint: $(INSTALLED)
	ruff check .
	ruff format --check .

check-types: $(INSTALLED)
	pyright

check-imports: $(INSTALLED)
	lint-imports

check-typescript: $(TYPESCRIPT_BUILT)
	cd $(TYPESCRIPT) && npm run check

# Every test file can be read; and what comes of compiling is kept, so that pytest's workers and the processes that the
# tests start need not do so once more each.
check-collection: $(INSTALLED)
	$(PYTHON) -m compileall -q src
	$(PYTHON) -m pytest -qq --collect-only >.venv/collected.txt || { cat .venv/collected.txt; exit 1; }

bench: $(INSTALLED)
	$(PYTHON) -m benchmarks

# The same jobs on DBOS, Restate and Celery, in turns with ours; what it installs is kept in benchmarks/results.
# `make bench-peers OPTIONS=--quick` only shows that it works.
bench-peers: $(INSTALLED)
	$(PYTHON) -m benchmarks.peers $(OPTIONS)

# Keeps the versions that are locked where pyproject.toml allows; `make lock UPGRADE=--upgrade` takes the newest.
lock: $(INSTALLED) $(TYPESCRIPT_INSTALLED)
	.venv/bin/uv --no-config pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--quiet $(UPGRADE) --output-file requirements/dev.txt
	.venv/bin/uv --no-config pip compile requirements/node.in --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--quiet $(UPGRADE) --output-file requirements/node.txt
	for peer in celery dbos plot restate; do \
		.venv/bin/uv --no-config pip compile requirements/peers/$$peer.in --universal --python-version 3.11 \
			--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
			--quiet $(UPGRADE) --output-file requirements/peers/$$peer.txt || exit 1; \
	done
	cd benchmarks/peers/npm && npm install --package-lock-only --ignore-scripts --no-audit --no-fund
	cd $(TYPESCRIPT) && npm install --package-lock-only && node scripts/lock.mjs

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	rm -rf $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/build $(TYPESCRIPT)/packages/*/dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): requirements/install requirements/dev.txt pyproject.toml
	@bash requirements/install

$(TYPESCRIPT_INSTALLED): $(TYPESCRIPT)/scripts/install $(TYPESCRIPT)/package-lock.json $(TYPESCRIPT)/package.json \
		$(TYPESCRIPT)/packages/sdk/package.json $(TYPESCRIPT)/packages/core/package.json | $(INSTALLED)
	@bash $(TYPESCRIPT)/scripts/install

$(TYPESCRIPT_BUILT): $(TYPESCRIPT_INSTALLED) $(wildcard $(TYPESCRIPT)/src/*.ts) $(TYPESCRIPT)/scripts/build.mjs \
		$(TYPESCRIPT)/tsconfig.json LICENSE
	cd $(TYPESCRIPT) && npm run build
	@touch $@
