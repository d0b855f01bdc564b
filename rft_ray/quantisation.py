"""QLoRA (Dettmers et al. 2023): the weights that adapters leave frozen, in 4 bits by bitsandbytes.

Linear layers but the output's are held as NF4 with scales that are quantised too, and computed in
the trainer's type. What leaves the trainer is whole: the 4 bits read back, plus the adapters. Left
out: 8 bits, and ZeRO-3, which would shard packed bytes.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

STATE_SUFFIXES = ("absmax", "quant_map", "quant_state.bitsandbytes__nf4")
"""Ends of the names by which a state dict holds what it takes to read a weight's 4 bits."""


def find_fault() -> str | None:
    """What this machine lacks for weights in 4 bits, in a line."""
    if find_spec("bitsandbytes") is None:
        return "lora.quantised needs the package bitsandbytes, which is not installed"
    return None


def quantised_loading(dtype: "torch.dtype", device: str) -> dict[str, Any]:
    """What `from_pretrained` is told beside the rest; layers are computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": settings, "device_map": {"": device}}


def whole_weight(weight: "Tensor") -> "Tensor":
    """A weight as it is computed with, without gradient."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def whole_form(weight: "Tensor") -> "tuple[tuple[int, ...], torch.dtype]":
    """Shape and type of the same, also while ZeRO-3 has sharded it."""
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return tuple(state.shape), state.dtype
    # While a parameter is sharded, its own shape says 0.
    return tuple(getattr(weight, "ds_shape", weight.shape)), weight.dtype
