"""What share of its devices' peak a training achieves (model FLOPs utilisation, MFU).

Operations are those of `costs.py`, 6 N a token, without padding and recomputation: what is useful
over what was possible. Peaks are the makers' for dense bfloat16 matrices. Left out: other types,
whose peak depends on what the matrices are multiplied in, and devices that are not in the table.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rft_ray.config import TrainerConfig
from rft_ray.costs import DecoderShape, training_flops
from rft_ray.gpu_facts import find_gpu


@dataclass(frozen=True, slots=True)
class Utilisation:
    """How a training's tokens a second are turned into a share of the peak."""

    shape: DecoderShape
    peak: float | None
    """Operations a second of all ranks' devices together; None where it is not known."""

    @classmethod
    def of(cls, model: str, trainer: TrainerConfig) -> Self:
        """Of a Hugging Face folder trained on this process's kind of device."""
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        shape = DecoderShape(config.get("num_hidden_layers", 0), config.get("hidden_size", 0))
        if not (trainer.gpus_per_worker and shape.parameters):
            return cls(shape, None)
        import torch

        peak = device_peak(torch.cuda.get_device_name(), trainer.dtype)
        return cls(shape, peak and peak * trainer.gpus_per_worker * trainer.num_workers)

    def share(self, tokens: int, seconds: float) -> float | None:
        """MFU of a step over `tokens`, prompts included, that took `seconds`; None: unknown."""
        if self.peak is None or seconds <= 0:
            return None
        return training_flops(self.shape, tokens, 1) / (seconds * self.peak)


def device_peak(name: str, dtype: str) -> float | None:
    """Operations a second of one device; None where the table does not say."""
    if dtype != "bfloat16":
        return None
    gpu = find_gpu(name)
    return gpu.tflops * 1e12 if gpu else None
