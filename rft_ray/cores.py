"""Which CPU cores a process runs on: how sampler and trainer are kept out of each other's way.

On a machine of few cores the scheduler lets a training that never rests push in between every two
tokens of an engine, whose processes wait for each other at each of them. Left out: memory nodes,
and GPUs, whose drivers choose for themselves.
"""

import os
from contextlib import suppress
from pathlib import Path

from rft_ray.config import RunConfig
from rft_ray.errors import InputError
from rft_ray.parts import list_samplers


def keep_to_cores(cores: list[int], field: str) -> None:
    """This process, its threads and all that they start from now on run on these cores only.

    No cores: as it is. Raises InputError, naming the config's `field`, where that cannot be.
    """
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise InputError(f"{field}: this system does not let a process choose its cores")
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        there = os.cpu_count()
        raise InputError(f"{field}: cannot run on cores {cores} of the machine's {there}") from None
    # That was the calling thread alone.
    for task in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has ended
            os.sched_setaffinity(int(task.name), cores)


def find_absent_cores(config: RunConfig, count: int) -> list[str]:
    """Where a config names cores that a machine with so many has not, a clause each."""
    wanted = {"trainer.cores": config.trainer.cores}
    for name, (_, sampler) in list_samplers(config).items():
        wanted[f"sampler.cores of {name}"] = sampler.cores
    return [
        f"{field} names core {max(cores)} of {count}, the first being 0"
        for field, cores in wanted.items()
        if cores and max(cores) >= count
    ]
