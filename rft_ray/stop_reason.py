"""Why a run stopped itself, found behind what Ray makes of an exception on its way to the driver.

Serve and remote calls keep the exception as `cause`, Ray Train those of its ranks as
`worker_failures`, Ray Data only the text. Whatever else happened on the way, a bug in what handled
the stop included, is no reason: it keeps its traceback. Left out: full disks (`full_disk.py`).
"""

import re
from collections.abc import Mapping

from rft_ray.errors import StoppedError

CAUSED = "\n\nThe above exception was the direct cause of the following exception:\n\n"
STREAMED = re.compile(r"rft_ray\.sampling\.(?:SamplerUnavailable|Parity)Error: (.+)")
"""What a sampler may stop a stream with; a traceback ends with it."""


def stop_reason(error: BaseException) -> str | None:
    """The message of the StoppedError that an exception is or stands for; None: it is another."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        return stop_reason(cause) or _streamed_reason(error, cause)
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, Mapping) and failures:
        reasons = list(map(stop_reason, failures.values()))
        # A rank that failed otherwise may be why the others stopped.
        return reasons[0] if all(reasons) else None
    return str(error) if isinstance(error, StoppedError) else None


def _streamed_reason(error: BaseException, cause: BaseException) -> str | None:
    blocks = str(error).split(CAUSED)
    if type(cause).__name__ != "UserCodeException" or len(blocks) < 2:
        return None
    last = STREAMED.fullmatch(blocks[-2].splitlines()[-1])
    return last[1] if last else None
