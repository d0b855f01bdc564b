"""Offline RFT, the whole job: fine-tune the policies, sample, verify, select, train the target.

    rft-ray run configs/quickstart.yaml

`run_offline` is the method in the order it happens, a verb a line (Yuan et al. 2023, section 3;
they do one round). Every step looks first whether its result is in the run directory, so the same
command continues a killed run. Where samplers and trainer do not fit on the cluster together, a
training ends the samplers, and what samples next starts them again.
"""

import os
import shutil
from typing import TYPE_CHECKING, Any

from rft_ray.config import RunConfig
from rft_ray.console import progress, say
from rft_ray.errors import StoppedError
from rft_ray.fine_tuning import fine_tune, retrain_policies, train_controls, train_target
from rft_ray.run_dir import read_metrics
from rft_ray.sampling import SamplingPlan, sampling_params
from rft_ray.saturation import is_saturated, note_new_paths
from rft_ray.study import (
    TARGET,
    Checkpoints,
    Samplers,
    Study,
    open_study,
    refresh,
    running_samplers,
)
from rft_ray.tally import ALL_ROUNDS, POOLED, Tally, counts_table
from rft_ray.waves import sample_round

if TYPE_CHECKING:
    from rft_ray.scores import EvaluationRow
    from rft_ray.scoring import Scorer


class NothingAcceptedError(StoppedError):
    """No rollout was right, so there is nothing to train the target on but the seed set."""

    @classmethod
    def of(cls, tally: Tally, number: int) -> "NothingAcceptedError":
        """What was sampled in a round, and the verdicts."""
        verdicts = tally.verdicts(POOLED)
        counts = [f"{count} {verdict}" for verdict, count in verdicts.items() if count]
        return cls(
            f"round {number}, {tally.num_problems} problems: no rollout was accepted: "
            f"{', '.join(counts) or 'there are none'}; what to do is in "
            "cluster/TROUBLESHOOTING.md, 'Nothing was accepted'"
        )


def run_offline(config: RunConfig) -> None:
    """Sample from every policy, keep what is right and diverse, train the target, evaluate."""
    from rft_ray.scoring import Scorer, is_finished, publish, score_baselines

    with open_study(config) as study:
        if not is_finished(study):
            with running_samplers(study) as samplers:
                checkpoints = fine_tune(study)
                scorer = Scorer(study, samplers)
                rows = score_baselines(scorer, checkpoints)
                for number in range(config.num_rounds):
                    checkpoints = retrain_policies(study, number, checkpoints)
                    sample_verify_select(study, samplers, number, checkpoints)
                    checkpoints, scored = train_and_score(scorer, number, checkpoints)
                    publish(study, number, rows + scored)
                    rows = []
                    if is_saturated(study, number):
                        break
        show_results(study)


def run_sample(config: RunConfig) -> None:
    """The first half alone: the selected rollouts of the first round that lacks them."""
    with open_study(config) as study:
        done = count_rounds(study, "selected")
        is_last = done and is_saturated(study, done - 1)
        number = done - 1 if is_last else min(done, config.num_rounds - 1)
        if not study.run.round(number).selected.exists():
            with running_samplers(study) as samplers:
                checkpoints = fine_tune(study)
                for earlier in range(number + 1):
                    checkpoints = retrain_policies(study, earlier, checkpoints)
                sample_verify_select(study, samplers, number, checkpoints)
        print(counts_table(selection_lines(study)))


def run_train(config: RunConfig) -> None:
    """The target's training alone, on the rollouts of every round that has them."""
    with open_study(config) as study:
        checkpoints = fine_tune(study)
        for number in range(max(1, count_rounds(study, "selected"))):
            checkpoints = retrain_policies(study, number, checkpoints)
            checkpoints = train_target(study, number, checkpoints)
        print(checkpoints[TARGET].newest.path)


def run_evaluate(config: RunConfig) -> None:
    """Score what a run directory holds: every fine-tuned model, and the target of each round."""
    from rft_ray.scoring import Scorer, publish, score_baselines

    with open_study(config) as study:
        with running_samplers(study) as samplers:
            checkpoints = fine_tune(study)
            scorer = Scorer(study, samplers)
            rows = score_baselines(scorer, checkpoints)
            publish(study, 0, rows)
            for number in range(count_rounds(study, "checkpoint")):
                checkpoints = retrain_policies(study, number, checkpoints)
                checkpoints, scored = train_and_score(scorer, number, checkpoints)
                publish(study, number, rows + scored)
                rows = []
        show_results(study)


