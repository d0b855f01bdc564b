"""Sizes and shapes of models without their weights. Run: pytest tests/test_model_shapes.py"""

import json
import shutil
from pathlib import Path

import pytest

from rft_ray.errors import InputError
from rft_ray.model_shapes import LLAMAS, ModelSize, model_shape, model_size, plain_shape
from tests.conftest import BASES


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("x/SmolLM2-135M", 135e6),
        ("x/Qwen3-30B-A3B", 30e9),
        ("x/llama-13b-4bit", 13e9),
    ],
)
def test_a_size_is_read_from_the_name(name: str, parameters: float) -> None:
    assert model_size(name) == ModelSize(int(parameters), "from the name")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("huggyllama/llama-7b", 6_738_415_616),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-chat-hf", 13_015_864_320),
        ("huggyllama/llama-30b", 32_528_943_616),
        ("huggyllama/llama-65b", 65_285_660_672),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
    ],
)
def test_llamas_have_their_published_sizes(name: str, parameters: int) -> None:
    assert model_size(name) == ModelSize(parameters, "as published")
    shape = model_shape(name)
    assert shape is not None and shape.parameters == parameters


def test_a_published_shape_is_what_transformers_makes_of_it() -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    own = LLAMAS["llama-2-70b"]
    config = LlamaConfig(
        hidden_size=own.width, intermediate_size=own.feed_forward, num_hidden_layers=2,
        num_attention_heads=own.heads, num_key_value_heads=own.kv_heads, vocab_size=own.vocabulary,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert sum(sizes.values()) == own.parameters - 78 * own.layer_parameters
    assert max(sizes.values()) == own.largest_layer


@pytest.mark.parametrize("name", ["x/Mixtral-8x7B", "x/phi-2", "x/gpt2", "7b/model", "x/13bit"])
def test_a_name_without_a_size_is_not_guessed(name: str) -> None:
    assert model_size(name) is None and model_shape(name) is None


@pytest.mark.parametrize("base", ["tied", "untied"])
def test_a_folders_weights_and_its_config_agree(base: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASES / base)
    parameters = sum(weight.numel() for weight in model.parameters())
    assert model_size(str(BASES / base)) == ModelSize(parameters, "in its weights")
    shutil.copy(BASES / base / "config.json", tmp_path)
    assert model_size(str(tmp_path)) == ModelSize(parameters, "from config.json")
    shape = model_shape(str(tmp_path))
    assert shape is not None and shape.parameters == parameters


def test_a_folder_of_another_kind_is_not_guessed_and_a_broken_one_refused(tmp_path: Path) -> None:
    config = json.loads((BASES / "tied" / "config.json").read_text())
    for shape in ({**config, "num_local_experts": 8}, {"n_embd": 768}, []):
        (tmp_path / "config.json").write_text(json.dumps(shape))
        assert model_size(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        model_size(str(tmp_path))
    for content in (
        b"",
        b"12",
        b"\xff" * 16,
        (2**40).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
    ):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: not a safetensors file"):
            model_size(str(tmp_path))


def test_a_model_that_is_not_here_has_the_shape_of_a_plain_one_of_its_size() -> None:
    for parameters in (7e9, 13e9, 70e9):
        layers = plain_shape(int(parameters)).layers * plain_shape(int(parameters)).layer_parameters
        assert layers == pytest.approx(parameters, rel=0.1)
    assert model_shape("Qwen/Qwen2.5-7B") == plain_shape(7 * 10**9)
    assert plain_shape(135_000_000).layers > 0 and plain_shape(1).layers == 1
