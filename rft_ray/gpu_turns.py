"""Samplers and trainer of an online run on the same GPUs, one after the other.

A step has two turns. The trainer's begins when every replica of every sampler is there and sleeps;
then the optimiser's state comes back, and a step is trained. The samplers' begins when that state
is in main memory again; the refresh wakes the live replicas, and frozen ones are woken after it. A
replica that starts meanwhile waits at the gate (`gpu_gate.py`). The trainer waits for replicas that
are missing, and fails where they stay away. Left out: strict memory limits, which nobody enforces:
`rft-ray plan` adds up what each turn needs.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import ray
from deepspeed import DeepSpeedEngine
from ray.exceptions import RayActorError
from ray.llm._internal.serve.utils.broadcast import broadcast
from torch import distributed

from rft_ray.clock import Clock
from rft_ray.gpu_gate import Sharing
from rft_ray.parked_optimiser import ParkedOptimiser
from rft_ray.refresh import RefreshError, in_background

REPLICAS_S = 600.0
"""For replicas that are missing to start."""
DRAIN_S = 600.0
"""For the requests in flight to finish."""


class GpuTurns:
    """Whose turn it is, on every rank; rank 0 talks to the samplers. All ranks call together.

    Without `sharing` the trainer has GPUs of its own, and there is nothing to do.
    """

    def __init__(self, sharing: Sharing | None, rank: int) -> None:
        self.is_leader = rank == 0
        self._is_shared = sharing is not None
        self._sleepers = Sleepers(sharing) if sharing and self.is_leader else None
        self._parked: ParkedOptimiser | None = None

    def take(self, clock: Clock | None = None) -> None:
        """The trainer has the GPUs when this returns; the lap is `sleep_seconds`.

        RefreshError on all ranks where it cannot.
        """
        if not self._is_shared:
            return
        self._lead(Sleepers.put_to_sleep)
        if self._parked:
            self._parked.bring_back()
        if clock:
            clock.lap("sleep_seconds")

    def give(self, engine: DeepSpeedEngine) -> None:
        """The samplers may have the GPUs: the live ones by the refresh that comes next."""
        if not self._is_shared:
            return
        self._parked = self._parked or ParkedOptimiser(engine)
        self._parked.park()
        distributed.barrier()
        self._lead(Sleepers.open_gate)

    def wake_frozen(self) -> None:
        """After the refresh: the samplers that have no part in it."""
        if self._is_shared:
            self._lead(Sleepers.wake_frozen)

    def _lead(self, act: Callable[["Sleepers"], None]) -> None:
        """Rank 0 acts, the others hear how it went."""
        from ray.train.torch import get_device

        failure: list[RefreshError | None] = [None]
        if self._sleepers:
            try:
                act(self._sleepers)
            except Exception as error:  # whatever it is, all ranks raise it
                failure = [RefreshError(f"{type(error).__name__}: {error}")]
        distributed.broadcast_object_list(failure, src=0, device=get_device())
        if failure[0]:
            raise failure[0]


class Sleepers:
    """Rank 0's half: every replica of every sampler asleep, none awake or about to start."""

    def __init__(self, sharing: Sharing, replicas_s: float = REPLICAS_S) -> None:
        from ray import serve

        self._sharing = sharing
        self._replicas_s = replicas_s
        self._handles = {name: serve.get_app_handle(name) for name in sharing.replicas}

    def put_to_sleep(self) -> None:
        """Close the gate behind replicas that all sleep; TimeoutError where some stay away."""
        deadline = time.monotonic() + self._replicas_s
        while True:
            # Those that wait there have to start first: only who is up can be told to sleep.
            self.open_gate()
            while not self._all_sleep():
                if time.monotonic() > deadline:
                    wanted = ", ".join(f"{n} of {own}" for own, n in self._sharing.replicas.items())
                    raise TimeoutError(f"replicas stay away that the trainer waits for: {wanted}")
                time.sleep(0.5)
            self._gate("close")
            # One that died in between may have passed the open gate; it does not answer yet.
            if self._all_sleep():
                return

    def open_gate(self) -> None:
        """Let replicas start."""
        self._gate("open")

    def wake_frozen(self) -> None:
        """Wake all but the live ones."""
        for name in self._sharing.replicas:
            if name != self._sharing.live:
                # One that has died starts anew by itself, awake.
                self._count(self._call(name, "wake", DRAIN_S))

    def _all_sleep(self) -> bool:
        """Tell all that are up to sleep; whether that is as many as there should be, and all do."""
        calls = {
            name: self._call(name, "fall_asleep", 2 if name == self._sharing.live else 1, DRAIN_S)
            for name in self._sharing.replicas
        }
        return all(self._count(calls[name]) == own for name, own in self._sharing.replicas.items())

    def _count(self, call: Future[list[Any]]) -> int:
        """How many did what they were told; those whose engine is dead say that they did not."""
        try:
            return sum(call.result(2 * DRAIN_S))
        except (RayActorError, TimeoutError):
            # One died while it was asked, or Serve has not noticed yet: ask again.
            return 0

    def _call(self, application: str, method: str, *args: Any) -> Future[list[Any]]:
        return in_background(lambda: broadcast(self._handles[application], method, args=args))

    def _gate(self, method: str) -> None:
        ray.get(getattr(self._sharing.gate, method).remote())
