"""Every knob of a run, in the order of the data flow; `config_file.py` reads them from YAML.

Unknown keys are refused. `sampling`, `sft` and `rft` are
written once at the top; a policy or the target may override single fields of them, and the merged
values are what the run directory's `config.yaml` shows. Engine settings that belong to vLLM or
DeepSpeed go through one dict named after their owner, unchecked and unrenamed, so that their own
documentation stays valid. The few environment variables the package reads are read here.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


class Section(BaseModel):
    """A frozen part of the config that rejects unknown keys and documents each field."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class ProblemSetConfig(Section):
    """Where a set of problems comes from."""

    format: Literal["gsm8k", "jsonl", "word_problems"] = "gsm8k"
    """gsm8k: OpenAI's file; jsonl: any file with named columns; word_problems: generated."""
    path: str | None = None
    """File to read (gsm8k, jsonl)."""
    count: Count | None = None
    """Problems to take from the front of the file, or to generate; none: the whole file."""
    split: Literal["train", "validation", "heldout"] = "train"
    """Which of the disjoint sets to generate (word_problems)."""
    seed: int = 0
    """Seed of the generator (word_problems)."""
    id_column: str = "id"
    """Column of the problem id (jsonl); where a line has none, its number is the id."""
    prompt_column: str = "prompt"
    """Column of the question (jsonl)."""
    answer_column: str = "answer"
    """Column of the answer (jsonl)."""
    solution_column: str = "solution"
    """Column of the gold solution (jsonl); it may be missing."""
    skip_bad: bool = False
    """Count and skip malformed lines instead of stopping at the first one."""

    @model_validator(mode="after")
    def _has_what_its_format_needs(self) -> "ProblemSetConfig":
        if self.format == "word_problems" and self.count is None:
            raise ValueError("format word_problems needs count")
        if self.format != "word_problems" and self.path is None:
            raise ValueError(f"format {self.format} needs path")
        return self


class ProblemsConfig(Section):
    """The three disjoint sets of problems of a study."""

    train: ProblemSetConfig
    """The seed set: gold solutions for SFT, prompts for sampling."""
    validation: ProblemSetConfig | None = None
    """For choosing a checkpoint; none: no checkpoint is chosen."""
    heldout: ProblemSetConfig
    """What is reported. Never looked at for any choice."""


class SamplingConfig(Section):
    """How each policy samples rollouts (vLLM's meaning of every word)."""

    k: Count = 100
    """Rollouts per problem per policy."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.7
    """Softmax temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus; 1 keeps everything."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Number of likeliest tokens kept; -1 keeps all."""
    max_tokens: Count = 256
    """Longest completion, EOS included."""


class SamplerConfig(Section):
    """Where and how the engines of one model run."""

    num_replicas: Count = 1
    """Serve replicas, each an engine of its own."""
    tensor_parallel_size: Count = 1
    """Devices that share one replica."""
    gpus_per_replica: Annotated[float, Field(ge=0.0)] = 0.0
    """0 runs vLLM on the CPU; otherwise it must equal tensor_parallel_size."""
    cpus_per_replica: Annotated[float, Field(gt=0.0)] = 1.0
    """Logical CPUs that Ray reserves for the replica."""
    max_rollouts_in_flight: Count = 512
    """Rollouts asked of a replica at a time: the back-pressure of the stream. Twice vLLM's
    max_num_seqs keeps the engine full."""
    vllm: dict[str, Any] = {}
    """Engine arguments handed to vLLM as they are (dtype, max_model_len, ...)."""
    env: dict[str, str] = {}
    """Environment variables of the engine process (VLLM_..., OMP_...)."""

    @model_validator(mode="after")
    def _gpus_match(self) -> "SamplerConfig":
        if self.gpus_per_replica and self.gpus_per_replica != self.tensor_parallel_size:
            raise ValueError(
                f"gpus_per_replica ({self.gpus_per_replica}) differs from "
                f"tensor_parallel_size ({self.tensor_parallel_size})"
            )
        return self


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
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: a half cosine to zero, or the peak held."""
    warmup_fraction: Fraction = 0.03
    """Share of the steps over which the rate rises linearly from zero."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW's decoupled weight decay."""
    adam_beta1: Fraction = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Fraction = 0.999
    """AdamW's decay of the second moment."""
    max_grad_norm: Annotated[float, Field(ge=0.0)] = 1.0
    """Global gradient norm is clipped to this; 0 turns clipping off."""
    loss: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Mean over all tokens of a batch (Yuan et al.), or over sequences (DeepSeekMath eq. 8)."""
    max_length: Count = 512
    """Longest example in tokens, prompt and EOS included; longer ones are dropped and counted."""
    start_from: Literal["base", "sft"] = "base"
    """The weights training starts from: the pre-trained model (Yuan) or its SFT (DeepSeekMath)."""
    seed: int = 0
    """Order of the examples."""
    export_every: Count | None = None
    """Steps between extra Hugging Face exports to choose from; none: only one, at the end."""


class PolicyConfig(Section):
    """A model that samples rollouts."""

    name: Name
    """How rollouts and metrics call it."""
    model: str
    """Hugging Face folder or hub name of the pre-trained model."""
    sft: RecipeConfig | None = None
    """Its fine-tuning on the seed set; merged over the top-level `sft`."""
    sampling: SamplingConfig = SamplingConfig()
    """Merged over the top-level `sampling`."""
    sampler: SamplerConfig = SamplerConfig()
    """Merged over the top-level `sampler`."""


class TargetConfig(Section):
    """The one model being trained."""

    model: str
    """Hugging Face folder or hub name of the pre-trained model."""
    sft: RecipeConfig | None = None
    """The SFT baseline, and the restart point of `start_from: sft`; merged over `sft`."""
    rft: RecipeConfig = RecipeConfig()
    """Merged over the top-level `rft`."""
    sampler: SamplerConfig = SamplerConfig()
    """Merged over `sampler`; unused when a policy has the same model, whose engines are shared."""


class VerifierConfig(Section):
    """How completions are graded."""

    style: Literal["gsm8k"] = "gsm8k"
    """gsm8k: the number after `####`."""
    check_calculations: bool = True
    """Also demand that every `<<lhs=rhs>>` is right."""
    timeout_s: Annotated[float, Field(gt=0.0)] = 5.0
    """Seconds one completion may take before its worker is killed (verdict `timeout`)."""
    workers: Count = 1
    """Worker processes per verifying actor."""
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    """Address space of a worker process, in MiB."""
    max_chars: Count = 20_000
    """A longer completion is `unparsable` without being looked at."""


class SelectionConfig(Section):
    """Which of the accepted rollouts the target is trained on."""

    rule: Literal["paper", "none"] = "paper"
    """paper: Yuan et al. Algorithm 1, one rollout per equation list; none: every accepted one."""


class TrainerConfig(Section):
    """Where and how training runs."""

    num_workers: Count = 1
    """Ranks of the training job."""
    gpus_per_worker: Annotated[float, Field(ge=0.0)] = 0.0
    """0 trains on the CPU (gloo), 1 on a GPU (NCCL)."""
    cpus_per_worker: Annotated[float, Field(gt=0.0)] = 1.0
    """Logical CPUs that Ray reserves for a rank."""
    threads_per_worker: Annotated[int, Field(ge=0)] = 0
    """Torch threads of a rank; 0: the machine's cores divided by the ranks."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """DeepSpeed ZeRO stage: 1 shards optimiser state, 2 gradients too, 3 parameters too."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward; master weights are fp32 either way."""
    row_tokens: Count = 512
    """Length of a packed row; at least the recipe's max_length."""
    micro_batch_rows: Count = 1
    """Packed rows per forward pass of a rank."""
    checkpoint_every: Annotated[int, Field(ge=0)] = 0
    """Steps between resumable checkpoints; 0: none within a run."""
    start_timeout_s: Annotated[float, Field(gt=0.0)] = 600.0
    """Seconds to wait for all ranks to start."""
    collective_timeout_s: Annotated[float, Field(gt=0.0)] = 1800.0
    """Seconds after which a collective operation gives up."""
    deepspeed: dict[str, Any] = {}
    """Merged over the DeepSpeed configuration as it is."""


