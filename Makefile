# `make` prints what there is. Everything runs in .venv; PYTHON is what it is made with: make setup PYTHON=python3.12
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Parts of `make test` need what the ones before them leave behind, whatever -j says.
.NOTPARALLEL:

PYTHON ?= python3
ARGS ?=
JOBS ?= auto
MODAL_SERVER_URL ?=
# Not from the environment: it costs money.
LIVE :=
# Infra as SkyPilot writes it, from the command line only as well: E2E_SKY_INFRA=slurm/mycluster
E2E_SKY_INFRA :=
# Where runs lie there: E2E_SKY_STORE=s3://BUCKET/PREFIX, which AWS_… of the environment open.
E2E_SKY_STORE :=
# Unix time after which `make test` leaves SkyPilot's cases out; none: it never does.
SKY_UNTIL ?=

VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
FAST := not slow and not e2e and not gpu and not image
LONG := (slow or e2e) and not gpu and not modal and not image and not sky

# Every rank and every `ft` would compile our modules anew: a second of each.
unexport PYTHONDONTWRITEBYTECODE

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

# The stamp of a finished setup is named after what was installed: another constraints.txt, another setup.
HASH_OF = import hashlib, sys; print(hashlib.sha256(b"".join(open(f, "rb").read() for f in sys.argv[1:])).hexdigest()[:16])
STAMP := $(VENV)/.setup-$(shell $(PYTHON) -c '$(HASH_OF)' pyproject.toml constraints.txt)

# SkyPilot wants older versions of click and protobuf than what trains: it has an environment of its own, without torch.
SKY_VENV := .venv-sky
SKY_PY := $(SKY_VENV)/bin/python
SKY_TESTS = E2E_SKY_INFRA="$(E2E_SKY_INFRA)" E2E_SKY_STORE="$(E2E_SKY_STORE)" $(SKY_PY) -m pytest tests/e2e/test_sky_*.py
SKY_STAMP := $(SKY_VENV)/.setup-$(shell $(PYTHON) -c '$(HASH_OF)' pyproject.toml constraints-sky.txt)

OLD_PYTHON = import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)
MINOR = import sys; print("%d.%d" % sys.version_info[:2])
# Gigabytes that a machine without a GPU would never use, and a sign that another torch was pulled in.
STRAY_CUDA = import sys; from importlib.metadata import distributions, version; \
  names = sorted({d.name.lower() for d in distributions()}); \
  stray = [n for n in names if n == "triton" or n.startswith("nvidia-")]; \
  sys.exit("+cpu" in version("torch") and bool(stray) and "torch is a CPU build, yet there is CUDA: " + " ".join(stray))

.PHONY: help setup model quickstart fmt lint types arch test-fast test-long e2e-modal e2e-image e2e-sky e2e-sky-all check test golden docs bench chaos

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## .venv with all that the other targets need; instant the second time
ifneq ($(origin PYTHON),file)
	@have="$$($(PY) -c '$(MINOR)')"; want="$$($(PYTHON) -c '$(MINOR)')"; \
	if [ "$$have" != "$$want" ]; then \
	  echo "$(VENV) is of Python $$have, not $$want: remove it first (rm -r $(VENV))" >&2; exit 1; fi
endif

# torch first and alone: the rest must settle for the build that this machine's index gives.
$(STAMP):
	@$(PYTHON) -c '$(OLD_PYTHON)'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install --quiet -c constraints.txt -e '.[train,modal,bucket,dev]'
	@$(PY) -c '$(STRAY_CUDA)'
	@rm -f $(VENV)/.setup-* && touch $@

$(SKY_STAMP):
	@$(PYTHON) -c '$(OLD_PYTHON)'
	test -x $(SKY_PY) || $(PYTHON) -m venv $(SKY_VENV)
	$(SKY_PY) -m pip install --quiet -c constraints-sky.txt -e '.[sky]' 'skypilot[slurm]' pytest pytest-timeout hypothesis
	@rm -f $(SKY_VENV)/.setup-* && touch $@

