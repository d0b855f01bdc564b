"""Experiment trackers: the run's metrics.jsonl, forwarded as scalars while the run goes on.

TensorBoard always, Weights & Biases and MLflow where the config asks for them. What trains and
samples only ever appends to metrics.jsonl and knows no tracker; a thread follows that file. A kill
between sending points and noting how far that got sends those few again (same name, same step).
Left out: text, histograms, and the intervals of evaluations, which are in the report.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from rft_ray.config_sections import TrackersConfig
from rft_ray.console import say
from rft_ray.errors import InputError
from rft_ray.run_dir import write_atomically

POLL_SECONDS = 1.0
# A tracker that cannot reach its server keeps the end of a run waiting no longer than this.
CLOSE_SECONDS = 120.0
# The fields that name the curves of a kind of line, and the one that is their x axis; kinds without
# a step of their own are numbered in order.
CURVES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "train_step": (("job",), "step"),
    "online_step": ((), "step"),
    "select": (("policy",), "round"),
    "wave": ((), None),
    "new_paths": ((), "round"),
    "refresh": (("sampler",), None),
    "phase": (("phase",), None),
    "gain": (("metric",), "round"),
    "examples": (("job",), "round"),
}
NOT_CURVES = {"time", "step", "round", "total_steps"}
NAMES = {"train_step": "train", "online_step": "online"}

Scalar = tuple[str, int | None, float]


class Tracker(Protocol):
    """A place that scalars go to. Any method may raise; the tracker is not used after that."""

    def log(self, name: str, step: int, value: float) -> None:
        """Take one point, now or at the next flush."""

    def flush(self) -> None:
        """Hand over every point taken so far."""

    def close(self, succeeded: bool) -> None:
        """End the tracker's run for this process."""


def scalars(line: dict[str, Any]) -> list[Scalar]:
    """The points (name, step, value) of a line of metrics.jsonl; step None: number them in order.

    Numeric fields only: null, text and truth values have no curve. A field that is a dict of counts
    has a curve for each, such as `online/staleness/0`.
    """
    kind = line["kind"]
    if kind == "evaluation":
        return [_evaluation(line)]
    labels, axis = CURVES.get(kind, ((), "step"))
    name = "/".join([NAMES.get(kind, kind), *(str(line[k]) for k in labels)])
    # SFT comes before the rounds; a target has a training run in each.
    if kind == "train_step" and line.get("round") is not None and not _is_sft(line["job"]):
        name += f"/round-{line['round']}"
    step = line.get(axis) if axis else None
    fields = {field: value for field, value in line.items() if field not in NOT_CURVES}
    return [(f"{name}/{field}", step, value) for field, value in _numbers(fields)]


