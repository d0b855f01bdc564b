"""A line per optimiser step in the run's metrics.jsonl, and the same among Ray's metrics."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rft_ray.ray_metrics import Meter, line_points
from rft_ray.run_dir import read_metrics
from rft_ray.utilisation import Utilisation

if TYPE_CHECKING:
    from rft_ray.trainer import StepBatch, TrainingJob


class StepMetrics:
    """Appends a line per step to the run's metrics.jsonl, and to Ray's metrics; held by rank 0.

    A step done again after a crash gives the same numbers, so its line is not written twice. The
    file is never rewritten, because the driver appends to it too.
    """

    def __init__(
        self, job: "TrainingJob", total_steps: int, use: Utilisation | None = None
    ) -> None:
        self._use = use
        self._meter = Meter()
        self._path = Path(job.metrics_path)
        self._labels = {"kind": "train_step", "job": job.name, "round": job.round}
        self._total_steps = total_steps
        rows = read_metrics(self._path)
        mine = (row["step"] for row in rows if self._labels.items() <= row.items())
        self._last_step = max(mine, default=0)
        if self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n"):
            # A rank 0 that was killed left half a line.
            self._write("\n")

    def append(
        self, batch: "StepBatch", rate: float, loss: float, grad_norm: float, seconds: float
    ) -> None:
        """Write the line of a step, unless an earlier attempt did."""
        if batch.step <= self._last_step:
            return
        line = {
            **self._labels,
            "time": time.time(),
            "step": batch.step,
            "total_steps": self._total_steps,
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "tokens": batch.tokens,
            "examples": batch.examples,
            "fill": batch.fill,
            "seconds": seconds,
            "mfu": self._use.share(batch.all_tokens, seconds) if self._use else None,
        }
        self._write(json.dumps(line) + "\n")
        self._meter.record(line_points(line))

    def _write(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)
