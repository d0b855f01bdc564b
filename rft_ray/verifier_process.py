"""One worker process as its parent sees it: pipes, the item in hand, and its life.

The parent never blocks on a pipe. Time is measured from when the parent first sees an item in hand,
so an item may have a little more than its limit and never less.
"""

import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rft_ray.errors import InputError
from rft_ray.judgement import Judgement
from rft_ray.verifier_worker import HEADER, POSITION, READY, decode_judgement, encode

START_TIMEOUT_S = 60.0
READ_BYTES = 1 << 16
# The worker sees the parent's import path, whatever the parent's environment has become meanwhile.
BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]);"
    "from rft_ray.verifier_worker import main; main()"
)


class WorkerProcess:
    """A process, and the items of the batch that it has not answered yet."""

    def __init__(self, settings: str, timeout_s: float, selector: selectors.BaseSelector) -> None:
        self.is_ready = False
        self.is_dead = False
        self.last_seconds_per_item = 0.0
        self._timeout_s = timeout_s
        self._selector = selector
        self._outbox = memoryview(b"")
        self._inbox = bytearray()
        self._batch: list[int] = []
        self._answered = 0
        self._is_taken_back = False
        self._sent_at = self._since = time.monotonic()
        self._position = 0
        self._start(settings)

    def _start(self, settings: str) -> None:
        path = json.dumps([entry or os.getcwd() for entry in sys.path])
        lifeline, self._lifeline = os.pipe()
        with tempfile.TemporaryFile() as shared:
            shared.truncate(POSITION.size)
            self._in_hand = mmap.mmap(shared.fileno(), POSITION.size)
            numbers = [str(lifeline), str(shared.fileno())]
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", BOOT, path, settings, *numbers],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=(lifeline, shared.fileno()),
                # Ctrl-C is for us, and a grader's own children die with it. Not a session: Linux
                # shares the cores out between sessions, and 6.18 let a worker in one of its own
                # starve for as long as two engines kept the cores busy.
                process_group=0,
            )
        os.close(lifeline)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._requests, self._replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        self._selector.register(self._replies, selectors.EVENT_READ, self)

    @property
    def is_busy(self) -> bool:
        """Whether it owes answers."""
        return self._answered < len(self._batch)

    def send(self, batch: list[int], pairs: Sequence[tuple[str, str]]) -> None:
        """Give an idle worker a batch; the clock of its first item starts here."""
        self._batch, self._answered, self._is_taken_back = batch, 0, False
        POSITION.pack_into(self._in_hand, 0, 0)
        self._position, self._sent_at = 0, time.monotonic()
        self._since = self._sent_at
        self._outbox = memoryview(encode(pairs))
        self._write()
        if self._outbox:
            self._selector.register(self._requests, selectors.EVENT_WRITE, self)

    def exchange(self) -> dict[int, Judgement]:
        """Move what the pipes will take and give; the judgements that arrived, by item.

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
        found: dict[int, Judgement] = {}
        for answers in messages:
            items = self._batch[self._answered : self._answered + len(answers)]
            found.update(zip(items, map(decode_judgement, answers), strict=True))
            self._answered += len(answers)
        if messages and not self.is_busy:
            self.last_seconds_per_item = (time.monotonic() - self._sent_at) / len(self._batch)
        return found

    def seconds_in_hand(self, now: float) -> float:
        """How long the item in hand has been there, or the start has taken; 0 for an idle one."""
        if self.is_ready and not self.is_busy:
            return 0.0
        position = POSITION.unpack_from(self._in_hand)[0]
        if position != self._position:
            self._position, self._since = position, now
        return now - self._since

    def is_overdue(self, now: float) -> bool:
        """Whether it has had one item, or its start, for too long."""
        limit = self._timeout_s if self.is_ready else START_TIMEOUT_S
        return self.seconds_in_hand(now) > limit

    def take_back(self) -> list[int]:
        """The items behind the one in hand, for others to do; once a batch, since they may move on.

        The worker does not know, and should it come to them after all, its answers are as good.
        """
        if self._is_taken_back or not self.is_busy:
            return []
        self._is_taken_back = True
        return self._batch[self._in_hand_now() + 1 :]

    def split_batch(self) -> tuple[int, list[int]]:
        """The item in hand, and those that it still owes besides."""
        in_hand = self._in_hand_now()
        behind = [] if self._is_taken_back else self._batch[in_hand + 1 :]
        return self._batch[in_hand], self._batch[self._answered : in_hand] + behind

    def _in_hand_now(self) -> int:
        position = POSITION.unpack_from(self._in_hand)[0]
        return min(max(position, self._answered), len(self._batch) - 1)

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

    def _read(self) -> list[Any]:
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
