"""What one sampler replica tells Ray's metrics: its queue, its tokens and its refreshes.

Left out: what the engine does inside, and the queues of Serve's handles, which Serve exports.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rft_ray.ray_metrics import Meter
from rft_ray.sampling import RefreshReport


class ReplicaMeter:
    """Counts of a replica, used from its event loop alone."""

    def __init__(self, meter: Meter) -> None:
        """`meter` has the tags `policy` and `replica`."""
        self._meter = meter
        self._states = {"waiting": 0, "running": 0}

    @contextmanager
    def request(self) -> Iterator[Callable[[], None]]:
        """A prompt: it waits for its weights until the function is called, then it runs."""
        state = "waiting"
        self._move(None, state)

        def start() -> None:
            nonlocal state
            self._move(state, "running")
            state = "running"

        try:
            yield start
        finally:
            self._move(state, None)

    def sampled(self, tokens: int) -> None:
        """Tokens of finished completions."""
        self._meter.record([("rft_sampled_tokens", float(tokens), {})])

    def refreshed(self, report: RefreshReport, version: int) -> None:
        """A refresh is over, and these weights are served."""
        parts = {
            "drain": report.drain_seconds,
            "transfer": report.transfer_seconds,
            "pause": report.seconds,
        }
        self._meter.record(
            [("rft_refresh_seconds", seconds, {"part": part}) for part, seconds in parts.items()]
        )
        self._meter.record(
            [
                ("rft_refresh_bytes", float(report.num_bytes), {}),
                ("rft_weights_version", float(version), {}),
            ]
        )
        if report.parity_max_abs_diff is not None:
            self._meter.record([("rft_parity_max_abs_diff", report.parity_max_abs_diff, {})])

    def _move(self, before: str | None, after: str | None) -> None:
        for state, change in ((before, -1), (after, 1)):
            if state is not None:
                self._states[state] += change
                count = float(self._states[state])
                self._meter.record([("rft_requests", count, {"state": state})])
