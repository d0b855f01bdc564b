"""What the steps of a run share: its problems and models, their checkpoints, and the engines.

The target shares the sampler of the policy with its base: an engine costs tens of seconds to start
and milliseconds to refresh. Training is in `fine_tuning.py`, scoring in `scoring.py`.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft_ray.config import (
    PolicyConfig,
    ProblemSetConfig,
    PromptConfig,
    RecipeConfig,
    RunConfig,
    SamplerConfig,
    TargetConfig,
)
from rft_ray.console import say
from rft_ray.decontamination import TestText, decontaminate, text_of_tests
from rft_ray.full_disk import naming_full_disk
from rft_ray.model_check import check_model_prompt
from rft_ray.models import find_folder, resolve_model
from rft_ray.placement import Order
from rft_ray.problems import load_problems
from rft_ray.prompts import Prompt, make_prompt
from rft_ray.run_dir import RunDir, keep_problems, open_run_dir, run_label
from rft_ray.sampling import Policy, Weights, refresh_facts
from rft_ray.types import Problem
from rft_ray.verification import check_function

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

TARGET = "target"


@dataclass(frozen=True, slots=True)
class Model:
    """A policy or the target: its pre-trained base, how it is asked, and how it is trained."""

    name: str
    base: str
    """Folder of the pre-trained model."""
    prompt: Prompt
    sft: RecipeConfig | None
    rft: RecipeConfig

    @property
    def baseline(self) -> str:
        """The stage that its RFT is compared with: after SFT, or the base where it has none."""
        return "sft" if self.sft else "base"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one model so far, each list in step order; the base where it has no SFT.

    `current` is what the newest training of the model left.
    """

    base: Weights
    sft: list[Weights]
    current: list[Weights]

    @property
    def newest(self) -> Weights:
        """What the model is now."""
        return self.current[-1]

    def start(self, start_from: str) -> str:
        """The folder of the weights that a training starts from."""
        weights = {"base": self.base, "sft": self.sft[-1], "current": self.newest}
        return weights[start_from].path

    def after(self, trained: list[Weights]) -> "Checkpoints":
        """The same after a further training."""
        return replace(self, current=trained)


@dataclass(frozen=True, slots=True)
class Study:
    """What every step of a run needs: its config, its folder, its problems and its models."""

    config: RunConfig
    run: RunDir
    problems: dict[str, list[Problem]]
    """By set: train, heldout, the out-of-domain sets and, where there is one, validation."""
    models: dict[str, Model]
    """By name; the policies, then the target."""
    order: Order = "together"
    """Whether there is room for samplers beside the trainer."""
    trained: dict[str, list[Weights]] = field(default_factory=dict)
    """Checkpoints by what decides them: equal trainings are done once."""
    running: list["Samplers"] = field(default_factory=list)
    """The engines, while there are any."""
    test_text: TestText | None = None
    """The words that no rollout may share; none: rollouts are not compared."""

    @property
    def target(self) -> Model:
        """The model being trained."""
        return self.models[TARGET]

    @property
    def policies(self) -> list[Model]:
        """The models that sample rollouts."""
        return [self.models[policy.name] for policy in self.config.policies]

    def make_room(self) -> None:
        """Before a training: end the engines where it needs their devices, else start them beside.

        Those that were ended start again when they are next asked for anything.
        """
        for samplers in self.running:
            if self.order == "in turns":
                samplers.stop()
            else:
                samplers.start_soon()


