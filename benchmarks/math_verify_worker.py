"""math-verify in a process of its own: batches of pairs in, verdicts out, one JSON line each.

Run by `math_verify_rival.py` with the interpreter of `.venv-bench`. It is used as its README says:
the gold answer parsed first, bare LaTeX between dollars, its own time limits on.
"""

import importlib.metadata
import json
import logging
import sys
import time

from math_verify import parse, verify

TIMEOUT_S = 5


def main() -> None:
    """Answer every line until the input ends; the first line out is the version."""
    logging.disable(logging.CRITICAL)  # it logs every time-out with a traceback
    print(json.dumps(importlib.metadata.version("math-verify")), flush=True)
    for line in sys.stdin:
        print(json.dumps([judge(completion, gold) for completion, gold in json.loads(line)]))
        sys.stdout.flush()


def judge(completion: str, gold: str) -> str:
    """correct, wrong, or timeout where one of its three steps used up its limit."""
    is_marked = "$" in gold or "\\boxed" in gold or "\\(" in gold or "\\[" in gold
    steps = []
    started = time.monotonic()
    expected = parse(gold if is_marked else f"${gold}$", parsing_timeout=TIMEOUT_S)
    steps.append(time.monotonic())
    found = parse(completion, parsing_timeout=TIMEOUT_S)
    steps.append(time.monotonic())
    is_correct = verify(expected, found, timeout_seconds=TIMEOUT_S)
    steps.append(time.monotonic())
    longest = max(b - a for a, b in zip([started, *steps], steps, strict=False))
    if longest >= TIMEOUT_S and not is_correct:
        return "timeout"
    return "correct" if is_correct else "wrong"


if __name__ == "__main__":
    main()
