"""A disk that is full, whoever found out: one line for the user instead of a traceback.

What fails is somewhere below Ray, in an actor, a training rank or a library that has exceptions of
its own, and arrives as text. Left out: how much a run will need (`disk_needs.py`).
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODES = (errno.ENOSPC, errno.EDQUOT)
WORDS = tuple(os.strerror(code) for code in CODES)
FULL_BYTES = 2**20
"""With less than this left, whatever was being written did not fit."""


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Whatever the block raises is told if the folder's disk is full."""
    try:
        yield
    except Exception as error:
        if shutil.disk_usage(folder).free < FULL_BYTES:
            error.add_note(f"{folder}: {WORDS[0]}")
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception, or one behind it, says that a disk or a quota is full."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        own = chain.pop()
        if own is None or id(own) in seen:
            continue
        seen.add(id(own))
        if isinstance(own, OSError) and own.errno in CODES:
            return True
        text = "\n".join([str(own), *getattr(own, "__notes__", [])])
        if any(words in text for words in WORDS):
            return True
        # the last one is Ray's name for it
        chain += [own.__cause__, own.__context__, getattr(own, "cause", None)]
    return False
