"""A small online run that loses a training rank, is killed and continued by the same command.

Run: pytest tests/test_online.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from rft_ray.config_file import load_config
from rft_ray.problem_slices import problem_slice
from rft_ray.problems import load_problems
from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics
from tests.terminal import chatter

pytestmark = [pytest.mark.engine, pytest.mark.faults]
ROOT = Path(__file__).parents[1]
STEPS, SIZE, K, BOUND = 12, 8, 4, 1
OVERRIDES = [
    "problems.train.count=20",
    "problems.validation.count=16",
    "problems.heldout.count=24",
    f"sampling.k={K}",
    "sft.steps=60",
    f"online.steps={STEPS}",
    f"online.problems_per_step={SIZE}",
    f"online.max_staleness={BOUND}",
    "online.evaluate_every=6",
    "online.clip_low=0.2",
    "online.updates_per_batch=2",
    "trainer.num_workers=2",
    "trainer.checkpoint_every=3",
]


def command(run_dir: Path) -> list[str]:
    config = "configs/quickstart_online.yaml"
    return [sys.executable, "-m", "rft_ray", "run", config, f"run_dir={run_dir}", *OVERRIDES]


def start(run_dir: Path) -> subprocess.Popen[str]:
    """The job in a process group of its own."""
    return subprocess.Popen(
        command(run_dir),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


def lines_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(run_dir / "metrics.jsonl") if row["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A run that loses a rank after step 4 or so, is killed after step 7 or so, and finished.

    Its folder, the number of metrics at the kill, and what the second command printed.
    """
    run_dir = tmp_path_factory.mktemp("runs") / "online"
    first = start(run_dir)
    wait_for_step(run_dir, 4, first)
    train_ranks(first)[-1].kill()
    wait_for_step(run_dir, 7, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    at_kill = len(read_metrics(run_dir / "metrics.jsonl"))
    second = start(run_dir)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output[-3000:]
    return run_dir, at_kill, output


def wait_for_step(run_dir: Path, step: int, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 900
    while max((row["step"] for row in lines_of(run_dir, "online_step")), default=0) < step:
        assert driver.poll() is None, driver.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def train_ranks(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


def test_a_dead_rank_sends_training_back_to_a_checkpoint(
    finished: tuple[Path, int, str],
) -> None:
    run_dir, at_kill, _ = finished
    lines = read_metrics(run_dir / "metrics.jsonl")[:at_kill]
    steps = [row["step"] for row in lines if row["kind"] == "online_step"]
    at = next(i for i in range(1, len(steps)) if steps[i] != steps[i - 1] + 1)
    # from the checkpoint of step 3, or of step 6 where the rank died later than it was meant to
    assert steps[at] in (4, 7) and steps[at] <= steps[at - 1]
    assert steps == [*range(1, steps[at - 1] + 1), *range(steps[at], steps[-1] + 1)]


def test_every_step_is_trained_and_continues_from_a_checkpoint(
    finished: tuple[Path, int, str],
) -> None:
    run_dir, at_kill, _ = finished
    after = read_metrics(run_dir / "metrics.jsonl")[at_kill:]
    # Ranks outlive their driver, on a busy machine by a step: what they wrote goes before this.
    after = after[next(i for i, row in enumerate(after) if row["kind"] == "phase") :]
    again = [row["step"] for row in after if row["kind"] == "online_step"]
    # from the checkpoint of step 6, or of a later one that was just being written
    assert again == list(range(again[0], STEPS + 1)) and again[0] in (7, 10)
    assert {row["step"] for row in lines_of(run_dir, "online_step")} == set(range(1, STEPS + 1))
    # the samplers had the checkpoint's weights before anything was sampled
    refreshes = [row for row in after if row["kind"] == "refresh" and "pause_seconds" in row]
    assert [row["step"] for row in refreshes] == list(range(again[0] - 1, STEPS + 1))


def test_each_step_has_its_own_problems_and_no_pass_misses_one(
    finished: tuple[Path, int, str],
) -> None:
    run_dir = finished[0]
    config = load_config(ROOT / "configs/quickstart_online.yaml", OVERRIDES)
    problems = load_problems(config.problems.train)
    seen: Counter[str] = Counter()
    for step in range(1, STEPS + 1):
        for folder in ("sampled", "selected"):
            groups = list(read_groups(run_dir / f"round-000/{folder}/step-{step:06d}.parquet"))
            expected = problem_slice(problems, SIZE, step, config.seed)
            assert [group.problem for group in groups] == expected
            assert all(len(group.rollouts) == K for group in groups)
        seen.update(group.problem.id for group in groups)
    # 20 problems are 3 slices, so 12 steps are 4 passes
    assert set(seen.values()) == {4} and len(seen) == 20


def test_no_rollout_that_was_trained_on_is_staler_than_the_bound(
    finished: tuple[Path, int, str],
) -> None:
    run_dir = finished[0]
    for row in lines_of(run_dir, "online_step"):
        assert 0 <= row["staleness_max"] <= BOUND
        assert row["rollouts"] >= row["accepted"] >= row["examples"]
    for step in range(1, STEPS + 1):
        path = run_dir / f"round-000/selected/step-{step:06d}.parquet"
        versions = {r.policy_version for group in read_groups(path) for r in group.rollouts}
        assert versions <= set(range(max(0, step - 1 - BOUND), step))


def test_sampler_and_trainer_agree_on_log_probabilities(
    finished: tuple[Path, int, str],
) -> None:
    run_dir = finished[0]
    live = [row for row in lines_of(run_dir, "refresh") if "pause_seconds" in row]
    checked = [r["parity_max_abs_diff"] for r in live if r["parity_max_abs_diff"] is not None]
    assert len(checked) >= 6 and max(checked) < 1e-3
    # of the rollouts themselves: the first update on a batch finds a ratio of one
    for group in read_groups(run_dir / "round-000/selected/step-000012.parquet"):
        for rollout in group.rollouts:
            assert rollout.logprobs is not None and rollout.token_ids is not None
            assert len(rollout.logprobs) == len(rollout.token_ids)
            assert max(rollout.logprobs) <= 0


def test_lines_say_where_the_time_of_a_step_and_of_a_refresh_went(
    finished: tuple[Path, int, str],
) -> None:
    run_dir = finished[0]
    steps = lines_of(run_dir, "online_step")
    # only a step after an evaluation has waited for one, or after a checkpoint where one was lost
    assert {row["step"] for row in steps if row["evaluate_seconds"] > 0} <= {4, 7, 10}
    assert all(row["mfu"] is None and 0 < row["fill"] <= 1 for row in steps if row["examples"])
    for row in lines_of(run_dir, "refresh"):
        assert row["drain_seconds"] >= 0 and row["transfer_seconds"] > 0
        if "pause_seconds" in row:
            assert row["transfer_seconds"] < row["pause_seconds"] < row["seconds"]
            assert row["drain_seconds"] + row["pause_seconds"] < row["seconds"]
    text = (run_dir / "report.html").read_text()
    assert "online wait for rollouts" in text and "of the online loop the trainer was idle" in text


def test_results_are_there(finished: tuple[Path, int, str]) -> None:
    run_dir, _, output = finished
    rows = json.loads((run_dir / "round-000/evaluation.json").read_text())
    names = {(row["model"], row["stage"], row["metric"]) for row in rows}
    assert {("target", stage, "pass@1") for stage in ("sft", "online")} < names
    assert ("target", "online", "pass@1_best_validation") in names
    steps = {
        row["step"]
        for row in lines_of(run_dir, "evaluation")
        if row["stage"] == "online" and row["problem_set"] == "validation"
    }
    assert steps == {6, 12}
    assert chatter(output) == []
    assert "online - sft" in output and (run_dir / "report.html").exists()
    probe = json.loads((run_dir / "round-000/checkpoint/probe.json").read_text())
    assert probe["step"] == STEPS
