"""Every training of a run: SFT, the policies between rounds, the target, and its controls.

Each looks first whether its result is in the run directory, and trainings that are equal in all
that decides the result (start, recipe, prompt, data) are done once. The loop over optimiser steps
is `trainer.py`'s.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from rft_ray.config import RecipeConfig
from rft_ray.console import follow_training, say
from rft_ray.controls import all_accepted, own_rollouts, random_rollouts
from rft_ray.errors import InputError
from rft_ray.packing import planned_steps
from rft_ray.pool import Pool
from rft_ray.prompts import group_examples, write_examples
from rft_ray.sampling import Weights
from rft_ray.study import TARGET, Checkpoints, Model, Study, exported_weights
from rft_ray.types import Example, Group

if TYPE_CHECKING:
    from rft_ray.trainer import TrainingJob

POLL_SECONDS = 1.0
Watch = Callable[[Weights], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One training: a model from some weights on some groups; `data` names the groups."""

    job: str
    model: Model
    recipe: RecipeConfig
    start: str
    data: str
    output: Path
    round: int

    @property
    def key(self) -> str:
        """What decides the result, job and output left out."""
        recipe = self.recipe.model_copy(update={"start_from": "base"})
        prompt = asdict(self.model.prompt)
        return json.dumps([self.start, self.data, prompt, recipe.model_dump(mode="json")])


def fine_tune(study: Study) -> dict[str, Checkpoints]:
    """Each model fine-tuned on the gold solutions; just the base where it has no SFT."""
    checkpoints = {}
    for name, model in study.models.items():
        base = Weights(model.base, 0)
        tuned = [base]
        if model.sft:
            task = Task(
                f"sft-{name}", model, model.sft, model.base, "gold", study.run.sft(name), round=0
            )
            gold = (Group(problem) for problem in study.problems["train"])
            tuned = train(study, task, gold)
        checkpoints[name] = Checkpoints(base, tuned, tuned)
    return checkpoints


def retrain_policies(
    study: Study, number: int, checkpoints: dict[str, Checkpoints]
) -> dict[str, Checkpoints]:
    """The checkpoints after each policy has learned from the pool, where this round asks for it."""
    if number == 0 or not study.config.round(number).retrain_policies:
        return checkpoints
    retrained = dict(checkpoints)
    for policy in study.policies:
        task = policy_task(study, number, policy, checkpoints[policy.name])
        trained = train(study, task, selected_groups(study, number - 1))
        retrained[policy.name] = checkpoints[policy.name].after(trained)
    return retrained


def policy_task(study: Study, number: int, policy: Model, checkpoints: Checkpoints) -> Task:
    """The training of a policy before a round, on what the rounds before it selected."""
    start_from = study.config.round(number).policies_start_from or policy.rft.start_from
    return Task(
        job=f"rft-{policy.name}",
        model=policy,
        recipe=policy.rft,
        start=checkpoints.start(start_from),
        data=f"round-{number - 1}",
        output=study.run.round(number).policy(policy.name),
        round=number,
    )


def train_target(
    study: Study,
    number: int,
    checkpoints: dict[str, Checkpoints],
    watch: Watch | None = None,
) -> dict[str, Checkpoints]:
    """The checkpoints after the target has learned from gold solutions and selected rollouts.

    `watch` is called with each checkpoint as it is exported, from another thread.
    """
    task = _target_task(study, number, checkpoints)
    trained = train(study, task, selected_groups(study, number), watch)
    return {**checkpoints, TARGET: checkpoints[TARGET].after(trained)}


def train_controls(
    study: Study, number: int, checkpoints: dict[str, Checkpoints]
) -> dict[str, list[Weights]]:
    """What the target becomes on the data of each control, by its name.

    `checkpoints` are those from before the round's training.
    """
    own = [policy.name for policy in study.config.own_policies]
    select: dict[str, Callable[[Group], Group]] = {
        "own": lambda group: own_rollouts(group, own, study.config.selection),
        "random": lambda group: random_rollouts(group, study.config.seed),
        "no_dedup": all_accepted,
    }
    trained = {}
    for control in study.config.controls:
        task = _target_task(study, number, checkpoints, control)
        groups = map(select[control], selected_groups(study, number))
        trained[control] = train(study, task, groups)
    return trained


