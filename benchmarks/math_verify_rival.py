"""The rival of the verifier's benchmarks: math-verify in a process that is killed when it hangs."""

import json
import os
import select
import subprocess
from pathlib import Path

from rft_ray.benchmark_summary import rival_python

PYTHON = rival_python()
WORKER = Path(__file__).with_name("math_verify_worker.py")
BATCH = 32
# its own three limits of 5 s, and some more
HARD_LIMIT_S = 20.0


class MathVerify:
    """One worker process; pairs in batches, one by one after a batch was killed."""

    def __init__(self) -> None:
        if not PYTHON.exists():
            raise SystemExit("math-verify is not installed: run `make bench-env` first")
        self.version = ""
        self.cpu_seconds = 0.0
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [PYTHON, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.version = json.loads(self._read_line(60.0) or '""')

    def close(self) -> None:
        """End the process, adding the CPU time that it used to `cpu_seconds`."""
        self.cpu_seconds += process_cpu_seconds(self._process.pid)
        self._process.kill()
        self._process.wait()

    def grade(self, pairs: list[tuple[str, str]]) -> list[str]:
        """correct, wrong, timeout or error for every (completion, answer), in order."""
        verdicts: list[str] = []
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            answers = self._ask(batch, HARD_LIMIT_S + len(batch))
            if answers is None:
                answers = [(self._ask([pair], HARD_LIMIT_S) or ["timeout"])[0] for pair in batch]
            verdicts += answers
        return verdicts

    def used_cpu_seconds(self) -> float:
        """CPU time of the process that runs now and of those before it."""
        return self.cpu_seconds + process_cpu_seconds(self._process.pid)

    def _ask(self, batch: list[tuple[str, str]], limit_s: float) -> list[str] | None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(batch).encode() + b"\n")
        line = self._read_line(limit_s)
        if line:
            return json.loads(line)
        self.close()
        self._start()
        return None

    def _read_line(self, limit_s: float) -> bytes | None:
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], limit_s)[0]:
                return None
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                return None
            line += chunk
        return line


def process_cpu_seconds(pid: int) -> float:
    """CPU time of a living process with one thread, exact to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