@dataclass(frozen=True, slots=True)
class Samplers:
    """The engines of a run: a handle per sampler, and which sampler serves which model.

    They start when they are first needed, or beside a training before that. They may be stopped, to
    leave their devices to one, and started again: a sampler that starts holds the base, like one
    that was restarted, and is refreshed before it is asked.
    """

    run: RunDir
    start_engines: Callable[[], AbstractContextManager[dict[str, "DeploymentHandle"]]]
    serving: dict[str, str]
    application: dict[str, str]
    tokenizer: dict[str, str]
    max_rollouts_in_flight: dict[str, int]
    handles: dict[str, "DeploymentHandle"] = field(default_factory=dict)
    """Of the running samplers; empty while they are stopped."""
    max_model_len: dict[str, int] = field(default_factory=dict)
    _starting: list[Future[None]] = field(default_factory=list)
    _running: ExitStack = field(default_factory=ExitStack)

    def start_soon(self) -> None:
        """Start the engines beside what comes next, where they are not running."""
        if not self._starting:
            self._starting.append(ThreadPoolExecutor(1, "start samplers").submit(self._start))

    def start(self) -> None:
        """Have the engines running; what their start cost beyond what it overlapped is a phase."""
        self.start_soon()
        if not self._starting[0].done():
            with self.run.timed("start samplers"):
                wait(self._starting)
        self._starting[0].result()

    def stop(self) -> None:
        """End the engines and let go of their devices."""
        wait(self._starting)  # a start cannot be taken back half-way
        self._starting.clear()
        self.handles.clear()
        self._running.close()

    def _start(self) -> None:
        self.handles.update(self._running.enter_context(self.start_engines()))
        lengths = {n: h.max_model_len.remote().result() for n, h in self.handles.items()}
        self.max_model_len.update(lengths)

    def policy(
        self, name: str, weights: Weights, prompt: Prompt, sampling: dict[str, Any]
    ) -> Policy:
        """A model as the sampling stage addresses it, in running engines."""
        self.start()
        sampler = self.serving[name]
        return Policy(
            name=name,
            application=self.application[sampler],
            tokenizer=self.tokenizer[name],
            weights=weights,
            prompt=prompt,
            sampling=sampling,
            max_model_len=self.max_model_len[sampler],
            max_rollouts_in_flight=self.max_rollouts_in_flight[sampler],
        )


@contextmanager
def open_study(config: RunConfig) -> Iterator[Study]:
    """The run's folder, problems and Ray session; wrong input is found before anything heavy."""
    from rft_ray.preflight import check_cluster
    from rft_ray.ray_session import naming_logs, start_ray, stop_ray
    from rft_ray.trackers import tracking

    problems = {name: load_problems(chosen) for name, chosen in problem_sets(config).items()}
    overlapping = decontaminate(problems, config.problems.decontaminate_words)
    prompts = model_prompts(config, problems["train"])
    icl_prompt(config, problems["train"])
    check_prompts(config, prompts, problems["train"][0])
    check_function(config.verifier)
    with open_run_dir(config) as run:
        say(f"run directory: {run.path}")
        say("problems: " + ", ".join(f"{len(own)} {name}" for name, own in problems.items()))
        if overlapping:
            say(f"left out of train: {overlapping} problems that share words with the other sets")
            run.log("decontaminate", round=0, left_out=overlapping, problems=len(problems["train"]))
        keep_problems(run, problems)
        for name, count in shared_with_training(problems).items():
            say(f"warning: {count} of the {name} problems are in the training set")
        models = load_models(config, run, prompts)
        for name, own in named_models(config).items():
            # a model from a hub is there only now
            check_model_prompt(own.model, models[name].base, prompts[name], problems["train"][0])
        with tracking(config.trackers, run.path, config.model_dump(mode="json")):
            start_ray(job=f"rft-ray {run.path.name}")
            try:
                order = check_cluster(config, run.path)
                with naming_logs(), naming_full_disk(run.path):
                    test_text = text_of_tests(problems, config.problems.decontaminate_rollouts)
                    yield Study(config, run, problems, models, order, test_text=test_text)
            finally:
                stop_ray()


def problem_sets(config: RunConfig) -> dict[str, ProblemSetConfig]:
    """Every set of problems of a run by name."""
    sets = {"train": config.problems.train, "heldout": config.problems.heldout}
    if config.problems.validation:
        sets["validation"] = config.problems.validation
    return {**sets, **config.problems.out_of_domain}


def shared_with_training(problems: dict[str, list[Problem]]) -> dict[str, int]:
    """How many problems of each further set have the prompt of a training problem, if any."""
    trained = {problem.prompt for problem in problems["train"]}
    counts = {
        name: sum(problem.prompt in trained for problem in own)
        for name, own in problems.items()
        if name != "train"
    }
    return {name: count for name, count in counts.items() if count}


