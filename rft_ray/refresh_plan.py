"""The plan of one weight refresh, on paper: which bytes of the trainer go where in the samplers.

Made from the shapes of a Llama-like Hugging Face model alone, so that a refresh of 70 billion
parameters over 64 training ranks can be checked on a laptop: what each bucket holds, and which
slice of which tensor each tensor-parallel worker keeps (`sampler_layout.py`). What that costs is
`refresh_costs.py`'s. Left out: moving anything.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rft_ray.buckets import TensorSpec, bytes_per_element, plan_buckets
from rft_ray.sampler_layout import SamplerParameter, place_tensors

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rft_ray.config import RunConfig

GB = 1e9
DEFAULT_CAP_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Participants:
    """Who takes part in a refresh."""

    trainer_ranks: int = 64
    """ZeRO-3 ranks: each holds an equal part of every tensor."""
    replicas: int = 1
    """Sampler replicas, each with the whole model."""
    tensor_parallel: int = 8
    """Workers of one replica, each with its slices of the model."""

    @property
    def workers(self) -> int:
        """Sampler workers in all."""
        return self.replicas * self.tensor_parallel


@dataclass(frozen=True, slots=True)
class LinkRates:
    """What one process sends or receives, each way at once; as measured, not as sold.

    The defaults are 80 % of a 200 Gb/s port for each GPU, and the 4 MiB in which a broadcast
    passes on what it receives.
    """

    trainer_gb_s: float = 20.0
    """Among the trainer's ranks, 10^9 bytes a second."""
    sampler_gb_s: float = 20.0
    """From the trainer to the sampler's workers and among them."""
    chunk_bytes: int = 2**22


@dataclass(frozen=True)
class RefreshPlan:
    """What one refresh moves; tensors in the model's order, parameters of all workers of a replica.

    Invariant: the buckets hold every tensor once, in order.
    """

    tensors: list[TensorSpec]
    buckets: list[list[TensorSpec]]
    cap_bytes: int
    parameters: list[SamplerParameter]
    participants: Participants
    rates: LinkRates = field(default_factory=LinkRates)

    @cached_property
    def num_bytes(self) -> int:
        """Of the model."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @cached_property
    def bucket_bytes(self) -> list[int]:
        """Of each bucket."""
        return [sum(tensor.num_bytes for tensor in bucket) for bucket in self.buckets]

    @property
    def oversized(self) -> list[TensorSpec]:
        """Tensors larger than the cap, which travel alone."""
        return [tensor for tensor in self.tensors if tensor.num_bytes > self.cap_bytes]

    @cached_property
    def partition_bytes(self) -> int:
        """What each training rank holds of the model, padding included."""
        return sum(partition_bytes(t, self.participants.trainer_ranks) for t in self.tensors)

    @cached_property
    def bucket_of(self) -> dict[str, int]:
        """Number of the bucket of each tensor."""
        return {t.name: n for n, bucket in enumerate(self.buckets) for t in bucket}

    def worker_bytes(self, rank: int) -> int:
        """What the worker of this tensor-parallel rank keeps of the model."""
        return sum(p.received_bytes for p in self.parameters if p.rank == rank)

    @cached_property
    def spread(self) -> list[str]:
        """Names of the sampler's parameters whose slices come in more than one bucket."""
        first = (p for p in self.parameters if p.rank == 0)
        return [p.spec.name for p in first if len({self.bucket_of[s.source] for s in p.slices}) > 1]


def plan_refresh(
    config: "PretrainedConfig",
    participants: Participants,
    cap_bytes: int = DEFAULT_CAP_BYTES,
    rates: LinkRates | None = None,
    dtype: str = "bfloat16",
) -> RefreshPlan:
    """The refresh of a model of this shape.

    Raises InputError where the model is not Llama-like or cannot be cut for that many workers.
    """
    tensors = describe_tensors(config, dtype)
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return RefreshPlan(
        tensors=tensors,
        buckets=plan_buckets(tensors, cap_bytes),
        cap_bytes=cap_bytes,
        parameters=place_tensors(tensors, kv_heads, participants.tensor_parallel),
        participants=participants,
        rates=rates or LinkRates(),
    )


def refresh_of_run(config: "RunConfig") -> RefreshPlan | None:
    """The refresh of an online run's config; None where its target's folder is not here."""
    from transformers import AutoConfig

    if not Path(config.target.model, "config.json").is_file():
        return None
    own = config.own_policy
    sampler = own.sampler if own else config.target.sampler
    participants = Participants(
        trainer_ranks=config.trainer.num_workers,
        replicas=sampler.num_replicas,
        tensor_parallel=sampler.tensor_parallel_size,
    )
    shape = AutoConfig.from_pretrained(config.target.model, local_files_only=True)
    cap_bytes, dtype = config.online.bucket_mb * 2**20, config.trainer.dtype
    return plan_refresh(shape, participants, cap_bytes, dtype=dtype)


def describe_tensors(config: "PretrainedConfig", dtype: str = "bfloat16") -> list[TensorSpec]:
    """The parameters of a Hugging Face model in its order, tied ones once; no weights are made."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return [
        TensorSpec(name, tuple(weight.shape), dtype) for name, weight in model.named_parameters()
    ]


def partition(numel: int, ranks: int) -> list[tuple[int, int]]:
    """Start and end of the elements that each ZeRO-3 rank holds of a flat tensor.

    The tensor is padded until it divides, so the last ranks may hold less, or nothing.

    (10, 4) -> [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    size = math.ceil(numel / ranks)
    return [(min(r * size, numel), min((r + 1) * size, numel)) for r in range(ranks)]


def partition_bytes(tensor: TensorSpec, ranks: int) -> int:
    """What one ZeRO-3 rank stores and sends of a tensor, padding included."""
    return math.ceil(math.prod(tensor.shape) / ranks) * bytes_per_element(tensor.dtype)