model: setup ## fetch the small model that quickstart and tests train, and tokenizers of other families
	$(PY) quickstart/fetch_model.py
	$(PY) tests/fetch_tokenizers.py

quickstart: setup ## fine-tune a small model on this machine and see what it learned
	$(PY) quickstart/run.py

fmt: ## format the code, repair what ruff can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

lint: ## ruff: format and rules
	$(PY) -m ruff format --check --output-format concise .
	$(PY) -m ruff check --output-format concise .

types: ## mypy: strict, standard on runtime
	$(PY) -m mypy

arch: ## import-linter: which room may know which
	$(VENV)/bin/lint-imports --no-logo

test-fast: ## tests that need seconds, on all cores; JOBS=0 for one process
	$(PYTEST) -m "$(FAST)" -n $(JOBS) --dist worksteal --durations 20 --durations-min 5 $(ARGS)

test-long: ## tests that train, install or run for minutes: slow and e2e, side by side as well
	$(PYTEST) -m "$(LONG)" -n $(JOBS) --dist loadgroup --durations 30 --durations-min 20 $(ARGS)

e2e-modal: model ## the real client of Modal against a control plane on loopback; MODAL_SERVER_URL=… another, LIVE=1 Modal
	FT_MODAL_SERVER="$(if $(filter 1,$(LIVE)),live,$(MODAL_SERVER_URL))" $(PYTEST) tests/e2e -m "modal and not slow" -n $(JOBS) --dist loadgroup \
	  --durations 12 --durations-min 20 $(ARGS)

e2e-image: model ## an image of ours built by podman and buildah, trained in and pushed; installs them from Debian, as root
	$(PY) tests/e2e/container_packages.py
	$(PYTEST) tests/e2e -m image -n 0 --durations 5 $(ARGS)

e2e-sky: model $(SKY_STAMP) ## the real SkyPilot on Slurm on loopback (root, apt-get): two nodes in a storm, exit codes, prices; E2E_SKY_INFRA=slurm/mycluster COSTS MONEY
	$(SKY_TESTS) -m "sky and not slow" --durations 12 --durations-min 10 $(ARGS)

e2e-sky-all: model $(SKY_STAMP) ## the life cycle, the move, plain clusters and the quickstart on two nodes as well: 40 minutes
	$(SKY_TESTS) -m sky --durations 12 --durations-min 20 $(ARGS)

check: model lint types arch test-fast ## what to run before a commit

test: check test-long e2e-modal e2e-image ## what needs no GPU, and SkyPilot's cases while there is time for them; what .ci/run calls
	@if [ -n "$(SKY_UNTIL)" ] && [ "$$(date +%s)" -gt "$(SKY_UNTIL)" ]; then \
	  echo "SkyPilot's cases are LEFT OUT: it is too late for them here (SKY_UNTIL); make e2e-sky runs them"; \
	else $(MAKE) --no-print-directory e2e-sky; fi

golden: ## write the golden files anew; review them as a diff
	FT_UPDATE_GOLDEN=1 $(PYTEST) -m "$(FAST)" $(ARGS)

docs: setup ## write docs/keys.md and the gallery's JSON Schema from the schema, docs/failures.md from the table of log lines
	$(VENV)/bin/ft schema --json > recipes/ft/recipes/gallery/schema.json
	$(PY) docs/make_keys.py
	$(PY) docs/make_failures.py

bench: model $(SKY_STAMP) ## figures: how long the command line and a training step take
	for bench in tests/bench/*.py; do \
	  case "$$bench" in */sky_*) $(SKY_PY) "$$bench";; *) $(PY) "$$bench";; esac; done

chaos: model ## train a tiny model 100 times, each time with a kill or a fault: an hour; ARGS="--runs 20 --seed 7"
	$(PY) tests/e2e/chaos.py $(ARGS)
