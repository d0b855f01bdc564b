"""A sampler: the Ray Serve deployment of vLLM engines that serves one model's rollouts.

Token ids go in and token ids come out, through Serve handles; there is no HTTP on the way. Every
request names the weights it wants. A replica that holds others (it was restarted, or missed a
refresh) refreshes itself before it answers, so no rollout can carry a version that did not write
it, and engines start once per run while checkpoints come and go. After each refresh the replica
compares its own log-probabilities with those the trainer left in the checkpoint.

Left out: autoscaling, LoRA, and detokenisation, which the stream does in batches.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.utils.broadcast import broadcast
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, LLMServer, build_llm_deployment

from rft_ray.config import SamplerConfig
from rft_ray.sampling import SampledTokens, SamplerUnavailableError, Weights

PROBE_FILE = "probe.json"
# On CPUs vLLM 0.29 dies where it splits the prompt of a seeded request over two steps: it takes a
# draw back from the random generator, which torch's CPU generator cannot do. Nothing is compiled,
# since that costs more than a short run gains.
CPU_ENGINE = {"enable_chunked_prefill": False, "enforce_eager": True}


class ParityError(RuntimeError):
    """A sampler's log-probabilities differ from the trainer's after a weight refresh."""


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """One replica's refresh: seconds from pause to resume, bytes read, and the parity check."""

    seconds: float
    num_bytes: int
    parity_max_abs_diff: float | None


class NothingToDownload(CallbackBase):
    """Spares each replica a second process that imports vLLM to fetch a model: ours are folders."""

    async def on_before_node_init(self) -> None:
        """Called by Ray before it would fetch the model's files to the node."""
        self.ctx.run_init_node = False


