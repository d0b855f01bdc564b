"""Adapters in a model, and the weights it acts by. Run: pytest tests/test_adapters.py"""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from rft_ray.adapters import (
    adapted_layers,
    base_name,
    inject_adapters,
    linear_names,
    merged_weight,
    weight_parts,
)
from rft_ray.quantisation import quantised_loading, whole_form, whole_weight
from rft_ray.training_config import LoraConfig
from tests.tiny_models import tiny_llama

CONFIG = tiny_llama(attention_bias=True, tie_word_embeddings=False)
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def adapted(**fields: object) -> LlamaForCausalLM:
    """A model whose adapters are not the zeros they begin as."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).double()
    inject_adapters(model, LoraConfig(rank=4, **fields), seed=1)
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    return model.double()


def test_every_linear_layer_but_the_output_has_one() -> None:
    assert linear_names(LlamaForCausalLM(CONFIG)) == LINEAR
    model = adapted()
    assert len(adapted_layers(model)) == 2 * len(LINEAR)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    assert len(adapted_layers(adapted(targets=["q_proj", "v_proj"]))) == 4


def test_a_model_with_merged_weights_says_the_same() -> None:
    model, plain = adapted(alpha=6.0), LlamaForCausalLM(CONFIG).double()
    layers = adapted_layers(model)
    state = {
        own: merged_weight(tensor, layers.get(id(tensor)))
        for name, tensor in model.state_dict(keep_vars=True).items()
        if (own := base_name(name))
    }
    plain.load_state_dict(state)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits)
    base = model.state_dict()["model.layers.0.mlp.up_proj.base_layer.weight"]
    assert not torch.equal(base, state["model.layers.0.mlp.up_proj.weight"])


def test_a_sum_in_low_precision_is_rounded_once() -> None:
    model = adapted().bfloat16()
    layer = next(iter(adapted_layers(model).values()))
    weight, down, up = weight_parts(layer.base_layer.weight, layer)
    exact = weight.double() + layer.scaling["default"] * (up.double() @ down.double())
    merged = merged_weight(weight, layer)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.double(), exact, rtol=2**-8, atol=1e-6)
    assert merged_weight(weight, None).data_ptr() == weight.data_ptr()


def test_adapters_are_the_same_on_every_rank() -> None:
    one, other = (adapted_layers(adapted()).values() for _ in range(2))
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine.lora_A["default"].weight, theirs.lora_A["default"].weight)


@pytest.mark.parametrize("target", ["nothing_proj"])
def test_a_layer_that_is_not_there_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=target):
        adapted(targets=[target])


def test_weights_in_4_bits_leave_whole(tmp_path: Path) -> None:
    """The names, shapes and types of a plain model, and what it says, by dequantised weights."""
    torch.manual_seed(0)
    plain = LlamaForCausalLM(CONFIG)
    plain.save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, **quantised_loading(torch.float32, "cpu"))
    inject_adapters(model, LoraConfig(rank=4), seed=1)
    layers = adapted_layers(model)
    assert len(layers) == 2 * len(LINEAR)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    tensors = {
        own: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if (own := base_name(name))
    }
    state = {name: merged_weight(t, layers.get(id(t))) for name, t in tensors.items()}
    forms = {name: (tuple(t.shape), t.dtype) for name, t in plain.state_dict().items()}
    assert {name: whole_form(t) for name, t in tensors.items()} == forms
    assert {name: (tuple(t.shape), t.dtype) for name, t in state.items()} == forms
    plain.load_state_dict(state)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.eval()(ids).logits, rtol=0, atol=1e-4)
    # Most of the weights are held in an eighth of the bytes.
    base = next(iter(layers.values())).base_layer.weight
    assert base.nbytes * 8 == whole_weight(base).nbytes
