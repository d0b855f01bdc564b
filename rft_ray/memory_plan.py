"""Peak memory of a training rank and of a sampler, by what holds it; arithmetic on shapes alone.

Training state is counted as DeepSpeed's estimators count it: 18 bytes a parameter beside its bf16
weight. Activations are those of transformers' Llama with sdpa attention and the loss head's pieces
of logits are `loss_head.py`'s, measured operation by operation (`tests/test_memory_plan.py` does so
again). With adapters only they have gradients and optimiser states. Left out: fragmentation, for
which a device is not filled to the brim, models that change their logits after the last layer, and
what a run does once (loading below ZeRO-3 but for the main memory it takes, exports).
"""

import math
from dataclasses import dataclass
from typing import Literal

from rft_ray.config import SamplerConfig, TrainerConfig
from rft_ray.model_shapes import ModelShape
from rft_ray.training_config import LOGIT_BYTES, LoraConfig

GB = 1e9
GPU_RUNTIME = 2.5 * GB
"""CUDA's context, NCCL's buffers and the workspaces of libraries, a process."""
BUCKET_ELEMENTS = 5e8
"""DeepSpeed's bucket of gradients, unless told."""
LIVE_ELEMENTS = 1e9
"""Parameters that ZeRO-3 keeps gathered, as far as they are used again soon, unless told."""
SUB_GROUP_ELEMENTS = 1e9
"""Parameters that ZeRO-3 updates at a time."""
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
    bucket: float = BUCKET_ELEMENTS
    """Gradients that are reduced at a time, in elements; twice, where that overlaps."""
    live: float = LIVE_ELEMENTS

    @classmethod
    def of(cls, trainer: TrainerConfig) -> "ZeroSettings":
        """The stage is the trainer's, which agrees with what `deepspeed` states; where things are
        kept `deepspeed` says alone, unchecked, so anything may be there."""
        own = trainer.deepspeed.get("zero_optimization")
        own = own if isinstance(own, dict) else {}
        # bf16 runs with stage 1 where 0 is asked for.
        stage = max(trainer.zero_stage, 1 if trainer.dtype == "bfloat16" else 0)
        ranks = own.get("zero_hpz_partition_size", 1) if stage == 3 else 1
        buckets = 2 if stage < 3 and own.get("overlap_comm") is True else 1
        return cls(
            stage,
            optimiser=_place(own.get("offload_optimizer")),
            parameters=_place(own.get("offload_param")) if stage == 3 else "device",
            copy_ranks=ranks if isinstance(ranks, int) and ranks > 0 else 1,
            bucket=buckets * _number(own, "reduce_bucket_size", BUCKET_ELEMENTS),
            live=_number(own, "stage3_max_live_parameters", LIVE_ELEMENTS),
        )


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
    """What the last layer and the loss take beyond the activations: there is a moment for each."""
    runtime: float
    update: float = 0.0
    """What the copy of the gradients that a step updates from takes beyond both: they are gone."""
    host: float = 0.0
    nvme: float = 0.0
    loading: float = 0.0
    """Main memory while a model is read: the whole of it below ZeRO-3."""

    @property
    def device(self) -> float:
        """All that is on the rank's device."""
        state = self.weights + self.gradients + self.optimiser + self.gathered
        return state + self.activations + self.logits + self.update + self.runtime


def training_memory(
    shape: ModelShape,
    trainer: TrainerConfig,
    parameters: int | None = None,
    lora: LoraConfig | None = None,
) -> TrainingMemory:
    """Of one rank; `parameters` is the model's true number, where the shape is only near it.

    A trained parameter takes 2 bytes (4 in float32), its gradient 4 as micro-batches are summed in
    fp32 and 2 as bf16 makes it, AdamW's moments and the fp32 master copy 12 (8 without ZeRO, which
    needs no copy). Stage 1 shards the last of these, 2 the gradients too, 3 everything. With
    adapters the model's own parameters are weights only.
    """
    count, zero = parameters or shape.parameters, ZeroSettings.of(trainer)
    trained = adapter_parameters(shape, lora) if lora else count
    width, ranks = value_bytes(trainer), trainer.num_workers
    own = count + trained if lora else count
    weights = own * width / (ranks if zero.stage == 3 else 1)
    # ZeRO-3 has those in bf16 in its buckets only.
    gradients = trained * (6 if width == 2 and zero.stage < 3 else 4)
    gradients /= ranks if zero.stage >= 2 else 1
    optimiser = trained * (12 if zero.stage else 8) / (ranks if zero.stage else 1)
    # Stage 1 has all gradients where they are made, wherever the optimiser is.
    off = zero.optimiser != "device" and zero.stage >= 2
    kept, backward = activation_bytes(shape, trainer)
    logits = max(0.0, logit_bytes(shape, trainer, is_trained=lora is None) - backward)
    copied = 0.0 if off else copied_bytes(zero, trained, ranks)
    return TrainingMemory(
        weights=weights if zero.parameters == "device" else 0.0,
        gradients=0.0 if off else gradients,
        optimiser=0.0 if zero.optimiser != "device" else optimiser,
        gathered=gathered_bytes(zero, trainer, count, trained),
        activations=kept + backward,
        logits=logits,
        runtime=GPU_RUNTIME if trainer.gpus_per_worker else 0.0,
        update=max(0.0, copied - kept - backward - logits),
        host=_host_bytes(zero, weights, gradients if off else 0.0, optimiser),
        nvme=optimiser * (zero.optimiser == "nvme") + weights * (zero.parameters == "nvme"),
        loading=0.0 if zero.stage == 3 else count * width,
    )


