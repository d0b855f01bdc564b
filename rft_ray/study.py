"""What the steps of a run share: its problems and folder, its training runs and its engines.

Each function looks first whether its result is in the run directory. Models with the same base and
recipe are trained once, and models of the same base share one sampler: an engine costs tens of
seconds to start and milliseconds to refresh.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft_ray.config import RecipeConfig, RunConfig, SamplerConfig
from rft_ray.console import follow_training, say
from rft_ray.packing import planned_steps
from rft_ray.problems import load_problems
from rft_ray.prompts import group_examples, write_examples
from rft_ray.run_dir import RoundDir, RunDir, open_run_dir
from rft_ray.sampling import Policy, Weights
from rft_ray.types import Group, Problem

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from rft_ray.trainer import TrainingJob

TARGET = "target"


@dataclass(frozen=True, slots=True)
class Study:
    """What every step of a run needs: its config, its folder and its problems."""

    config: RunConfig
    run: RunDir
    round: RoundDir
    problems: dict[str, list[Problem]]
    """By set: train, heldout and, where the config has one, validation."""


@dataclass(frozen=True, slots=True)
class Samplers:
    """The running engines: a handle per sampler, and which sampler serves which model."""

    handles: dict[str, "DeploymentHandle"]
    serving: dict[str, str]
    application: dict[str, str]
    max_model_len: dict[str, int]
    max_rollouts_in_flight: dict[str, int]

    def policy(self, name: str, weights: Weights, sampling: dict[str, Any]) -> Policy:
        """A model as the sampling stage addresses it."""
        sampler = self.serving[name]
        return Policy(
            name=name,
            application=self.application[sampler],
            weights=weights,
            sampling=sampling,
            max_model_len=self.max_model_len[sampler],
            max_rollouts_in_flight=self.max_rollouts_in_flight[sampler],
        )


@contextmanager
def open_study(config: RunConfig) -> Iterator[Study]:
    """The run's folder, problems and Ray session; wrong input is found before anything heavy."""
    from rft_ray.ray_session import start_ray, stop_ray

    sets = {"train": config.problems.train, "heldout": config.problems.heldout}
    if config.problems.validation:
        sets["validation"] = config.problems.validation
    problems = {name: load_problems(problem_set) for name, problem_set in sets.items()}
    with open_run_dir(config) as run:
        say(f"run directory: {run.path}")
        say("problems: " + ", ".join(f"{len(own)} {name}" for name, own in problems.items()))
        start_ray()
        try:
            yield Study(config, run, run.round(0), problems)
        finally:
            stop_ray()


def fine_tune(study: Study) -> dict[str, list[Weights]]:
    """Checkpoints of each policy and of the target, in order; the base where it has no SFT."""
    config = study.config
    models = {policy.name: (policy.model, policy.sft) for policy in config.policies}
    models[TARGET] = (config.target.model, config.target.sft)
    trained: dict[tuple[str, str], list[Weights]] = {}
    tuned: dict[str, list[Weights]] = {}
    gold = [Group(problem) for problem in study.problems["train"]]
    for name, (model, recipe) in models.items():
        if recipe is None:
            tuned[name] = [Weights(os.path.abspath(model), 0)]
            continue
        key = (model, recipe.model_dump_json())
        if key not in trained:
            output = study.run.sft(name)
            trained[key] = train(study, f"sft-{name}", model, recipe, gold, output)
        tuned[name] = trained[key]
    return tuned


def train(
    study: Study,
    name: str,
    start: str,
    recipe: RecipeConfig,
    groups: Iterable[Group],
    output: Path,
) -> list[Weights]:
    """One training run on gold solutions and selected rollouts: its checkpoints, in order.

    What an earlier attempt finished is not done again.
    """
    from rft_ray.trainer import TrainingJob, run_training

    examples = output.with_name(output.name + ".examples.parquet")
    job = TrainingJob(
        name=name,
        model=os.path.abspath(start),
        examples=str(examples),
        output_dir=str(output),
        recipe=recipe,
        metrics_path=str(study.run.metrics),
        round=study.round.number,
    )
    if not output.exists():
        count = write_training_set(study, groups, job)
        say(f"train {name}: {count} examples")
        with (
            study.run.timed("train", job=name),
            follow_training(study.run.metrics, name, planned_steps(recipe, count)),
        ):
            run_training(job, study.config.trainer)
    exports = run_training(job, study.config.trainer)
    return [Weights(export, exported_step(Path(export))) for export in exports]


def write_training_set(study: Study, groups: Iterable[Group], job: "TrainingJob") -> int:
    """Tokenise the groups' gold solutions and selected rollouts for a job; how many there are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    examples, num_dropped = group_examples(
        groups, tokenizer, study.config.prompt_template, job.recipe.max_length
    )
    if num_dropped:
        say(f"train {job.name}: {num_dropped} examples exceed {job.recipe.max_length} tokens")
    study.run.log("examples", job=job.name, kept=len(examples), too_long=num_dropped)
    Path(job.examples).parent.mkdir(parents=True, exist_ok=True)
    write_examples(job.examples, examples)
    return len(examples)


def exported_step(checkpoint: Path) -> int:
    """The optimiser step whose weights a checkpoint holds."""
    return json.loads((checkpoint / "probe.json").read_text())["step"]


@contextmanager
def running_samplers(study: Study) -> Iterator[Samplers]:
    """Engines for every policy and for the target; they end with the block."""
    from rft_ray.sampler import application_name, deployed_samplers

    config = study.config
    models: dict[str, tuple[str, SamplerConfig]] = {
        policy.name: (os.path.abspath(policy.model), policy.sampler) for policy in config.policies
    }
    serving = {name: name for name in models}
    base = os.path.abspath(config.target.model)
    serving[TARGET] = next((n for n, (model, _) in models.items() if model == base), TARGET)
    if serving[TARGET] == TARGET:
        models[TARGET] = (base, config.target.sampler)
    run_id = hashlib.sha256(str(study.run.path).encode()).hexdigest()[:8]
    say(f"samplers: starting {', '.join(models)} (about a minute)")
    with ExitStack() as stack:
        with study.run.timed("start samplers"):
            handles = stack.enter_context(
                deployed_samplers(models, run_id, config.evaluation.parity_tolerance)
            )
        yield Samplers(
            handles=handles,
            serving=serving,
            application={name: application_name(run_id, name) for name in models},
            max_model_len={n: h.max_model_len.remote().result() for n, h in handles.items()},
            max_rollouts_in_flight={
                name: sampler.max_rollouts_in_flight * sampler.num_replicas
                for name, (_, sampler) in models.items()
            },
        )


def refresh(study: Study, samplers: Samplers, name: str, weights: Weights) -> None:
    """Put a checkpoint into the running sampler of a model, checked against the trainer."""
    from rft_ray.sampler import refresh_sampler

    sampler = samplers.serving[name]
    reports = refresh_sampler(samplers.handles[sampler], weights)
    checked = [r.parity_max_abs_diff for r in reports if r.parity_max_abs_diff is not None]
    study.run.log(
        "refresh",
        sampler=sampler,
        model=name,
        step=weights.version,
        seconds=max(report.seconds for report in reports),
        bytes=sum(report.num_bytes for report in reports),
        replicas=len(reports),
        parity_max_abs_diff=max(checked) if checked else None,
    )
