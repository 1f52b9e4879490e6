# Each target builds .venv first if it is missing. Needs Python 3.10-3.12 with pip and venv.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo student abilities test lint docs esc10 copy-synthesis parity bench bench-eval bench-data bench-order
.PHONY: bench-serve gpu faults stranger clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[eval,aesthetics,speech,video,ray,adapters,onnx,serve,docs,dev]"
	touch $@

# Synthetic sounds -> all stages -> report: runs/demo/report/report.html
demo: .venv/.ready
	$(BIN)/audioldm2 demo

# The demo's model, trained if it is missing, distilled to 4 steps: runs/demo_student/report/report.html
student: .venv/.ready
	test -d shards/synthetic/judge || $(BIN)/python -m data.synthetic shards/synthetic --clips 4800 --captions 4 --test-clips 240 --judge-clips 1200
	$(BIN)/audioldm2 train experiments/demo.yaml
	$(BIN)/audioldm2 train experiments/demo_student.yaml
	$(BIN)/python -m evaluation report experiments/demo_student.yaml

# The demo's model, trained if it is missing, edits and continues real clips: runs/demo/report/abilities.html
abilities: .venv/.ready
	test -d shards/synthetic/judge || $(BIN)/python -m data.synthetic shards/synthetic --clips 4800 --captions 4 --test-clips 240 --judge-clips 1200
	$(BIN)/audioldm2 train experiments/demo.yaml
	$(BIN)/python -m evaluation report experiments/demo.yaml --clips-per-class 5 --order-clips 10 \
	  --figures inpainting,extension,super_resolution,restyle,long_form --output runs/demo/report/abilities.html

# 240 real clips -> all stages -> 16 clips a class -> an external classifier: docs/results/esc10.json (waveforms by
# Griffin and Lim's algorithm) and docs/results/esc10_vocoder.json (by the vocoder)
ESC10 ?= ../shared/data/esc10
SCORER ?= ../shared/tools/yamnet_score.py
SAMPLING := --prompts experiments/esc10_prompts.txt --seconds 5 --steps 30 --guidance-scale 4.5 --eta 0
esc10: .venv/.ready
	$(BIN)/python -m data.esc50 $(ESC10) shards/esc10
	$(BIN)/audioldm2 train experiments/esc10.yaml
	$(BIN)/audioldm2 generate runs/esc10/model $(SAMPLING) --output runs/esc10/generated --vocoder griffin-lim
	$(BIN)/python -m evaluation external runs/esc10/generated $(ESC10)/audio --scorer $(SCORER) --output docs/results/esc10.json
	$(BIN)/audioldm2 generate runs/esc10/model $(SAMPLING) --output runs/esc10/generated_vocoder
	$(BIN)/python -m evaluation external runs/esc10/generated_vocoder $(ESC10)/audio --scorer $(SCORER) --output docs/results/esc10_vocoder.json

# The vocoder of esc10 alone, trained on two folds; recordings of the third through log-mel and vocoder, and through
# log-mel and Griffin and Lim's algorithm: docs/results/copy_synthesis.json and copy_synthesis_griffin_lim.json
COPY := runs/esc10_vocoder
copy-synthesis: .venv/.ready
	$(BIN)/python -m data.esc50 $(ESC10) shards/esc10_folds --test-fold 1
	$(BIN)/audioldm2 train experiments/esc10.yaml name=esc10_vocoder stages=[vocoder] data.train=[shards/esc10_folds/train]
	$(BIN)/python -m evaluation copy-synthesis $(COPY)/model $(ESC10)/audio $(COPY)/copies --match "1-*"
	$(BIN)/python -m evaluation external $(COPY)/copies $(ESC10)/audio --scorer $(SCORER) --output docs/results/copy_synthesis.json
	$(BIN)/python -m evaluation copy-synthesis $(COPY)/model $(ESC10)/audio $(COPY)/griffin_lim --match "1-*" --vocoder griffin-lim
	$(BIN)/python -m evaluation external $(COPY)/griffin_lim $(ESC10)/audio --scorer $(SCORER) --output docs/results/copy_synthesis_griffin_lim.json

# Full-size networks beside diffusers' and transformers', same random weights: docs/results/parity.json (8 GiB, minutes)
parity: .venv/.ready
	$(BIN)/python tests/parity.py

# T-UNet's and GPT-2's time and memory beside diffusers', one thread: docs/results/bench.json (8 GiB, minutes, a quiet machine)
bench: .venv/.ready
	$(BIN)/python tests/benchmarks/networks.py

# Clips a second of FAD + KL + CLAP beside frechet-audio-distance's own loop: docs/results/bench_eval.json (8 GiB, an hour)
bench-eval: .venv/.ready
	PYTHONPATH=. $(BIN)/python tests/benchmarks/metrics.py

# Clips a second and core of the reader beside bare decoding and a map-style dataset: docs/results/bench_data.json (minutes)
bench-data: .venv/.ready
	PYTHONPATH=. $(BIN)/python tests/benchmarks/reader.py

# The order of 512 ranks with 8 workers each over 2,000 shards, without GPUs: docs/results/bench_order.json (minutes)
bench-order: .venv/.ready
	PYTHONPATH=. $(BIN)/python tests/benchmarks/reader_simulation.py

# 20 clients of `audioldm2 serve` on the demo's model for 5 minutes: docs/results/bench_serve.json
bench-serve: .venv/.ready
	PYTHONPATH=. $(BIN)/python tests/benchmarks/serve.py runs/demo/model

# On a machine with a GPU: its tests, training's and generation's speed, ESC-10 in bf16: docs/results/gpu.json (25 minutes)
gpu: .venv/.ready
	PYTHONPATH=. $(BIN)/python tests/benchmarks/gpu.py --esc10 $(ESC10) --scorer $(SCORER)

# kill -9, bad disks, hostile inputs, lost shards and ranks, 1,224 in all: docs/results/faults.json and .md (hours)
FAULTS ?= 1
faults: .venv/.ready
	PYTHONPATH=. $(BIN)/python tests/faults/run.py --scale $(FAULTS)

# From a folder of 20 clips to a sound, by the lines of docs/own_data.md: docs/results/stranger.json (minutes)
STRANGER_MODEL ?= runs/demo/model
stranger: .venv/.ready
	PYTHONPATH=. $(BIN)/python tests/benchmarks/stranger.py $(STRANGER_MODEL)

test: .venv/.ready
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The documentation as a site that works offline: build/site/index.html
docs: .venv/.ready
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build *.egg-info runs shards
