"""Every number that this package gives to Ray's metrics, for its dashboard and for Prometheus.

`METRICS` is the whole list: what each is, its unit, its tags and the process that records it. A
process holds a `Meter`; the points of a line of `metrics.jsonl` or of graded groups are pure
functions here. Gauges are of the last step; counters are of work done, so that a step trained again
after a failure counts again. Left out: what Serve, Data, Train and vLLM export about themselves.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rft_ray.types import Group

# (name, value, tags)
Point = tuple[str, float, dict[str, str]]

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
PARTS = ("sample", "verify", "evaluate", "wait", "sleep", "train", "save", "refresh")
REPLICA = ("policy", "replica")
ONLINE_JOB = "online-target"


@dataclass(frozen=True, slots=True)
class Metric:
    """One name: Prometheus sees `ray_NAME`, a counter's with `_total` behind it."""

    kind: Literal["gauge", "counter", "histogram"]
    what: str
    unit: str
    tags: tuple[str, ...]
    where: str
    """The process that records it."""


METRICS = {
    "rft_sampled_tokens": Metric(
        "counter", "Tokens sampled, those of evaluations included.", "tokens", REPLICA,
        "sampler replica"),
    "rft_requests": Metric(
        "gauge", "Prompts being sampled (running), and those that wait for weights (waiting).",
        "prompts", (*REPLICA, "state"), "sampler replica"),
    "rft_weights_version": Metric(
        "gauge", "Step that wrote the weights that are served.", "step", REPLICA,
        "sampler replica"),
    "rft_refresh_seconds": Metric(
        "histogram", "Refreshes: waiting for requests in flight (drain), receiving and loading "
        "(transfer), standing still from first to last (pause).", "seconds", (*REPLICA, "part"),
        "sampler replica"),
    "rft_refresh_bytes": Metric(
        "counter", "Bytes of weights received or read.", "bytes", REPLICA, "sampler replica"),
    "rft_parity_max_abs_diff": Metric(
        "gauge", "Largest difference to the trainer's log-probabilities after the last refresh "
        "that was checked.", "nats", REPLICA, "sampler replica"),
    "rft_groups_in_flight": Metric(
        "gauge", "Problems whose rollouts are being sampled.", "groups", (),
        "sampling stage; online and greedy evaluation: driver"),
    "rft_verdicts": Metric(
        "counter", "Graded rollouts by what the verifier said.", "rollouts",
        ("policy", "verdict"), "verifying stage; online: driver"),
    "rft_accepted_rollouts": Metric(
        "counter", "Graded rollouts that may be learned from.", "rollouts", ("policy",),
        "verifying stage; online: driver"),
    "rft_step": Metric("gauge", "Last step done.", "step", ("training",), "trainer rank 0"),
    "rft_loss": Metric("gauge", "Loss of the last step.", "nats", ("training",), "trainer rank 0"),
    "rft_grad_norm": Metric(
        "gauge", "Norm of the gradient before clipping.", "", ("training",), "trainer rank 0"),
    "rft_trained_tokens": Metric(
        "counter", "Tokens learned from, once a step however many updates it has.", "tokens",
        ("training",), "trainer rank 0"),
    "rft_batch_fill": Metric(
        "gauge", "Share of the computed token positions that hold a token.", "share", ("training",),
        "trainer rank 0"),
    "rft_mfu": Metric(
        "gauge", "Share of the devices' peak that training achieves, where the peak is known.",
        "share", ("training",), "trainer rank 0"),
    "rft_step_seconds": Metric(
        "histogram", "Parts of a step: " + ", ".join(PARTS) + "; offline: train alone.",
        "seconds", ("training", "part"), "trainer rank 0"),
    "rft_accepted_share": Metric(
        "gauge", "Share of the online step's rollouts that were accepted.", "share", ("training",),
        "trainer rank 0"),
    "rft_reward": Metric(
        "gauge", "Mean reward of the online step's rollouts.", "", ("training",), "trainer rank 0"),
    "rft_entropy": Metric(
        "gauge", "Entropy of the policy at the tokens trained on.", "nats a token", ("training",),
        "trainer rank 0"),
    "rft_staleness_max": Metric(
        "gauge", "Age of the online step's oldest rollout.", "steps", ("training",),
        "trainer rank 0"),
    "rft_dropped": Metric(
        "counter", "Groups and rollouts that an online step left out, by reason.", "",
        ("training", "reason"), "trainer rank 0"),
    "rft_benchmark": Metric(
        "gauge", "A benchmark's figures: ours, the rival's (rival), their ratio and the goal.",
        "", ("benchmark", "what", "rival", "unit", "figure"), "actor `benchmark-figures`"),
}  # fmt: skip


