"""Which parameters AdamW's weight decay reaches, and which a recipe leaves alone.

Left out: rates by layer, and any choice by a parameter's name beyond its being a bias.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from rft_ray.training_config import RecipeConfig


def parameter_groups(model: nn.Module, recipe: RecipeConfig) -> list[dict[str, Any]]:
    """Groups for an optimiser, the decayed first; frozen parameters and empty groups are left out.

    A parameter that is used twice (tied embeddings) is in one group, as what its first use is.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = _kind(name, parameter, embeddings)
            (spared if kind in recipe.no_decay else decayed).append(parameter)
    groups = ((decayed, recipe.weight_decay), (spared, 0.0))
    return [{"params": own, "weight_decay": decay} for own, decay in groups if own]


def _kind(name: str, parameter: nn.Parameter, embeddings: Iterable[int]) -> str:
    if id(parameter) in embeddings:
        return "embeddings"
    if name.endswith("bias"):
        return "biases"
    # Under ZeRO-3 a parameter's own shape is that of nothing; vectors that are no bias are scales.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return "norms" if len(shape) == 1 else "matrices"
