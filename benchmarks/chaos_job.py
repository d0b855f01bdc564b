"""One job of chaos.py: its driver is started until it has ended well, its processes are killed.

Left out: what the job has to end with.
"""

import os
import random
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
DRIVER, SPARE = "driver", "task worker"
"""Of spare workers there are more; they are replaced when they are needed."""
MOST_FAILURES = 3
RECOVERY_S = 400.0
"""After so many seconds without a sign of life a job counts as hung."""
TWICE = 0.1
"""The share of kills that hit two processes."""


@dataclass
class Job:
    """One job in its folder, its driver started again until it has ended well."""

    command: list[str]
    folder: Path
    victims: dict[str, tuple[str, int]]
    attempts: int = 0
    failures: int = 0
    """Drivers that ended badly since the last kill."""
    driver: subprocess.Popen[bytes] | None = None
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def start(self) -> None:
        """Give the command, for the first time or again."""
        self.attempts += 1
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.driver = subprocess.Popen(
                [part.replace("{folder}", str(self.folder)) for part in self.command],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def log(self) -> Path:
        """What all its drivers said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def keep_running(self) -> bool:
        """Whether there is something left to do; a driver that failed is replaced."""
        code = self.driver.poll()
        if code is None:
            return True
        if code == 0:
            return False
        self.failures += 1
        if self.failures > MOST_FAILURES:
            raise RuntimeError(f"{self.folder.name} does not end: {self.tail()}")
        self.end_processes()
        self.start()
        return True

    def tail(self) -> str:
        """The last words of the driver."""
        return self.log.read_text(errors="replace")[-2000:]

    def of_kind(self, kind: str) -> list[psutil.Process]:
        """The living processes of a kind."""
        title = self.victims[kind][0]
        with suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.driver.pid)
            if kind == DRIVER:
                return [driver]
            return [own for own in driver.children(recursive=True) if title in title_of(own)]
        return []

    def kill_one(self, draw: random.Random) -> str | None:
        """Kill a process of a kind drawn at random; its kind, or none where none is there."""
        self.failures = 0
        kinds = [kind for kind in self.victims if self.of_kind(kind)]
        if not kinds:
            return None
        weights = [self.victims[kind][1] for kind in kinds]
        (kind,) = draw.choices(kinds, weights)
        if kind == DRIVER:
            self.end_processes()
            return kind
        if found := self.of_kind(kind):
            with suppress(psutil.NoSuchProcess):
                draw.choice(found).kill()
                return kind
        return None

    def end_processes(self) -> None:
        """SIGKILL for the driver and all that it started."""
        own = []
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.driver.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        for process in own:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.driver.wait()

    def await_recovery(self, kinds: Sequence[str], killed_at: float) -> None:
        """Until there are results after each of the dead has a successor, or the job has ended."""
        waiting, deadline = set(kinds) - {SPARE}, time.time() + RECOVERY_S
        replaced_at = killed_at
        while self.keep_running():
            for kind in list(waiting):
                if any(born_at(own) > killed_at for own in self.of_kind(kind)):
                    waiting.discard(kind)
                    replaced_at = time.time()
            last = self.last_result()
            # a kind that is not needed any more has no successor, but results go on
            if last > replaced_at and (not waiting or last > killed_at + 60):
                break
            if time.time() > deadline:
                raise RuntimeError(f"no result {RECOVERY_S:g} s after killing {kinds}")
            # looking for processes costs time that the job could use
            time.sleep(0.1)
        for kind in kinds:
            self.recoveries[kind].append(time.time() - killed_at)

    def last_result(self) -> float:
        """When a line or a file was last added to the folder."""
        times = [0.0]
        for name in ("sampled", "selected.partial", "selected", "metrics.jsonl"):
            for path in (*self.folder.glob(f"round-*/{name}"), self.folder / name):
                with suppress(FileNotFoundError):
                    times.append(path.stat().st_mtime)
        return max(times)


def run_calmly(job: Job) -> None:
    """To the end, without a kill; RuntimeError where it fails."""
    job.start()
    if job.driver.wait() != 0:
        raise RuntimeError(job.tail())


def run_under_kills(job: Job, draw: random.Random, most: int, pause_s: float) -> int:
    """To the end, killing on the way; how many kills there were."""
    kills = 0
    job.start()
    # before there are results there is nobody but the driver
    while job.last_result() == 0.0 and job.keep_running():
        time.sleep(0.1)
    while job.keep_running():
        if kills < most:
            pause = time.time() + draw.expovariate(1 / pause_s)
            while time.time() < pause and job.driver.poll() is None:
                time.sleep(0.02)
            count = 2 if most - kills > 1 and draw.random() < TWICE else 1
            kills += kill_and_wait(job, draw, count)
        else:
            time.sleep(0.2)
    return kills


def kill_and_wait(job: Job, draw: random.Random, count: int) -> int:
    """Kill so many at once and wait until the job has recovered; how many there were to kill."""
    if job.driver.poll() is not None:
        return 0
    killed_at = time.time()
    kinds = [kind for _ in range(count) if (kind := job.kill_one(draw))]
    if kinds:
        job.await_recovery(kinds, killed_at)
    return len(kinds)


def born_at(process: psutil.Process) -> float:
    """When a process was started; 0 where it has ended."""
    with suppress(psutil.NoSuchProcess):
        return process.create_time()
    return 0.0


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing where it has ended."""
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""
