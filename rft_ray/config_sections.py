"""The sections of a config, in the order of the data flow; `config.py` composes them.

Each section is frozen, refuses unknown keys and documents every field. Engine settings that belong
to vLLM or DeepSpeed go through one dict named after their owner, unrenamed, so that their own
documentation stays valid; of vLLM's, the names are checked. Checks here look at one section only.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from rft_ray.config_section import Cores, Count, Labels, Name, Section
from rft_ray.engine_arguments import check_engine_argument
from rft_ray.training_config import RecipeConfig, StartFrom

Rule = Literal["paper", "none", "text", "equation_set", "equations", "random", "shortest",
               "longest", "reward", "max_min"]  # fmt: skip
WORD_PROBLEM_SPLITS = ("train", "validation", "heldout")


class ProblemSetConfig(Section):
    """Where a set of problems comes from."""

    format: Literal[
        "gsm8k", "gsm8k_screl", "math", "svamp", "jsonl", "parquet", "huggingface", "word_problems"
    ] = "gsm8k"
    """gsm8k, gsm8k_screl, math, svamp: the published files; jsonl, parquet, huggingface: named
    columns; word_problems: generated."""
    path: str | None = None
    """File or folder to read; for huggingface a dataset's hub name or folder."""
    subset: str | None = None
    """Configuration of a dataset that has several (huggingface)."""
    split: str = "train"
    """Split of the dataset (huggingface), or which of the disjoint sets to generate: train,
    validation, heldout (word_problems)."""
    count: Count | None = None
    """Problems to take from the front, or to generate; none: all there are."""
    seed: int = 0
    """Seed of the generator (word_problems)."""
    id_column: str = "id"
    """Column of the problem id (jsonl, parquet, huggingface); where a row has none, its number is
    the id."""
    prompt_column: str = "prompt"
    """Column of the question."""
    answer_column: str = "answer"
    """Column of the answer."""
    solution_column: str = "solution"
    """Column of the gold solution; it may be missing."""
    skip_bad: bool = False
    """Count and skip malformed rows instead of stopping at the first one."""

    @model_validator(mode="after")
    def _has_what_its_format_needs(self) -> "ProblemSetConfig":
        if self.format == "word_problems":
            if self.count is None:
                raise ValueError("format word_problems needs count")
            if self.split not in WORD_PROBLEM_SPLITS:
                valid = ", ".join(WORD_PROBLEM_SPLITS)
                raise ValueError(f"split {self.split!r} is none of {valid}")
        elif self.path is None:
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
    out_of_domain: dict[Name, ProblemSetConfig] = Field(default={})
    """Further sets that are reported, by name, after SFT and after each round."""
    decontaminate_words: Count | None = None
    """Leave out of `train` what shares this many words in a row with a problem of the other sets,
    gold solutions included (10 and 13 are usual); none: nothing is left out."""
    decontaminate_rollouts: Count | None = None
    """Refuse right rollouts that share this many words in a row with them; none: none are."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "ProblemsConfig":
        for taken in ("train", "validation", "heldout"):
            if taken in self.out_of_domain:
                raise ValueError(f"out_of_domain: the name {taken!r} is taken")
        return self


class PromptConfig(Section):
    """How a problem becomes the text that a model continues."""

    template: str = "Question: {prompt}\nAnswer:\n"
    """alpaca: the instruction prompt of Yuan et al.; chat: the model's own chat template; anything
    else is text with `{prompt}` in it, in which other braces are plain text."""
    system: str | None = None
    """System message (chat)."""
    shots: Annotated[int, Field(ge=0)] = 0
    """Solved problems from the front of the training set that come before each problem."""

    @model_validator(mode="after")
    def _has_a_place_for_the_problem(self) -> "PromptConfig":
        if self.template not in ("alpaca", "chat") and "{prompt}" not in self.template:
            raise ValueError("template is neither alpaca nor chat and lacks {prompt}")
        if self.system is not None and self.template != "chat":
            raise ValueError("system needs template: chat")
        return self


class SamplingConfig(Section):
    """How each policy samples rollouts (vLLM's meaning of every word)."""

    k: Count = 100
    """Rollouts per problem per policy; the most there may be where `budget` is not fixed."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.7
    """Softmax temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus; 1 keeps everything."""
    top_k: Annotated[int, Field(ge=-1)] = -1
    """Number of likeliest tokens kept; -1 keeps all."""
    max_tokens: Count = 256
    """Longest completion, EOS included."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Texts that end a completion, left out of it (base models that do not know when to stop). The
    policy is also scored with them, the target with those of the top-level `sampling`."""


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
    max_replicas: Count | None = None
    """Replicas while there is more to sample than `num_replicas` take, as far as the cluster has or
    gets room; none: always `num_replicas`. Offline only."""
    cores: Cores = Field(default=[])
    """Cores of its machine that a replica keeps to, which replicas there share; empty: all."""
    labels: Labels = Field(default={})
    """Labels that the node of a replica must have, with their values (`ray start --labels`)."""
    max_rollouts_in_flight: Count = 512
    """Rollouts asked of a replica at a time: the back-pressure of the stream. Twice vLLM's
    max_num_seqs keeps the engine full."""
    vllm: dict[Annotated[str, AfterValidator(check_engine_argument)], Any] = Field(default={})
    """Engine arguments handed to vLLM as they are (dtype, max_model_len, ...)."""
    env: dict[str, str] = Field(default={})
    """Environment variables of the engine process (VLLM_..., OMP_...)."""

    @model_validator(mode="after")
    def _gpus_match(self) -> "SamplerConfig":
        if self.gpus_per_replica and self.gpus_per_replica != self.tensor_parallel_size:
            raise ValueError(
                f"gpus_per_replica ({self.gpus_per_replica}) differs from "
                f"tensor_parallel_size ({self.tensor_parallel_size})"
            )
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is less than "
                f"num_replicas ({self.num_replicas})"
            )
        return self

    @property
    def most_replicas(self) -> int:
        """How many there may be at a time."""
        return self.max_replicas or self.num_replicas


class PolicyConfig(Section):
    """A model that samples rollouts."""

    name: Name
    """How rollouts and metrics call it."""
    model: str
    """Hugging Face folder or hub name of the pre-trained model."""
    prompt: PromptConfig = PromptConfig()
    """Merged over the top-level `prompt`."""
    sft: RecipeConfig | None = None
    """Its fine-tuning on the seed set; merged over the top-level `sft`."""
    rft: RecipeConfig = RecipeConfig()
    """Its training between rounds, where a round retrains policies; merged over `rft`."""
    sampling: SamplingConfig = SamplingConfig()
    """Merged over the top-level `sampling`."""
    sampler: SamplerConfig = SamplerConfig()
    """Merged over the top-level `sampler`."""


class TargetConfig(Section):
    """The one model being trained."""

    model: str
    """Hugging Face folder or hub name of the pre-trained model."""
    prompt: PromptConfig = PromptConfig()
    """Merged over the top-level `prompt`."""
    sft: RecipeConfig | None = None
    """The SFT baseline, and the restart point of `start_from: sft`; merged over `sft`."""
    rft: RecipeConfig = RecipeConfig()
    """Merged over the top-level `rft`."""
    sampler: SamplerConfig = SamplerConfig()
    """Merged over `sampler`; unused when a policy has the same model, whose engines are shared."""


class SelectionConfig(Section):
    """Which of the accepted rollouts the target is trained on."""

    rule: Rule = "paper"
    """paper: Yuan et al. Algorithm 1, one rollout per equation list; none: every accepted one;
    text: one per text; equation_set: as paper, in whatever order the equations are; equations: as
    paper, in whatever order operands are, plain-text equations where there are no `<<...>>`. Of
    these a cap keeps the first. In order of preference, as many as there are paths or the cap
    allows: random, shortest, longest, reward (highest first), max_min (furthest apart)."""
    without_calculations: Literal["one_path", "text"] = "one_path"
    """Rollouts without equations are one path (Yuan et al.), or one for each text."""
    cap: Count | None = None
    """Most rollouts kept of a problem, which balances problems; none: no limit."""
    cap_per_policy: Count | None = None
    """Most rollouts kept of a problem by one policy; none: no limit."""
    balance_policies: bool = False
    """The cap takes one rollout of each policy in turn, in the rule's order."""
    seed: int = 0
    """Of rule random, with the problem's id."""


class RoundConfig(Section):
    """What is particular to a round; the last entry of `rounds` holds for all rounds after it."""

    temperature: Annotated[float, Field(ge=0.0)] | None = None
    """Softmax temperature of every policy in this round; none: the policy's own."""
    retrain_policies: bool = False
    """Train each policy on gold solutions and the rollouts selected so far before this round
    samples (not in the first round)."""
    policies_start_from: StartFrom | None = None
    """The weights that retraining a policy starts from; none: its `rft.start_from`."""
    target_start_from: StartFrom | None = None
    """The weights the target's training starts from in this round; none: `rft.start_from`."""


class EvaluationConfig(Section):
    """How checkpoints are scored on held-out problems."""

    max_tokens: Count = 256
    """Longest completion, EOS included."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Rollouts per problem for avg@n, pass@k and maj@k; 0: greedy pass@1 only."""
    ks: list[Count] = Field(default=[])
    """The k of pass@k and maj@k; none: `samples` itself."""
    temperature: Annotated[float, Field(gt=0.0)] = 0.7
    """Softmax temperature of those rollouts."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus of those rollouts."""
    icl_shots: Annotated[int, Field(ge=0)] = 0
    """Also score the target's base model, prompted with this many solved training problems."""
    parity_tolerance: Annotated[float, Field(gt=0.0)] = 1e-3
    """Largest difference of log-probabilities between trainer and sampler after a refresh."""

    @model_validator(mode="after")
    def _has_samples_for_every_k(self) -> "EvaluationConfig":
        if self.ks and max(self.ks) > self.samples:
            raise ValueError(f"ks ({max(self.ks)}) exceeds samples ({self.samples})")
        return self


class OnlineConfig(Section):
    """Online RFT (DeepSeekMath eq. 11): what a step is made of, and how fresh its rollouts are."""

    steps: Count = 100
    """Batches of problems sampled from the live policy and trained on."""
    problems_per_step: Count = 16
    """Problems of a batch; the training set is gone through in a seeded order, again and again."""
    updates_per_batch: Count = 1
    """Optimiser steps on each batch; more than one needs the clipped ratio (`clip_low`)."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Batches that the target may be ahead of the weights a rollout was sampled with. 0 is strictly
    on-policy; 1 overlaps sampling the next batch with training on this one."""
    filters: list[Literal["all_wrong", "all_right", "too_long"]] = Field(default=[])
    """Groups that are left out, counted by the first reason that fits: so too_long goes before
    all_wrong, which covers it."""
    select: bool = False
    """Train on the selected rollouts only (`selection`), not on all accepted ones."""
    normalise: Literal["all", "accepted"] = "all"
    """What the loss is a mean over: all rollouts of the batch (eq. 11), or the accepted ones."""
    clip_low: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Importance ratio, to the sampler's own log-probabilities, clipped below 1 - clip_low; none:
    no ratio."""
    clip_high: Annotated[float, Field(gt=0.0)] | None = None
    """The same above 1 + clip_high; none: as clip_low."""
    evaluate_every: Count = 20
    """Batches between exports, each scored on the validation problems in the running samplers."""
    keep_exports: Literal["best", "all"] = "best"
    """Exports that stay beside the last weights: the best on validation, or all."""
    patience: Count | None = None
    """Evaluations without a new best on validation after which the run stops; none: never."""
    in_flight: Literal["wait", "keep", "abort"] = "wait"
    """What becomes of requests in flight when weights arrive (vLLM's meaning)."""
    share_gpus: bool = False
    """Samplers and trainer take turns on the same GPUs of one machine: samplers sleep (vLLM's sleep
    mode) while a step is trained, and the optimiser's state is in main memory while they sample.
    Needs max_staleness 0 and, on GPUs, transfer: shared."""
    transfer: Literal["network", "shared"] = "network"
    """How weights reach the samplers: by gloo or NCCL, or through memory of the trainer's machine,
    which all replicas of the target must then be on (CUDA IPC, where they share its GPUs)."""
    bucket_mb: Count = 256
    """Most weights that are whole in one place during a refresh, in 2^20 bytes."""
    refresh_timeout_s: Annotated[float, Field(gt=0.0)] = 120.0
    """Seconds after which a refresh has failed."""
    parity_first: Annotated[int, Field(ge=0)] = 3
    """Refreshes at the start of a run after which sampler and trainer are compared."""
    parity_every: Annotated[int, Field(ge=0)] = 10
    """Refreshes between later comparisons; 0: none."""

    @model_validator(mode="after")
    def _several_updates_are_clipped(self) -> "OnlineConfig":
        if self.updates_per_batch > 1 and self.clip_low is None:
            raise ValueError("updates_per_batch above 1 needs clip_low")
        return self

    @model_validator(mode="after")
    def _turns_are_strict(self) -> "OnlineConfig":
        if self.share_gpus and self.max_staleness:
            raise ValueError(
                f"share_gpus needs max_staleness 0, not {self.max_staleness}: while a step is "
                "trained the samplers sleep, so none can be sampled ahead"
            )
        return self


class TrackersConfig(Section):
    """Where metrics go besides `metrics.jsonl` and TensorBoard's files in the run directory."""

    wandb: dict[str, Any] | None = None
    """Arguments of `wandb.init` (project, name, ...); none: off."""
    mlflow: dict[str, Any] | None = None
    """`tracking_uri`, `experiment_name` and `run_name` of MLflow; none: off."""

    @model_validator(mode="after")
    def _knows_the_keys(self) -> "TrackersConfig":
        known = {"tracking_uri", "experiment_name", "run_name"}
        unknown = sorted(set(self.mlflow or {}) - known)
        if unknown:
            valid = ", ".join(sorted(known))
            raise ValueError(f"mlflow: unknown key {unknown[0]!r}; valid: {valid}")
        return self
