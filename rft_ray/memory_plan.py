"""Peak memory of a training rank and of a sampler, by what holds it; arithmetic on shapes alone.

Training state is counted as DeepSpeed's estimators count it: 18 bytes a parameter beside its bf16
weight. Activations and logits are those of transformers' Llama with sdpa attention and its plain
loss, measured operation by operation (`tests/test_memory_plan.py` does so again). Left out: what
`loss_head.py` holds in the place of all logits (a piece of them, and the gradient of the layer in
fp32), which is less for many tokens and may be more for few; adapters, with which a rank holds far
less than is counted here; fragmentation, for which a device is not filled to the brim; and what a
run does once (loading below ZeRO-3 but for the main memory it takes, exports).
"""

from dataclasses import dataclass
from typing import Literal

from rft_ray.config import SamplerConfig, TrainerConfig
from rft_ray.model_shapes import ModelShape

GB = 1e9
GPU_RUNTIME = 2.5 * GB
"""CUDA's context, NCCL's buffers and the workspaces of libraries, a process."""
BUCKET_ELEMENTS = 5e8
"""DeepSpeed's reduce and all-gather buckets."""
LIVE_ELEMENTS = 1e9
"""Parameters that ZeRO-3 keeps gathered, as far as they are used again soon."""
CACHE_GIB_ON_CPU = 4.0
"""vLLM's cache on a CPU where VLLM_CPU_KVCACHE_SPACE says nothing."""
BATCHED_TOKENS = 8192
"""Tokens that vLLM computes at a time unless told."""
MAX_SEQUENCES = 256
MAX_MODEL_LEN = 4096
Place = Literal["device", "cpu", "nvme"]


@dataclass(frozen=True, slots=True)
class ZeroSettings:
    """What DeepSpeed will shard, and what it keeps off the device."""

    stage: int
    optimiser: Place = "device"
    parameters: Place = "device"
    copy_ranks: int = 1
    """Ranks that hold a second copy of the weights together (ZeRO++'s hpZ); 1: there is none."""

    @classmethod
    def of(cls, trainer: TrainerConfig) -> "ZeroSettings":
        """The stage is the trainer's, which agrees with what `deepspeed` states; where things are
        kept `deepspeed` says alone, unchecked, so anything may be there."""
        own = trainer.deepspeed.get("zero_optimization")
        own = own if isinstance(own, dict) else {}
        # bf16 runs with stage 1 where 0 is asked for.
        stage = max(trainer.zero_stage, 1 if trainer.dtype == "bfloat16" else 0)
        parameters = _place(own.get("offload_param")) if stage == 3 else "device"
        ranks = own.get("zero_hpz_partition_size", 1) if stage == 3 else 1
        ranks = ranks if isinstance(ranks, int) and ranks > 0 else 1
        return cls(stage, _place(own.get("offload_optimizer")), parameters, ranks)


def _place(offload: object) -> Place:
    device = offload.get("device") if isinstance(offload, dict) else None
    return device if device in ("cpu", "nvme") else "device"


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Of one rank at its peak, in bytes. `host` and `nvme` are its share of what is offloaded."""

    weights: float
    gradients: float
    optimiser: float
    gathered: float
    """Layers that ZeRO-3 has put together, buckets on their way, and hpZ's second copy."""
    activations: float
    logits: float
    runtime: float
    host: float = 0.0
    nvme: float = 0.0
    loading: float = 0.0
    """Main memory while a model is read: the whole of it below ZeRO-3."""

    @property
    def device(self) -> float:
        """All that is on the rank's device."""
        state = self.weights + self.gradients + self.optimiser + self.gathered
        return state + self.activations + self.logits + self.runtime


def training_memory(
    shape: ModelShape, trainer: TrainerConfig, parameters: int | None = None
) -> TrainingMemory:
    """Of one rank; `parameters` is the model's true number, where the shape is only near it.

    A parameter takes 2 bytes (4 in float32), its gradient 4 as micro-batches are summed in fp32 and
    2 as bf16 makes it, AdamW's moments and the fp32 master copy 12 (8 without ZeRO, which needs no
    copy). Stage 1 shards the last of these, 2 the gradients too, 3 everything.
    """
    count, zero = parameters or shape.parameters, ZeroSettings.of(trainer)
    width, ranks = value_bytes(trainer), trainer.num_workers
    weights = count * width / (ranks if zero.stage == 3 else 1)
    # ZeRO-3 has those in bf16 in its buckets only.
    gradients = count * (6 if width == 2 and zero.stage < 3 else 4)
    gradients /= ranks if zero.stage >= 2 else 1
    optimiser = count * (12 if zero.stage else 8) / (ranks if zero.stage else 1)
    tokens = trainer.row_tokens * trainer.micro_batch_rows
    off, is_sharded = zero.optimiser != "device", zero.stage == 3
    gathered = gathered_bytes(count, zero.stage, width) if ranks > 1 or is_sharded else 0.0
    if zero.copy_ranks > 1:
        gathered += count * width / zero.copy_ranks
    on_host = [gradients if off else 0.0, optimiser if zero.optimiser == "cpu" else 0.0]
    on_host.append(weights if zero.parameters == "cpu" else 0.0)
    return TrainingMemory(
        weights=weights if zero.parameters == "device" else 0.0,
        gradients=0.0 if off else gradients,
        optimiser=0.0 if off else optimiser,
        gathered=gathered,
        activations=activation_bytes(shape, tokens, width, trainer.activation_checkpointing),
        logits=logit_bytes(shape, tokens, width),
        runtime=GPU_RUNTIME if trainer.gpus_per_worker else 0.0,
        host=sum(on_host),
        nvme=optimiser * (zero.optimiser == "nvme") + weights * (zero.parameters == "nvme"),
        loading=0.0 if is_sharded else count * width,
    )