class Sampler(LLMServer):
    """One replica: a vLLM engine, the weights it holds, and token-level sampling and scoring."""

    async def __init__(self, llm_config: LLMConfig, weights: Weights, tolerance: float) -> None:
        await super().__init__(llm_config)
        self._weights: Weights | None = weights
        self._tolerance = tolerance
        self._refreshing = asyncio.Lock()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

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
        async with self._holding(weights):
            final = await self._run(prompt_ids, params)
        return SampledTokens(
            token_ids=np.concatenate([np.asarray(o.token_ids, np.int32) for o in final.outputs]),
            lengths=np.asarray([len(o.token_ids) for o in final.outputs], np.int32),
            stopped=np.asarray([_ends_with_eos(output) for output in final.outputs]),
            policy_version=weights.version,
        )

    async def score(self, token_ids: list[int], weights: Weights) -> list[float]:
        """Log-probability of each token but the first, given those before it."""
        async with self._holding(weights):
            return await self._score(token_ids)

    async def refresh(self, weights: Weights) -> RefreshReport:
        """Serve these weights from here on; requests in flight finish with the old ones first."""
        async with self._refreshing:
            return await self._refresh(weights)

    async def max_model_len(self) -> int:
        """Longest prompt plus completion that the engine takes, in tokens."""
        return self._client.model_config.max_model_len

    @property
    def _client(self) -> Any:
        return self.engine._engine_client

    @asynccontextmanager
    async def _holding(self, weights: Weights) -> AsyncIterator[None]:
        """The block runs with these weights from its first token to its last.

        A refresh starts only when no block is running. The engine's own pause does not see to
        that: a request that reaches it while it is paused would run on the new weights.
        """
        if self._weights != weights or self._refreshing.locked():
            async with self._refreshing:
                if self._weights != weights:
                    await self._refresh(weights)
                self._start_block()
        else:
            self._start_block()
        try:
            yield
        finally:
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    def _start_block(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    async def _refresh(self, weights: Weights) -> RefreshReport:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._idle.wait()
        started = time.perf_counter()
        client = self._client
        # Until the parity check has passed the replica holds no weights anybody may sample from:
        # a refresh that fails half-way leaves a mixture, which the next request replaces.
        self._weights = None
        await client.pause_generation(mode="wait", clear_cache=True)
        try:
            await client.start_weight_update()
            await client.update_weights(WeightTransferUpdateRequest({"path": weights.path}))
            await client.finish_weight_update(weight_version=str(weights.version))
            await client.reset_prefix_cache()
        finally:
            await client.resume_generation()
        seconds = time.perf_counter() - started
        difference = await self._check_parity(Path(weights.path))
        self._weights = weights
        size = sum(file.stat().st_size for file in Path(weights.path).glob("*.safetensors"))
        return RefreshReport(seconds, size, difference)

    async def _check_parity(self, folder: Path) -> float | None:
        """Largest difference to the trainer's log-probabilities; None where it left none."""
        if not (folder / PROBE_FILE).exists():
            return None
        probe = json.loads((folder / PROBE_FILE).read_text())
        scored = await asyncio.gather(*(self._score(ids) for ids in probe["token_ids"]))
        worst = max(
            float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))))
            for ours, theirs in zip(scored, probe["logprobs"], strict=True)
        )
        if not worst <= self._tolerance:
            raise ParityError(
                f"after loading {folder} the sampler's log-probabilities differ from the "
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
        return outputs[-1]


def _ends_with_eos(output: Any) -> bool:
    """A stop text ends a completion too, but leaves no EOS behind."""
    return output.finish_reason == "stop" and not isinstance(output.stop_reason, str)


def refresh_sampler(handle: DeploymentHandle, weights: Weights) -> list[RefreshReport]:
    """Bring every replica of a sampler to these weights; one report per replica.

    Raises ParityError when a replica then disagrees with the trainer.
    """
    return broadcast(handle, "refresh", args=(weights,))


@contextmanager
def deployed_samplers(
    models: dict[str, tuple[str, SamplerConfig]], run_id: str, tolerance: float
) -> Iterator[dict[str, DeploymentHandle]]:
    """One running sampler per name, for `{name: (model folder, config)}`; they end with the block.

    Applications are named by run, so that a restarted driver removes what its predecessor left and
    runs sharing a cluster never touch each other's.
    """
    for logger in ("ray.serve", "ray.llm"):
        # Serve sets its loggers up when it is imported.
        logging.getLogger(logger).setLevel(logging.ERROR)
    serve.start(http_options={"location": "NoServer"})
    _delete_applications(run_id)
    targets = [
        serve.RunTarget(
            _build(name, model, config, tolerance),
            name=application_name(run_id, name),
            route_prefix=None,
        )
        for name, (model, config) in models.items()
    ]
    try:
        serve.run_many(targets)
        yield {name: serve.get_app_handle(application_name(run_id, name)) for name in models}
    finally:
        _delete_applications(run_id)


def application_name(run_id: str, sampler: str) -> str:
    """The Serve application of a run's sampler."""
    return f"rft-{run_id}-{sampler}"


def _delete_applications(run_id: str) -> None:
    for name in serve.status().applications:
        if name.startswith(application_name(run_id, "")):
            serve.delete(name)


def _build(
    name: str, model: str, config: SamplerConfig, tolerance: float
) -> serve.Application:
    on_gpu = config.gpus_per_replica > 0
    bundle = {"GPU": 1} if on_gpu else {"CPU": config.cpus_per_replica}
    llm_config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": model},
        accelerator_config={"kind": "gpu" if on_gpu else "cpu"},
        placement_group_config={"bundles": [bundle] * config.tensor_parallel_size},
        engine_kwargs={
            **({} if on_gpu else CPU_ENGINE),
            **config.vllm,
            "tensor_parallel_size": config.tensor_parallel_size,
            "weight_transfer_config": {"backend": "rft_checkpoint"},
        },
        deployment_config={
            "num_replicas": config.num_replicas,
            # A request asks for one rollout or more.
            "max_ongoing_requests": config.max_rollouts_in_flight,
            "ray_actor_options": {"num_cpus": 0},
        },
        runtime_env={"env_vars": {"VLLM_LOGGING_LEVEL": "INFO", **config.env}},
        callback_config={"callback_class": "rft_ray.sampler.NothingToDownload"},
        log_engine_metrics=False,
    )
    return build_llm_deployment(
        llm_config,
        name_prefix="sampler-",
        bind_kwargs={"weights": Weights(model, 0), "tolerance": tolerance},
        deployment_cls=Sampler,
    )
