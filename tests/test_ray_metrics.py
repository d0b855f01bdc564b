"""Lines and groups as Ray metrics. Run: pytest tests/test_ray_metrics.py"""

import pickle

import pytest

from rft_ray.ray_metrics import (
    METRICS,
    SECONDS,
    Meter,
    Point,
    line_points,
    make_metric,
    verdict_points,
)
from rft_ray.types import Group, Problem, Rollout
from tests.exported_metrics import wait_for_series

STEP = {
    "kind": "online_step", "step": 3, "rollouts": 32, "accepted": 8, "reward": 0.25, "loss": 0.5,
    "grad_norm": 2.0, "entropy": 0.5, "staleness_max": 1, "tokens": 400, "fill": 0.75,
    "mfu": None, "dropped": {"stale": 2}, "sample_seconds": 2.0, "verify_seconds": 0.1,
    "evaluate_seconds": 0.0, "wait_seconds": 1.0, "train_seconds": 0.5, "save_seconds": 0.0,
    "refresh_seconds": 0.25,
}  # fmt: skip
TRAIN = {
    "kind": "train_step", "job": "sft-a", "round": 0, "step": 7, "loss": 1.5, "grad_norm": 1.0,
    "tokens": 90, "fill": 0.5, "mfu": 0.4, "seconds": 0.2,
}  # fmt: skip
GROUP = Group(
    Problem("1", "2+2?", "4"),
    [
        Rollout("a", "#### 4", verdict="correct", finish_reason="stop", reward=1.0),
        Rollout("a", "#### 4", verdict="correct", finish_reason="length", reward=1.0),
        Rollout("b", "#### 5", verdict="wrong", finish_reason="stop", reward=0.0),
    ],
)


def test_an_online_step_has_a_point_for_each_number() -> None:
    job = {"training": "online-target"}
    assert line_points(STEP) == [
        ("rft_step", 3.0, job),
        ("rft_loss", 0.5, job),
        ("rft_grad_norm", 2.0, job),
        ("rft_trained_tokens", 400.0, job),
        ("rft_batch_fill", 0.75, job),
        ("rft_accepted_share", 0.25, job),
        ("rft_reward", 0.25, job),
        ("rft_entropy", 0.5, job),
        ("rft_staleness_max", 1.0, job),
        ("rft_dropped", 2.0, {**job, "reason": "stale"}),
        ("rft_step_seconds", 2.0, {**job, "part": "sample"}),
        ("rft_step_seconds", 0.1, {**job, "part": "verify"}),
        ("rft_step_seconds", 0.0, {**job, "part": "evaluate"}),
        ("rft_step_seconds", 1.0, {**job, "part": "wait"}),
        ("rft_step_seconds", 0.5, {**job, "part": "train"}),
        ("rft_step_seconds", 0.0, {**job, "part": "save"}),
        ("rft_step_seconds", 0.25, {**job, "part": "refresh"}),
    ]


def test_a_training_step_has_a_point_for_each_number() -> None:
    job = {"training": "sft-a"}
    assert line_points(TRAIN) == [
        ("rft_step", 7.0, job),
        ("rft_loss", 1.5, job),
        ("rft_grad_norm", 1.0, job),
        ("rft_trained_tokens", 90.0, job),
        ("rft_batch_fill", 0.5, job),
        ("rft_mfu", 0.4, job),
        ("rft_step_seconds", 0.2, {**job, "part": "train"}),
    ]


def test_a_step_without_anything_to_learn_has_fewer_points() -> None:
    names = {name for name, *_ in line_points({**STEP, "rollouts": 0, "entropy": None})}
    assert not names & {"rft_accepted_share", "rft_entropy", "rft_mfu"}
    assert line_points({"kind": "phase", "seconds": 1.0}) == []


def test_verdicts_count_by_policy_and_what_is_cut_off_is_not_accepted() -> None:
    assert verdict_points([GROUP, GROUP]) == [
        ("rft_verdicts", 4.0, {"policy": "a", "verdict": "correct"}),
        ("rft_verdicts", 2.0, {"policy": "b", "verdict": "wrong"}),
        ("rft_accepted_rollouts", 2.0, {"policy": "a"}),
        ("rft_accepted_rollouts", 0.0, {"policy": "b"}),
    ]


@pytest.mark.parametrize("name", METRICS)
def test_metrics_are_rays_own_with_these_names_and_tags(name: str) -> None:
    made, metric = make_metric(name), METRICS[name]
    assert (type(made).__name__.lower(), made.info["tag_keys"]) == (metric.kind, metric.tags)
    assert made.info["description"] == metric.what and metric.where
    # what Prometheus itself puts on every series, and would rename ours for
    assert not {"job", "instance"} & set(metric.tags)


def test_every_point_has_a_name_and_the_tags_of_the_list() -> None:
    for name, _, tags in points_of_all():
        assert tags.keys() == set(METRICS[name].tags)


def test_ray_takes_every_point() -> None:
    meter = pickle.loads(pickle.dumps(Meter()))
    # Ray itself refuses a wrong tag, a missing one, and a counter that does not grow.
    meter.record(points_of_all())
    tags = {"training": "a"}
    meter.record([("rft_loss", float("nan"), tags), ("rft_loss", 1.0, tags)])


def test_a_meters_own_tags_go_with_every_point() -> None:
    meter = Meter(policy="a", replica="r")
    meter.record([("rft_sampled_tokens", 5.0, {})])
    with pytest.raises(ValueError, match="Missing value for tag key"):
        Meter(policy="a").record([("rft_sampled_tokens", 5.0, {})])


def test_histograms_span_a_step_of_any_size() -> None:
    assert sorted(SECONDS) == SECONDS and SECONDS[0] < 0.1 and SECONDS[-1] > 600


def points_of_all() -> list[Point]:
    return [*line_points(STEP), *line_points(TRAIN), *verdict_points([GROUP])]


@pytest.mark.engine
def test_the_numbers_arrive_where_ray_exports_them(ray_session: None) -> None:
    import ray

    @ray.remote
    class Rank:
        def __init__(self) -> None:
            self.meter = Meter()

        def record(self, points: list[Point]) -> None:
            self.meter.record(points)

    rank = Rank.remote()
    for points in (line_points(STEP), line_points(STEP), verdict_points([GROUP])):
        ray.get(rank.record.remote(points))
    wait_for_series(
        {
            ("ray_rft_accepted_share", 'training="online-target"', 0.25),
            ("ray_rft_verdicts_total", 'verdict="wrong"', 1.0),
            ("ray_rft_step_seconds_count", 'part="train"', 2.0),
            ("ray_rft_trained_tokens_total", "", 800.0),
        }
    )
    ray.kill(rank)
