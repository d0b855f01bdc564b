"""The sections that say how a model is trained: what a recipe does, and where and how it runs.

`deepspeed` is DeepSpeed's own configuration, unrenamed; `deepspeed_settings.py` checks it against
the rest. Checks here look at one section only.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rft_ray.config_section import Cores, Count, Fraction, Labels, Name, Section
from rft_ray.deepspeed_settings import check_trainer, implied_fields, read_settings

LOGIT_BYTES = 64 * 2**20
"""Size of the logits that the loss holds at a time; on a GPU four times that."""
StartFrom = Literal["base", "sft", "current"]


class LoraConfig(Section):
    """Low-rank adapters that are trained instead of the model's own weights."""

    rank: Count = 16
    """Width of an adapter."""
    alpha: Annotated[float, Field(gt=0.0)] = 32.0
    """An adapter's output is multiplied by alpha / rank."""
    targets: list[str] = Field(default=[])
    """Last parts of the names of the layers that get one (q_proj, ...); none: every linear layer
    but the output."""
    quantised: bool = False
    """Hold the linear layers' frozen weights in 4 bits (QLoRA), through bitsandbytes; what is
    exported and sent to samplers is whole. Not under ZeRO-3."""


class RecipeConfig(Section):
    """What one training run does; the defaults are the paper's (Yuan et al. 2023, appendix A)."""

    steps: Count | None = None
    """Optimiser steps; none: `epochs` decides."""
    epochs: Annotated[float, Field(gt=0.0)] = 3.0
    """Passes over the examples, where `steps` is not given."""
    batch_size: Count = 128
    """Examples per optimiser step, over all ranks."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-5
    """Peak of the schedule."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """What follows the warm-up: a half cosine or a line down to `final_fraction` of the peak, or
    the peak held."""
    final_fraction: Fraction = 0.0
    """Share of the peak at which a cosine or a line would arrive one step after the last."""
    warmup_fraction: Fraction = 0.03
    """Share of the steps over which the rate rises linearly from zero."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW's decoupled weight decay."""
    no_decay: list[Literal["norms", "biases", "embeddings"]] = Field(default=["norms", "biases"])
    """Parameters without weight decay. Embeddings are the input's, and the output's where tied."""
    adam_beta1: Fraction = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Fraction = 0.999
    """AdamW's decay of the second moment."""
    lora: LoraConfig | None = None
    """Train adapters only, merged into what is exported and sent to samplers; none: all weights."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Global gradient norm is clipped to this; 0 turns clipping off."""
    loss: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Mean over all tokens of a batch (Yuan et al.), or over sequences (DeepSeekMath eq. 8)."""
    source_weights: dict[Name, Annotated[float, Field(ge=0.0)]] = Field(default={})
    """What the loss of an example is multiplied with by where it comes from: gold, or the name of a
    policy; 1 where nothing is said. The mean is over as many examples or tokens as without."""
    max_length: Count = 512
    """Longest example in tokens, prompt and EOS included; longer ones are dropped and counted."""
    start_from: StartFrom = "base"
    """The weights training starts from: the pre-trained model (Yuan), its SFT (DeepSeekMath), or
    what the round before left (the SFT in the first)."""
    seed: int = 0
    """Order of the examples."""
    spike_factor: Annotated[float, Field(gt=1.0)] | None = None
    """A loss above this many times the median of the last 20 stops the run before its step is made,
    and the step's examples are saved beside the output; none: only a loss that is not finite."""
    export_every: Count | None = None
    """Steps between extra Hugging Face exports to choose from; none: only one, at the end."""


class TrainerConfig(Section):
    """Where and how training runs."""

    num_workers: Count = 1
    """Ranks of the training job."""
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    """0 trains on the CPU (gloo), 1 on a GPU (NCCL)."""
    cpus_per_worker: Annotated[float, Field(gt=0.0)] = 1.0
    """Logical CPUs that Ray reserves for a rank."""
    cores: Cores = Field(default=[])
    """Cores of its machine that a rank keeps to, which ranks there share; empty: all."""
    labels: Labels = Field(default={})
    """Labels that the node of a rank must have, with their values."""
    threads_per_worker: Annotated[int, Field(ge=0)] = 0
    """Torch threads of a rank; 0: the cores, of `cores` or of the machine, divided by the ranks."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """DeepSpeed ZeRO stage: 1 shards optimiser state, 2 gradients too, 3 parameters too."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward; master weights are fp32 either way."""
    row_tokens: Count = 512
    """Length of a packed row; at least the recipe's max_length."""
    micro_batch_rows: Count = 1
    """Packed rows per forward pass of a rank."""
    sequence_parallel: Literal[1, 2, 4, 8] = 1
    """Ranks that share each packed row, a piece of its width each, for rows too long for one
    (Ulysses); it divides num_workers and the model's key-value heads."""
    activation_checkpointing: bool = False
    """Recompute a layer's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile each layer with torch.compile; not under ZeRO-3."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Steps between resumable checkpoints; 0: none within a run."""
    num_to_keep: Count = 2
    """Resumable checkpoints that are kept, the latest ones."""
    checkpoint_storage: str | None = None
    """A path or URI (s3://, gs://, fsspec+PROTOCOL://) that every node can reach, to which
    resumable checkpoints are uploaded while training goes on, from each node's temporary folder;
    none: they are written beside the training's output, and training waits."""
    max_shard_mb: Count = 4096
    """Largest file of an export, in 2^20 bytes: what its writer holds at a time."""
    start_timeout_s: Annotated[float, Field(gt=0.0)] = 600.0
    """Seconds to wait for all ranks to start."""
    collective_timeout_s: Annotated[float, Field(gt=0.0)] = 1800.0
    """Seconds after which a collective operation gives up."""
    deepspeed: dict[str, Any] = Field(default={})
    """DeepSpeed's configuration, or the path of a JSON file with it, taken as it is: offload,
    ZeRO++, buckets and whatever else DeepSpeed knows. `auto` is filled in from this config, and
    what both state must agree. ZeRO++'s quantised weights and gradients need GPUs, NVMe offload
    needs zero_stage 3 and libaio; the rest runs on CPUs too."""

    @model_validator(mode="before")
    @classmethod
    def _take_what_deepspeed_states(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "deepspeed" not in raw:
            return raw
        settings = read_settings(raw["deepspeed"])
        implied = implied_fields(settings) if isinstance(settings, dict) else {}
        # In DeepSpeed the section is the switch: it cannot be there and off.
        switched = {k: v for k, v in implied.items() if k == "activation_checkpointing"}
        return {**implied, **raw, **switched, "deepspeed": settings}

    @model_validator(mode="after")
    def _is_consistent(self) -> "TrainerConfig":
        check_trainer(self)
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile is not for zero_stage 3, whose layers are not whole")
        if self.num_workers % self.sequence_parallel:
            raise ValueError(
                f"sequence_parallel ({self.sequence_parallel}) does not divide "
                f"num_workers ({self.num_workers})"
            )
        if self.compile and self.sequence_parallel > 1:
            raise ValueError("compile is not for sequence_parallel, which exchanges within layers")
        return self
