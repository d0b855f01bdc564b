"""The process that grades: reads batches from a pipe, answers them, and may be killed at any time.

Kept to a few light imports, because it is started again after every kill. It limits its own memory
and CPU time, and the kernel ends it with its parent even inside C code that never returns. There is
no `try` around the grading function: whatever it raises ends the process. Which item is in hand
stands in shared memory, so the parent knows the guilty one however the process ends, and answers
may travel many at a time. Messages are JSON with a length in front; nothing is ever unpickled.
"""

import fcntl
import json
import mmap
import os
import resource
import select
import struct
import sys
import time
from typing import Any, BinaryIO

from rft_ray.judgement import PLAIN, GraderError, Judge, Judgement, make_judge
from rft_ray.types import VERDICTS

HEADER = struct.Struct(">I")
POSITION = struct.Struct("=q")
READY = "ready"
SPARE_CPU_SECONDS = 2
# What a kill can cost: answers are held back no longer than this.
FLUSH_SECONDS = 0.05
CODE_OF = {PLAIN[verdict]: code for code, verdict in enumerate(VERDICTS)}
JUDGEMENTS = [PLAIN[verdict] for verdict in VERDICTS]

Reply = int | list[Any]


def main() -> None:
    """Serve until the requests end. argv: settings as JSON, a descriptor to live by, one to map."""
    sys.tracebacklimit = 3  # a death is an expected event here, not a page of recursion
    settings, lifeline, shared = json.loads(sys.argv[-3]), int(sys.argv[-2]), int(sys.argv[-1])
    requests, replies = _claim_pipes()
    _die_with_parent(lifeline)
    _limit_memory(settings["memory_mb"])
    in_hand = mmap.mmap(shared, POSITION.size)
    try:
        judge = make_judge(settings)
    except GraderError as error:
        _send(replies, str(error))
        sys.exit(1)
    _send(replies, READY)
    while (batch := _read_message(requests)) is not None:
        _serve(batch, judge, replies, in_hand, settings["timeout_s"])


def _serve(
    batch: list[list[str]], judge: Judge, replies: BinaryIO, in_hand: mmap.mmap, timeout_s: float
) -> None:
    """Judge a batch in order; its answers leave together, or every FLUSH_SECONDS."""
    answers: list[Reply] = []
    flush_at = 0.0
    for position, (completion, answer) in enumerate(batch):
        POSITION.pack_into(in_hand, 0, position)
        if (now := time.monotonic()) >= flush_at:
            if answers:
                _send(replies, answers)
                answers = []
            _allow_cpu(timeout_s + SPARE_CPU_SECONDS)
            flush_at = now + FLUSH_SECONDS
        answers.append(encode_judgement(judge(completion, answer)))
    _send(replies, answers)


def encode_judgement(judgement: Judgement) -> Reply:
    """A verdict's number where the rest is what it always is, else all three fields."""
    code = CODE_OF.get(judgement)
    return list(judgement) if code is None else code


def decode_judgement(reply: Reply) -> Judgement:
    """The inverse of `encode_judgement`."""
    return JUDGEMENTS[reply] if isinstance(reply, int) else Judgement(*reply)


def encode(message: Any) -> bytes:
    """A message with its length in front; ASCII, so that lone surrogates pass."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def _send(replies: BinaryIO, message: Any) -> None:
    try:
        replies.write(encode(message))
    except BrokenPipeError:
        sys.exit(1)  # the parent was interrupted: nobody reads on


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
