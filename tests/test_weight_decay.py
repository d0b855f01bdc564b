"""Which parameters decay. Run: pytest tests/test_weight_decay.py"""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from rft_ray.config import RecipeConfig
from rft_ray.weight_decay import parameter_groups
from tests.tiny_models import tiny_llama

LLAMA = tiny_llama(num_hidden_layers=1, attention_bias=True, tie_word_embeddings=False)


def spared_names(model, no_decay: list[str]) -> set[str]:
    """Names without decay; every trainable parameter must be in one group."""
    recipe = RecipeConfig(weight_decay=0.1, no_decay=no_decay)
    decay = {
        id(parameter): group["weight_decay"]
        for group in parameter_groups(model, recipe)
        for parameter in group["params"]
    }
    named = dict(model.named_parameters())
    assert len(decay) == len(named)
    assert set(decay.values()) <= {0.0, 0.1}
    return {name for name, parameter in named.items() if decay[id(parameter)] == 0.0}


@pytest.mark.parametrize(
    ("no_decay", "endings"),
    [
        ([], ()),
        (["norms"], ("norm.weight", "layernorm.weight")),
        (["biases"], ("bias",)),
        (["embeddings"], ("embed_tokens.weight",)),
        (["norms", "biases"], ("norm.weight", "layernorm.weight", "bias")),
    ],
)
def test_what_is_named_is_spared_and_nothing_else(no_decay, endings) -> None:
    model = LlamaForCausalLM(LLAMA)
    named = {name for name, _ in model.named_parameters()}
    assert spared_names(model, no_decay) == {name for name in named if name.endswith(endings)}


def test_norms_have_biases_and_positions_are_embeddings() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4))
    assert "transformer.ln_f.bias" in spared_names(model, ["biases"])
    assert "transformer.ln_f.weight" in spared_names(model, ["norms"])
    embeddings = {"transformer.wte.weight", "transformer.wpe.weight"}
    assert spared_names(model, ["embeddings"]) == embeddings


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = LlamaForCausalLM(LLAMA).requires_grad_(False)
    assert parameter_groups(model, RecipeConfig()) == []
    model.lm_head.weight.requires_grad_()
    (group,) = parameter_groups(model, RecipeConfig(weight_decay=0.1))
    assert group["params"] == [model.lm_head.weight] and group["weight_decay"] == 0.1
