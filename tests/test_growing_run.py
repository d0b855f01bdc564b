"""A finished run taken further: another round, a further problem set and sampled scores, asked for
when the first round was done. Run: pytest tests/test_growing_run.py

Real engines at the smallest size: one policy on the target's base, whose SFT both share.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics

pytestmark = [pytest.mark.engine, pytest.mark.faults]
ROOT = Path(__file__).parents[1]
NUM_TRAIN, K = 40, 8
OVERRIDES = [
    "policies=[{name: tied, model: configs/quickstart_base/tied/}]",
    "sampler.env={VLLM_CPU_KVCACHE_SPACE: '1', VLLM_CPU_OMP_THREADS_BIND: nobind}",
    "problems.validation=null",
    f"problems.train.count={NUM_TRAIN}",
    "problems.heldout.count=24",
    "problems.decontaminate_rollouts=20",
    f"sampling.k={K}",
    "sft.steps=60",
    "rft.steps=10",
    "sft.export_every=null",
    "rft.export_every=null",
    "trainer.num_workers=1",
    "trainer.threads_per_worker=1",
]
MORE = [
    "num_rounds=2",
    "evaluation.samples=4",
    "problems.out_of_domain.other={format: word_problems, split: heldout, seed: 1, count: 8}",
]


def finish(run_dir: Path, *overrides: str) -> str:
    """Run to the end; what it printed."""
    command = [sys.executable, "-m", "rft_ray", "run", "configs/quickstart.yaml"]
    done = subprocess.run(
        [*command, f"run_dir={run_dir}", *OVERRIDES, *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def results(run_dir: Path) -> dict[Path, int]:
    """The files that hold rollouts, weights and scored completions, with their times."""
    kinds = ("*.parquet", "*.safetensors")
    return {path: path.stat().st_mtime_ns for kind in kinds for path in run_dir.rglob(kind)}


def rows(run_dir: Path, number: int) -> dict[tuple[str, str, str], float]:
    table = json.loads((run_dir / f"round-{number:03d}/evaluation.json").read_text())
    return {(row["model"], row["stage"], row["metric"]): row["value"] for row in table}


def test_a_finished_run_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    finish(run_dir)
    first, kept = rows(run_dir, 0), results(run_dir)
    assert set(first) == {
        ("tied", "sft", "pass@1"), ("target", "sft", "pass@1"), ("target", "rft_own", "pass@1")
    }  # fmt: skip
    printed = finish(run_dir, *MORE)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    added = {"avg@4", "pass@4", "maj@4", "other/pass@1"}
    wanted = {("target", stage, metric) for stage in ("sft", "rft_own") for metric in added}
    assert set(rows(run_dir, 0)) == set(first) | wanted
    assert {key: rows(run_dir, 0)[key] for key in first} == first
    assert {metric for _, _, metric in rows(run_dir, 1)} == {"pass@1"} | added

    lines = read_metrics(run_dir / "metrics.jsonl")
    steps = Counter((x["job"], x["round"], x["step"]) for x in lines if x["kind"] == "train_step")
    assert set(steps.values()) == {1}
    assert Counter((job, number) for job, number, _ in steps) == {
        ("sft-tied", 0): 60, ("rft-target", 0): 10, ("rft-target", 1): 10
    }  # fmt: skip
    assert all("contaminated" in line for line in lines if line["kind"] == "select")
    for number in range(2):
        groups = list(read_groups(run_dir / f"round-{number:03d}" / "selected"))
        assert len(groups) == NUM_TRAIN
        for group in groups:
            samples = Counter((r.round, r.sample) for r in group.rollouts)
            assert samples == {(r, i): 1 for r in range(number + 1) for i in range(K)}
    assert "all rounds" in printed and "round 1, rft_own - sft" in printed