def _host_bytes(zero: ZeroSettings, weights: float, gradients: float, optimiser: float) -> float:
    """A rank's share of the main memory that offloading takes."""
    held = gradients
    if zero.optimiser == "cpu":
        held += optimiser
    if zero.parameters == "cpu":
        held += weights
    return held


def micro_batch_tokens(trainer: TrainerConfig) -> int:
    """Positions of a full micro-batch that one rank computes."""
    return math.ceil(trainer.row_tokens * trainer.micro_batch_rows / trainer.sequence_parallel)


def value_bytes(trainer: TrainerConfig) -> int:
    """Of a weight or an activation."""
    return 2 if trainer.dtype == "bfloat16" else 4


def adapter_parameters(shape: ModelShape, lora: LoraConfig) -> int:
    """Of low-rank adapters: rank x (inputs + outputs) for each layer that gets one."""
    attention, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    sides = {
        "q_proj": shape.width + attention,
        "k_proj": shape.width + keys,
        "v_proj": shape.width + keys,
        "o_proj": attention + shape.width,
        "gate_proj": shape.width + shape.feed_forward,
        "up_proj": shape.width + shape.feed_forward,
        "down_proj": shape.feed_forward + shape.width,
    }
    chosen = lora.targets or sides
    return shape.layers * lora.rank * sum(sides.get(name, 0) for name in chosen)


def gathered_bytes(zero: ZeroSettings, trainer: TrainerConfig, count: int, trained: int) -> float:
    """DeepSpeed's bucket, the parameters that ZeRO-3 has whole for a while, and hpZ's copy.

    On a GPU the bucket is there in full, however small the model; a CPU's system gives only what is
    written to.
    """
    width = value_bytes(trainer)
    if not zero.stage:
        return 0.0
    bucket = zero.bucket if trainer.gpus_per_worker else min(trained, zero.bucket)
    # Stage 1 reduces the fp32 sums.
    held = bucket * (4 if zero.stage == 1 else width)
    if zero.stage == 3:
        held += min(count, zero.live) * width
    return held + (count * width / zero.copy_ranks if zero.copy_ranks > 1 else 0.0)


def copied_bytes(zero: ZeroSettings, trained: float, ranks: int) -> float:
    """Gradients in one piece, in fp32: a bucket to be summed over ranks without ZeRO, else what the
    rank updates, which ZeRO-3 goes through in sub-groups."""
    if not zero.stage:
        return 4 * min(trained, zero.bucket)
    own = trained / ranks
    return 4 * (min(own, SUB_GROUP_ELEMENTS) if zero.stage == 3 else own)


def layer_activation_bytes(shape: ModelShape, width: int) -> float:
    """Kept for the backward pass for each token of one layer.

    bf16: 26 for each unit of the residual stream (norms work on fp32 copies, keys and values are
    repeated for all heads) and 8 for each of the feed-forward layer; fp32: 40 and 16.
    """
    attention = shape.heads * shape.head
    if width == 2:
        return 18 * shape.width + 8 * attention + 8 * shape.feed_forward
    return 24 * shape.width + 16 * attention + 16 * shape.feed_forward


def activation_bytes(shape: ModelShape, trainer: TrainerConfig) -> tuple[float, float]:
    """Of a micro-batch: what is kept from the forward pass, and what its backward pass adds at its
    peak. That is all layers and the gradients of one, or the inputs of all layers and one whole
    layer where they are recomputed.

    A layer's attention keeps the mask that tells the examples of a row apart, a value for each pair
    of a row's tokens.
    """
    width, tokens = value_bytes(trainer), micro_batch_tokens(trainer)
    layer = layer_activation_bytes(shape, width) + width * trainer.row_tokens
    gradients = width * (2 * shape.width + 3 * shape.feed_forward)
    if trainer.activation_checkpointing:
        return tokens * shape.layers * width * shape.width, tokens * (layer + gradients)
    return tokens * shape.layers * layer, tokens * gradients


def logit_bytes(shape: ModelShape, trainer: TrainerConfig, is_trained: bool) -> float:
    """Of the last layer and the loss: a piece of the logits and what it becomes, the hidden states
    with their gradients, and the layer's own gradient, summed in fp32."""
    width, tokens = value_bytes(trainer), micro_batch_tokens(trainer)
    most = LOGIT_BYTES * (4 if trainer.gpus_per_worker else 1)
    piece, states = min(most, tokens * shape.vocabulary * 4), 2 * tokens * shape.width * width
    if not is_trained:
        return states + 2 * piece
    own = shape.embedding_parameters
    # In bf16 each piece's share is a matrix of its own, made from a narrow copy of the piece.
    return states + max(2 * piece + 4 * own, (1.5 * piece + 6 * own) if width == 2 else 0.0)


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
        limit = gpu_share(sampler) * gpu_memory
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


def gpu_share(sampler: SamplerConfig) -> float:
    """The share of a GPU that vLLM fills."""
    return _number(sampler.vllm, "gpu_memory_utilization", 0.9)


def _number(settings: dict[str, object], key: str, default: float) -> float:
    """A setting of vLLM's; they are unchecked, so anything may be there."""
    value = settings.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and value > 0 else default