class EvaluationConfig(Section):
    """How checkpoints are scored on held-out problems."""

    max_tokens: Count = 256
    """Longest completion, EOS included."""
    parity_tolerance: Annotated[float, Field(gt=0.0)] = 1e-3
    """Largest difference of log-probabilities between trainer and sampler after a refresh."""


class RunConfig(Section):
    """A whole offline run."""

    run_dir: str
    """Everything the run writes goes here; an existing one is continued."""
    mode: Literal["offline"] = "offline"
    """offline: sample, verify, select, train, evaluate."""
    seed: int = 0
    """Root of every seed of the sampling requests."""
    prompt_template: str = "Question: {prompt}\nAnswer:\n"
    """Text before the completion; `{prompt}` is the problem's prompt, braces elsewhere are text."""
    problems: ProblemsConfig
    policies: Annotated[list[PolicyConfig], Field(min_length=1)]
    sampling: SamplingConfig = SamplingConfig()
    sampler: SamplerConfig = SamplerConfig()
    verifier: VerifierConfig = VerifierConfig()
    selection: SelectionConfig = SelectionConfig()
    target: TargetConfig
    sft: RecipeConfig | None = RecipeConfig()
    rft: RecipeConfig = RecipeConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _merge_shared_sections(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        policies = raw.get("policies")
        merged = dict(raw)
        if isinstance(policies, list):
            merged["policies"] = [
                _inherit(policy, raw, ("sft", "sampling", "sampler")) for policy in policies
            ]
        if "target" in raw:
            merged["target"] = _inherit(raw["target"], raw, ("sft", "rft", "sampler"))
        return merged

    @model_validator(mode="after")
    def _is_consistent(self) -> "RunConfig":
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies have the same name: {', '.join(names)}")
        if "target" in names:
            raise ValueError("policies: the name 'target' is taken by the target")
        if "{prompt}" not in self.prompt_template:
            raise ValueError("prompt_template lacks {prompt}")
        recipes = [self.rft, self.target.rft, self.target.sft, *(p.sft for p in self.policies)]
        for recipe in recipes:
            if recipe and recipe.max_length > self.trainer.row_tokens:
                raise ValueError(
                    f"trainer.row_tokens ({self.trainer.row_tokens}) is less than "
                    f"max_length ({recipe.max_length})"
                )
        if self.target.rft.start_from == "sft" and self.target.sft is None:
            raise ValueError("target.rft.start_from is sft, but the target has no sft")
        return self


def _inherit(own: Any, shared: dict[str, Any], names: tuple[str, ...]) -> Any:
    """`own` with each named section laid over the shared one; null stays null."""
    if not isinstance(own, dict):
        return own
    merged = dict(own)
    for name in names:
        common = shared.get(name, {})
        mine = own.get(name, common)
        if isinstance(common, dict) and isinstance(mine, dict):
            mine = {**common, **mine}
        merged[name] = mine
    return merged


def cluster_address() -> str | None:
    """Address of the Ray cluster to join; none: a local one is started."""
    return os.environ.get("RAY_ADDRESS") or None


def is_cluster_job() -> bool:
    """Whether this process is the driver of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
