"""Cores that a process keeps to, in processes of their own.

Run: pytest tests/test_cores.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rft_ray.config import SamplerConfig
from rft_ray.config_file import load_config
from rft_ray.cores import find_absent_cores, keep_to_cores
from rft_ray.errors import InputError

QUICKSTART = Path(__file__).parents[1] / "configs/quickstart_online.yaml"

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


def test_a_config_whose_cores_the_machine_has_not_is_told_so() -> None:
    config = load_config(QUICKSTART, ["trainer.cores=[0, 3]", "sampler.cores=[2]"])
    assert find_absent_cores(config, 4) == []
    assert find_absent_cores(config, 3) == ["trainer.cores names core 3 of 3, the first being 0"]
    assert len(find_absent_cores(config, 1)) == 2
