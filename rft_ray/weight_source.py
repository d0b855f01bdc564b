"""The weights being trained, in buckets on rank 0: what a refresh sends.

All ranks iterate together, since under ZeRO-3 a parameter exists whole only while it is gathered;
at any time at most one bucket is gathered, and rank 0 holds two more as bytes, one of them on its
way. Names, order and types are those of an exported checkpoint. Left out: sending (`refresh.py`),
and changing the type on the way: weights travel as they are trained.
"""

from collections.abc import Iterator

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from rft_ray.adapters import adapted_layers, merged_weight, weight_parts
from rft_ray.buckets import TensorSpec, plan_buckets
from rft_ray.export import unique_tensors
from rft_ray.quantisation import whole_form
from rft_ray.weight_group import bucket_bytes, pack


class WeightSource:
    """A DeepSpeed engine's weights as a sequence of buckets, again each time it is iterated.

    Invariant: every rank iterates to the end, whatever becomes of the buckets.
    """

    def __init__(self, engine: DeepSpeedEngine, cap_bytes: int) -> None:
        self._engine = engine
        self._tensors = unique_tensors(engine)
        self._layers = adapted_layers(engine.module)
        specs = [tensor_spec(name, tensor) for name, tensor in self._tensors.items()]
        self.plan = plan_buckets(specs, cap_bytes)
        self.buffers: list[Tensor] = []
        """The two that rank 0 packs into, made when first needed unless they are given."""

    def __iter__(self) -> Iterator[Tensor | None]:
        """Each bucket of the plan: on rank 0 uint8 (its bytes,), elsewhere None.

        A buffer is written again two buckets later.
        """
        is_sender = self._engine.global_rank == 0
        if is_sender and not self.buffers:
            self.buffers = self._make_buffers()
        for number, bucket in enumerate(self.plan):
            flat = None
            if is_sender:
                flat = self.buffers[number % 2][: bucket_bytes(bucket)]
            self._gather(bucket, flat)
            yield flat

    def _make_buffers(self) -> list[Tensor]:
        size = max(map(bucket_bytes, self.plan))
        device = self._engine.device
        return [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)]

    def _gather(self, bucket: list[TensorSpec], flat: Tensor | None) -> None:
        tensors = [self._tensors[spec.name] for spec in bucket]
        layers = [self._layers.get(id(tensor)) for tensor in tensors]
        parts = (weight_parts(*pair) for pair in zip(tensors, layers, strict=True))
        parameters = [p for own in parts for p in own if isinstance(p, torch.nn.Parameter)]
        is_sharded = self._engine.zero_optimization_partition_weights()
        with deepspeed.zero.GatheredParameters(parameters, enabled=is_sharded):
            if flat is not None:
                pack(map(merged_weight, tensors, layers), flat)


def tensor_spec(name: str, tensor: Tensor) -> TensorSpec:
    """What a tensor is when it is whole."""
    shape, dtype = whole_form(tensor)
    return TensorSpec(name, shape, str(dtype).removeprefix("torch."))
