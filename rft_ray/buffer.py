"""Where sampling and training meet in an online run: one buffer of whole steps, a Ray actor.

The driver asks for the next step to sample and puts its groups; the trainer's rank 0 takes them in
order. Versions count trained steps. Staleness is bounded twice: `next_step` waits while sampling is
more than `max_staleness` ahead of the trainer, which keeps stale rollouts rare; `take` drops groups
whose rollouts are older than that, and counts them, which is the guarantee. Whoever waits wakes
with an error when the other side has failed. A trainer that goes back to an earlier step (a rank
died) says so in `start`, and everything after that step is asked for again.

Left out: persistence. Sampled groups are on disk before they get here, and a step's problems are a
function of its number.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray

from rft_ray.types import Group

STALE = "stale"


class TrainingEndedError(RuntimeError):
    """The other side of the buffer is gone, so waiting for it would never end."""


@dataclass(frozen=True, slots=True)
class StepGroups:
    """One step's groups as the trainer gets them; `staleness` counts rollouts by theirs."""

    step: int
    groups: list[Group]
    facts: dict[str, Any]
    dropped: dict[str, int] = field(default_factory=dict)
    staleness: dict[int, int] = field(default_factory=dict)


class GroupBuffer:
    """The buffer itself; all methods run on one event loop.

    Invariants: steps are taken in order and each once, unless `start` goes back; no rollout of a
    live policy that `take` returns is staler than the bound.
    """

    def __init__(self, num_steps: int, max_staleness: int, live: str) -> None:
        """`live` is the policy whose weights change; all others never go stale."""
        self._num_steps = num_steps
        self._max_staleness = max_staleness
        self._live = live
        self._version: int | None = None  # trained steps; None until the trainer is there
        self._is_open = False  # whether the samplers are there for the live policy
        self._next = 1  # the step to sample next
        self._waiting: dict[int, StepGroups] = {}
        self._last: int | None = None  # no step after this one will be put
        self._ended: str | None = None
        self._changed = asyncio.Condition()

    async def open(self) -> None:
        """The driver needs the samplers for nothing else from here on."""
        async with self._changed:
            self._is_open = True
            self._changed.notify_all()

    async def wait_open(self) -> None:
        """The trainer may bring its weights to the samplers."""
        await self._wait(lambda: self._is_open)

    async def start(self, version: int) -> None:
        """The trainer is there, with this many steps trained, and the samplers have its weights."""
        async with self._changed:
            self._version = version
            self._next = version + 1
            self._waiting.clear()
            self._changed.notify_all()

    async def next_step(self) -> int | None:
        """The step to sample next, as soon as it may be sampled; None after the last."""
        await self._wait(lambda: self._is_over() or self._may_sample())
        return None if self._is_over() else self._next

    async def put(self, step: int, groups: list[Group], facts: dict[str, Any]) -> None:
        """A sampled step; ignored where the trainer has gone back since it was asked for."""
        async with self._changed:
            self._raise_if_ended()
            if step == self._next:
                self._waiting[step] = StepGroups(step, groups, facts)
                self._next += 1
                self._changed.notify_all()

    async def wait_put(self, version: int) -> None:
        """Return when `take` would, or has; for ranks that do not take themselves."""
        await self._wait(lambda: self._next > version + 1 or self._is_past(version + 1))

    async def take(self, version: int) -> StepGroups | None:
        """The groups of step `version` + 1 without what is too stale; None after the last."""
        await self._wait(lambda: version + 1 in self._waiting or self._is_past(version + 1))
        if version + 1 not in self._waiting:
            return None
        return self._without_stale(self._waiting.pop(version + 1), version)

    async def trained(self, version: int) -> None:
        """A step is trained, and the samplers have the weights that came of it."""
        async with self._changed:
            self._version = version
            self._changed.notify_all()

    async def wait_trained(self, step: int) -> bool:
        """Whether the step that was put is trained, as soon as it is.

        False where the trainer has gone back, so that the step is to be sampled again.
        """
        await self._wait(lambda: self._has_trained(step) or self._next <= step)
        return self._has_trained(step)

    async def close(self) -> None:
        """The driver puts no further step."""
        async with self._changed:
            self._last = self._next - 1
            self._changed.notify_all()

    async def end(self, failure: str | None) -> None:
        """The trainer is done, or has failed: whoever still waits for it raises that."""
        async with self._changed:
            self._ended = failure or "the trainer has finished"
            if failure is None:
                # It needs no further step; where all was trained before, not even a first one.
                self._last = self._next - 1
            self._changed.notify_all()

    def _has_trained(self, step: int) -> bool:
        return self._version is not None and self._version >= step

    def _may_sample(self) -> bool:
        started = self._version is not None
        return started and self._next - 1 - self._version <= self._max_staleness

    def _is_past(self, step: int) -> bool:
        last = self._num_steps if self._last is None else min(self._last, self._num_steps)
        return step > last

    def _is_over(self) -> bool:
        return self._is_past(self._next)

    def _without_stale(self, entry: StepGroups, version: int) -> StepGroups:
        staleness: Counter[int] = Counter()
        kept, dropped = [], 0
        for group in entry.groups:
            ages = [version - r.policy_version for r in group.rollouts if r.policy == self._live]
            if max(ages, default=0) > self._max_staleness:
                dropped += 1
            else:
                staleness.update(ages)
                kept.append(group)
        counts = {STALE: dropped} if dropped else {}
        return StepGroups(entry.step, kept, entry.facts, counts, dict(staleness))

    async def _wait(self, is_met: Any) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: is_met() or self._ended is not None)
            if not is_met():
                self._raise_if_ended()

    def _raise_if_ended(self) -> None:
        if self._ended is not None:
            raise TrainingEndedError(self._ended)


BufferActor = ray.remote(GroupBuffer)
