"""Cores that a process keeps to, in processes of their own.

Run: pytest tests/test_cores.py
"""

import os
import subprocess
import sys

import pytest

from rft_ray.config import SamplerConfig
from rft_ray.cores import keep_to_cores
from rft_ray.errors import InputError

PINNED = """
import os, subprocess, sys, threading
from rft_ray.cores import keep_to_cores
go, masks = threading.Event(), []
thread = threading.Thread(target=lambda: (go.wait(), masks.append(os.sched_getaffinity(0))))
thread.start()
keep_to_cores([{core}], "trainer.cores")
go.set()
thread.join()
child = "import os; print(*os.sched_getaffinity(0))"
inherited = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout
masks.append(set(map(int, inherited.split())))
print(sorted(set.union(*masks, os.sched_getaffinity(0))))
"""


def test_a_process_keeps_to_its_cores_with_earlier_threads_and_later_children() -> None:
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-c", PINNED.format(core=core)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"[{core}]"


def test_no_cores_change_nothing() -> None:
    before = os.sched_getaffinity(0)
    keep_to_cores([], "sampler.cores")
    assert os.sched_getaffinity(0) == before


def test_a_core_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"sampler\.cores: cannot run on cores \[4096\]"):
        keep_to_cores([4096], "sampler.cores")


def test_a_core_has_a_number_from_zero() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        SamplerConfig(cores=[-1])
