"""What a replica counts, alone and on a real engine. Run: pytest tests/test_replica_meter.py"""

from typing import Any

import pytest

from rft_ray.ray_metrics import METRICS, Meter, Point
from rft_ray.replica_meter import ReplicaMeter
from rft_ray.sampling import RefreshReport, Weights, refresh_facts
from tests.conftest import BASES
from tests.exported_metrics import wait_for_series


class Recorder(Meter):
    """Keeps the points that it passes on."""

    def __init__(self, **tags: str) -> None:
        super().__init__(**tags)
        self.points: list[Point] = []

    def record(self, points: list[Point]) -> None:
        self.points += points
        super().record(points)


@pytest.fixture()
def meter() -> ReplicaMeter:
    return ReplicaMeter(Recorder(policy="a", replica="r1"))


def queue(meter: ReplicaMeter) -> dict[str, float]:
    return {tags["state"]: value for name, value, tags in meter._meter.points
            if name == "rft_requests"}  # fmt: skip


def test_a_request_waits_and_runs_and_is_gone(meter: ReplicaMeter) -> None:
    with meter.request() as start:
        assert queue(meter) == {"waiting": 1.0}
        start()
        with meter.request():
            assert queue(meter) == {"waiting": 1.0, "running": 1.0}
    assert queue(meter) == {"waiting": 0.0, "running": 0.0}


def test_a_request_that_fails_is_gone_too(meter: ReplicaMeter) -> None:
    for starts in (False, True):
        with pytest.raises(KeyError), meter.request() as start:
            if starts:
                start()
            raise KeyError
    assert queue(meter) == {"waiting": 0.0, "running": 0.0}


def test_refreshes_and_tokens_are_points_of_the_list(meter: ReplicaMeter) -> None:
    meter.sampled(40)
    meter.refreshed(RefreshReport(0.5, 1000, None, 0.25, 0.125), 7)
    names = [name for name, *_ in meter._meter.points]
    assert "rft_parity_max_abs_diff" not in names
    meter.refreshed(RefreshReport(0.5, 1000, 1e-5), 8)
    points = {(name, tags.get("part")): value for name, value, tags in meter._meter.points}
    assert points == {
        ("rft_sampled_tokens", None): 40.0,
        ("rft_refresh_seconds", "drain"): 0.0,
        ("rft_refresh_seconds", "transfer"): 0.0,
        ("rft_refresh_seconds", "pause"): 0.5,
        ("rft_refresh_bytes", None): 1000.0,
        ("rft_weights_version", None): 8.0,
        ("rft_parity_max_abs_diff", None): 1e-5,
    }
    assert {name for name, _ in points} <= METRICS.keys()


def test_a_refresh_line_has_the_slowest_replica_and_all_bytes() -> None:
    reports = [RefreshReport(0.5, 10, None, 2.0, 0.1), RefreshReport(0.6, 10, 1e-4, 1.0, 0.3)]
    assert refresh_facts(reports) == {
        "drain_seconds": 2.0,
        "transfer_seconds": 0.3,
        "bytes": 20,
        "replicas": 2,
        "parity_max_abs_diff": 1e-4,
    }
    assert refresh_facts(reports[:1])["parity_max_abs_diff"] is None


@pytest.mark.engine
def test_a_running_sampler_exports_its_tokens_queue_and_refreshes(samplers: dict[str, Any]) -> None:
    from rft_ray.deployment import refresh_sampler

    weights = Weights(str(BASES / "untied"), 0)
    (report,) = refresh_sampler(samplers["untied"], weights)
    assert 0 < report.transfer_seconds < report.seconds and report.drain_seconds >= 0
    sampling = {"n": 2, "temperature": 1.0, "max_tokens": 5, "ignore_eos": True}
    samplers["untied"].sample.remote([5, 17, 33], weights, sampling, 1).result()
    policy = 'policy="untied"'
    # other tests' work included
    wanted = {
        ("ray_rft_sampled_tokens_total", policy, 10.0),
        ("ray_rft_requests", policy, 0.0),
        ("ray_rft_weights_version", policy, 0.0),
        ("ray_rft_refresh_bytes_total", policy, float(report.num_bytes)),
        ("ray_rft_refresh_seconds_count", policy, 1.0),
    }
    wait_for_series(wanted, exactly=False)
