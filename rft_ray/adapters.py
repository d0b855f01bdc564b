"""LoRA (Hu et al. 2021) through peft: what is trained is small, what leaves the trainer is whole.

Adapters are injected into the model's linear layers, so it stays the class it was; exports and
refreshes see the base weights by their own names, with W + alpha / rank x B A in their place, made
one tensor at a time. Left out: how base weights are held in 4 bits, which is `quantisation.py`'s.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rft_ray.quantisation import STATE_SUFFIXES, whole_weight
from rft_ray.training_config import LoraConfig

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

NAME = "default"


def inject_adapters(model: nn.Module, lora: LoraConfig, seed: int) -> None:
    """Freeze a model and give its linear layers adapters, the same on every rank.

    Which layers are in eval mode stays: those that recompute their activations are not.
    """
    import peft

    torch.manual_seed(seed)
    # The head stays as it is: it may be the embeddings' own weight.
    targets = lora.targets or linear_names(model)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, lora_dropout=0.0
    )
    peft.inject_adapter_in_model(config, model, adapter_name=NAME)


def linear_names(model: nn.Module) -> list[str]:
    """Last parts of the names of all linear layers but the output's."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
    )


def adapted_layers(model: nn.Module) -> "dict[int, LoraLayer]":
    """The layers with an adapter, by the id of their base weight."""
    return {
        id(module.base_layer.weight): module
        for module in model.modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    }


def weight_parts(weight: Tensor, layer: "LoraLayer | None") -> list[Tensor]:
    """What must be gathered to make a weight whole."""
    if layer is None:
        return [weight]
    return [weight, layer.lora_A[NAME].weight, layer.lora_B[NAME].weight]


@torch.no_grad()
def merged_weight(weight: Tensor, layer: "LoraLayer | None") -> Tensor:
    """A weight as the model acts by it; the sum is made in fp32 or wider."""
    whole = whole_weight(weight)
    if layer is None:
        return whole
    wide = torch.promote_types(whole.dtype, torch.float32)
    down, up = (part.detach().to(wide) for part in weight_parts(weight, layer)[1:])
    return (whole.to(wide) + layer.scaling[NAME] * (up @ down)).to(whole.dtype)


def base_name(name: str) -> str | None:
    """What a tensor is called without adapters; None for those that are parts of others."""
    if ".lora_" in name or name.endswith(STATE_SUFFIXES):
        return None
    return name.replace(".base_layer.", ".")
