"""How much a run will write: its models and the states it can be continued from, in bytes.

A lower bound for those models whose size is known; rollouts, which are text, are left out, as are
extra exports.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from rft_ray.config import RunConfig
from rft_ray.model_shapes import model_size

STATE_BYTES = 14
"""Of a parameter in a resumable state: weights in bf16, the fp32 copy and AdamW's two moments."""


def disk_needed(config: RunConfig, run_dir: Path) -> int:
    """Bytes that are still to be written into a run directory, beyond what it holds already."""
    width = 2 if config.trainer.dtype == "bfloat16" else 4
    sizes = list(_trained_parameters(config))
    # Those that are complete, and the one being written.
    is_kept = config.trainer.checkpoint_every and config.trainer.checkpoint_storage is None
    kept = config.trainer.num_to_keep + 1 if is_kept else 0
    total = width * sum(sizes) + kept * STATE_BYTES * max(sizes, default=0)
    # Downloaded models are there before, and are none of what is still to be written.
    return max(0, total - (folder_bytes(run_dir) - folder_bytes(run_dir / "models")))


def _trained_parameters(config: RunConfig) -> Iterator[int]:
    """The parameters of the model that each training leaves, where they are known."""
    names = [policy.model for policy in config.policies if policy.sft]
    if config.target.sft and config.own_policy is None:
        names.append(config.target.model)
    rounds = 1 if config.mode == "online" else config.num_rounds
    names += [config.target.model] * rounds * (1 + len(config.controls))
    for number in range(1, rounds):
        if config.round(number).retrain_policies:
            names += [policy.model for policy in config.policies]
    for name in names:
        if size := model_size(name):
            yield size.parameters


def folder_bytes(folder: Path) -> int:
    """What a folder holds; files that go while it is looked through are not counted."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            path = os.path.join(place, name)
            total += os.stat(path).st_size if os.path.isfile(path) else 0
    return total