def _target_task(
    study: Study, number: int, checkpoints: dict[str, Checkpoints], control: str | None = None
) -> Task:
    recipe, round_dir = study.target.rft, study.run.round(number)
    start_from = study.config.round(number).target_start_from or recipe.start_from
    return Task(
        job=f"rft-target-{control}" if control else "rft-target",
        model=study.target,
        recipe=recipe,
        start=checkpoints[TARGET].start(start_from),
        data=f"round-{number}" + (f"-{control}" if control else ""),
        output=round_dir.control(control) if control else round_dir.checkpoint,
        round=number,
    )


def selected_groups(study: Study, number: int) -> Iterator[Group]:
    """A round's selected groups in the order of the problems.

    Raises InputError where the round is not selected yet.
    """
    folder = study.run.round(number).selected
    if not folder.exists():
        raise InputError(f"{folder}: no selected rollouts; run `rft-ray sample` first")
    return Pool(folder).in_order(study.problems["train"])


def train(
    study: Study, task: Task, groups: Iterable[Group], watch: Watch | None = None
) -> list[Weights]:
    """One training on gold solutions and selected rollouts: its checkpoints, in step order.

    What an earlier attempt finished, or another model's equal training, is not done again.
    """
    from rft_ray.trainer import TrainingJob, run_training

    if task.key in study.trained and not task.output.exists():
        return study.trained[task.key]
    output = task.output
    job = TrainingJob(
        name=task.job,
        model=task.start,
        examples=str(output.with_name(output.name + ".examples.parquet")),
        output_dir=str(output),
        recipe=task.recipe,
        metrics_path=str(study.run.metrics),
        round=task.round,
    )
    if not output.exists():
        count = write_training_set(study, task, groups, job)
        say(f"train {task.job}: {count} examples")
        steps = planned_steps(task.recipe, count)
        study.make_room()
        with (
            study.run.timed("train", job=task.job, round=task.round),
            follow_training(study.run.metrics, task.job, task.round, steps),
            watched_exports(output, watch),
        ):
            run_training(job, study.config.trainer)
    exports = run_training(job, study.config.trainer)
    study.trained[task.key] = list(map(exported_weights, exports))
    return study.trained[task.key]


def write_training_set(
    study: Study, task: Task, groups: Iterable[Group], job: "TrainingJob"
) -> int:
    """Tokenise the groups' gold solutions and selected rollouts for a job; how many there are.

    Raises InputError where there is nothing to learn from.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    num_dropped = 0

    def fitting() -> Iterator[Example]:
        nonlocal num_dropped
        for group in groups:
            own, dropped = group_examples(
                [group],
                tokenizer,
                task.model.prompt,
                task.recipe.max_length,
                task.recipe.source_weights,
            )
            num_dropped += dropped
            yield from own

    Path(job.examples).parent.mkdir(parents=True, exist_ok=True)
    count = write_examples(job.examples, fitting())
    if not count:
        raise InputError(
            f"train {job.name}: nothing to learn from: {num_dropped} gold solutions or selected "
            f"rollouts, of which none fits max_length ({task.recipe.max_length})"
        )
    if num_dropped:
        say(f"train {job.name}: {num_dropped} examples exceed {job.recipe.max_length} tokens")
    study.run.log("examples", job=job.name, round=task.round, kept=count, too_long=num_dropped)
    return count


def watched_exports(output: Path, watch: Watch | None) -> AbstractContextManager[None]:
    """While the block runs, `watch` is called with every extra export of a training, in order."""
    return nullcontext() if watch is None else _watching(output, watch)


@contextmanager
def _watching(output: Path, watch: Watch) -> Iterator[None]:
    from rft_ray.trainer import extra_exports

    stop, failure = Event(), []

    def follow() -> None:
        seen: set[Path] = set()
        try:
            # Exports get their name last. What is not seen before the end is scored afterwards.
            while not stop.wait(POLL_SECONDS):
                for folder in extra_exports(output):
                    if folder not in seen and not stop.is_set():
                        seen.add(folder)
                        watch(exported_weights(str(folder)))
        except Exception as error:  # whatever it is, the driver raises it
            failure.append(error)

    follower = Thread(target=follow, name="watch exports", daemon=True)
    follower.start()
    try:
        yield
    finally:
        stop.set()
        follower.join()
    if failure:
        raise failure[0]