class Meter:
    """The metrics of this process, each of which comes into being with its first point.

    Ray wants them made in the process that records, so an unused object is all that may travel.
    """

    def __init__(self, **tags: str) -> None:
        """`tags` are those of every point of this meter."""
        self._tags = tags
        self._metrics: dict[str, Any] = {}

    def record(self, points: Iterable[Point]) -> None:
        """Give points to Ray; those that are not finite are left out."""
        for name, value, tags in points:
            if not math.isfinite(value):
                continue
            if name not in self._metrics:
                self._metrics[name] = make_metric(name)
            _add(self._metrics[name], METRICS[name].kind, value, {**self._tags, **tags})


def make_metric(name: str) -> Any:
    """Ray's own object."""
    from ray.util.metrics import Counter, Gauge, Histogram

    metric = METRICS[name]
    if metric.kind == "histogram":
        return Histogram(name, metric.what, SECONDS, metric.tags)
    return {"gauge": Gauge, "counter": Counter}[metric.kind](name, metric.what, metric.tags)


def _add(metric: Any, kind: str, value: float, tags: dict[str, str]) -> None:
    if kind == "gauge":
        metric.set(value, tags)
    elif kind == "histogram":
        metric.observe(value, tags)
    elif value > 0:  # a counter refuses 0
        metric.inc(value, tags)


def line_points(line: dict[str, Any]) -> list[Point]:
    """The points of a `train_step` or `online_step` line; other kinds have none, null neither."""
    if line.get("kind") == "train_step":
        points = _training_points(line)
        points.append(("rft_step_seconds", line.get("seconds"), {"part": "train"}))
    elif line.get("kind") == "online_step":
        points = [*_training_points(line), *_online_points(line)]
    else:
        return []
    # Prometheus has a label `job` of its own.
    training = {"training": str(line.get("job", ONLINE_JOB))}
    return [
        (name, float(value), training | tags) for name, value, tags in points if value is not None
    ]


def _training_points(line: dict[str, Any]) -> list[tuple[str, float | None, dict[str, str]]]:
    fields = {
        "rft_step": "step",
        "rft_loss": "loss",
        "rft_grad_norm": "grad_norm",
        "rft_trained_tokens": "tokens",
        "rft_batch_fill": "fill",
        "rft_mfu": "mfu",
    }
    return [(name, line.get(field), {}) for name, field in fields.items()]


def _online_points(line: dict[str, Any]) -> Iterator[tuple[str, float | None, dict[str, str]]]:
    rollouts = line.get("rollouts")
    yield "rft_accepted_share", line["accepted"] / rollouts if rollouts else None, {}
    for field in ("reward", "entropy", "staleness_max"):
        yield f"rft_{field}", line.get(field), {}
    for reason, count in line.get("dropped", {}).items():
        yield "rft_dropped", count, {"reason": reason}
    for part in PARTS:
        yield "rft_step_seconds", line.get(f"{part}_seconds"), {"part": part}


def verdict_points(groups: "Iterable[Group]") -> list[Point]:
    """What the verifier found in groups, by policy."""
    verdicts: Counter[tuple[str, str]] = Counter()
    accepted: Counter[str] = Counter()
    for group in groups:
        for rollout in group.rollouts:
            verdicts[rollout.policy, str(rollout.verdict)] += 1
            accepted[rollout.policy] += rollout.is_accepted
    found: list[Point] = [
        ("rft_verdicts", float(count), {"policy": policy, "verdict": verdict})
        for (policy, verdict), count in verdicts.items()
    ]
    return found + [
        ("rft_accepted_rollouts", float(count), {"policy": policy})
        for policy, count in accepted.items()
    ]
