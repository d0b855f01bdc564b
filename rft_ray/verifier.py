"""Verdicts by worker processes that can be killed: nothing that a completion does can hold us up.

Every worker grades a batch item by item and answers each one at once, so the parent always knows
which item is being graded and since when. An item past its deadline costs its worker's life and
gets `timeout`; the items behind it go to the next worker. An item whose worker dies by itself gets
one more chance, because the machine's out-of-memory killer may have picked that worker for what a
neighbour did; then its verdict is `error`. Identical pairs are graded once.
"""

import hashlib
import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from rft_ray.config import VerifierConfig
from rft_ray.errors import InputError
from rft_ray.types import Group, Rollout, Verdict
from rft_ray.verifier_worker import HEADER, READY, encode

START_TIMEOUT_S = 60.0
BATCH_ITEMS = 64
BATCH_CHARS = 200_000
READ_BYTES = 1 << 16
CACHE_ITEMS = 200_000
# The worker sees the parent's import path, whatever the parent's environment has become meanwhile.
BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    "from rft_ray.verifier_worker import main; main()"
)


@dataclass(slots=True)
class _Job:
    index: int
    pair: tuple[str, str]
    deaths: int = 0


class _Worker:
    """One process and its pipes. `batch` holds the jobs it still owes, the one in hand first."""

    def __init__(self, settings: str, timeout_s: float, selector: selectors.BaseSelector) -> None:
        self.batch: deque[_Job] = deque()
        self.is_ready = False
        self.is_dead = False
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._timeout_s = timeout_s
        self._selector = selector
        self._outbox = memoryview(b"")
        self._inbox = bytearray()
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        lifeline, self._lifeline = os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", BOOT, path, settings, str(lifeline)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pass_fds=(lifeline,),
            start_new_session=True,  # Ctrl-C is for us; and a grader's own children die with it
        )
        os.close(lifeline)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self._replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        selector.register(self._replies, selectors.EVENT_READ, self)

    def send(self, batch: deque[_Job]) -> None:
        """Give an idle worker a batch; the clock of its first item starts here."""
        self.batch = batch
        self.deadline = time.monotonic() + self._timeout_s
        self._outbox = memoryview(encode([job.pair for job in batch]))
        self._write()
        if self._outbox:
            self._selector.register(self._requests, selectors.EVENT_WRITE, self)

    def exchange(self) -> dict[int, Verdict]:
        """Move what the pipes will take and give; the verdicts that arrived, by job index.

        Raises InputError when the worker says that it cannot load its grader.
        """
        if self._outbox:
            self._write()
            if not self._outbox:
                self._selector.unregister(self._requests)
        messages = self._read()
        if messages and not self.is_ready:
            if messages[0] != READY:
                raise InputError(messages[0])
            self.is_ready = True
            del messages[0]
            self.deadline = math.inf
        verdicts = {self.batch.popleft().index: message for message in messages}
        if messages:
            self.deadline = time.monotonic() + self._timeout_s if self.batch else math.inf
        return verdicts

    def kill(self) -> None:
        """End the process, and those it started, whatever they are doing."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self._replies, self._requests):
            with suppress(KeyError):
                self._selector.unregister(pipe)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        os.close(self._lifeline)

    def _write(self) -> None:
        try:
            self._outbox = self._outbox[os.write(self._requests, self._outbox) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._outbox = memoryview(b"")  # it is dead: the end of its replies says so too

    def _read(self) -> list[str]:
        try:
            while chunk := os.read(self._replies, READ_BYTES):
                self._inbox += chunk
            self.is_dead = True
        except BlockingIOError:
            pass
        messages = []
        while len(self._inbox) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self._inbox)[0]
            if len(self._inbox) < end:
                break
            messages.append(json.loads(self._inbox[HEADER.size : end]))
            del self._inbox[:end]
        return messages


class Verifier:
    """Grades completions in `config.workers` processes; a context manager, used by one thread.

    `grader` is an answer style, or "module:function" of a function (completion, answer) -> verdict.
    """

    def __init__(self, config: VerifierConfig, grader: str | None = None) -> None:
        self._config = config
        self._grader = grader or config.style
        self._selector = selectors.DefaultSelector()
        self._cache: OrderedDict[bytes, Verdict] = OrderedDict()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all worker processes; the next `grade` would start new ones."""
        while self._workers:
            self._discard(self._workers[0])

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """The verdict of every (completion, answer), in order.

        Raises InputError where the grader cannot be loaded, RuntimeError where no worker starts.
        """
        keys = [_digest(completion, answer) for completion, answer in pairs]
        fresh: dict[bytes, tuple[str, str]] = {}
        verdicts: dict[bytes, Verdict] = {}
        for key, pair in zip(keys, pairs, strict=True):
            if key in self._cache:
                self._cache.move_to_end(key)
                verdicts[key] = self._cache[key]
            elif len(pair[0]) > self._config.max_chars:
                verdicts[key] = "unparsable"
            else:
                fresh[key] = pair
        graded = self._grade_all(list(fresh.values()))
        for key, verdict in zip(fresh, graded, strict=True):
            verdicts[key] = verdict
            self._remember(key, verdict)
        return [verdicts[key] for key in keys]

    def verify_group(self, group: Group) -> Group:
        """The group with `verdict` and `reward` filled in."""
        return self.verify_groups([group])[0]

    def verify_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Several groups at once, which keeps several workers busy where groups are small."""
        pairs = [(r.completion, group.problem.answer) for group in groups for r in group.rollouts]
        verdicts = iter(self.grade(pairs))
        return [
            Group(group.problem, [_judged(r, next(verdicts)) for r in group.rollouts])
            for group in groups
        ]

    def _grade_all(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """Hand out batches and collect verdicts until there is one for every pair."""
        waiting = deque(_Job(index, pair) for index, pair in enumerate(pairs))
        verdicts: dict[int, Verdict] = {}
        # A call that was interrupted may have left workers that still owe replies.
        for worker in [worker for worker in self._workers if worker.batch]:
            self._discard(worker)
        while len(verdicts) < len(pairs):
            self._hand_out(waiting)
            now = time.monotonic()
            deadline = min(worker.deadline for worker in self._workers)
            for key, _ in self._selector.select(max(0.0, deadline - now)):
                verdicts.update(key.data.exchange())
            # `now` is from before the look at the pipes: a reply that was in one is not overdue.
            for worker in [w for w in self._workers if w.is_dead or w.deadline <= now]:
                verdicts.update(self._replace(worker, waiting))
        return [verdicts[index] for index in range(len(pairs))]

    def _hand_out(self, waiting: deque[_Job]) -> None:
        """Start the workers there is work for, and give every idle one a batch."""
        wanted = min(self._config.workers, len(waiting))
        while len(self._workers) < wanted:
            self._workers.append(_Worker(self._settings(), self._config.timeout_s, self._selector))
        for worker in self._workers:
            if worker.is_ready and not worker.batch and waiting:
                share = -(-len(waiting) // len(self._workers))
                worker.send(_take_batch(waiting, min(share, BATCH_ITEMS)))

    def _replace(self, worker: _Worker, waiting: deque[_Job]) -> dict[int, Verdict]:
        """Remove a dead or overdue worker: judge the job in its hand, let the others wait again."""
        self._discard(worker)
        if not worker.is_ready:
            raise RuntimeError(
                f"a verifier worker did not start (exit {worker.process.returncode})"
            )
        if not worker.batch:
            return {}
        guilty = worker.batch.popleft()
        waiting.extendleft(reversed(worker.batch))
        if not worker.is_dead:
            return {guilty.index: "timeout"}
        guilty.deaths += 1
        if guilty.deaths == 2:
            return {guilty.index: "error"}
        waiting.appendleft(guilty)
        return {}

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()

    def _settings(self) -> str:
        config = self._config
        settings = config.model_dump(include={"check_calculations", "timeout_s", "memory_mb"})
        return json.dumps({"grader": self._grader, **settings})

    def _remember(self, key: bytes, verdict: Verdict) -> None:
        self._cache[key] = verdict
        if len(self._cache) > CACHE_ITEMS:
            self._cache.popitem(last=False)


def _take_batch(waiting: deque[_Job], count: int) -> deque[_Job]:
    """The next jobs, at most `count` and about BATCH_CHARS, but at least one."""
    batch: deque[_Job] = deque()
    chars = 0
    while waiting and len(batch) < count and chars < BATCH_CHARS:
        batch.append(waiting.popleft())
        chars += len(batch[-1].pair[0])
    return batch


def _judged(rollout: Rollout, verdict: Verdict) -> Rollout:
    return replace(rollout, verdict=verdict, reward=float(verdict == "correct"))


def _digest(completion: str, answer: str) -> bytes:
    text = f"{len(answer)}:{answer}{completion}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
