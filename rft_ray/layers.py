"""A model's layers made leaner or faster: activation checkpointing and compilation, layer by layer.

Both are transformers' and torch's own; here is only how they go together with training without
dropout. Left out: compiling a model whole, which every new width of a batch would do again.
"""

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rft_ray.errors import InputError
from rft_ray.training_config import TrainerConfig


def prepare_layers(model: PreTrainedModel, trainer: TrainerConfig) -> None:
    """Activation checkpointing and compilation of a model's layers, as the trainer's section says.

    Raises InputError where the model has no layers that can be told apart.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers and (trainer.activation_checkpointing or trainer.compile):
        kind = type(model).__name__
        raise InputError(f"trainer: {kind} has no activation_checkpointing or compile by layer")
    if trainer.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for layer in layers:
            # The layer alone, so that it recomputes; in what it is made of there is no dropout.
            layer.training = True
    if trainer.compile:
        for layer in layers:
            layer.compile(dynamic=True)
