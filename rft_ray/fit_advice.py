"""What to change so that a model fits: the nearest combination of settings, as overrides.

Nearest is the fewest settings, and of those the ones that cost least: recomputed activations,
smaller micro-batches, a higher ZeRO stage, more ranks, then offloading. Left out: smaller models,
other types of numbers, pipelines, and settings that change what is learned.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any

from rft_ray.config import MachinesConfig, SamplerConfig, TrainerConfig
from rft_ray.deepspeed_settings import merge
from rft_ray.memory_plan import GB, ZeroSettings, gpu_share, training_memory
from rft_ray.model_shapes import ModelShape, model_shape, model_size
from rft_ray.parts import sampler_gb
from rft_ray.training_config import LoraConfig

USABLE = 0.9
"""Share of a memory that may be planned with; the rest is for fragmentation and what is not
counted."""
Change = tuple[str, dict[str, Any]]
"""An override as the command line takes it, and what it changes in the trainer's section."""


def advise_trainer(
    model: str, trainer: TrainerConfig, machines: MachinesConfig, lora: LoraConfig | None = None
) -> list[str] | None:
    """The overrides with which a model's training fits; none needed: []. None: nothing helps."""
    shape = model_shape(model)
    if shape is None or trainer_fits(shape, model, trainer, machines, lora):
        return []
    groups = [own for own in _changes(trainer, machines) if own]
    for count in range(1, len(groups) + 1):
        for chosen in combinations(groups, count):
            for changes in product(*chosen):
                changed = apply_changes(trainer, [change for _, change in changes])
                if trainer_fits(shape, model, changed, machines, lora):
                    return [text for text, _ in changes]
    return None


def trainer_fits(
    shape: ModelShape,
    model: str,
    trainer: TrainerConfig,
    machines: MachinesConfig,
    lora: LoraConfig | None = None,
) -> bool:
    """Whether a rank has room on its device, and all ranks of a machine in its main memory."""
    size = model_size(model)
    memory = training_memory(shape, trainer, size and size.parameters, lora)
    beside = ranks_per_node(trainer, machines)
    if not trainer.gpus_per_worker:
        limit = machines.memory_gb
        return limit is None or beside * (memory.device + memory.host) <= USABLE * limit * GB
    room, share = machines.memory_of_gpu, min(1.0, trainer.gpus_per_worker)
    if room is not None and memory.device > USABLE * room * share * GB:
        return False
    host = beside * max(memory.host, memory.loading)
    if machines.memory_gb is not None and host > USABLE * machines.memory_gb * GB:
        return False
    # Disks that nobody spoke of are not planned with.
    disk = USABLE * (machines.disk_gb or 0.0) * GB
    return beside * memory.nvme <= disk


def ranks_per_node(trainer: TrainerConfig, machines: MachinesConfig) -> int:
    """That share a machine's main memory, when ranks are packed."""
    if not trainer.gpus_per_worker:
        return -(-trainer.num_workers // machines.nodes)
    fitting = int(machines.gpus_per_node / trainer.gpus_per_worker)
    return max(1, min(trainer.num_workers, fitting))


def _changes(trainer: TrainerConfig, machines: MachinesConfig) -> Iterator[list[Change]]:
    """Alternatives by setting, the ones that cost least first."""
    zero, rows = ZeroSettings.of(trainer), trainer.micro_batch_rows
    if not trainer.activation_checkpointing:
        yield [_deepspeed("activation_checkpointing", {"partition_activations": False})]
    smaller = [rows // 2**n for n in range(1, rows.bit_length())]
    yield [_plain("micro_batch_rows", own) for own in smaller]
    yield [_stage(trainer, stage) for stage in range(zero.stage + 1, 4)]
    yield [_plain("num_workers", own) for own in _more_ranks(trainer, machines)]
    if zero.optimiser == "device" and trainer.gpus_per_worker:
        places = ("cpu", "nvme") if machines.disk_gb else ("cpu",)
        yield [_zero("offload_optimizer", place) for place in places]
    if zero.parameters == "device" and trainer.gpus_per_worker and zero.stage == 3:
        yield [_zero("offload_param", "cpu")]


def _more_ranks(trainer: TrainerConfig, machines: MachinesConfig) -> list[int]:
    """Whole machines more, as far as there are any."""
    if not trainer.gpus_per_worker:
        return []
    beside = max(1, int(machines.gpus_per_node / trainer.gpus_per_worker))
    counts = range(beside, machines.nodes * beside + 1, beside)
    return [count for count in counts if count > trainer.num_workers]


def _plain(name: str, value: int) -> Change:
    return f"trainer.{name}={value}", {name: value}


def _deepspeed(name: str, value: dict[str, Any]) -> Change:
    inside = ", ".join(f"{key}: {str(own).lower()}" for key, own in value.items())
    return f"trainer.deepspeed.{name}={{{inside}}}", {"deepspeed": {name: value}}


def _stage(trainer: TrainerConfig, stage: int) -> Change:
    own = trainer.deepspeed.get("zero_optimization")
    if isinstance(own, dict) and "stage" in own:
        text = f"trainer.deepspeed.zero_optimization.stage={stage}"
        return text, {"deepspeed": {"zero_optimization": {"stage": stage}}}
    return _plain("zero_stage", stage)


def _zero(name: str, place: str) -> Change:
    text = f"trainer.deepspeed.zero_optimization.{name}.device={place}"
    return text, {"deepspeed": {"zero_optimization": {name: {"device": place}}}}


def apply_changes(trainer: TrainerConfig, changes: Sequence[dict[str, Any]]) -> TrainerConfig:
    """The trainer's section with all of them."""
    raw = trainer.model_dump()
    for change in changes:
        raw = merge(raw, change)
        if "stage" in change.get("deepspeed", {}).get("zero_optimization", {}):
            # Both were filled in from the same statement.
            raw.pop("zero_stage", None)
    return TrainerConfig.model_validate(raw)


def advise_sampler(
    place: str, model: str, sampler: SamplerConfig, machines: MachinesConfig
) -> list[str] | None:
    """The overrides with which a sampler's model fits on its GPUs, as `advise_trainer`.

    `place` is where the config says how it runs: "policies.0.sampler".
    """
    shape, room = model_shape(model), machines.memory_of_gpu
    if shape is None or room is None or not sampler.gpus_per_replica:
        return []
    limit = gpu_share(sampler) * room
    devices = sampler.tensor_parallel_size
    while devices <= machines.gpus_per_node and shape.heads % devices == 0:
        wider = sampler.model_copy(
            update={"tensor_parallel_size": devices, "gpus_per_replica": float(devices)}
        )
        needed = sampler_gb(model, wider)
        if needed is not None and needed <= limit:
            names = ("tensor_parallel_size", "gpus_per_replica")
            is_same = devices == sampler.tensor_parallel_size
            return [] if is_same else [f"{place}.{name}={devices}" for name in names]
        devices *= 2
    return None
