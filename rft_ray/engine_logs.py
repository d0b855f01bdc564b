"""Which log files say why an engine did not start.

An engine runs in processes of its own, below a Serve replica: its last words are in the output of
the replica's worker, and Serve's exception has only what the replica made of them. Left out: the
logs of other nodes, whose folder has the same path there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In a session's folder of logs.
PATTERNS = ("worker-*.err", "worker-*.out", "serve/replica_*.log")
COMPLAINTS = (b"ERROR", b"Error:", b"Traceback")
FILES_NAMED = 3


@contextmanager
def naming_engine_logs(folder: Path) -> Iterator[None]:
    """Where the block raises, the error is told which files in `folder` have complaints."""
    started = time.time()
    try:
        yield
    except Exception as error:  # whatever it is: it gets a note and goes on
        files = complaints(folder, started)
        named = [f"engine log: {path}" for path in files[:FILES_NAMED]]
        for line in named or [f"engine logs: {folder} on the node where the engine was started"]:
            error.add_note(line)
        raise


def complaints(folder: Path, since: float) -> list[Path]:
    """Log files with an error in them that were written since a time, the newest first."""
    found = []
    for pattern in PATTERNS:
        for path in folder.glob(pattern):
            changed = path.stat().st_mtime
            if changed >= since and _complains(path):
                found.append((changed, path))
    return [path for _, path in sorted(found, reverse=True)]


def _complains(path: Path) -> bool:
    text = path.read_bytes()
    return any(complaint in text for complaint in COMPLAINTS)
