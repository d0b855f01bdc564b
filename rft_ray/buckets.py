"""Which tensors travel together when weights go over the network: a plan, computed before a byte.

Pure arithmetic on names, shapes and types, so that a plan for a model of any size can be made and
checked without its weights. Left out: cutting tensors (one larger than the cap travels alone) and
moving anything, which `weight_source.py` and `weights.py` do.
"""

import math
import re
from dataclasses import dataclass

SPECIAL_BYTES = {"bool": 1}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor without its data; `dtype` is torch's name for it, such as `bfloat16`."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Bytes of its data, packed; ValueError where the type is unknown."""
        return math.prod(self.shape) * bytes_per_element(self.dtype)


def bytes_per_element(dtype: str) -> int:
    """4 for `float32`, 1 for `float8_e4m3fn`, and so on: the bits stand in torch's name."""
    if dtype in SPECIAL_BYTES:
        return SPECIAL_BYTES[dtype]
    found = re.match(r"(?:float|bfloat|u?int|complex)(8|16|32|64|128)(?:_|$)", dtype)
    if not found:
        raise ValueError(f"unknown tensor type {dtype!r}")
    return int(found[1]) // 8


def plan_buckets(tensors: list[TensorSpec], cap_bytes: int) -> list[list[TensorSpec]]:
    """The tensors, in their order, in buckets of at most `cap_bytes`, or of one larger tensor."""
    if cap_bytes < 1:
        raise ValueError(f"cap_bytes must be at least 1, not {cap_bytes}")
    buckets: list[list[TensorSpec]] = []
    size = 0
    for tensor in tensors:
        size += tensor.num_bytes
        if not buckets or size > cap_bytes:
            buckets.append([])
            size = tensor.num_bytes
        buckets[-1].append(tensor)
    return buckets
