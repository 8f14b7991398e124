PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help

.PHONY: help demo docs bench test test-torch test-ray test-formats test-synth test-trainers test-faults mutants check format schemas package clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: .venv/ready  ## build the sample training sets and verify them
	@$(BIN)/python samples/demo.py

test: .venv/ready-dev  ## run the tests
	@$(BIN)/python -m pytest

test-torch: .venv-torch/ready  ## run the loader's tests with torch, and train from it
	@.venv-torch/bin/python -m pytest tests/load tests/test_virtual.py tests/test_changing.py tests/test_training.py tests/test_weights.py tests/jobs/test_loss_callback.py tests/jobs/test_score_models.py tests/scoring

test-ray: .venv-ray/ready  ## build on Ray: two nodes on this machine, one of them killed (ten minutes)
	@.venv-ray/bin/python -m pytest -m ray -s tests/test_ray.py

test-formats: .venv-formats/ready  ## read our files with the formats' own readers
	@HF_HUB_OFFLINE=1 .venv-formats/bin/python -m pytest -m trainers tests/exporters/test_readers.py tests/exporters/test_readers_of_trainers.py tests/tokenize/test_masks_of_trl.py

test-trainers: .venv/ready .venv-formats/ready .venv-llamafactory/ready .venv-axolotl/ready .venv-swift/ready  ## train two steps with every trainer from our folders
	@HF_HUB_OFFLINE=1 .venv-formats/bin/python -m pytest -m trainers tests/trainers/test_trl.py tests/trainers/test_transformers.py tests/exporters/test_trl_trains.py
	@.venv-llamafactory/bin/python -m pytest -m trainers tests/trainers/test_llamafactory.py
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 .venv-axolotl/bin/python -m pytest -m trainers tests/trainers/test_axolotl.py
	@HF_HUB_OFFLINE=1 .venv-swift/bin/python -m pytest -m trainers tests/trainers/test_swift.py

test-faults: .venv/ready-dev  ## every command that writes meets faults of every kind and must lose nothing (two hours at most, continues)
	@$(BIN)/python -m tests.faults $(FAULTS)

test-synth: .venv-synth/ready  ## have a real small model write records through llama.cpp's server and transformers serve
	@.venv-synth/bin/python -m pytest -m trainers tests/synthesis/test_real_hosts.py

mutants: .venv/ready-dev  ## take out one line at a time at the seams and see a test fail (an hour at most, continues)
	@$(BIN)/python tests/mutants.py

check: .venv/ready-dev  ## format, lint and types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

format: .venv/ready-dev  ## mend format and lint
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

schemas: .venv/ready  ## write the recipe's schema and the reference pages from the code
	@$(BIN)/python -c 'from datamix.recipe.schemas import write_recipe_schema; write_recipe_schema()'
	@$(BIN)/python docs/make_reference.py

docs: .venv/ready-dev  ## build the documentation in English and Chinese into site/, links checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html; for the search: python3 -m http.server --directory site"

bench: .venv/ready-dev  ## measure everything beside its peers (PEERS=PYTHON has them), and write the docs' figures; about two hours
	@$(BIN)/python benchmarks/bench.py --peers $(or $(PEERS),$(BIN)/python)
	@$(BIN)/python docs/make_figures.py

package: .venv/ready-dev  ## build wheel and sdist into dist/, and try the wheel in a fresh environment
	@rm -rf dist && $(BIN)/python -m hatchling build -d dist
	@cd dist && $(PYTHON) -m venv try && try/bin/python -m pip install -q --disable-pip-version-check -c ../requirements.lock ./*.whl
	@cd dist && try/bin/datamix --version && try/bin/datamix schema recipe > recipe.schema.json && try/bin/datamix build ../samples/sft.yaml -o sft && try/bin/datamix verify sft

clean:  ## take away what was built and the environment
	rm -rf dist site .venv .venv-torch .venv-ray .venv-formats .venv-synth .venv-llamafactory .venv-axolotl .venv-swift .datamix demo

# The environment is made anew when the lock changes. One pip call a stage: quiet, and it says what it does.
.venv/ready: requirements.lock pyproject.toml
	@echo "Setting up .venv (once, about a minute) ..."
	@$(PYTHON) -c 'import sys; sys.exit("datamix needs Python 3.11 or newer; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.venv/ready-dev: requirements-dev.lock .venv/ready
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.lock
	@touch $@

.venv-torch/ready: requirements-dev.lock requirements-torch.lock
	@echo "Setting up .venv-torch (once, a few minutes) ..."
	@test -x .venv-torch/bin/python || $(PYTHON) -m venv .venv-torch
	@.venv-torch/bin/python -m pip install -q --disable-pip-version-check -r requirements-dev.lock -r requirements-torch.lock
	@.venv-torch/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.venv-ray/ready: requirements-dev.lock requirements-ray.lock
	@echo "Setting up .venv-ray (once, a few minutes) ..."
	@test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/python -m pip install -q --disable-pip-version-check -r requirements-dev.lock -r requirements-ray.lock
	@.venv-ray/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.venv-synth/ready: requirements-dev.lock requirements-torch.lock tests/trainers/requirements-synth.txt
	@echo "Setting up .venv-synth (once, a few minutes) ..."
	@test -x .venv-synth/bin/python || $(PYTHON) -m venv .venv-synth
	@.venv-synth/bin/python -m pip install -q --disable-pip-version-check -r requirements-dev.lock -r requirements-torch.lock
	@.venv-synth/bin/python -m pip install -q --disable-pip-version-check --no-deps -r tests/trainers/requirements-synth.txt
	@touch $@

# Readers and trainers, each with its own pins: made once, several gigabytes in all, used by their tests alone.
.venv-%/ready: tests/trainers/requirements-%.txt
	@echo "Setting up .venv-$* (once, some minutes) ..."
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install -q --disable-pip-version-check --no-deps -r $<
	@touch $@
