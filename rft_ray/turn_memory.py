"""Memory of a GPU that samplers and the online trainer have in turns; arithmetic on shapes alone.

Sampler weights with their cache are never beside a training step, nor the optimiser's state beside
sampling; what the one at rest still holds is. An engine asleep holds its CUDA context, its graphs
and the buffers that weights land in; a trainer at rest its 16-bit weights, gradients, DeepSpeed's
buckets and its own context. Left out: the refresh between the two, which takes less than either.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rft_ray.config import MachinesConfig, RunConfig
from rft_ray.fit_advice import USABLE, ranks_per_node
from rft_ray.memory_plan import GB, GPU_RUNTIME, gpu_share, training_memory
from rft_ray.model_shapes import model_shape, model_size
from rft_ray.parts import list_samplers

LANDING_BUCKETS = 3
"""Buckets that a worker of a sampler keeps room for from one refresh to the next."""
SENDING_BUCKETS = 2
"""The same of trainer rank 0."""


@dataclass(frozen=True, slots=True)
class TurnMemory:
    """Of one GPU, in 10^9 bytes."""

    training: float
    """A rank at its peak."""
    asleep: float
    """What an engine asleep holds beside that."""
    resting: float
    """What a rank holds while samplers work."""
    parked: float
    """What it has in main memory meanwhile."""


def turn_memory(config: RunConfig) -> TurnMemory | None:
    """Of the target's online training; None where the model is not known."""
    model, lora = config.target.model, config.target.rft.lora
    shape, size = model_shape(model), model_size(model)
    if shape is None or size is None:
        return None
    own = training_memory(shape, config.trainer, size.parameters, lora)
    bucket = config.online.bucket_mb * 2**20
    resting = own.weights + own.gradients + own.gathered + own.runtime + SENDING_BUCKETS * bucket
    asleep = GPU_RUNTIME + LANDING_BUCKETS * bucket
    return TurnMemory(own.device / GB, asleep / GB, resting / GB, own.optimiser / GB)


def turn_lines(config: RunConfig) -> Iterator[str]:
    """What the plan says of it."""
    if own := turn_memory(config):
        yield (
            f"in turns on a GPU: a rank trains beside {own.asleep:.3g} GB of a sampler asleep, and "
            f"rests with {own.resting:.3g}"
        )
        yield f"({own.parked:.3g} are in main memory then)"


def check_turns(config: RunConfig, machines: MachinesConfig) -> Iterator[str]:
    """What does not fit, a clause with its numbers each, where each fits alone."""
    own, gpu = turn_memory(config), machines.memory_of_gpu
    if own is None or gpu is None:
        return
    limit = USABLE * gpu
    if own.training + own.asleep > limit:
        yield (
            f"trainer: {own.training:.1f} GB a GPU needed, and {own.asleep:.1f} for a sampler "
            f"asleep, of {gpu:g} GB {limit:.1f} can be used"
        )
    for name, (_, sampler) in list_samplers(config).items():
        share = gpu_share(sampler)
        if share * gpu + own.resting > gpu:
            yield (
                f"sampler {name}: vllm.gpu_memory_utilization {share:g} leaves "
                f"{(1 - share) * gpu:.1f} GB of a GPU to a rank at rest, which holds "
                f"{own.resting:.1f}; {max(0, math.floor(100 * (1 - own.resting / gpu))) / 100} fits"
            )
    beside = ranks_per_node(config.trainer, machines)
    if machines.memory_gb is not None and beside * own.parked > USABLE * machines.memory_gb:
        yield (
            f"trainer: {beside * own.parked:.1f} GB of main memory needed by {beside} ranks at "
            f"rest, of {machines.memory_gb:g} GB {USABLE * machines.memory_gb:.1f} can be used"
        )
