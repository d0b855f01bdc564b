"""How long a training step, a sampler's tokens and a refresh take, from stated rates.

The method is a roofline: arithmetic, memory traffic and messages each take their time at the stated
rate; what overlaps is the longer of the two, what does not is added. Operations are `costs.py`'s,
so a measured MFU means the same here. Left out: attention, which adds a sixth to the arithmetic of
70B in rows of 8192, what overlap does not hide at the edges of a step, stragglers, start-up,
compilation, exports, and disks that are slower than what is written to them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rft_ray.config import SamplerConfig, TrainerConfig
from rft_ray.costs import DecoderShape, token_flops, training_flops
from rft_ray.gpu_facts import Gpu
from rft_ray.machines import MachinesConfig
from rft_ray.memory_plan import (
    GB,
    SamplerMemory,
    ZeroSettings,
    adapter_parameters,
    most_sequences,
    value_bytes,
)
from rft_ray.model_shapes import ModelShape
from rft_ray.packing import plan_step
from rft_ray.training_config import LoraConfig


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one optimiser step, by what they go to."""

    arithmetic: float
    messages: float
    optimiser: float
    micro_batches: int
    """Of each rank."""

    @property
    def seconds(self) -> float:
        """Messages overlap with arithmetic, the optimiser with neither."""
        return max(self.arithmetic, self.messages) + self.optimiser

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {
            "arithmetic": self.arithmetic,
            "messages": self.messages,
            "optimiser": self.optimiser,
        }
        return max(parts, key=parts.__getitem__)


def step_time(
    shape: ModelShape,
    trainer: TrainerConfig,
    machines: MachinesConfig,
    gpu: Gpu,
    examples: int,
    tokens: float,
    lora: LoraConfig | None = None,
) -> StepTime:
    """Of a step over that many examples of that mean length. Beside adapters weights need no
    gradients, which are a third of the arithmetic, and only adapters are sent and updated."""
    groups = trainer.num_workers // trainer.sequence_parallel
    micro_batches, computed = packed(
        examples, round(tokens), groups, trainer.row_tokens, trainer.micro_batch_rows
    )
    computed /= trainer.sequence_parallel
    peak = gpu.tflops * 1e12 * min(1.0, trainer.gpus_per_worker)
    passes = 1.0 + (trainer.activation_checkpointing - (lora is not None)) / 3
    trained = adapter_parameters(shape, lora) if lora else shape.parameters
    flops = passes * training_flops(decoder(shape), computed, 1)
    return StepTime(
        arithmetic=flops / (peak * machines.training_mfu),
        messages=message_seconds(shape, trainer, machines, micro_batches, trained),
        optimiser=optimiser_seconds(trained, trainer, machines, gpu),
        micro_batches=micro_batches,
    )


def decoder(shape: ModelShape) -> DecoderShape:
    """As the formulas know it."""
    return DecoderShape(shape.layers, shape.width)


@lru_cache(maxsize=256)
def packed(
    examples: int, tokens: int, ranks: int, row_tokens: int, rows: int
) -> tuple[int, float]:
    """Micro-batches of a rank, and the token positions it computes, as `packing.py` makes them.

    Lengths are spread evenly from half to one and a half of the mean.
    """
    longest = min(row_tokens, round(1.5 * tokens))
    lengths = np.linspace(max(1, 2 * tokens - longest), longest, examples).round().astype(int)
    step = plan_step(list(range(examples)), lengths, ranks, row_tokens, rows)
    return len(step.micro_batches[0]), float(lengths.sum()) / (step.fill * ranks)