def _numbers(fields: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for field, value in fields.items():
        if isinstance(value, dict):
            yield from ((f"{field}/{key}", number) for key, number in _numbers(value))
        elif type(value) in (int, float):
            yield field, float(value)


def _evaluation(line: dict[str, Any]) -> Scalar:
    labels = (line["model"], line["stage"], line["problem_set"], line.get("metric", "pass@1"))
    name = "/".join(["evaluation", *labels])
    # The steps of a round's training begin again at 1, so each round has a curve.
    if line["stage"].startswith("rft") and line.get("round") is not None:
        name += f"/round-{line['round']}"
    return name, line["step"], float(line["value"])


def _is_sft(job: str) -> bool:
    return job.startswith("sft-")


@contextmanager
def tracking(
    config: TrackersConfig, run_dir: Path, resolved_config: dict[str, Any]
) -> Iterator[None]:
    """Forward the run's metrics while the block runs, the last lines before it ends included.

    Raises InputError at once where a configured tracker cannot start; one that fails later is
    dropped with a warning, and the run goes on.
    """
    follower = MetricsFollower(run_dir, open_trackers(config, run_dir, resolved_config))
    thread = threading.Thread(target=follower.run, name="trackers", daemon=True)
    thread.start()
    try:
        yield
        follower.succeeded = True
    finally:
        follower.stop.set()
        thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            say(f"trackers: not done after {CLOSE_SECONDS:.0f} s, the last points may be missing")


def open_trackers(
    config: TrackersConfig, run_dir: Path, resolved_config: dict[str, Any]
) -> dict[str, Tracker]:
    """The configured trackers by name, all of them started or none.

    Raises InputError naming the tracker whose package is missing or that does not start.
    """
    settings = _without_env(resolved_config)
    trackers: dict[str, Tracker] = {}
    with ExitStack() as opened:
        if config.wandb is not None:
            with _as_input_error("wandb"):
                trackers["wandb"] = WandbTracker(config.wandb, run_dir, settings)
            opened.callback(trackers["wandb"].close, succeeded=False)
        if config.mlflow is not None:
            with _as_input_error("mlflow"):
                trackers["mlflow"] = MlflowTracker(config.mlflow, run_dir, settings)
            opened.callback(trackers["mlflow"].close, succeeded=False)
        trackers["tensorboard"] = TensorBoardTracker(run_dir)
        opened.pop_all()
    return trackers


@contextmanager
def _as_input_error(name: str) -> Iterator[None]:
    """What a tracker's library raises while it starts is about the user's settings or login."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"trackers.{name}: {error.name} is not installed: pip install 'rft_ray[trackers]'"
        ) from error
    except Exception as error:
        raise InputError(f"trackers.{name}: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _without_env(value: Any) -> Any:
    """A config as it may leave the machine: environment variables are where secrets are."""
    if isinstance(value, dict):
        return {key: _without_env(own) for key, own in value.items() if key != "env"}
    return [_without_env(own) for own in value] if isinstance(value, list) else value


class MetricsFollower:
    """Reads what is appended to a run's metrics and hands it to the trackers.

    Invariant: the offset on disk is the end of a complete line, and every tracker still in use has
    been given all lines before it.
    """

    def __init__(self, run_dir: Path, trackers: dict[str, Tracker]) -> None:
        self.stop = threading.Event()
        self.succeeded = False
        self._metrics = run_dir / "metrics.jsonl"
        self._offset_file = run_dir / "tensorboard" / ".offset"
        self._offset_file.parent.mkdir(parents=True, exist_ok=True)
        self._trackers = trackers
        self._seen: Counter[str] = Counter()
        self._offset = 0
        self._skip_forwarded()

    def run(self) -> None:
        """Forward lines until `stop` is set and the file is read to its end."""
        ended = False
        try:
            while not ended:
                # Looked at before the file is read, so that the last lines are not missed.
                ended = self.stop.wait(POLL_SECONDS)
                self._forward()
        except OSError as error:
            say(f"trackers: {_in_one_line(error)}; the run goes on without them")
        for name in list(self._trackers):
            self._try(name, "close", self.succeeded)

    def _skip_forwarded(self) -> None:
        """Go to where the previous process stopped, counting the points on the way."""
        if not self._offset_file.exists():
            return
        offset = int(self._offset_file.read_text(encoding="ascii"))
        for line in self._new_lines(offset):
            self._points(line)

    def _forward(self) -> None:
        lines = self._new_lines()
        if not lines:
            return
        points = [point for line in lines for point in self._points(line)]
        for name in list(self._trackers):
            for point in points:
                self._try(name, "log", *point)
            self._try(name, "flush")
        write_atomically(self._offset_file, str(self._offset))

    def _new_lines(self, end: int | None = None) -> list[bytes]:
        """The complete lines that were added since the last call, up to a byte offset."""
        if not self._metrics.exists():
            return []
        with self._metrics.open("rb") as file:
            file.seek(self._offset)
            *lines, _ = file.read(-1 if end is None else end - self._offset).split(b"\n")
        self._offset += sum(len(line) + 1 for line in lines)
        return lines

    def _points(self, line: bytes) -> list[tuple[str, int, float]]:
        """A line's points, each with a step. A line that a kill cut short has none."""
        try:
            found = scalars(json.loads(line))
        except (ValueError, KeyError, TypeError):
            return []
        points = []
        for name, step, value in found:
            points.append((name, self._seen[name] if step is None else step, value))
            self._seen[name] += 1
        return points

    def _try(self, name: str, method: str, *arguments: Any) -> None:
        """Call a tracker that is still in use; one that fails is dropped."""
        if name not in self._trackers:
            return
        try:
            getattr(self._trackers[name], method)(*arguments)
        except Exception as error:
            del self._trackers[name]
            say(f"warning: {name} failed and gets no more metrics: {_in_one_line(error)}")


class TensorBoardTracker:
    """Event files in RUN_DIR/tensorboard, one per process of the run."""

    def __init__(self, run_dir: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, name: str, step: int, value: float) -> None:
        """Write one point."""
        self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Put the points on disk, where a running TensorBoard sees them."""
        self._writer.flush()

    def close(self, succeeded: bool) -> None:
        """Close the event file; it has no place for how the run ended."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases, the same one each time the run directory is continued.

    Its own step only ever grows, so the steps of the jobs are a field that the curves are drawn
    over.
    """

    def __init__(
        self, arguments: dict[str, Any], run_dir: Path, settings: dict[str, Any]
    ) -> None:
        import wandb

        run_id = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
        ours = {"id": run_id, "resume": "allow", "dir": str(run_dir), "config": settings}
        # It would wrap the streams that the progress bars are drawn on, and talk on them.
        quiet = {"console": "off", "silent": True, **arguments.get("settings", {})}
        self._run = wandb.init(**{**ours, **arguments, "settings": quiet})
        self._run.define_metric("*", step_metric="step")
        if not self._run.offline:
            say(f"wandb: {self._run.url}")

    def log(self, name: str, step: int, value: float) -> None:
        """Hand one point to wandb's own process."""
        self._run.log({name: value, "step": step})

    def flush(self) -> None:
        """Nothing to do: wandb's process sends the points by itself."""

    def close(self, succeeded: bool) -> None:
        """Send what is left and mark the run finished or failed."""
        self._run.finish(exit_code=0 if succeeded else 1)


class MlflowTracker:
    """A run of MLflow; its id is kept in RUN_DIR/.mlflow_run, so a continued run goes on in it."""

    def __init__(
        self, arguments: dict[str, Any], run_dir: Path, settings: dict[str, Any]
    ) -> None:
        uri = arguments.get("tracking_uri")
        _prepare_mlflow(uri)
        from mlflow import MlflowClient

        self._client = MlflowClient(uri)
        self._points: list[Any] = []
        kept = run_dir / ".mlflow_run"
        if kept.exists():
            self._run_id = kept.read_text(encoding="utf-8")
            self._client.update_run(self._run_id, status="RUNNING")
            return
        experiment = self._experiment_id(arguments.get("experiment_name", "rft_ray"))
        run = self._client.create_run(
            experiment, run_name=arguments.get("run_name", run_dir.resolve().name)
        )
        self._run_id = run.info.run_id
        self._log_params(settings)
        write_atomically(kept, self._run_id)

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name)

    def _log_params(self, settings: dict[str, Any]) -> None:
        """The config, a parameter per value, in the sizes that MLflow takes."""
        from mlflow.entities import Param

        params = [Param(_mlflow_name(key), value[:6000]) for key, value in _flat(settings)]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._run_id, params=params[start : start + 100])

    def log(self, name: str, step: int, value: float) -> None:
        """Keep one point for the next flush: a request each would be slow."""
        from mlflow.entities import Metric

        self._points.append(Metric(_mlflow_name(name), value, int(time.time() * 1000), step))

    def flush(self) -> None:
        """Send the points, in batches of the size that MLflow takes."""
        points, self._points = self._points, []
        for start in range(0, len(points), 1000):
            self._client.log_batch(self._run_id, metrics=points[start : start + 1000])

    def close(self, succeeded: bool) -> None:
        """Mark the run finished or failed."""
        self._client.set_terminated(self._run_id, "FINISHED" if succeeded else "FAILED")


def _prepare_mlflow(uri: str | None) -> None:
    """What MLflow reads from the environment, where the user has not set it."""
    # Its own defaults would try a server that is away for many minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    if uri and (uri.startswith("file:") or "://" not in uri):
        # It wants to be told twice that a folder is meant; a config that names one is enough.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def _mlflow_name(name: str) -> str:
    """A name without the characters that MLflow refuses, the @ of pass@1 among them."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of a config; empty containers in it count as values."""
    if not isinstance(value, dict | list) or (prefix and not value):
        yield prefix.removesuffix("."), str(value)
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, own in items:
        yield from _flat(own, f"{prefix}{key}.")
