"""The whole offline job at reduced size, killed half-way and continued by the same command.

Run: pytest tests/test_offline.py
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

import pytest

from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics
from tests.oracle import oracle_select, oracle_verdict

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]
NUM_TRAIN, K = 48, 6
OVERRIDES = [
    f"problems.train.count={NUM_TRAIN}",
    "problems.validation.count=24",
    "problems.heldout.count=32",
    f"sampling.k={K}",
    "sampler.max_rollouts_in_flight=24",
    "sft.steps=40",
    "sft.export_every=20",
    "policies.1.sft.steps=30",
    "rft.steps=40",
    "rft.export_every=20",
    "trainer.checkpoint_every=10",
]


def start(run_dir: Path) -> subprocess.Popen[str]:
    """The main job in a process group of its own."""
    command = [sys.executable, "-m", "rft_ray", "run", "configs/quickstart.yaml"]
    return subprocess.Popen(
        [*command, f"run_dir={run_dir}", *OVERRIDES],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int], str]:
    """A run that was killed while it sampled, then finished: its folder, the files that were
    there at the kill with their times, and what the second command printed."""
    run_dir = tmp_path_factory.mktemp("runs") / "killed"
    first = start(run_dir)
    sampled = run_dir / "round-000" / "sampled"
    deadline = time.monotonic() + 900
    while len(list(sampled.glob("*.parquet"))) < 2:
        assert first.poll() is None, first.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in sampled.glob("*.parquet")}
    assert not (run_dir / "round-000" / "selected").exists()
    second = start(run_dir)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output[-3000:]
    return run_dir, kept, output


def test_nothing_that_reached_disk_is_sampled_again(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir, kept, _ = finished
    assert len(kept) >= 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for folder in ("sampled", "selected"):
        groups = list(read_groups(str(run_dir / "round-000" / folder)))
        assert Counter(g.problem.id for g in groups) == {
            f"word-train-0-{i}": 1 for i in range(NUM_TRAIN)
        }
        for group in groups:
            made = Counter((r.policy, r.sample) for r in group.rollouts)
            assert made == {(p, i): 1 for p in ("tied", "untied") for i in range(K)}


def test_training_is_not_repeated(finished: tuple[Path, dict[Path, int], str]) -> None:
    run_dir, _, _ = finished
    steps = Counter(
        (row["job"], row["step"])
        for row in read_metrics(run_dir / "metrics.jsonl")
        if row["kind"] == "train_step"
    )
    assert set(steps.values()) == {1}
    # the target's SFT is the tied policy's: same base, same recipe
    assert {job for job, _ in steps} == {"sft-tied", "sft-untied", "rft-target"}
    assert Counter(job for job, _ in steps)["rft-target"] == 40


def test_verdicts_and_selection_are_the_oracles(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir, _, _ = finished
    num_correct = 0
    for group in read_groups(str(run_dir / "round-000" / "selected")):
        accepted = []
        for rollout in group.rollouts:
            expected = oracle_verdict(group.problem, rollout.completion)
            # Never "correct" where the paper's rule is not; the other way only where there are
            # several final answers, of which the paper reads the first and ours none.
            if rollout.verdict == "correct":
                assert expected == "correct", rollout
            elif expected == "correct":
                assert rollout.completion.count("####") > 1, rollout
            if rollout.verdict == "correct" and rollout.finish_reason == "stop":
                accepted.append(rollout)
        chosen = {id(accepted[i]) for i in oracle_select([r.completion for r in accepted])}
        assert [id(r) in chosen for r in group.rollouts] == [r.selected for r in group.rollouts]
        num_correct += len(accepted)
    assert num_correct > 0


def test_every_refresh_agreed_with_the_trainer(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir, _, _ = finished
    refreshes = [r for r in read_metrics(run_dir / "metrics.jsonl") if r["kind"] == "refresh"]
    assert {r["model"] for r in refreshes} == {"tied", "untied", "target"}
    assert all(0 <= r["parity_max_abs_diff"] < 1e-3 for r in refreshes)


def test_results_are_there_and_consistent(finished: tuple[Path, dict[Path, int], str]) -> None:
    run_dir, _, output = finished
    rows: list[dict[str, Any]] = json.loads((run_dir / "round-000/evaluation.json").read_text())
    names = {(row["model"], row["stage"], row["metric"]) for row in rows}
    assert {("tied", "sft", "pass@1"), ("untied", "sft", "pass@1")} < names
    for stage in ("sft", "rft_pooled"):
        assert ("target", stage, "pass@1") in names
        assert ("target", stage, "pass@1_best_validation") in names
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"] and row["n"] == 32
    assert "rft_pooled" in output and "pooled" in output
    report = (run_dir / "report.html").read_text()
    assert "<svg" in report and "http" + "://" not in report.replace("http://www.w3.org", "")


def test_the_checkpoint_is_an_ordinary_model(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = finished[0] / "round-000" / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    probe = json.loads((checkpoint / "probe.json").read_text())
    assert tokenizer.eos_token_id is not None and probe["step"] == 40
    ids = torch.tensor([probe["token_ids"][0]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    own = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    assert torch.allclose(own, torch.tensor(probe["logprobs"][0]), atol=1e-4)


def test_a_changed_recipe_is_refused_with_exit_code_2(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    command = [sys.executable, "-m", "rft_ray", "run", "configs/quickstart.yaml"]
    done = subprocess.run(
        [*command, f"run_dir={finished[0]}", *OVERRIDES, "rft.learning_rate=0.5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "learning_rate" in done.stderr and "Traceback" not in done.stderr
