"""What an online run is doing, as Ray metrics: for Ray's dashboard and whatever scrapes its ports.

Rank 0 of the trainer records every line it writes to `metrics.jsonl`; nothing is measured here.
Gauges are of the last step; counters are of work done, so that a step trained again after a failure
counts again. Left out: offline runs, whose curves are in the trackers, and what Serve, Train and
vLLM export about themselves.
"""

import math
from typing import Any

Points = list[tuple[str, float, dict[str, str]]]

GAUGES = {
    "rft_accepted_share": "Share of the step's rollouts that were accepted.",
    "rft_reward": "Mean reward of the step's rollouts.",
    "rft_entropy": "Entropy of the policy in nats a trained token.",
    "rft_staleness_max": "Age in steps of the step's oldest rollout.",
}
COUNTERS = {
    "rft_sampled_tokens": ("Tokens sampled for online steps.", ()),
    "rft_trained_tokens": ("Tokens learned from, once a step however many updates it has.", ()),
    "rft_rollouts": ("Rollouts by what the verifier said.", ("verdict",)),
    "rft_refresh_bytes": ("Bytes of weights that samplers received.", ()),
}
HISTOGRAMS = {
    "rft_step_seconds": ("Seconds of the parts of online steps.", ("part",)),
    "rft_refresh_seconds": ("Seconds of weight refreshes.", ()),
}
SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
PARTS = ("sample", "verify", "wait", "train", "save", "refresh")


class StepGauges:
    """The metrics of this process; they come into being with the first line recorded.

    Ray wants them made in the process that records, so an unused object is all that may travel.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}

    def record(self, line: dict[str, Any]) -> None:
        """Take an `online_step` or `refresh` line of the metrics file; others are passed over."""
        points = metric_points(line)
        if points and not self._metrics:
            self._metrics = make_metrics()
        for name, value, tags in points:
            metric = self._metrics[name]
            if name in GAUGES:
                metric.set(value, tags)
            elif name in HISTOGRAMS:
                metric.observe(value, tags)
            elif value > 0:  # a counter refuses 0
                metric.inc(value, tags)


def make_metrics() -> dict[str, Any]:
    """Ray's own objects by name."""
    from ray.util.metrics import Counter, Gauge, Histogram

    gauges = {name: Gauge(name, what) for name, what in GAUGES.items()}
    counters = {name: Counter(name, what, tags) for name, (what, tags) in COUNTERS.items()}
    histograms = {
        name: Histogram(name, what, SECONDS, tags) for name, (what, tags) in HISTOGRAMS.items()
    }
    return {**gauges, **counters, **histograms}


def metric_points(line: dict[str, Any]) -> Points:
    """(name, value, tags) of each number that a line has; null and missing ones have no point."""
    if line.get("kind") == "online_step":
        points = _step_points(line)
    elif line.get("kind") == "refresh":
        points = [
            ("rft_refresh_seconds", line.get("seconds"), {}),
            ("rft_refresh_bytes", line.get("bytes"), {}),
        ]
    else:
        return []
    return [
        (name, float(value), tags)
        for name, value, tags in points
        if value is not None and math.isfinite(value)
    ]


def _step_points(line: dict[str, Any]) -> list[tuple[str, float | None, dict[str, str]]]:
    rollouts = line.get("rollouts")
    share = line["accepted"] / rollouts if rollouts else None
    verdicts = line.get("verdicts", {}).items()
    return [
        ("rft_accepted_share", share, {}),
        ("rft_reward", line.get("reward"), {}),
        ("rft_entropy", line.get("entropy"), {}),
        ("rft_staleness_max", line.get("staleness_max"), {}),
        ("rft_sampled_tokens", line.get("sampled_tokens"), {}),
        ("rft_trained_tokens", line.get("tokens"), {}),
        *(("rft_rollouts", count, {"verdict": verdict}) for verdict, count in verdicts),
        *(("rft_step_seconds", line.get(f"{part}_seconds"), {"part": part}) for part in PARTS),
    ]
