"""Samplers on a cluster: a Ray Serve application for each model, and a refresh of all replicas.

`deployed_samplers` brings them up and takes them down; what one replica does is `sampler.py`. Left
out: autoscaling by anything but requests, and placement across nodes of what one replica reserves.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.utils.broadcast import broadcast
from ray.serve.handle import DeploymentHandle
from ray.serve.llm import LLMConfig, build_llm_deployment

from rft_ray.config import SamplerConfig
from rft_ray.engine_logs import naming_engine_logs
from rft_ray.gpu_gate import SAMPLER_SHARE
from rft_ray.patient_waits import PATIENT_ENGINE
from rft_ray.ray_session import log_folder
from rft_ray.sampler import Sampler
from rft_ray.sampling import RefreshReport, Weights
from rft_ray.sleeping_sampler import SleepingSampler

# Requests, each for all of a problem's rollouts, that keep one elastic replica busy.
ELASTIC_REQUESTS = 2
# What `weights.py` registers; that module is imported by vLLM only.
WEIGHT_BACKEND = "rft_weights"
# On CPUs vLLM 0.29 dies where it splits the prompt of a seeded request over two steps: it takes a
# draw back from the random generator, which torch's CPU generator cannot do. Nothing is compiled,
# since that costs more than a short run gains.
CPU_ENGINE = {"enable_chunked_prefill": False, "enforce_eager": True}


class NothingToDownload(CallbackBase):
    """Spares each replica a second process that imports vLLM to fetch a model: ours are folders."""

    async def on_before_node_init(self) -> None:
        """Called by Ray before it would fetch the model's files to the node."""
        self.ctx.run_init_node = False


def refresh_sampler(handle: DeploymentHandle, weights: Weights) -> list[RefreshReport]:
    """Bring every replica of a sampler to these weights; one report per replica.

    Raises ParityError when a replica then disagrees with the trainer.
    """
    return broadcast(handle, "refresh", args=(weights,))


@contextmanager
def deployed_samplers(
    models: dict[str, tuple[str, SamplerConfig]],
    run_id: str,
    tolerance: float,
    gate: str | None = None,
) -> Iterator[dict[str, DeploymentHandle]]:
    """One running sampler per name, for `{name: (model folder, config)}`; they end with the block.

    With a `gate`, its actor's name, they can sleep while a trainer has their GPUs.

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
            _build(name, model, config, tolerance, gate),
            name=application_name(run_id, name),
            route_prefix=None,
        )
        for name, (model, config) in models.items()
    ]
    try:
        with naming_engine_logs(log_folder()):
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
    name: str, model: str, config: SamplerConfig, tolerance: float, gate: str | None
) -> serve.Application:
    on_gpu = config.gpus_per_replica > 0
    share = 1.0 if gate is None else SAMPLER_SHARE
    llm_config = LLMConfig(
        model_loading_config={"model_id": name, "model_source": model},
        accelerator_config={"kind": "gpu" if on_gpu else "cpu"},
        # Tensor parallelism talks in every layer: its devices are on one node.
        placement_group_config={"bundles": bundles(config, share), "strategy": "STRICT_PACK"},
        engine_kwargs={
            # Counted at every step, and read by nobody: the replica has its own (`replica_meter`).
            "disable_log_stats": True,
            **({} if on_gpu else CPU_ENGINE),
            **config.vllm,
            "tensor_parallel_size": config.tensor_parallel_size,
            "weight_transfer_config": {"backend": WEIGHT_BACKEND},
            # vLLM's CPU build refuses to start with it; there sleep does nothing.
            "enable_sleep_mode": on_gpu and gate is not None,
        },
        deployment_config=deployment_options(config),
        runtime_env={"env_vars": {**environment(config, share), **config.env}},
        callback_config={"callback_class": "rft_ray.deployment.NothingToDownload"},
        log_engine_metrics=False,
    )
    return build_llm_deployment(
        llm_config,
        name_prefix="sampler-",
        bind_kwargs={
            "weights": Weights(model, 0),
            "tolerance": tolerance,
            "cores": config.cores,
            **({} if gate is None else {"gate": gate}),
        },
        deployment_cls=Sampler if gate is None else SleepingSampler,
    )


def environment(config: SamplerConfig, share: float = 1.0) -> dict[str, str]:
    """Variables of an engine's processes, which the config may change; `share` as in `bundles`."""
    variables = {"VLLM_LOGGING_LEVEL": "INFO"}
    if config.gpus_per_replica and share != 1.0:
        variables["VLLM_RAY_PER_WORKER_GPUS"] = str(share)
    if config.cores and not config.gpus_per_replica:
        # Scheduler and worker share these cores; elsewhere sleeping costs more than it spares.
        variables[PATIENT_ENGINE] = "1"
    if config.cores and config.tensor_parallel_size == 1:
        # A thread on each of them; vLLM would leave one alone.
        variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, config.cores))
    return variables


def bundles(config: SamplerConfig, share: float = 1.0) -> list[dict[str, float]]:
    """What Ray reserves for one replica: a bundle for each device that shares it.

    `share` is of each GPU.
    """
    if config.gpus_per_replica == 0:
        return [{"CPU": config.cpus_per_replica}] * config.tensor_parallel_size
    others: list[dict[str, float]] = [{"GPU": share}] * (config.tensor_parallel_size - 1)
    return [{"GPU": share, "CPU": config.cpus_per_replica}, *others]


def deployment_options(config: SamplerConfig) -> dict[str, Any]:
    """How many replicas Serve runs, where, and how much it gives them to do."""
    options: dict[str, Any] = {
        # A request asks for one rollout or more.
        "max_ongoing_requests": config.max_rollouts_in_flight,
        "ray_actor_options": {"num_cpus": 0},
    }
    if config.labels:
        options["placement_group_bundle_label_selector"] = [config.labels]
    if config.max_replicas is None:
        return {**options, "num_replicas": config.num_replicas}
    # The stream asks for no more than all replicas together take, so it is the number of requests
    # to a replica that says whether there is work for another one; a replica that joins brings
    # itself to the weights it is asked for.
    options["autoscaling_config"] = {
        "min_replicas": config.num_replicas,
        "max_replicas": config.max_replicas,
        "target_ongoing_requests": ELASTIC_REQUESTS,
    }
    return options
