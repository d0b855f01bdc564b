"""What the user sees while a run works: progress bars on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output holds results only. Ray's and the
engines' own chatter stays in their log files.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

LINE_SECONDS = 15.0
POLL_SECONDS = 0.5


def say(text: str) -> None:
    """One line about what the run is doing."""
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of newly finished units, while the block runs.

    A terminal gets a bar, anything else a line now and then and one at the end.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, desc=label, unit=unit, file=sys.stderr) as bar:
            yield bar.update
        return
    done, started, spoken = 0, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, spoken
        done += count
        if time.monotonic() - spoken >= LINE_SECONDS and done < total:
            spoken = time.monotonic()
            say(f"{label}: {done}/{total} {unit}s, {spoken - started:.0f} s")

    yield advance
    say(f"{label}: {done}/{total} {unit}s, {time.monotonic() - started:.0f} s, done")


@contextmanager
def follow_training(
    metrics: Path, job: str, round: int, total_steps: int
) -> Iterator[None]:
    """Show a training job's steps, read from the metrics that its rank 0 writes.

    Ray Train gives the driver no channel to its workers; the file is one that both can see.
    """
    stop = threading.Event()
    with progress(f"train {job}", total_steps, "step") as advance:
        follower = threading.Thread(
            target=_follow,
            args=(metrics, (job, round), advance, stop),
            name="progress",
            daemon=True,
        )
        follower.start()
        try:
            yield
        finally:
            stop.set()
            follower.join()


def _follow(
    metrics: Path,
    job: tuple[str, int],
    advance: Callable[[int], None],
    stop: threading.Event,
) -> None:
    offset, shown, ended = 0, 0, False
    while not ended:
        # Looked at before the file is read, so that the last lines are not missed.
        ended = stop.wait(POLL_SECONDS)
        if not metrics.exists():
            continue
        with metrics.open("rb") as file:
            file.seek(offset)
            *lines, _ = file.read().split(b"\n")
        offset += sum(len(line) + 1 for line in lines)
        steps = [step for line in lines if (step := _step_of(line, job)) is not None]
        if steps and max(steps) > shown:
            advance(max(steps) - shown)
            shown = max(steps)


def _step_of(line: bytes, job: tuple[str, int]) -> int | None:
    """The step that a line of the metrics is about; None for another job or kind."""
    try:
        row = json.loads(line)
    except ValueError:  # a kill cut it short
        return None
    is_own = row["kind"] == "train_step" and (row["job"], row["round"]) == job
    return row["step"] if is_own else None
