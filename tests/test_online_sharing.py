"""A small online run whose samplers sleep while a step is trained; it loses a rank on the way.

On a CPU nothing becomes free, but every call is that of a GPU. One policy is frozen: its sampler
sleeps with its weights.

Run: pytest tests/test_online_sharing.py
"""

import subprocess
import sys
from pathlib import Path

import pytest

from rft_ray.records import read_groups
from tests.terminal import chatter
from tests.test_online import ROOT, lines_of, train_ranks, wait_for_step

pytestmark = [pytest.mark.engine, pytest.mark.faults]
STEPS = 5
POLICIES = (
    "[{name: live, model: configs/quickstart_base/tied}, "
    "{name: frozen, model: configs/quickstart_base/untied, sft: null}]"
)
OVERRIDES = [
    f"policies={POLICIES}",
    "problems.train.count=20",
    "problems.validation.count=16",
    "problems.heldout.count=24",
    "sampling.k=4",
    "sft.steps=60",
    f"online.steps={STEPS}",
    "online.problems_per_step=8",
    "online.max_staleness=0",
    "online.share_gpus=true",
    "online.evaluate_every=2",
    "online.parity_every=1",
    "trainer.num_workers=2",
    "trainer.checkpoint_every=2",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run's folder and what it printed; a rank was killed after step 3 or so."""
    run_dir = tmp_path_factory.mktemp("runs") / "sharing"
    command = [sys.executable, "-m", "rft_ray", "run", "configs/quickstart_online.yaml"]
    driver = subprocess.Popen(
        [*command, f"run_dir={run_dir}", *OVERRIDES],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    wait_for_step(run_dir, 3, driver)
    train_ranks(driver)[-1].kill()
    output, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, output[-3000:]
    return run_dir, output


def test_every_step_is_on_policy_and_has_its_turn(finished: tuple[Path, str]) -> None:
    run_dir, output = finished
    steps = lines_of(run_dir, "online_step")
    assert {row["step"] for row in steps} == set(range(1, STEPS + 1))
    assert all(row["sleep_seconds"] > 0 and row["staleness_max"] == 0 for row in steps)
    for step in range(1, STEPS + 1):
        path = run_dir / f"round-000/selected/step-{step:06d}.parquet"
        groups = list(read_groups(path))
        rollouts = [r for group in groups for r in group.rollouts]
        by_policy = {name: [r for r in rollouts if r.policy == name] for name in ("live", "frozen")}
        assert {r.policy_version for r in by_policy["live"]} == {step - 1}
        assert {r.policy_version for r in by_policy["frozen"]} == {0}
        assert len(by_policy["live"]) == len(by_policy["frozen"]) == 4 * len(groups) > 0
    assert chatter(output) == []
    assert "online turns" in (run_dir / "report.html").read_text()


def test_every_refresh_of_a_sleeper_brings_the_trainers_log_probabilities(
    finished: tuple[Path, str],
) -> None:
    live = [row for row in lines_of(finished[0], "refresh") if "pause_seconds" in row]
    assert {row["step"] for row in live} == set(range(STEPS + 1))
    assert all(row["parity_max_abs_diff"] < 1e-3 for row in live)


def test_what_is_scored_between_turns_is_what_was_trained(finished: tuple[Path, str]) -> None:
    scored = {
        row["step"]
        for row in lines_of(finished[0], "evaluation")
        if row["stage"] == "online" and row["problem_set"] == "validation"
    }
    assert {2, 4, STEPS} <= scored
