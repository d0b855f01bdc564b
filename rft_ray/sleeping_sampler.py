"""A sampler replica that leaves its GPU to the trainer between generations (vLLM's sleep mode).

The weights that are trained sleep at level 2, which drops them with the cache: the next refresh
brings newer ones anyway. vLLM keeps buffers that are no parameters (rotary tables) aside for that
level, and the parity check after a refresh would find what it missed. Frozen weights sleep at level
1, in main memory. The trainer wakes live replicas by the refresh itself: memory for weights before
tensors arrive, memory for keys and values after the last has, so that no weights of the sampler's
are ever beside a training step. A sleeping engine still holds its CUDA context, graphs and the
buffers that weights land in.

From the request to sleep until it is awake, with weights that agree with the trainer's, a replica
answers nothing. On CPUs vLLM ignores sleep with a warning, and all else is the same. Left out: when
to sleep (`gpu_turns.py`).
"""

import asyncio
from typing import Any, Literal

from rft_ray.gpu_gate import wait_at_gate
from rft_ray.sampler import Sampler
from rft_ray.sampling import RefreshReport, SamplerUnavailableError, Weights

MEMORY = ("weights", "kv_cache")
"""What vLLM lets go of and takes again by name, in the order of taking."""


class SleepingSampler(Sampler):
    """A replica that can be told to let go of its GPU.

    Invariant: from then on it answers no request, until it has weights and cache again.
    """

    async def __init__(self, gate: str, **kwargs: Any) -> None:
        """`gate` is the name of the actor that says whether its GPU is free; the rest: `Sampler`'s.
        """
        self._is_away = False
        self._given_up: set[str] = set()
        await wait_at_gate(gate)
        await super().__init__(**kwargs)

    async def fall_asleep(self, level: Literal[1, 2], limit_s: float) -> bool:
        """Let go of the GPU once the requests in flight are done; asleep already: nothing to do.

        False where the engine is dead: Serve will put another replica in this one's place.
        """
        async with asyncio.timeout(limit_s), self._refreshing:
            await self._idle.wait()
            if self._client.errored:
                return False
            if self._given_up == set(MEMORY):
                return True
            # What comes from here on is refused, also where falling asleep fails half-way.
            self._is_away = True
            if level == 2:
                self._weights = None
            # After a refresh that failed half-way vLLM takes itself for asleep, and would keep
            # what it has: it has to be awake first.
            await self._take_back(*MEMORY)
            await self._client.sleep(level, mode="wait")
            self._given_up.update(MEMORY)
        return True

    async def wake(self, limit_s: float) -> bool:
        """Serve again with the weights that it fell asleep with, at level 1; False as above."""
        async with asyncio.timeout(limit_s), self._refreshing:
            if self._client.errored:
                return False
            await self._take_back(*MEMORY)
            self._is_away = False
        return True

    async def prepare_refresh(
        self, group_id: str, in_flight: str, drain_s: float, patience_s: float
    ) -> bool | None:
        """As `Sampler.prepare_refresh`, with memory for the tensors."""
        if group_id == self._group_id:
            await self._take_back("weights")
        return await super().prepare_refresh(group_id, in_flight, drain_s, patience_s)

    async def finish_refresh(
        self, group_id: str, version: int, probe: dict[str, list] | None, num_bytes: int
    ) -> RefreshReport | None:
        """As `Sampler.finish_refresh`; awake when it has succeeded."""
        if group_id == self._group_id:
            await self._take_back("kv_cache")
        report = await super().finish_refresh(group_id, version, probe, num_bytes)
        if report is not None:
            self._is_away = False
        return report

    async def _take_back(self, *names: str) -> None:
        """Have memory again, without contents but for weights that slept at level 1."""
        for name in names:
            if name not in self._given_up:
                continue
            try:
                await self._client.wake_up([name])
            except Exception as error:
                # vLLM's own exceptions would make the trainer import vLLM to read them.
                raise SamplerUnavailableError(
                    f"cannot wake: {type(error).__name__}: {error}"
                ) from None
            self._given_up.discard(name)

    def _start_block(self) -> None:
        self._refuse_while_away()
        super()._start_block()

    async def _refresh(self, weights: Weights) -> RefreshReport:
        self._refuse_while_away()
        return await super()._refresh(weights)

    def _refuse_while_away(self) -> None:
        if self._is_away:
            raise SamplerUnavailableError("asleep while the trainer has its GPU")
