"""Offline RFT, the whole job: fine-tune the policies, sample, verify, select, train the target.

    rft-ray run configs/quickstart.yaml

`run_offline` is the method in the order it happens, a verb a line (Yuan et al. 2023, section 3).
Every step looks first whether its result is in the run directory, so the same command continues a
killed run. Left out: several rounds, and freeing the samplers' devices while the target trains.
"""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rft_ray.config import RunConfig
from rft_ray.console import progress, say
from rft_ray.errors import InputError
from rft_ray.records import read_groups
from rft_ray.sampling import SamplingPlan, Weights, sampling_params
from rft_ray.selection import group_statistics
from rft_ray.study import (
    TARGET,
    Samplers,
    Study,
    fine_tune,
    open_study,
    refresh,
    running_samplers,
    train,
)
from rft_ray.tally import POOLED, Tally
from rft_ray.types import Group, Problem

if TYPE_CHECKING:
    from rft_ray.evaluation import EvaluationRow, Score


class NothingAcceptedError(RuntimeError):
    """No rollout was right, so there is nothing to train the target on but the seed set."""


def run_offline(config: RunConfig) -> None:
    """Sample from every policy, keep what is right and diverse, train the target, evaluate."""
    from rft_ray.report import write_report

    with open_study(config) as study:
        tuned = fine_tune(study)
        with running_samplers(study) as samplers:
            rows, scores = evaluate_tuned(study, samplers, tuned)
            tally = sample_verify_select(study, samplers, tuned)
            trained = train_target(study, tuned)
            rows += evaluate_target(study, samplers, trained, scores)
        print(tally.table())
        write_results(study, rows)
        say(f"report: {write_report(str(study.run.path))}")


def run_sample(config: RunConfig) -> None:
    """The first half alone: fine-tune the policies, then sample, verify and select."""
    with open_study(config) as study:
        tuned = fine_tune(study)
        with running_samplers(study) as samplers:
            tally = sample_verify_select(study, samplers, tuned)
        print(tally.table())


def run_train(config: RunConfig) -> None:
    """The target's training alone, on a run directory whose rollouts are selected."""
    with open_study(config) as study:
        trained = train_target(study, fine_tune(study))
        print(trained[-1].path)


def run_evaluate(config: RunConfig) -> None:
    """Score what a run directory holds: every fine-tuned model and, once trained, the target."""
    with open_study(config) as study:
        tuned = fine_tune(study)
        with running_samplers(study) as samplers:
            rows, scores = evaluate_tuned(study, samplers, tuned)
            if study.round.checkpoint.exists():
                rows += evaluate_target(study, samplers, train_target(study, tuned), scores)
        write_results(study, rows)


def sample_verify_select(
    study: Study, samplers: Samplers, tuned: dict[str, list[Weights]]
) -> Tally:
    """The round's groups on disk, sampled, graded and selected; what became of the rollouts.

    Raises NothingAcceptedError with the counts by verdict when nothing is left to learn from.
    """
    from rft_ray.stages import sample_groups, select_groups, verify_groups, write_groups

    config, round_dir, tally = study.config, study.round, Tally()
    problems = study.problems["train"]
    if round_dir.selected.exists():
        for group in read_groups(round_dir.selected):
            tally.add(group_statistics(group))
        return tally
    for policy in config.policies:
        refresh(study, samplers, policy.name, tuned[policy.name][-1])
    plan = SamplingPlan(
        policies=[
            samplers.policy(p.name, tuned[p.name][-1], sampling_params(p.sampling))
            for p in config.policies
        ],
        prompt_template=config.prompt_template,
        seed=config.seed,
        round=round_dir.number,
    )
    partial = round_dir.path / "selected.partial"
    shutil.rmtree(partial, ignore_errors=True)
    groups = sample_groups(problems, plan, str(round_dir.sampled))
    verified = verify_groups(groups, config.verifier)
    selected = select_groups(verified, config.selection)
    with (
        study.run.timed("sample verify select"),
        progress("sample", len(problems), "problem") as advance,
    ):
        for statistics in write_groups(selected, str(partial)):
            tally.add(statistics)
            advance(1)
    if tally.num_problems != len(problems):
        raise RuntimeError(f"{tally.num_problems} groups came of {len(problems)} problems")
    for name in tally.names():
        study.run.log("select", round=round_dir.number, policy=name, **tally.row(name))
    if not tally.selected:
        raise NothingAcceptedError(f"no rollout was accepted: {tally.verdicts(POOLED)}")
    # The name says that every group is graded, so it is given last.
    os.replace(partial, round_dir.selected)
    return tally


