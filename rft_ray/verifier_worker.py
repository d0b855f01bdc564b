"""The process that grades: reads batches from a pipe, answers each item at once, and may be killed.

Kept to a few light imports, because it is started again after every kill. It limits its own memory
and CPU time, and the kernel ends it with its parent even inside C code that never returns. There is
no `try` around the grading function: whatever it raises ends the process, and the parent then knows
which item did it. Messages are JSON with a length in front; nothing is ever unpickled.
"""

import fcntl
import functools
import importlib
import json
import os
import resource
import select
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from rft_ray.grading import grade_gsm8k
from rft_ray.types import VERDICTS

HEADER = struct.Struct(">I")
READY = "ready"
SPARE_CPU_SECONDS = 2

Grader = Callable[[str, str], str]


def main() -> None:
    """Serve until the request pipe ends. argv: settings as JSON, and a descriptor to live by."""
    sys.tracebacklimit = 3  # a death is an expected event here, not a page of recursion
    settings, lifeline = json.loads(sys.argv[-2]), int(sys.argv[-1])
    requests, replies = _claim_pipes()
    _die_with_parent(lifeline)
    _limit_memory(settings["memory_mb"])
    grade = _load_grader(settings, replies)
    _reply(replies, READY)
    while (batch := _read_message(requests)) is not None:
        for completion, answer in batch:
            _allow_cpu(settings["timeout_s"] + SPARE_CPU_SECONDS)
            verdict = grade(completion, answer)
            _reply(replies, verdict if verdict in VERDICTS else "error")


def encode(message: Any) -> bytes:
    """A message with its length in front; ASCII, so that lone surrogates pass."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def _reply(replies: BinaryIO, message: str) -> None:
    try:
        replies.write(encode(message))
    except BrokenPipeError:
        sys.exit(1)  # the parent was interrupted: nobody reads on


def _load_grader(settings: dict[str, Any], replies: BinaryIO) -> Grader:
    """A grading function of ours by name, or a user's as "module:function"."""
    name = settings["grader"]
    if name == "gsm8k":
        return functools.partial(grade_gsm8k, check_calculations=settings["check_calculations"])
    module_name, _, function_name = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        _reply(replies, f"cannot load the grader {name!r}: {error}")
        sys.exit(1)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take the pipes over, so that a grader's print() or input() cannot disturb the messages."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return requests, replies


def _die_with_parent(lifeline: int) -> None:
    """Let the kernel end this process when the parent's end of a silent pipe closes.

    Its signal (SIGIO, whose default is to terminate) needs no cooperation from Python. PDEATHSIG
    would fire when the parent's *thread* ends, and short-lived threads start workers too.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        sys.exit(1)  # the parent ended before the signal was set up


def _limit_memory(memory_mb: int) -> None:
    limit = memory_mb << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _allow_cpu(seconds: float) -> None:
    """Move the CPU limit on: a backstop for a parent that is stopped or starved itself."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _read_message(requests: BinaryIO) -> Any:
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    return json.loads(requests.read(*HEADER.unpack(header)))
