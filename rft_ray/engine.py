"""The DeepSpeed engine of one training rank, built from a Hugging Face folder.

DeepSpeed is told nothing about batches or schedules, which the plan and `learning_rate` decide; how
it is set is `deepspeed_settings.py`'s. All ranks do the same. Left out: saving and restoring, which
is `training_state.py`'s.
"""

import logging
from pathlib import Path
from typing import Any

import deepspeed
import torch
import transformers
from deepspeed import DeepSpeedEngine
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import is_flash_attn_2_available

from rft_ray.adapters import inject_adapters
from rft_ray.config import RecipeConfig, TrainerConfig
from rft_ray.deepspeed_settings import deepspeed_config
from rft_ray.errors import InputError
from rft_ray.layers import prepare_layers
from rft_ray.quantisation import quantised_loading
from rft_ray.sequence_parallel import share_rows
from rft_ray.weight_decay import parameter_groups


def build_engine(model: str, recipe: RecipeConfig, trainer: TrainerConfig) -> DeepSpeedEngine:
    """The engine with the weights of a Hugging Face folder and a fresh AdamW."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # DeepSpeed would spend a minute compiling its shared-memory all-reduce; gloo is there already.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    config = deepspeed_config(recipe, trainer)
    module = _load_model(model, config, trainer, bool(recipe.lora and recipe.lora.quantised))
    if recipe.lora:
        inject_adapters(module, recipe.lora, recipe.seed)
    groups = parameter_groups(module, recipe)
    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=groups,
        optimizer=None if "optimizer" in config else _adamw(groups, recipe),
        config=config,
        dist_init_required=False,
    )
    if trainer.sequence_parallel > 1:
        share_rows(engine.module, trainer.sequence_parallel, trainer.micro_batch_rows)
    return engine


def _adamw(groups: list[dict[str, Any]], recipe: RecipeConfig) -> torch.optim.AdamW:
    # torch's own fused kernel: DeepSpeed's would be compiled on the machine first.
    return torch.optim.AdamW(
        groups,
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        fused=True,
    )


def _load_model(
    path: str, config: dict[str, Any], trainer: TrainerConfig, quantised: bool
) -> PreTrainedModel:
    """The model without dropout, its parameters sharded from the start under ZeRO-3."""
    dtype = getattr(torch, trainer.dtype)
    has_flash = trainer.gpus_per_worker > 0 and is_flash_attn_2_available()
    # Its variable-length kernel takes one row a batch; sdpa gets a block-diagonal mask instead.
    use_flash = has_flash and dtype == torch.bfloat16 and trainer.micro_batch_rows == 1
    attention = "flash_attention_2" if use_flash else "sdpa"
    if config["zero_optimization"]["stage"] < 3:
        device = deepspeed.get_accelerator().current_device_name()
        more = quantised_loading(dtype, device) if quantised else {}
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, local_files_only=True, **more
        )
        # What is exported is whole again.
        vars(model.config).pop("quantization_config", None)
    else:
        shape = AutoConfig.from_pretrained(path, local_files_only=True)
        # The type comes from the config: given as an argument, zero.Init ignores it on CPUs.
        with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=config):
            model = AutoModelForCausalLM.from_config(
                shape, dtype=dtype, attn_implementation=attention
            )
        model.tie_weights()
        _read_weights(model, path)
        _recompute_buffers(model)
    # Training in eval mode is training without dropout, which is all that the mode decides here.
    model.eval()
    prepare_layers(model, trainer)
    return model


def _read_weights(model: PreTrainedModel, path: str) -> None:
    """Fill sharded parameters one by one: no rank ever holds a whole model."""
    is_reader = torch.distributed.get_rank() == 0
    file_of = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            file_of.update(dict.fromkeys(tensors.keys(), file))
    for name, parameter in model.named_parameters():
        if name not in file_of:
            raise InputError(f"{path}: no safetensors file holds {name}, which ZeRO-3 needs")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if is_reader:
                with safe_open(file_of[name], framework="pt") as tensors:
                    parameter.copy_(tensors.get_tensor(name))


def _recompute_buffers(model: PreTrainedModel) -> None:
    """Rotary frequencies in fp32: under zero.Init they were computed in the weights' type."""
    for module in model.modules():
        has_own_buffers = any(True for _ in module.buffers(recurse=False))
        if has_own_buffers and not any(True for _ in module.parameters()):
            module.float()
            model._init_weights(module)
