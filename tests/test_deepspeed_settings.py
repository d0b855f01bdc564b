"""A user's DeepSpeed JSON beside the rest of a config.

Run: pytest tests/test_deepspeed_settings.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.deepspeed_settings import check_paths, check_recipe, check_zero, deepspeed_config
from rft_ray.errors import InputError

# What a configuration for other trainers looks like.
USUAL = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "nvme", "nvme_path": "/scratch", "pin_memory": True},
        "offload_param": {"device": "cpu"},
        "stage3_max_live_parameters": 1e9,
        "reduce_bucket_size": "auto",
    },
    "wall_clock_breakdown": True,
}


def refusal(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainerConfig(**fields)
    (error,) = caught.value.errors()
    assert "\n" not in error["msg"]
    return error["msg"]


def test_a_usual_configuration_reaches_deepspeed_as_it_is() -> None:
    trainer = TrainerConfig(deepspeed=USUAL, dtype="bfloat16", micro_batch_rows=4)
    assert trainer.deepspeed == USUAL
    assert trainer.zero_stage == 3
    settings = deepspeed_config(RecipeConfig(max_grad_norm=0.5), trainer)
    zero = dict(USUAL["zero_optimization"])
    del zero["reduce_bucket_size"]
    assert settings["zero_optimization"] == zero
    assert settings["optimizer"] == {"type": "AdamW", "params": {}}
    assert settings["wall_clock_breakdown"] is True
    assert settings["bf16"] == {"enabled": True}
    assert settings["gradient_clipping"] == 0.5
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert "train_batch_size" not in settings


def test_without_any_the_sections_decide() -> None:
    settings = deepspeed_config(RecipeConfig(), TrainerConfig(dtype="bfloat16", zero_stage=0))
    # Sums of bf16 gradients are kept in fp32, which DeepSpeed's stage 0 does not do.
    assert settings["zero_optimization"] == {"stage": 1}
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert deepspeed_config(RecipeConfig(), TrainerConfig(zero_stage=0))["gradient_clipping"] == 0.0


def test_a_file_is_read_once_and_is_part_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(USUAL))
    trainer = TrainerConfig(deepspeed=str(path))
    path.unlink()
    assert trainer == TrainerConfig(deepspeed=USUAL)
    assert f"{path}: No such file" in refusal(deepspeed=str(path))
    path.write_text("{")
    assert f"{path}: not JSON" in refusal(deepspeed=str(path))


def test_what_it_states_need_not_be_stated_again() -> None:
    stated = {"bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 2}
    trainer = TrainerConfig(deepspeed={**stated, "activation_checkpointing": {}})
    assert (trainer.dtype, trainer.micro_batch_rows) == ("bfloat16", 2)
    assert trainer.activation_checkpointing and trainer.zero_stage == 2


@pytest.mark.parametrize(
    ("deepspeed", "fields", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, {"zero_stage": 1}, "zero_stage (1) differs from wh"),
        ({"bf16": {"enabled": True}}, {"dtype": "float32"}, "dtype (float32) differs from what d"),
        ({"train_micro_batch_size_per_gpu": 2}, {"micro_batch_rows": 4}, "micro_batch_rows (4) di"),
        ({"fp16": {"enabled": True}}, {}, "deepspeed.fp16: gradients would underflow"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "deepspeed.scheduler: the recipe's schedule"),
        ({"gradient_accumulation_steps": 8}, {}, "gradient_accumulation_steps: a step has as man"),
        ({"zero_optimization": {"stage": 3}}, {"compile": True}, "compile is not for zero_stage 3"),
    ],
)
def test_a_contradiction_is_one_clear_line(deepspeed, fields, message) -> None:
    assert message in refusal(deepspeed=deepspeed, **fields)


@pytest.mark.parametrize(
    ("deepspeed", "fields", "message"),
    [
        ({"zero_optimization": {"offload_param": {}}}, {}, "offload_param needs zero_stage 3, no"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, {}, "weights needs zero_stage 3"),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, {}, "size needs zero_stage 3, not"),
        (
            {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}},
            {"num_workers": 12},
            "zero_hpz_partition_size (8) does not divide num_workers (12)",
        ),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
            {},
            "zero_quantized_gradients needs GPUs",
        ),
        (
            {"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}},
            {},
            "offload_optimizer needs zero_stage 1 or more, not 0",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            {},
            "offload_optimizer: device nvme needs zero_stage 3, not 2",
        ),
    ],
)
def test_what_zero_needs_is_there_before_a_run(deepspeed, fields, message) -> None:
    with pytest.raises(ValueError) as caught:
        check_zero(TrainerConfig(deepspeed=deepspeed, **fields))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "zero",
    [
        {"offload_param": {"device": "none"}, "offload_optimizer": {"device": "none"}},
        {"zero_hpz_partition_size": 1, "zero_quantized_weights": False},
    ],
)
def test_what_is_switched_off_contradicts_nothing(zero) -> None:
    check_zero(TrainerConfig(zero_stage=0, deepspeed={"zero_optimization": zero}))


@pytest.mark.parametrize(
    ("deepspeed", "message"),
    [
        ({"train_batch_size": 64}, "rft.batch_size (128) differs from trainer.deepspeed (64)"),
        ({"gradient_clipping": 0.5}, "rft.max_grad_norm (1.0) differs from trainer.deepspeed (0."),
        ({"optimizer": {"params": {"lr": 1e-4}}}, "rft.learning_rate (2e-05) differs from"),
        ({"optimizer": {"params": {"betas": [0.9, 0.95]}}}, "rft.adam_beta2 (0.999) differs from"),
    ],
)
def test_a_recipe_and_deepspeed_say_the_same(deepspeed, message) -> None:
    trainer = TrainerConfig(deepspeed=deepspeed)
    with pytest.raises(ValueError) as caught:
        check_recipe(trainer, RecipeConfig(), "rft")
    assert message in str(caught.value)
    check_recipe(TrainerConfig(deepspeed=USUAL), RecipeConfig(), "rft")


def test_weights_in_4_bits_are_not_sharded() -> None:
    recipe = RecipeConfig(lora={"quantised": True})
    with pytest.raises(ValueError, match=r"sft\.lora\.quantised needs zero_stage 2 or less, not 3"):
        check_recipe(TrainerConfig(zero_stage=3), recipe, "sft")
    check_recipe(TrainerConfig(zero_stage=2), recipe, "sft")


def test_disks_to_offload_to_are_named_before_training() -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme"}}
    with pytest.raises(InputError, match="offload_optimizer: device nvme needs an nvme_path"):
        check_paths(TrainerConfig(deepspeed={"zero_optimization": zero}))
    check_paths(TrainerConfig(deepspeed=USUAL))
