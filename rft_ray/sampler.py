"""A replica of a sampler, the Ray Serve deployment of vLLM engines that serves a model's rollouts.

Token ids go in and token ids come out, through Serve handles; there is no HTTP on the way. Every
request names the weights it wants. A replica that holds others (it was restarted, or missed a
refresh) refreshes itself before it answers, so no rollout can carry a version that did not write
it, and engines start once per run while checkpoints come and go. After each refresh the replica
compares its own log-probabilities with those the trainer left in the checkpoint.

Live weights come from a running trainer instead, which brings all replicas through a refresh
together (`refresh.py`): join_weight_group once, then prepare_refresh, transfer_weights and
finish_refresh each time. A trainer that goes silent in between is given up on, and from the first
of these calls to the end of the last the replica serves nothing.

Left out: how replicas come up (`deployment.py`), LoRA, and detokenisation, which the stream does in
batches.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.serve.llm import LLMConfig, LLMServer

from rft_ray.cores import keep_to_cores
from rft_ray.ray_metrics import Meter
from rft_ray.replica_meter import ReplicaMeter
from rft_ray.sampling import (
    LIVE,
    ParityError,
    RefreshReport,
    SampledTokens,
    SamplerUnavailableError,
    Weights,
)
from rft_ray.weight_group import Rendezvous

PROBE_FILE = "probe.json"
# How long a request for live weights is held where they have not come. A replica that refused at
# once would look the least busy of all and draw the requests that others could answer.
LIVE_WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a trainer must know of a replica before a refresh."""

    replica_id: str
    num_workers: int
    group_id: str | None
    """The weight group that it has joined, which it may have left since by failing."""


@dataclass(slots=True)
class LiveRefresh:
    """A refresh that the trainer is leading this replica through."""

    started: float
    patience_s: float
    """How long the trainer may take until it calls again."""
    watchdog: asyncio.TimerHandle | None = None
    drain_seconds: float = 0.0
    transfer_seconds: float = 0.0


