"""Lines of the metrics file as Ray metrics. Run: pytest tests/test_ray_metrics.py"""

import pickle
import time
from urllib.request import urlopen

import pytest

from rft_ray.ray_metrics import (
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    StepGauges,
    make_metrics,
    metric_points,
)

STEP = {
    "kind": "online_step", "step": 3, "rollouts": 32, "accepted": 8, "reward": 0.25,
    "entropy": 0.5, "staleness_max": 1, "sampled_tokens": 1500, "tokens": 400,
    "verdicts": {"correct": 8, "wrong": 24, "timeout": 0}, "sample_seconds": 2.0,
    "verify_seconds": 0.1, "wait_seconds": 1.0, "train_seconds": 0.5, "save_seconds": 0.0,
    "refresh_seconds": 0.25,
}  # fmt: skip
REFRESH = {"kind": "refresh", "step": 3, "seconds": 0.25, "bytes": 3_680_256}


def test_a_step_has_a_point_for_each_number() -> None:
    assert metric_points(STEP) == [
        ("rft_accepted_share", 0.25, {}),
        ("rft_reward", 0.25, {}),
        ("rft_entropy", 0.5, {}),
        ("rft_staleness_max", 1.0, {}),
        ("rft_sampled_tokens", 1500.0, {}),
        ("rft_trained_tokens", 400.0, {}),
        ("rft_rollouts", 8.0, {"verdict": "correct"}),
        ("rft_rollouts", 24.0, {"verdict": "wrong"}),
        ("rft_rollouts", 0.0, {"verdict": "timeout"}),
        ("rft_step_seconds", 2.0, {"part": "sample"}),
        ("rft_step_seconds", 0.1, {"part": "verify"}),
        ("rft_step_seconds", 1.0, {"part": "wait"}),
        ("rft_step_seconds", 0.5, {"part": "train"}),
        ("rft_step_seconds", 0.0, {"part": "save"}),
        ("rft_step_seconds", 0.25, {"part": "refresh"}),
    ]
    assert metric_points(REFRESH) == [
        ("rft_refresh_seconds", 0.25, {}),
        ("rft_refresh_bytes", 3_680_256.0, {}),
    ]


def test_a_step_without_anything_to_learn_has_fewer_points() -> None:
    empty = {**STEP, "rollouts": 0, "accepted": 0, "entropy": None, "verdicts": {}}
    names = {name for name, *_ in metric_points(empty)}
    assert not names & {"rft_accepted_share", "rft_entropy", "rft_rollouts"}
    assert metric_points({"kind": "phase", "seconds": 1.0}) == []


def test_metrics_are_rays_own_with_these_names_and_tags() -> None:
    metrics = make_metrics()
    tags = {name: metric.info["tag_keys"] for name, metric in metrics.items()}
    assert tags == {
        "rft_accepted_share": (), "rft_reward": (), "rft_entropy": (), "rft_staleness_max": (),
        "rft_sampled_tokens": (), "rft_trained_tokens": (), "rft_rollouts": ("verdict",),
        "rft_refresh_bytes": (), "rft_step_seconds": ("part",), "rft_refresh_seconds": (),
    }  # fmt: skip
    assert metrics.keys() == GAUGES.keys() | COUNTERS.keys() | HISTOGRAMS.keys()
    kinds = {name: type(metric).__name__ for name, metric in metrics.items()}
    assert kinds["rft_reward"] == "Gauge" and kinds["rft_rollouts"] == "Counter"
    assert kinds["rft_step_seconds"] == "Histogram"


def test_ray_takes_every_point_of_a_line() -> None:
    gauges = pickle.loads(pickle.dumps(StepGauges()))
    # Ray itself refuses a wrong tag, a missing one, and a counter that does not grow.
    for line in (STEP, REFRESH, {**STEP, "entropy": None, "tokens": 0}, {"kind": "phase"}):
        gauges.record(line)


@pytest.mark.engine
def test_the_numbers_arrive_where_ray_exports_them(ray_session: None) -> None:
    import ray

    @ray.remote
    class Rank:
        def __init__(self) -> None:
            self.gauges = StepGauges()

        def record(self, line: dict[str, object]) -> None:
            self.gauges.record(line)

    rank = Rank.remote()
    for line in (STEP, STEP, REFRESH):
        ray.get(rank.record.remote(line))
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        ("ray_rft_accepted_share{", "", 0.25),
        ("ray_rft_rollouts_total{", 'verdict="wrong"', 48.0),
        ("ray_rft_step_seconds_count{", 'part="train"', 2.0),
        ("ray_rft_refresh_bytes_total{", "", 3_680_256.0),
    }
    deadline = time.monotonic() + 60
    while missing := [want for want in wanted if not _has(address, *want)]:
        assert time.monotonic() < deadline, missing
        time.sleep(1)
    ray.kill(rank)


def _has(address: str, name: str, tag: str, value: float) -> bool:
    with urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return any(
        line.startswith(name) and tag in line and float(line.rsplit(" ", 1)[1]) == value
        for line in lines
    )
