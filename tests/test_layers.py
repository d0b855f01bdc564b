"""Layers that recompute or are compiled say the same. Run: pytest tests/test_layers.py"""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rft_ray.adapters import inject_adapters
from rft_ray.config import TrainerConfig
from rft_ray.errors import InputError
from rft_ray.layers import prepare_layers
from rft_ray.loss_head import packed_loss
from rft_ray.packing import ExampleColumns, pack_batch
from rft_ray.training_config import LoraConfig
from rft_ray.types import Example
from tests.tiny_models import tiny_llama

COLUMNS = ExampleColumns.of([Example(list(range(n, 2 * n)), [0] + [1] * (n - 1)) for n in (5, 9)])


def make_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "dropout":
        # GPT-2 is trained with dropout everywhere; here it is not.
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()
    return LlamaForCausalLM(tiny_llama()).eval()


def loss_and_gradients(model: PreTrainedModel, rows: list[list[int]]) -> list[torch.Tensor]:
    batch = pack_batch(rows, COLUMNS, {0: 0.1, 1: 0.2})
    loss = packed_loss(model, batch, "cpu")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss, *torch.autograd.grad(loss, trained)]


def norm_calls(model: PreTrainedModel) -> list[int]:
    """A list that grows with every norm that is computed."""
    calls: list[int] = []
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm) or "RMSNorm" in type(module).__name__:
            module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("family", ["llama", "dropout"])
def test_recomputed_activations_change_nothing(family: str) -> None:
    model = make_model(family)
    expected = loss_and_gradients(model, [[0, 1]])
    calls = norm_calls(model)
    loss_and_gradients(model, [[0, 1]])
    once = len(calls)
    prepare_layers(model, TrainerConfig(activation_checkpointing=True))
    ours = loss_and_gradients(model, [[0, 1]])
    # All norms but the last, which is in no layer, are computed twice.
    assert len(calls) - once == 2 * once - 1
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


def test_layers_with_adapters_are_recomputed_too() -> None:
    adapters = LoraConfig(rank=4)
    plain, model = make_model("llama"), make_model("llama")
    inject_adapters(plain, adapters, seed=1)
    once = norm_calls(plain)
    expected = loss_and_gradients(plain, [[0, 1]])
    # In the order of `build_engine`.
    prepare_layers(model, TrainerConfig(activation_checkpointing=True))
    inject_adapters(model, adapters, seed=1)
    calls = norm_calls(model)
    ours = loss_and_gradients(model, [[0, 1]])
    assert len(calls) == 2 * len(once) - 1
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.engine
@pytest.mark.local
def test_compiled_layers_say_the_same_for_every_width() -> None:
    model = make_model("llama")
    widths = [[[0]], [[0, 1]], [[1], [0]]]
    expected = [loss_and_gradients(model, rows) for rows in widths]
    prepare_layers(model, TrainerConfig(compile=True))
    for rows, theirs in zip(widths, expected, strict=True):
        for mine, other in zip(loss_and_gradients(model, rows), theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_model_without_layers_is_refused() -> None:
    class Odd(PreTrainedModel):
        config_class = LlamaConfig

    for field in ("activation_checkpointing", "compile"):
        with pytest.raises(InputError, match="trainer: Odd has no activation_checkpointing or"):
            prepare_layers(Odd(LlamaConfig()), TrainerConfig(**{field: True}))
    prepare_layers(Odd(LlamaConfig()), TrainerConfig())