def message_seconds(
    shape: ModelShape,
    trainer: TrainerConfig,
    machines: MachinesConfig,
    micro_batches: int,
    trained: float,
) -> float:
    """What a rank's link needs for a step: in rings, (ranks - 1) / ranks of what is sent.

    ZeRO-3 gathers all weights for each forward and backward pass of each micro-batch, once more
    where activations are recomputed, and scatters the sum of gradients; stage 2 scatters these each
    time and gathers new weights once; 0 and 1 wait with the gradients for the end of the step. With
    hpZ only the first gathering of a step leaves the machine. Of `trained` parameters alone there
    are gradients and, below stage 3, new weights.
    """
    whole, share = shape.parameters * value_bytes(trainer), trained / shape.parameters
    zero, ranks = ZeroSettings.of(trainer), trainer.num_workers
    rate, inside = link_rate(trainer, machines), GB * machines.node_link_gb_s
    gathers = micro_batches * (3 if trainer.activation_checkpointing else 2)
    scattered = share * micro_batches
    far, near = {3: gathers + scattered, 2: scattered + share}.get(zero.stage, 2 * share), 0
    if zero.copy_ranks > 1:
        far, near = 1 + scattered, gathers - 1
    beside = (zero.copy_ranks - 1) / zero.copy_ranks
    return whole * (far * (ranks - 1) / ranks / rate + near * beside / inside)


def link_rate(trainer: TrainerConfig, machines: MachinesConfig) -> float:
    """Bytes a second between neighbours of a ring over all ranks."""
    gpus = trainer.num_workers * trainer.gpus_per_worker
    is_inside = gpus <= max(1, machines.gpus_per_node)
    return GB * (machines.node_link_gb_s if is_inside else machines.link_gb_s)


def optimiser_seconds(
    trained: float, trainer: TrainerConfig, machines: MachinesConfig, gpu: Gpu
) -> float:
    """AdamW reads and writes 30 bytes for each trained parameter, on the device or in main memory.

    Offloaded, gradients come over PCIe and weights go back, 6 bytes; from disks 24 more are read
    and written.
    """
    zero, ranks = ZeroSettings.of(trainer), trainer.num_workers
    own = trained / (ranks if zero.stage else 1)
    if zero.optimiser == "device":
        return 30 * own / (gpu.bandwidth_gb_s * GB)
    beside = min(ranks, max(1, machines.gpus_per_node)) if trainer.gpus_per_worker else ranks
    seconds = 6 * own / machines.pcie_gb_s + 30 * own * beside / machines.memory_bandwidth_gb_s
    if zero.optimiser == "nvme":
        seconds += 24 * own * beside / machines.nvme_gb_s
    return seconds / GB


@dataclass(frozen=True, slots=True)
class SamplingRate:
    """What a replica does."""

    tokens_s: float
    """Tokens decoded in a second."""
    prompt_tokens_s: float
    """Tokens of prompts read in a second, when it does nothing else."""
    sequences: int
    """Decoded together."""
    bound: str


def sampling_rate(
    shape: ModelShape,
    sampler: SamplerConfig,
    memory: SamplerMemory,
    machines: MachinesConfig,
    gpu: Gpu,
    context: float,
) -> SamplingRate:
    """Of a replica on GPUs, with sequences of that mean length while they are decoded.

    A step of decoding reads all weights and the keys and values of all sequences, or computes a
    token of each, whichever takes longer.
    """
    devices = sampler.tensor_parallel_size
    sequences = memory.sequences(context, most_sequences(sampler))
    bandwidth = gpu.bandwidth_gb_s * GB * machines.bandwidth_share
    flops_s = devices * gpu.tflops * 1e12 * machines.sampling_mfu
    reading = (memory.weights + sequences * context * memory.cache_token) / bandwidth
    computing = sequences * token_flops(decoder(shape), context) / flops_s
    return SamplingRate(
        tokens_s=sequences / (max(reading, computing) + machines.engine_step_s),
        prompt_tokens_s=flops_s / token_flops(decoder(shape), context),
        sequences=sequences,
        bound="memory" if reading > computing else "arithmetic",
    )


def refresh_seconds(shape: ModelShape, trainer: TrainerConfig, machines: MachinesConfig) -> float:
    """Of new weights into all samplers: gathered on a rank and sent through a chain, overlapped."""
    whole = shape.parameters * value_bytes(trainer) / GB
    gather = whole * (trainer.num_workers - 1) / trainer.num_workers
    rate = link_rate(trainer, machines) / GB if ZeroSettings.of(trainer).stage == 3 else np.inf
    return float(max(gather / rate, whole / machines.link_gb_s))
