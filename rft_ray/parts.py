"""What has to be placed: the replicas of every sampler and the ranks of the trainer."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from rft_ray.config import RunConfig, SamplerConfig, TrainerConfig
from rft_ray.memory_plan import GB, sampler_memory, training_memory
from rft_ray.model_shapes import ModelSize, model_shape, model_size
from rft_ray.training_config import LoraConfig, RecipeConfig


@dataclass(frozen=True, slots=True)
class Part:
    """The replicas of one sampler, or the ranks of the trainer: copies that are placed alike."""

    name: str
    copies: int
    gpus: float
    """Of one copy, all on one node."""
    cpus: float
    size: ModelSize | None
    """Of the model, the largest one of the trainer; none: not known."""
    device_gb: float | None
    """The least memory of one device that it works with; none: not known."""
    labels: dict[str, str] = field(default_factory=dict)
    """Which a copy's node has to have."""

    @property
    def is_trainer(self) -> bool:
        """Ranks, not replicas."""
        return self.name == "trainer"


def list_parts(config: RunConfig) -> list[Part]:
    """All samplers of a run, the target's own among them if no policy shares its base; trainer."""
    samplers = [_sampler_part(name, *own) for name, own in list_samplers(config).items()]
    return [*samplers, _trainer_part(config)]


def parts_to_place(config: RunConfig) -> list[Part]:
    """The same as Ray has to find room for: ranks on the samplers' GPUs need none of their own."""
    parts = list_parts(config)
    if not config.shares_gpus:
        return parts
    return [replace(part, gpus=0.0) if part.is_trainer else part for part in parts]


def list_samplers(config: RunConfig) -> dict[str, tuple[str, SamplerConfig]]:
    """Model and settings of every sampler by name."""
    samplers = {policy.name: (policy.model, policy.sampler) for policy in config.policies}
    if config.own_policy is None:
        samplers["target"] = (config.target.model, config.target.sampler)
    return samplers


def _sampler_part(name: str, model: str, sampler: SamplerConfig) -> Part:
    devices = sampler.tensor_parallel_size
    return Part(
        name=f"sampler {name}",
        copies=sampler.num_replicas,
        gpus=sampler.gpus_per_replica,
        cpus=sampler.cpus_per_replica * (1 if sampler.gpus_per_replica else devices),
        size=model_size(model),
        device_gb=sampler_gb(model, sampler),
        labels=sampler.labels,
    )


def sampler_gb(model: str, sampler: SamplerConfig) -> float | None:
    """The least a device needs, in 10^9 bytes: on a CPU the weights alone, as vLLM's cache there is
    as large as VLLM_CPU_KVCACHE_SPACE says. None: not known."""
    size, shape = model_size(model), model_shape(model)
    if size is None or shape is None:
        return None
    memory = sampler_memory(shape, sampler, None, size.parameters)
    return (memory.least if sampler.gpus_per_replica else memory.weights) / GB


def _trainer_part(config: RunConfig) -> Part:
    trainer = config.trainer
    model = largest_model(config)
    return Part(
        name="trainer",
        copies=trainer.num_workers,
        gpus=trainer.gpus_per_worker,
        cpus=trainer.cpus_per_worker,
        size=model and model_size(model),
        device_gb=model and rank_gb(model, trainer, adapters_of(config, model)),
        labels=trainer.labels,
    )


def largest_model(config: RunConfig) -> str | None:
    """The trainer's settings hold for every model that is trained: the one that takes most has to
    fit, which is the largest unless it has adapters and a smaller one has none."""
    held = {
        model: rank_gb(model, config.trainer, adapters_of(config, model))
        for model in trained_models(config)
    }
    known = {model: own for model, own in held.items() if own is not None}
    return max(known, key=known.__getitem__, default=None)


def trained_models(config: RunConfig) -> Iterator[str]:
    """The models that a run trains."""
    return (model for model, _ in trainings(config))


def trainings(config: RunConfig) -> Iterator[tuple[str, RecipeConfig]]:
    """Every model that a run trains with each of its recipes."""
    # In the first round there is nothing to retrain on.
    is_retrained = any(config.round(n).retrain_policies for n in range(1, config.num_rounds))
    yield config.target.model, config.target.rft
    if config.target.sft:
        yield config.target.model, config.target.sft
    for policy in config.policies:
        if policy.sft:
            yield policy.model, policy.sft
        if is_retrained:
            yield policy.model, policy.rft


def adapters_of(config: RunConfig, model: str) -> LoraConfig | None:
    """The largest adapters of a model's trainings; None where one of them trains all weights."""
    chosen = [recipe.lora for own, recipe in trainings(config) if own == model]
    adapters = [lora for lora in chosen if lora]
    if len(adapters) < len(chosen):
        return None
    return max(adapters, key=lambda lora: lora.rank, default=None)


def rank_gb(model: str, trainer: TrainerConfig, lora: LoraConfig | None = None) -> float | None:
    """Memory of one training rank's device, in 10^9 bytes; None where the model is not known."""
    size, shape = model_size(model), model_shape(model)
    if size is None or shape is None:
        return None
    return training_memory(shape, trainer, size.parameters, lora).device / GB
