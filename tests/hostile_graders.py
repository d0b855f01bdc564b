"""Graders that do what hostile text could make a grader do, named to a verifier as module:function.

The completion says what happens: "correct" and the other verdicts are returned, others misbehave.
"""

import os
import re
import signal
import subprocess
import sys
import time

from rft_ray.types import VERDICTS


def obey(completion: str, answer: str) -> str:
    """Do what the completion says; text after a space tells otherwise equal completions apart."""
    order = completion.partition(" ")[0]
    if order in VERDICTS:
        return order
    actions = {
        "sleep": lambda: time.sleep(3600),
        "regex": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
        "power": lambda: 10 ** (10**9),
        "exit": lambda: os._exit(0),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "memory": lambda: [bytearray(1 << 26) for _ in range(1000)],
        "recursion": lambda: obey("recursion", answer),
        "raise": lambda: 1 // 0,
        "print": lambda: print("correct" * 1000, flush=True),
        "stdout": lambda: os.write(1, b'\0\0\0\x09"correct"'),
        "stdin": lambda: sys.stdin.read(),
        "fork": lambda: subprocess.Popen(["sleep", "3600"]).wait(),
        "slow": lambda: time.sleep(0.2),
    }
    actions[order]()
    return "wrong"


def nonsense(completion: str, answer: str) -> object:
    """Return what is not a verdict."""
    kinds = {"list": [], "nan": float("nan"), "none": None, "text": "right", "bytes": b"correct"}
    return kinds[completion]


def once(completion: str, answer: str) -> str:
    """Die the first time, as a victim of the machine's memory killer; `answer` is a marker file."""
    if completion == "victim" and not os.path.exists(answer):
        with open(answer, "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    return "correct"


def score(completion: str, answer: str) -> object:
    """A reward where the completion is a number, else the completion itself."""
    try:
        return float(completion)
    except ValueError:
        return completion


def mark(completion: str, answer: str) -> str:
    """Leave a file named after the completion in the folder `answer`, or never return."""
    if completion == "sleep":
        time.sleep(3600)
    with open(os.path.join(answer, completion), "w"):
        return "correct"
