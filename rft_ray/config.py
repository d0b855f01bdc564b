"""Every knob of a run, in the order of the data flow, and the loader of config files.

A config is one YAML file that holds only what differs from the defaults, plus `section.field=value`
overrides. Unknown keys are refused with the nearest valid name. `sampling`, `sft` and `rft` are
written once at the top; a policy or the target may override single fields of them, and the merged
values are what the run directory's `config.yaml` shows. Engine settings that belong to vLLM or
DeepSpeed go through one dict named after their owner, unchecked and unrenamed, so that their own
documentation stays valid. The few environment variables the package reads are read here.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rft_ray.errors import InputError

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
    max_ongoing_requests: Count = 64
    """Requests a replica takes at a time: the back-pressure of the stream."""
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
    """Steps between extra Hugging Face exports for evaluation to choose from; none: one at the end."""


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


class _Loader(yaml.SafeLoader):
    """YAML without two of its traps: a key given twice, and 1e-8, which YAML 1.1 reads as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would take for a number."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """The config in a YAML file with `section.field=value` overrides applied.

    Raises InputError with one line that names the file, the line or override, and the field.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot read the config: {reason}") from error
    try:
        tree = yaml.compose(text)
        raw = yaml.load(text, _Loader)
    except (RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path}: not valid YAML: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise InputError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a config is a mapping of sections, found {type(raw).__name__}")
    for override in overrides or []:
        _apply_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise InputError(_explain(error, path, tree, overrides or [])) from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of the raw config in place; list items are addressed by number."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: expected section.field=value")
    try:
        parsed = yaml.load(value, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"override {override!r}: value is not valid YAML") from error
    *parents, last = key.split(".")
    node: Any = raw
    for part in parents:
        if isinstance(node, list):
            node = node[_list_index(node, part, override)]
        elif isinstance(node, dict):
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
    if isinstance(node, list):
        node[_list_index(node, last, override)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise InputError(f"override {override!r}: {'.'.join(parents)} is not a section")


def _list_index(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        valid = f"one of 0..{len(items) - 1}" if items else "in an empty list"
        raise InputError(f"override {override!r}: {part!r} is not {valid}")
    return int(part)


def _explain(error: ValidationError, path: Path, tree: yaml.Node, overrides: list[str]) -> str:
    """One line for the first thing that is wrong: where it stands, what it is, what is valid."""
    override_keys = [override.partition("=")[0] for override in overrides]

    def find_override(error: Any) -> str | None:
        """The last override that set the wrong field or a section around it."""
        dotted = _dotted(error) + "."
        return next((k for k in reversed(override_keys) if dotted.startswith(k + ".")), None)

    # A bad shared section fails once itself and once in every policy it was merged into: the
    # error to show is the one at a place that the user wrote.
    first = min(
        error.errors(),
        key=lambda e: (find_override(e) is None, _line_of(tree, list(e["loc"]))[1] > 0),
    )
    location, key = list(first["loc"]), _dotted(first)
    override = find_override(first)
    where = f"override {override}" if override is not None else None
    line, _ = _line_of(tree, location)
    where = where or (f"{path}:{line}" if line else str(path))
    if first["type"] == "extra_forbidden":
        known = list(_fields_at(RunConfig, location[:-1]))
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(known)}"
        return f"{where}: unknown key {key!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
    return f"{where}: {key + ': ' if key else ''}{message}{got}"


def _dotted(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"])


def _line_of(tree: yaml.Node, location: list[int | str]) -> tuple[int | None, int]:
    """The line of the deepest part of a key path in the file; how many parts the file lacks."""
    line, node = None, tree
    for depth, part in enumerate(location):
        if isinstance(node, yaml.MappingNode):
            match = [(key, value) for key, value in node.value if key.value == part]
            if not match:
                return line, len(location) - depth
            line, node = match[0][0].start_mark.line + 1, match[0][1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line, len(location) - depth
    return line, 0


def _fields_at(model: type[BaseModel], location: list[int | str]) -> dict[str, Any]:
    """The field names that are valid at a key path."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [annotation, *getattr(annotation, "__args__", ())]
        model = next(t for t in inner if isinstance(t, type) and issubclass(t, BaseModel))
    return dict(model.model_fields)


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML: every field, defaults included."""
    raw = config.model_dump(mode="json")
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def cluster_address() -> str | None:
    """Address of the Ray cluster to join; none: a local one is started."""
    return os.environ.get("RAY_ADDRESS") or None


def is_cluster_job() -> bool:
    """Whether this process is the driver of a submitted Ray job."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