def train_target(study: Study, tuned: dict[str, list[Weights]]) -> list[Weights]:
    """The target trained on gold solutions and selected rollouts: its checkpoints, in order."""
    target, selected = study.config.target, study.round.selected
    if not selected.exists():
        raise InputError(f"{study.run.path}: no selected rollouts; run `rft-ray sample` first")
    start = target.model if target.rft.start_from == "base" else tuned[TARGET][-1].path
    groups = in_problem_order(study.problems["train"], read_groups(selected))
    return train(study, "rft-target", start, target.rft, groups, study.round.checkpoint)


def in_problem_order(problems: list[Problem], groups: Iterator[Group]) -> Iterator[Group]:
    """Groups in the order of the problems: the stream's own depends on timing, a run must not."""
    by_id = {group.problem.id: group for group in groups}
    return (by_id[problem.id] for problem in problems)


def evaluate_tuned(
    study: Study, samplers: Samplers, tuned: dict[str, list[Weights]]
) -> tuple[list["EvaluationRow"], dict[str, "Score"]]:
    """Rows of every policy and of the target after SFT, and the target's scores by metric."""
    rows: list[EvaluationRow] = []
    for policy in study.config.policies:
        rows += score_stage(study, samplers, policy.name, "sft", tuned[policy.name][-1:])[0]
    ours, scores = score_stage(study, samplers, TARGET, "sft", tuned[TARGET])
    return rows + ours, scores


def evaluate_target(
    study: Study,
    samplers: Samplers,
    trained: list[Weights],
    baseline: dict[str, "Score"],
) -> list["EvaluationRow"]:
    """Rows of the target after RFT; its differences to the SFT baseline go to the metrics."""
    from rft_ray.evaluation import paired_difference

    stage = "rft_own" if len(study.config.policies) == 1 else "rft_pooled"
    rows, scores = score_stage(study, samplers, TARGET, stage, trained)
    for metric, score in scores.items():
        value, low, high = paired_difference(score, baseline[metric])
        study.run.log("gain", metric=metric, value=value, low=low, high=high)
        say(f"{stage} - sft, {metric}: {value:+.1%} (95% interval {low:+.1%} to {high:+.1%})")
    return rows


def score_stage(
    study: Study, samplers: Samplers, model: str, stage: str, checkpoints: list[Weights]
) -> tuple[list["EvaluationRow"], dict[str, "Score"]]:
    """A model's held-out score at its last checkpoint and at the one best on validation.

    The held-out problems take no part in choosing the checkpoint.
    """
    from rft_ray.evaluation import make_row

    chosen = {"pass@1": checkpoints[-1]}
    if "validation" in study.problems and len(checkpoints) > 1:
        validation = {
            weights: score(study, samplers, model, stage, weights, "validation").value
            for weights in checkpoints
        }
        chosen["pass@1_best_validation"] = max(checkpoints, key=validation.__getitem__)
    scores = {
        metric: score(study, samplers, model, stage, weights, "heldout")
        for metric, weights in chosen.items()
    }
    rows = [
        make_row(model, stage, metric, scores[metric], weights.version)
        for metric, weights in chosen.items()
    ]
    return rows, scores


def score(
    study: Study, samplers: Samplers, model: str, stage: str, weights: Weights, problem_set: str
) -> "Score":
    """Greedy pass@1 of one checkpoint on one problem set, in the running sampler."""
    from rft_ray.evaluation import greedy_plan, score_checkpoint
    from rft_ray.verifier import Verifier

    config, problems = study.config, study.problems[problem_set]
    policy = samplers.policy(model, weights, {})
    plan = greedy_plan(policy, config.evaluation.max_tokens, config.prompt_template)
    final_answer_only = config.verifier.model_copy(update={"check_calculations": False})
    label = f"evaluate {model} {stage}, step {weights.version}, {problem_set}"
    path = study.round.scored(weights.path, problem_set)
    if not path.exists():
        refresh(study, samplers, model, weights)
    with (
        study.run.timed("evaluate", model=model, stage=stage, problem_set=problem_set),
        progress(label, len(problems), "problem") as advance,
        Verifier(final_answer_only) as verifier,
    ):
        result = score_checkpoint(problems, plan, verifier, path, advance)
    low, high = result.interval
    study.run.log(
        "evaluation", model=model, stage=stage, problem_set=problem_set, step=weights.version,
        value=result.value, low=low, high=high, n=len(problems),
    )  # fmt: skip
    return result


def write_results(study: Study, rows: list["EvaluationRow"]) -> None:
    """`evaluation.json`, and the same as a table on standard output."""
    from rft_ray.evaluation import write_rows

    write_rows(study.round.evaluation, rows)
    print(f"{'model':16} {'stage':12} {'metric':24} {'step':>6} {'value':>7}  95% interval")
    for row in rows:
        print(
            f"{row.model:16} {row.stage:12} {row.metric:24} {row.step:6d} {row.value:7.1%}"
            f"  {row.low:.1%} to {row.high:.1%}  (n = {row.n})"
        )
