"""DeepSpeed's configuration: what we set, the user's laid over it, and where the two disagree.

A user's JSON is taken as it is. `auto`, which other trainers fill in, means what our sections say;
what it and a section both say must be the same. Batches and schedules are the plan's, so of those
DeepSpeed is told nothing. Pure functions of the config: nothing here imports DeepSpeed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft_ray.errors import InputError

if TYPE_CHECKING:
    from rft_ray.training_config import RecipeConfig, TrainerConfig

Settings = dict[str, Any]
AUTO = "auto"
# DeepSpeed would hold these against each other, knowing nothing of rows and of uneven steps.
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
ZERO3_KEYS = (
    "offload_param",
    "zero_quantized_weights",
    "zero_quantized_gradients",
    "zero_hpz_partition_size",
)


def read_settings(value: Any) -> Any:
    """The content of a JSON file where `value` is its path; anything else as it is.

    Raises ValueError with one line where the file cannot be read.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(Path(value).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{value}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{value}: not JSON: {error}") from error


def without_auto(settings: Settings) -> Settings:
    """The settings that are not left to the trainer to fill in."""
    return {
        key: without_auto(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != AUTO
    }


def implied_fields(settings: Settings) -> Settings:
    """Fields of the trainer's section that a DeepSpeed configuration already states."""
    own = without_auto(settings)
    implied: Settings = {}
    if "stage" in _section(own, "zero_optimization"):
        implied["zero_stage"] = own["zero_optimization"]["stage"]
    if "enabled" in _section(own, "bf16"):
        implied["dtype"] = "bfloat16" if own["bf16"]["enabled"] else "float32"
    if "train_micro_batch_size_per_gpu" in own:
        implied["micro_batch_rows"] = own["train_micro_batch_size_per_gpu"]
    if "activation_checkpointing" in own:
        implied["activation_checkpointing"] = True
    return implied


def deepspeed_config(recipe: "RecipeConfig", trainer: "TrainerConfig") -> Settings:
    """What DeepSpeed is started with: our settings with the user's laid over them."""
    is_bf16 = trainer.dtype == "bfloat16"
    # DeepSpeed's stage 0 would sum the micro-batches' gradients in bf16; stage 1 has fp32 sums.
    stage = max(trainer.zero_stage, 1) if is_bf16 else trainer.zero_stage
    ours: Settings = {
        "gradient_clipping": recipe.max_grad_norm if stage else 0.0,  # stage 0: `train_step`
        "bf16": {"enabled": is_bf16},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if is_bf16:
        # A step may have many micro-batches: sums of bf16 gradients would lose the small ones.
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    theirs = without_auto(trainer.deepspeed)
    theirs = {key: value for key, value in theirs.items() if key not in BATCH_KEYS}
    if not stage:
        theirs.pop("gradient_clipping", None)
    merged = merge(ours, theirs)
    merged["zero_optimization"]["stage"] = stage
    return merged | {
        "train_micro_batch_size_per_gpu": trainer.micro_batch_rows,
        "gradient_accumulation_steps": 1,
    }


def merge(ours: Settings, theirs: Settings) -> Settings:
    """One laid over the other, section by section."""
    merged = dict(ours)
    for key, value in theirs.items():
        both = isinstance(value, dict) and isinstance(ours.get(key), dict)
        merged[key] = merge(ours[key], value) if both else value
    return merged


def check_trainer(trainer: "TrainerConfig") -> None:
    """Raise ValueError with one line where the trainer's section contradicts its `deepspeed`."""
    own = without_auto(trainer.deepspeed)
    for field, stated in implied_fields(own).items():
        if field != "activation_checkpointing" and stated != getattr(trainer, field):
            raise ValueError(
                f"{field} ({getattr(trainer, field)}) differs from what deepspeed says ({stated})"
            )
    if _section(own, "fp16").get("enabled"):
        raise ValueError("deepspeed.fp16: gradients would underflow unscaled; give dtype: bfloat16")
    if "scheduler" in own:
        raise ValueError("deepspeed.scheduler: the recipe's schedule decides; leave it out")
    if own.get("gradient_accumulation_steps", 1) != 1:
        raise ValueError(
            "deepspeed.gradient_accumulation_steps: a step has as many micro-batches as its rows "
            "need; leave it out"
        )


def check_zero(trainer: "TrainerConfig") -> None:
    """Raise ValueError with one line where ZeRO's settings need another stage, GPUs or ranks.

    Only a run's are checked: plans compare settings that are not complete yet.
    """
    own = without_auto(trainer.deepspeed)
    for key in ("zero_optimization", "fp16", "bf16", "optimizer", "activation_checkpointing"):
        if not isinstance(own.get(key, {}), dict):
            raise ValueError(f"trainer.deepspeed.{key}: expected a mapping, found {own[key]!r}")
    zero = _section(own, "zero_optimization")
    place, stage = "trainer.deepspeed.zero_optimization", trainer.zero_stage
    for key in ZERO3_KEYS:
        if _is_on(zero.get(key)) and stage < 3:
            raise ValueError(f"{place}.{key} needs zero_stage 3, not {stage}")
    if _is_on(zero.get("offload_optimizer")) and stage < 1:
        raise ValueError(f"{place}.offload_optimizer needs zero_stage 1 or more, not {stage}")
    for key in ("offload_optimizer", "offload_param"):
        if _section(zero, key).get("device") == "nvme" and stage < 3:
            raise ValueError(f"{place}.{key}: device nvme needs zero_stage 3, not {stage}")
    for key in ("zero_quantized_weights", "zero_quantized_gradients"):
        if zero.get(key) and not trainer.gpus_per_worker:
            raise ValueError(f"{place}.{key} needs GPUs")
    share = zero.get("zero_hpz_partition_size", 1)
    if share > 1 and trainer.num_workers % share:
        raise ValueError(
            f"{place}.zero_hpz_partition_size ({share}) does not divide "
            f"num_workers ({trainer.num_workers})"
        )


def check_paths(trainer: "TrainerConfig") -> None:
    """Raise InputError where training would offload to disks that are not named."""
    zero = _section(without_auto(trainer.deepspeed), "zero_optimization")
    for key in ("offload_optimizer", "offload_param"):
        offload = _section(zero, key)
        if offload.get("device") == "nvme" and not offload.get("nvme_path"):
            place = f"trainer.deepspeed.zero_optimization.{key}"
            raise InputError(f"{place}: device nvme needs an nvme_path")


def offloads_to_disk(trainer: "TrainerConfig") -> bool:
    """Whether the optimiser's state is on a disk of each rank's node."""
    zero = _section(without_auto(trainer.deepspeed), "zero_optimization")
    return _section(zero, "offload_optimizer").get("device") == "nvme"


def _is_on(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("device", "cpu") != "none"
    return (bool(value) and value != 1) or value is True


def check_recipe(trainer: "TrainerConfig", recipe: "RecipeConfig", name: str) -> None:
    """Raise ValueError with one line where a recipe contradicts the user's DeepSpeed settings."""
    if recipe.lora and recipe.lora.quantised and trainer.zero_stage == 3:
        raise ValueError(f"{name}.lora.quantised needs zero_stage 2 or less, not 3")
    own = without_auto(trainer.deepspeed)
    params = _section(_section(own, "optimizer"), "params")
    stated = {
        "batch_size": own.get("train_batch_size"),
        "max_grad_norm": own.get("gradient_clipping"),
        "learning_rate": params.get("lr"),
        "weight_decay": params.get("weight_decay"),
    }
    if "betas" in params:
        stated |= dict(zip(("adam_beta1", "adam_beta2"), params["betas"], strict=True))
    for field, value in stated.items():
        mine = getattr(recipe, field)
        if value is not None and float(value) != float(mine):
            raise ValueError(f"{name}.{field} ({mine}) differs from trainer.deepspeed ({value})")


def _section(settings: Settings, key: str) -> Settings:
    value = settings.get(key)
    return value if isinstance(value, dict) else {}
