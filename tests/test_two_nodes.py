"""A run on a cluster of two nodes: a training rank on each, the sampler on the second only.

Run: pytest tests/test_two_nodes.py
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics
from tests.oracle import oracle_verdict
from tests.two_nodes import TwoNodes, kill_group, two_nodes

pytestmark = pytest.mark.engine
NUM_TRAIN, K = 16, 4


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as own:
        yield own


def test_ranks_and_replicas_are_where_they_should_be_and_no_sample_is_lost(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    driver = nodes.run(
        "sample",
        "configs/quickstart.yaml",
        f"run_dir={run_dir}",
        "policies=[{name: tied, model: configs/quickstart_base/tied}]",
        "sampler.env={VLLM_CPU_KVCACHE_SPACE: '1', VLLM_CPU_OMP_THREADS_BIND: nobind}",
        "sampler.labels={place: worker}",
        # a node has 8 CPUs: two ranks have no room on one
        "trainer.cpus_per_worker=5",
        f"problems.train.count={NUM_TRAIN}",
        "problems.validation=null",
        "problems.heldout.count=4",
        f"sampling.k={K}",
        "sft.steps=40",
        "sft.export_every=null",
    )
    seen: dict[str, set[str]] = {"RayTrainWorker": set(), "VLLM::EngineCore": set()}
    deadline = time.monotonic() + 600
    try:
        while driver.poll() is None and time.monotonic() < deadline:
            for title, places in seen.items():
                places |= {place for place in nodes.nodes if nodes.processes(title, place)}
            time.sleep(0.5)
        output, _ = driver.communicate(timeout=120)
    finally:
        kill_group(driver)
    assert driver.returncode == 0, output[-3000:]
    assert seen == {"RayTrainWorker": {"head", "worker"}, "VLLM::EngineCore": {"worker"}}
    groups = list(read_groups(run_dir / "round-000/selected"))
    assert Counter((g.problem.id, r.policy, r.sample) for g in groups for r in g.rollouts) == {
        (f"word-train-0-{n}", "tied", sample): 1 for n in range(NUM_TRAIN) for sample in range(K)
    }
    for group in groups:
        for rollout in group.rollouts:
            if rollout.verdict == "correct":
                assert oracle_verdict(group.problem, rollout.completion) == "correct"
    assert any(rollout.selected for group in groups for rollout in group.rollouts)
    lines = read_metrics(run_dir / "metrics.jsonl")
    (refresh,) = (row for row in lines if row["kind"] == "refresh")
    assert refresh["replicas"] == 1 and refresh["parity_max_abs_diff"] < 1e-3
    assert [row["step"] for row in lines if row["kind"] == "train_step"] == [*range(1, 41)]
