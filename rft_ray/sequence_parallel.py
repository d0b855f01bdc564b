"""Ulysses (Jacobs et al. 2023): ranks that share every packed row, each a piece of its width.

For attention alone they trade pieces for heads, by DeepSpeed's exchange; the rest of a model takes
tokens one by one, and the loss is a sum over them. DeepSpeed's own registration with transformers
drops every mask, and packed samples would see each other; so it is not used, and the block-diagonal
mask is made here, from the position ids of the whole row. Left out: sliding windows, and more ranks
than key-value heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rft_ray.errors import InputError

NAME = "ulysses"


def share_rows(model: PreTrainedModel, ranks: int, rows: int) -> None:
    """From here on a model sees `rows` rows at a time, a piece of them on each of `ranks` ranks.

    Those are ranks 0 to `ranks` - 1, and so on. Called on all ranks alike, after DeepSpeed has
    started. Raises InputError where the model's attention cannot be shared.
    """
    shape = model.config.get_text_config()
    _check_attention(shape, ranks)
    group, _ = torch.distributed.new_subgroups(ranks)
    used = model.config._attn_implementation
    exchange = UlyssesSPAttentionHF(
        attn=packed_attention if used == "sdpa" else ALL_ATTENTION_FUNCTIONS[used],
        batch_size=rows,
        attn_head_count=shape.num_attention_heads,
        attn_head_size=getattr(shape, "head_dim", None)
        or shape.hidden_size // shape.num_attention_heads,
        kv_head_count=shape.num_key_value_heads,
        num_hidden_layers=shape.num_hidden_layers,
        process_group=group,
        seq_length_is_variable=True,
    )
    # Transformers makes no masks for an attention that it does not know.
    ALL_ATTENTION_FUNCTIONS.register(NAME, exchange)
    model.set_attn_implementation(NAME)


def _check_attention(shape: Any, ranks: int) -> None:
    if shape.num_key_value_heads % ranks:
        raise InputError(
            f"trainer.sequence_parallel ({ranks}) does not divide the model's "
            f"{shape.num_key_value_heads} key-value heads"
        )
    if getattr(shape, "sliding_window", None):
        raise InputError("trainer.sequence_parallel: the model's attention has a sliding window")


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    **settings: Any,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention within each sample; tensors are (rows, heads, width, size).

    `position_ids`, (rows, width), are 0 where a sample begins, and on padding.
    """
    sample = (position_ids == 0).cumsum(dim=-1)
    mask = (sample[:, None, :, None] == sample[:, None, None, :]).tril()
    return sdpa_attention_forward(module, query, key, value, mask, **settings)


@contextmanager
def whole_rows(model: PreTrainedModel) -> Iterator[None]:
    """While the block runs, every rank sees rows of its own, whole."""
    is_shared = model.config._attn_implementation == NAME
    if is_shared:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if is_shared:
            model.set_attn_implementation(NAME)