def sample_verify_select(
    study: Study, samplers: Samplers, number: int, checkpoints: dict[str, Checkpoints]
) -> None:
    """The round's groups on disk, sampled, graded, joined to the pool and selected.

    Raises NothingAcceptedError with the counts by verdict when nothing is left to learn from.
    """
    from rft_ray import stages

    config, round_dir = study.config, study.run.round(number)
    if round_dir.selected.exists():
        return
    plan = sampling_plan(study, samplers, number, checkpoints)
    partial = round_dir.path / "selected.partial"
    shutil.rmtree(partial, ignore_errors=True)
    problems, tally = study.problems["train"], Tally.of(policy.name for policy in config.policies)
    groups, tally.num_unasked = sample_round(study, plan, number)
    groups = stages.verify_groups(groups, config.verifier, test=study.test_text)
    if number:
        groups = stages.join_pool(groups, str(study.run.round(number - 1).selected))
    groups = stages.select_groups(groups, config.selection)
    with (
        study.run.timed("sample verify select", round=number),
        progress(f"sample, round {number}", len(problems), "problem") as advance,
    ):
        for statistics in stages.write_groups(groups, str(partial), number, study.test_text):
            tally.add(statistics)
            advance(1)
    if tally.num_problems != len(problems):
        raise RuntimeError(f"{tally.num_problems} groups came of {len(problems)} problems")
    for name in tally.names():
        study.run.log("select", round=number, policy=name, **tally.row(name))
        if name != ALL_ROUNDS and tally.too_long(name):
            say(f"{name}: {tally.too_long(name)} problems are too long for the model's context")
    if not tally.selected:
        raise NothingAcceptedError.of(tally, number)
    note_new_paths(study, number)
    # The name says that every group is graded, so it is given last.
    os.replace(partial, round_dir.selected)


def sampling_plan(
    study: Study, samplers: Samplers, number: int, checkpoints: dict[str, Checkpoints]
) -> SamplingPlan:
    """What each policy is asked in a round, its newest weights brought to its sampler."""
    temperature = study.config.round(number).temperature
    policies = []
    for config in study.config.policies:
        weights = checkpoints[config.name].newest
        refresh(study, samplers, config.name, weights)
        prompt = study.models[config.name].prompt
        sampling = sampling_params(config.sampling, prompt, temperature)
        policies.append(samplers.policy(config.name, weights, prompt, sampling))
    return SamplingPlan(policies, seed=study.config.seed, round=number)


def train_and_score(
    scorer: "Scorer", number: int, checkpoints: dict[str, Checkpoints]
) -> tuple[dict[str, Checkpoints], list["EvaluationRow"]]:
    """The target and the controls trained on a round's selection, and their rows."""
    from rft_ray.scoring import rft_stage, score_round

    study, stage = scorer.study, rft_stage(scorer.study, number)
    # Checkpoints are scored while the training goes on where there are samplers beside it.
    is_watched = "validation" in study.problems and study.order == "together"
    watch = (lambda weights: scorer.validate(stage, weights)) if is_watched else None
    controls = train_controls(study, number, checkpoints)
    checkpoints = train_target(study, number, checkpoints, watch)
    return checkpoints, score_round(scorer, number, checkpoints, controls)


def show_results(study: Study) -> None:
    """The tables of a run on standard output, and its report and model cards in its folder."""
    from rft_ray.model_card import write_model_cards
    from rft_ray.report import write_report
    from rft_ray.scoring import results_table

    lines = selection_lines(study)
    # First what is kept: whoever reads the tables may end the command with that (`| head`).
    write_model_cards(study.run, study.config, lines)
    report = write_report(str(study.run.path))
    if lines:
        print(counts_table(lines))
    print(results_table(study))
    say(f"report: {report}")


def count_rounds(study: Study, result: str) -> int:
    """How many rounds have a result (`selected`, `checkpoint`), from the first on."""
    for number in range(study.config.num_rounds):
        if not getattr(study.run.round(number), result).exists():
            return number
    return study.config.num_rounds


def selection_lines(study: Study) -> list[dict[str, Any]]:
    """The counts of every round that is selected, per policy and pooled, in order."""
    done = count_rounds(study, "selected")
    lines = {
        (line["round"], line["policy"]): line
        for line in read_metrics(study.run.metrics)
        if line["kind"] == "select" and line["round"] < done
    }
    return list(lines.values())
