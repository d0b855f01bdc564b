"""Keeps samplers from starting on GPUs that the trainer of an online run has at the moment.

A replica that dies while the others sleep is started again by Serve at once, and its engine would
fill the very memory that training is using. So each replica passes a gate before its engine starts:
a Ray actor of the run, closed while the trainer has the GPUs. Where there is no such actor, nobody
trains beside the samplers. Left out: who opens and closes it, which is `gpu_turns.py`'s.
"""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

NAMESPACE = "rft-ray"
SAMPLER_SHARE, RANK_SHARE = 0.6, 0.4
"""Of a GPU, as Ray counts it: it must not put two devices of samplers on one GPU, nor find room for
a rank on one that has a rank already. They say nothing about memory."""


class GpuGate:
    """Open, and whoever waits goes on, until it is closed."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._is_open.set()

    async def open(self) -> None:
        """Replicas may start."""
        self._is_open.set()

    async def close(self) -> None:
        """Replicas that start from here on wait."""
        self._is_open.clear()

    async def wait(self) -> None:
        """Return once it is open."""
        await self._is_open.wait()


GateActor = ray.remote(GpuGate)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Who shares the trainer's GPUs, as its ranks are told."""

    gate: Any
    """Handle of the gate's actor."""
    live: str
    """Serve application of the live policy's sampler, which refreshes wake."""
    replicas: Mapping[str, int]
    """How many every sampler has, the live one's too, by application."""


def gate_name(run_id: str) -> str:
    """The gate's name: of this driver, as that of a killed one may still be there."""
    return f"gpu-gate-{run_id}-{os.getpid()}"


async def wait_at_gate(name: str) -> None:
    """Return when the gate of that name is open; at once where there is none."""
    try:
        gate = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return
    await gate.wait.remote()
