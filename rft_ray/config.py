"""A run's config: every knob, in the order of the data flow; `config_file.py` reads it from YAML.

The sections are in `config_sections.py` and `training_config.py`. `prompt`, `sampling`, `sampler`,
`sft` and `rft` are written once at the top; a policy or the target may override single fields of
them, and the merged values are what the run directory's `config.yaml` shows. The few environment
variables the package reads are read here.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rft_ray.budget import BudgetConfig
from rft_ray.config_section import Count, Section
from rft_ray.config_sections import (
    EvaluationConfig,
    OnlineConfig,
    PolicyConfig,
    ProblemsConfig,
    ProblemSetConfig,
    PromptConfig,
    RoundConfig,
    SamplerConfig,
    SamplingConfig,
    SelectionConfig,
    TargetConfig,
    TrackersConfig,
)
from rft_ray.deepspeed_settings import check_recipe, check_zero
from rft_ray.machines import MachinesConfig, WorkloadConfig
from rft_ray.training_config import RecipeConfig, TrainerConfig
from rft_ray.verifier_config import VerifierConfig

__all__ = [
    "BudgetConfig",
    "EvaluationConfig",
    "MachinesConfig",
    "OnlineConfig",
    "PolicyConfig",
    "ProblemSetConfig",
    "ProblemsConfig",
    "PromptConfig",
    "RecipeConfig",
    "RoundConfig",
    "RunConfig",
    "SamplerConfig",
    "SamplingConfig",
    "SelectionConfig",
    "TargetConfig",
    "TrackersConfig",
    "TrainerConfig",
    "VerifierConfig",
    "WorkloadConfig",
    "cluster_address",
    "is_cluster_job",
    "package_index_settings",
]

Control = Literal["own", "random", "no_dedup"]


class RunConfig(Section):
    """A whole run."""

    run_dir: str
    """Everything the run writes goes here; an existing one is continued."""
    mode: Literal["offline", "online"] = "offline"
    """offline: sample, verify, select, train, evaluate; online: the same in every step, the sampler
    being the model that is trained."""
    seed: int = 0
    """Root of every seed of the sampling requests."""
    problems: ProblemsConfig
    prompt: PromptConfig = PromptConfig()
    policies: Annotated[list[PolicyConfig], Field(min_length=1)]
    sampling: SamplingConfig = SamplingConfig()
    budget: BudgetConfig = BudgetConfig()
    sampler: SamplerConfig = SamplerConfig()
    verifier: VerifierConfig = VerifierConfig()
    selection: SelectionConfig = SelectionConfig()
    target: TargetConfig
    sft: RecipeConfig | None = RecipeConfig()
    rft: RecipeConfig = RecipeConfig()
    num_rounds: Count = 1
    """Passes from sampling to training; the pool of rollouts grows from one to the next."""
    rounds: list[RoundConfig] = Field(default=[])
    """What is particular to each round, in order."""
    controls: list[Control] = Field(default=[])
    """Further trainings of the target to compare with, each on the same gold solutions and the
    same recipe. own: the rollouts of the policies that share its base; random: as many of each
    problem's accepted rollouts, drawn at random; no_dedup: every accepted rollout."""
    online: OnlineConfig = OnlineConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: TrackersConfig = TrackersConfig()
    machines: MachinesConfig | None = None
    workload: WorkloadConfig = WorkloadConfig()
    wait_for_cluster_s: Annotated[float, Field(ge=0.0)] = 0.0
    """Seconds to wait for a cluster to grow to what the run needs; 0: a cluster that is too small
    is refused at once."""

    @property
    def own_policies(self) -> list[PolicyConfig]:
        """The policies with the target's base model, however its folder is written."""
        base = _same_model(self.target.model)
        return [policy for policy in self.policies if _same_model(policy.model) == base]

    @property
    def own_policy(self) -> PolicyConfig | None:
        """The first of them, if there is one: the target shares its sampler; online it is live."""
        return next(iter(self.own_policies), None)

    @property
    def shares_gpus(self) -> bool:
        """Whether samplers and the online trainer are on the same GPUs, in turns."""
        return self.online.share_gpus and self.trainer.gpus_per_worker > 0

    def round(self, number: int) -> RoundConfig:
        """What holds in a round, counted from 0."""
        if not self.rounds:
            return RoundConfig()
        return self.rounds[min(number, len(self.rounds) - 1)]

    @model_validator(mode="before")
    @classmethod
    def _merge_shared_sections(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        policies = raw.get("policies")
        shared = ("prompt", "sft", "rft", "sampler")
        merged = dict(raw)
        if isinstance(policies, list):
            merged["policies"] = [_inherit(p, raw, (*shared, "sampling")) for p in policies]
        if "target" in raw:
            merged["target"] = _inherit(raw["target"], raw, shared)
        return merged

    @model_validator(mode="after")
    def _is_consistent(self) -> "RunConfig":
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies have the same name: {', '.join(names)}")
        for taken in ("target", "pooled", "all_rounds", "gold"):
            if taken in names:
                raise ValueError(f"policies: the name {taken!r} is taken")
        if len(self.rounds) > self.num_rounds:
            raise ValueError(
                f"rounds has {len(self.rounds)} entries, but num_rounds is {self.num_rounds}"
            )
        if "own" in self.controls and len(self.own_policies) in (0, len(names)):
            raise ValueError(
                "controls: own needs a policy with the target's model and one with another"
            )
        if self.mode == "online" and self.own_policy is None:
            raise ValueError("mode online needs a policy with the target's model: the live policy")
        if self.mode == "online" and any(policy.sampler.max_replicas for policy in self.policies):
            raise ValueError("sampler.max_replicas is for mode offline only")
        if self.mode == "online" and self.budget != BudgetConfig():
            raise ValueError("budget is for mode offline; online, a problem gets sampling.k")
        self._check_sharing()
        self._check_budget()
        self._check_temperatures()
        self._check_recipes()
        return self

    def _check_sharing(self) -> None:
        """What turns on the same GPUs take; on CPUs, which nothing frees, all goes the same way."""
        if not self.online.share_gpus:
            return
        if self.mode == "offline":
            raise ValueError(
                "online.share_gpus is for mode online; offline, samplers end before a training "
                "where there is no room beside it"
            )
        own = [policy.sampler for policy in self.policies]
        on_gpu = self.trainer.gpus_per_worker > 0
        if any((sampler.gpus_per_replica > 0) != on_gpu for sampler in own):
            raise ValueError("online.share_gpus: samplers and trainer are all on GPUs, or none is")
        if not on_gpu:
            return
        if self.online.transfer != "shared":
            raise ValueError(
                "online.share_gpus needs online.transfer shared, as NCCL refuses two processes on "
                "one GPU"
            )
        ranks = self.trainer.num_workers
        gpus = sum(sampler.num_replicas * sampler.gpus_per_replica for sampler in own)
        if self.trainer.gpus_per_worker != 1 or ranks > gpus:
            raise ValueError(
                f"online.share_gpus: {ranks} ranks with {self.trainer.gpus_per_worker:g} GPUs each "
                f"cannot take turns with samplers on {gpus:g} GPUs; give each rank 1 of them"
            )

    def _check_budget(self) -> None:
        """A wave counts what it accepts; these decide over all rollouts of a problem at once."""
        for name in ("best_of", "majority"):
            if self.budget.kind != "fixed" and getattr(self.verifier, name) is not None:
                raise ValueError(
                    f"verifier.{name} needs all rollouts of a problem at once, but budget.kind "
                    f"{self.budget.kind} counts the accepted ones wave by wave; give kind: fixed"
                )

    def _check_temperatures(self) -> None:
        """vLLM refuses several greedy completions of one prompt, which would all be the same."""
        for number in range(max(1, len(self.rounds))):
            for policy in self.policies:
                temperature = self.round(number).temperature
                own = policy.sampling.temperature if temperature is None else temperature
                if own == 0 and policy.sampling.k > 1:
                    raise ValueError(
                        f"policy {policy.name} samples at temperature 0 in round {number}, so its "
                        f"k ({policy.sampling.k}) rollouts would be the same; give k: 1"
                    )

    def _check_recipes(self) -> None:
        check_zero(self.trainer)
        recipes = [("rft", self.rft), ("rft", self.target.rft), ("sft", self.target.sft)]
        recipes += [(n, r) for p in self.policies for n, r in (("sft", p.sft), ("rft", p.rft))]
        for name, recipe in recipes:
            if recipe is None:
                continue
            check_recipe(self.trainer, recipe, name)
            if name == "sft" and recipe.start_from != "base":
                raise ValueError("sft.start_from: SFT starts from base, which is what it is for")
            if recipe.max_length > self.trainer.row_tokens:
                raise ValueError(
                    f"trainer.row_tokens ({self.trainer.row_tokens}) is less than "
                    f"max_length ({recipe.max_length})"
                )
            sources = {"gold", *(policy.name for policy in self.policies)}
            for source in sorted(set(recipe.source_weights) - sources):
                raise ValueError(f"source_weights: {source!r} is neither gold nor a policy")
        starts = {entry.target_start_from for entry in self.rounds}
        if self.target.sft is None and "sft" in {self.target.rft.start_from, *starts}:
            raise ValueError("the target's RFT starts from its sft, but it has no sft")
        for policy in self.policies:
            own = policy.rft.start_from
            starts = {r.policies_start_from or own for r in self.rounds if r.retrain_policies}
            if policy.sft is None and "sft" in starts:
                raise ValueError(f"policy {policy.name} is retrained from its sft, but has no sft")


def _same_model(model: str) -> str:
    """What two names of one model have in common: its folder, or its hub name as it is."""
    return os.path.realpath(os.path.expanduser(model))


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


def package_index_settings() -> dict[str, str]:
    """Where pip finds packages, as far as the environment says so."""
    names = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    return {name: os.environ[name] for name in names if os.environ.get(name)}