def named_models(config: RunConfig) -> dict[str, PolicyConfig | TargetConfig]:
    """The policies, then the target, by name."""
    return {policy.name: policy for policy in config.policies} | {TARGET: config.target}


def check_prompts(config: RunConfig, prompts: dict[str, Prompt], problem: Problem) -> None:
    """Raises InputError for a model that is nowhere, or whose folder cannot take its prompt."""
    folders = {name: find_folder(own.model) for name, own in named_models(config).items()}
    for name, folder in folders.items():
        if folder:
            check_model_prompt(str(folder), str(folder), prompts[name], problem)


def model_prompts(config: RunConfig, solved: list[Problem]) -> dict[str, Prompt]:
    """How each model is asked, by its name."""
    return {name: make_prompt(own.prompt, solved) for name, own in named_models(config).items()}


def icl_prompt(config: RunConfig, solved: list[Problem]) -> Prompt | None:
    """How the target's base is asked for in-context learning; None where it is not scored."""
    shots, own = config.evaluation.icl_shots, config.target.prompt
    if not shots:
        return None
    prompt = PromptConfig(template=own.template, system=own.system, shots=shots)
    return make_prompt(prompt, solved, field="evaluation.icl_shots")


def load_models(config: RunConfig, run: RunDir, prompts: dict[str, Prompt]) -> dict[str, Model]:
    """The policies and the target, their bases in folders that every node can read."""
    folder = run.path / "models"
    return {
        name: Model(
            name=name,
            base=resolve_model(own.model, folder),
            prompt=prompts[name],
            sft=own.sft,
            rft=own.rft,
        )
        for name, own in named_models(config).items()
    }


def exported_weights(folder: str) -> Weights:
    """A checkpoint that a training of this run exported, with the step that wrote it."""
    return Weights(folder, json.loads((Path(folder) / "probe.json").read_text())["step"])


@contextmanager
def running_samplers(study: Study) -> Iterator[Samplers]:
    """Engines for every policy and for the target, once needed; they end with the block."""
    from rft_ray.deployment import application_name, deployed_samplers
    from rft_ray.gpu_gate import gate_name

    config = study.config
    models: dict[str, tuple[str, SamplerConfig]] = {
        policy.name: (study.models[policy.name].base, policy.sampler) for policy in config.policies
    }
    own = config.own_policy
    serving = {name: name for name in models} | {TARGET: own.name if own else TARGET}
    if own is None:
        models[TARGET] = (study.target.base, config.target.sampler)
    run_id, tolerance = run_label(study.run.path), config.evaluation.parity_tolerance
    gate = gate_name(run_id) if config.online.share_gpus else None

    @contextmanager
    def engines() -> Iterator[dict[str, "DeploymentHandle"]]:
        say(f"samplers: starting {', '.join(models)} (about a minute)")
        with deployed_samplers(models, run_id, tolerance, gate) as handles:
            yield handles

    samplers = Samplers(
        run=study.run,
        start_engines=engines,
        serving=serving,
        application={name: application_name(run_id, name) for name in models},
        tokenizer={name: model.base for name, model in study.models.items()},
        max_rollouts_in_flight={
            name: sampler.max_rollouts_in_flight * sampler.most_replicas
            for name, (_, sampler) in models.items()
        },
    )
    study.running.append(samplers)
    try:
        yield samplers
    finally:
        study.running.remove(samplers)
        samplers.stop()


def refresh(study: Study, samplers: Samplers, name: str, weights: Weights) -> None:
    """Put a checkpoint into the running sampler of a model, checked against the trainer."""
    from rft_ray.deployment import refresh_sampler

    samplers.start()
    sampler = samplers.serving[name]
    reports = refresh_sampler(samplers.handles[sampler], weights)
    study.run.log(
        "refresh",
        sampler=sampler,
        model=name,
        step=weights.version,
        seconds=max(report.seconds for report in reports),
        **refresh_facts(reports),
    )