def value_bytes(trainer: TrainerConfig) -> int:
    """Of a weight or an activation."""
    return 2 if trainer.dtype == "bfloat16" else 4


def gathered_bytes(parameters: int, stage: int, width: int) -> float:
    """DeepSpeed's buckets and, with ZeRO-3, the parameters that are whole for a while."""
    bucket = min(parameters, BUCKET_ELEMENTS) * width
    if stage < 3:
        return 2 * bucket if stage else 0.0
    return bucket + min(parameters, LIVE_ELEMENTS) * width


def layer_activation_bytes(shape: ModelShape, width: int) -> float:
    """Kept for the backward pass for each token of one layer.

    bf16: 26 for each unit of the residual stream (norms work on fp32 copies, keys and values are
    repeated for all heads) and 8 for each of the feed-forward layer; fp32: 40 and 16.
    """
    attention = shape.heads * shape.head
    if width == 2:
        return 18 * shape.width + 8 * attention + 8 * shape.feed_forward
    return 24 * shape.width + 16 * attention + 16 * shape.feed_forward


def activation_bytes(shape: ModelShape, tokens: int, width: int, is_recomputed: bool) -> float:
    """Of a micro-batch at its peak: all layers and the gradients of one, or the inputs of all
    layers and one whole layer where they are recomputed."""
    layer = layer_activation_bytes(shape, width)
    gradients = width * (2 * shape.width + 3 * shape.feed_forward)
    kept = shape.layers * width * shape.width + layer if is_recomputed else shape.layers * layer
    return tokens * (kept + gradients)


def logit_bytes(shape: ModelShape, tokens: int, width: int) -> float:
    """Of tokens whose logits are there at a time: logits, log-probabilities and two gradients, the
    latter three in fp32."""
    return tokens * shape.vocabulary * (width + 12)


@dataclass(frozen=True, slots=True)
class SamplerMemory:
    """Of one GPU of a replica, in bytes."""

    weights: float
    activations: float
    runtime: float
    cache_token: float
    """Keys and values of one token."""
    longest: int
    """Tokens of the longest sequence: vLLM refuses to start without room for one."""
    room: float | None
    """For keys and values; None: the device's memory is not known."""

    @property
    def least(self) -> float:
        """What a replica cannot start without."""
        return self.weights + self.activations + self.runtime + self.cache_token * self.longest

    def sequences(self, tokens: float, most: int) -> int:
        """Sequences of that mean length that are decoded together, of the most it may take."""
        if self.room is None:
            return most
        return max(1, min(most, int(self.room / (self.cache_token * tokens))))


def sampler_memory(
    shape: ModelShape, sampler: SamplerConfig, gpu_memory: float | None, parameters: int
) -> SamplerMemory:
    """Of one device; `gpu_memory` in bytes is what a GPU has.

    vLLM fills a GPU to `gpu_memory_utilization` and uses what weights and activations leave.
    """
    own, devices = sampler.vllm, sampler.tensor_parallel_size
    width = 4 if own.get("dtype") in ("float32", "float") else 2
    on_gpu = sampler.gpus_per_replica > 0
    weights = parameters * width / devices
    batched = _number(own, "max_num_batched_tokens", BATCHED_TOKENS)
    activations = batched * width * (4 * shape.width + 3 * shape.feed_forward / devices)
    activations += most_sequences(sampler) * shape.vocabulary * 8
    runtime = GPU_RUNTIME if on_gpu else 0.0
    copies = max(1, devices // shape.kv_heads)
    room = None
    if on_gpu and gpu_memory is not None:
        limit = _number(own, "gpu_memory_utilization", 0.9) * gpu_memory
        room = max(0.0, limit - weights - activations - runtime)
    elif not on_gpu:
        room = float(sampler.env.get("VLLM_CPU_KVCACHE_SPACE") or CACHE_GIB_ON_CPU) * 2**30
    return SamplerMemory(
        weights=weights,
        activations=activations,
        runtime=runtime,
        cache_token=shape.cache_bytes(width) * copies / devices,
        longest=int(_number(own, "max_model_len", MAX_MODEL_LEN)),
        room=room,
    )


def most_sequences(sampler: SamplerConfig) -> int:
    """That vLLM decodes together."""
    return int(_number(sampler.vllm, "max_num_seqs", MAX_SEQUENCES))


def _number(settings: dict[str, object], key: str, default: float) -> float:
    """A setting of vLLM's; they are unchecked, so anything may be there."""
    value = settings.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and value > 0 else default