class Sampler(LLMServer):
    """One replica: a vLLM engine, the weights it holds, and token-level sampling and scoring."""

    async def __init__(
        self, llm_config: LLMConfig, weights: Weights, tolerance: float, cores: list[int]
    ) -> None:
        # Before the engine: its processes are children of this one.
        keep_to_cores(cores, "sampler.cores")
        await super().__init__(llm_config)
        self._weights: Weights | None = weights
        self._tolerance = tolerance
        self._refreshing = asyncio.Lock()
        self._live_refresh: LiveRefresh | None = None
        self._live_came = asyncio.Event()
        self._failed_refreshes = 0
        self._group_id: str | None = None
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._meter = ReplicaMeter(Meter(policy=llm_config.model_id, replica=_replica_id()))

    async def _start_engine(self) -> None:
        # LLMServer's also starts a process, and waits for it, which only counts usage for Ray.
        await self.engine.start()

    async def sample(
        self, prompt_ids: list[int], weights: Weights, sampling: dict[str, Any], seed: int
    ) -> SampledTokens:
        """`sampling["n"]` completions of a prompt, drawn with seeds `seed`, `seed + 1`, ..."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **sampling,
            seed=seed,
            # Only stop texts need the text while it is being sampled.
            detokenize=bool(sampling.get("stop")),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        with self._meter.request() as start:
            async with self._holding(weights) as held:
                start()
                final = await self._run(prompt_ids, params)
        self._meter.sampled(sum(len(output.token_ids) for output in final.outputs))
        return SampledTokens(
            token_ids=np.concatenate([np.asarray(o.token_ids, np.int32) for o in final.outputs]),
            lengths=np.asarray([len(o.token_ids) for o in final.outputs], np.int32),
            stopped=np.asarray([_ends_with_eos(output) for output in final.outputs]),
            policy_version=held.version,
            logprobs=_sampled_logprobs(final.outputs) if "logprobs" in sampling else None,
        )

    async def score(self, token_ids: list[int], weights: Weights) -> list[float]:
        """Log-probability of each token but the first, given those before it."""
        async with self._holding(weights):
            return await self._score(token_ids)

    async def refresh(self, weights: Weights) -> RefreshReport:
        """Serve these weights from here on; requests in flight finish with the old ones first."""
        async with self._refreshing:
            return await self._refresh(weights)

    async def describe(self) -> ReplicaState | None:
        """For the trainer; None while the engine is dead."""
        if self._client.errored:
            return None
        num_workers = self._client.vllm_config.parallel_config.world_size
        return ReplicaState(_replica_id(), num_workers, self._group_id)

    async def join_weight_group(
        self, group_id: str, rendezvous: Rendezvous, first_ranks: dict[str, int]
    ) -> bool | None:
        """Join the trainer's group, all its members at once; None where this replica is not one.

        `first_ranks` has the rank of each member's first worker, by replica id.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        if _replica_id() not in first_ranks:
            return None
        self._group_id = None
        info = {**asdict(rendezvous), "first_rank": first_ranks[_replica_id()]}
        # Every worker of the engine answers within the rendezvous's own limit.
        async with asyncio.timeout(2 * rendezvous.timeout_s):
            await self._client.init_weight_transfer_engine(WeightTransferInitRequest(info))
        self._group_id = group_id
        return True

    async def prepare_refresh(
        self, group_id: str, in_flight: str, drain_s: float, patience_s: float
    ) -> bool | None:
        """Stop serving and make the model ready for tensors; None for those outside the group.

        Requests in flight finish first (`wait`), go on afterwards with the new weights (`keep`), or
        fail (`abort`). SamplerUnavailableError, with nothing changed, where they take longer than
        `drain_s`. The trainer may take `patience_s` from one call to the next.
        """
        if group_id != self._group_id:
            return None
        asked = time.perf_counter()
        async with asyncio.timeout(drain_s):
            await self._refreshing.acquire()
        self._live_refresh = live = LiveRefresh(asked, patience_s)
        async with self._leading(drain_s + patience_s):
            if in_flight == "wait":
                async with asyncio.timeout(drain_s):
                    await self._idle.wait()
            now = time.perf_counter()
            live.drain_seconds, live.started = now - live.started, now
            self._weights = None
            pausing = self._client.pause_generation(mode=in_flight, clear_cache=True)
            if in_flight == "wait":
                # Nothing runs any more: vLLM's short sleep after the pause need not be waited for.
                await asyncio.gather(pausing, self._client.start_weight_update())
            else:
                await pausing
                await self._client.start_weight_update()
        return True

    async def transfer_weights(
        self, group_id: str, buckets: list[list[tuple[str, list[int], str]]], limit_s: float
    ) -> bool | None:
        """Receive and load the buckets that the trainer sends while this call runs."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        if group_id != self._group_id:
            return None
        live, started = self._live_refresh, time.perf_counter()
        async with self._leading(limit_s):
            await self._client.update_weights(WeightTransferUpdateRequest({"buckets": buckets}))
            live.transfer_seconds = time.perf_counter() - started
        return True

    async def finish_refresh(
        self, group_id: str, version: int, probe: dict[str, list] | None, num_bytes: int
    ) -> RefreshReport | None:
        """Serve what was received as live weights of this version, if it agrees with the probe.

        `probe` has `token_ids` and `logprobs`, both lists of lists; ParityError.
        """
        if group_id != self._group_id:
            return None
        client, live = self._client, self._live_refresh
        async with self._leading(live.patience_s if live else 0):
            await client.finish_weight_update(weight_version=str(version))
            await client.reset_prefix_cache()
            await client.resume_generation()
            seconds = time.perf_counter() - live.started
            difference = await self._compare(probe, f"version {version}") if probe else None
        self._weights = Weights(LIVE, version)
        self._end_live_refresh()
        self._live_came.set()
        self._live_came = asyncio.Event()
        parts = live.drain_seconds, live.transfer_seconds
        report = RefreshReport(seconds, num_bytes, difference, *parts)
        self._meter.refreshed(report, version)
        return report

    async def abandon_refresh(self, group_id: str) -> bool | None:
        """End a refresh that failed elsewhere; the replica serves nothing until the next one."""
        if group_id != self._group_id:
            return None
        self._group_id = self._weights = None
        await self._abandon(self._live_refresh)
        return True

    async def max_model_len(self) -> int:
        """Longest prompt plus completion that the engine takes, in tokens."""
        return self._client.model_config.max_model_len

    @property
    def _client(self) -> Any:
        return self.engine._engine_client

    @asynccontextmanager
    async def _leading(self, limit_s: float) -> AsyncIterator[None]:
        """The block is one call of a live refresh: what fails or takes too long ends it."""
        live = self._live_refresh
        if live is None:
            raise SamplerUnavailableError("the refresh was given up before this call of it")
        if live.watchdog:
            live.watchdog.cancel()
        try:
            async with asyncio.timeout(limit_s):
                yield
        except BaseException as error:
            await self._abandon(live)
            if isinstance(error, ParityError) or not isinstance(error, Exception):
                raise
            # vLLM's own exceptions would make the trainer import vLLM to read them.
            raise SamplerUnavailableError(f"{type(error).__name__}: {error}") from None
        loop = asyncio.get_running_loop()
        live.watchdog = loop.call_later(live.patience_s, self._give_up, live)

    def _give_up(self, live: LiveRefresh) -> None:
        self._giving_up = asyncio.ensure_future(self._abandon(live))

    async def _abandon(self, live: LiveRefresh | None) -> None:
        """Leave a live refresh with nothing to serve, its requests in flight failed."""
        if live is None or live is not self._live_refresh:
            return
        self._live_refresh = self._group_id = None
        if live.watchdog:
            live.watchdog.cancel()
        if self._weights is None:
            self._failed_refreshes += 1
            client = self._client
            await _try(client.pause_generation(mode="abort", clear_cache=True), live.patience_s)
            # Refused where the update itself failed, which then has ended already.
            await _try(client.finish_weight_update(), live.patience_s)
            await _try(client.resume_generation(), live.patience_s)
        self._refreshing.release()

    def _end_live_refresh(self) -> None:
        self._live_refresh.watchdog.cancel()
        self._live_refresh = None
        self._refreshing.release()

    @asynccontextmanager
    async def _holding(self, weights: Weights) -> AsyncIterator[Weights]:
        """The block runs with these weights, or for live ones with those that it is given.

        It does so from its first token to its last: a refresh starts only when no block is running,
        unless it was told to keep or abort what is in flight. The engine's own pause does not see
        to that: a request that reaches it while it is paused would run on the new weights. After a
        refresh that failed, a block that had begun before raises SamplerUnavailableError.
        """
        if weights.path == LIVE and not weights.satisfied_by(self._weights):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._live_came.wait(), LIVE_WAIT_S)
        if not weights.satisfied_by(self._weights) or self._refreshing.locked():
            async with self._refreshing:
                if not weights.satisfied_by(self._weights):
                    await self._bring(weights)
                self._start_block()
                held = self._weights
        else:
            self._start_block()
            held = self._weights
        failed_refreshes = self._failed_refreshes
        try:
            yield held
            if self._failed_refreshes != failed_refreshes:
                raise SamplerUnavailableError("a refresh failed while this request was running")
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    def _start_block(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    async def _bring(self, weights: Weights) -> None:
        """Refresh on request; only the trainer can bring live weights."""
        if weights.path == LIVE:
            raise SamplerUnavailableError(
                f"live weights of version {weights.version} have not come yet; "
                f"held: {self._weights}"
            )
        await self._refresh(weights)

    async def _refresh(self, weights: Weights) -> RefreshReport:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        asked = time.perf_counter()
        await self._idle.wait()
        started = time.perf_counter()
        client = self._client
        # Until the parity check has passed the replica holds no weights anybody may sample from:
        # a refresh that fails half-way leaves a mixture, which the next request replaces.
        self._weights = None
        await client.pause_generation(mode="wait", clear_cache=True)
        try:
            await client.start_weight_update()
            loading = time.perf_counter()
            await client.update_weights(WeightTransferUpdateRequest({"path": weights.path}))
            transfer = time.perf_counter() - loading
            await client.finish_weight_update(weight_version=str(weights.version))
            await client.reset_prefix_cache()
        finally:
            await client.resume_generation()
        seconds = time.perf_counter() - started
        difference = await self._check_parity(Path(weights.path))
        self._weights = weights
        size = sum(file.stat().st_size for file in Path(weights.path).glob("*.safetensors"))
        report = RefreshReport(seconds, size, difference, started - asked, transfer)
        self._meter.refreshed(report, weights.version)
        return report

    async def _check_parity(self, folder: Path) -> float | None:
        """Largest difference to the trainer's log-probabilities; None where it left none."""
        if not (folder / PROBE_FILE).exists():
            return None
        return await self._compare(json.loads((folder / PROBE_FILE).read_text()), str(folder))

    async def _compare(self, probe: dict[str, list], source: str) -> float:
        """Largest difference to the probe's log-probabilities; ParityError if it is too large."""
        scored = await asyncio.gather(*(self._score(ids) for ids in probe["token_ids"]))
        worst = max(
            float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))))
            for ours, theirs in zip(scored, probe["logprobs"], strict=True)
        )
        if not worst <= self._tolerance:
            raise ParityError(
                f"after loading {source} the sampler's log-probabilities differ from the "
                f"trainer's by up to {worst:.2g}; tolerated: {self._tolerance:.2g}"
            )
        return worst

    async def _score(self, token_ids: list[int]) -> list[float]:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        final = await self._run(token_ids, params)
        rows = zip(token_ids[1:], final.prompt_logprobs[1:], strict=True)
        return [row[token].logprob for token, row in rows]

    async def _run(self, prompt_ids: list[int], params: Any) -> Any:
        from vllm.inputs import TokensPrompt
        from vllm.utils import random_uuid
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            stream = self._client.generate(
                TokensPrompt(prompt_token_ids=prompt_ids), params, random_uuid()
            )
            outputs = [output async for output in stream]
        except EngineDeadError as error:
            raise SamplerUnavailableError(str(error)) from None
        final = outputs[-1]
        if any(output.finish_reason == "abort" for output in final.outputs):
            raise SamplerUnavailableError("a refresh aborted this request")
        return final


async def _try(call: Coroutine[Any, Any, None], limit_s: float) -> None:
    """Part of leaving a failed refresh: whatever fails, the rest is done too."""
    with suppress(Exception):
        async with asyncio.timeout(limit_s):
            await call


def _replica_id() -> str:
    return serve.get_replica_context().replica_id.unique_id


def _sampled_logprobs(outputs: list[Any]) -> np.ndarray:
    values = [
        step[token].logprob
        for output in outputs
        for token, step in zip(output.token_ids, output.logprobs, strict=True)
    ]
    return np.asarray(values, np.float32)


def _ends_with_eos(output: Any) -> bool:
    """A stop text ends a completion too, but leaves no EOS behind."""
    return output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
