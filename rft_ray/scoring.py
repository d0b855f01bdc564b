"""Which models are scored, on what, in a run: the rows of its result table.

Every model gets greedy pass@1 on the held-out problems. The target also gets avg@n, pass@k and
maj@k there, greedy pass@1 on the out-of-domain sets, and a row for the checkpoint that is best on
the validation problems; the held-out problems take no part in choosing it. Completions are kept by
checkpoint, so asking for a score again reads it.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rft_ray import evaluation
from rft_ray.config import RunConfig
from rft_ray.console import progress, say
from rft_ray.prompts import Prompt
from rft_ray.run_dir import write_atomically
from rft_ray.sampling import LIVE, Policy, SamplingPlan, Weights
from rft_ray.saturation import is_saturated
from rft_ray.score_rows import read_rows
from rft_ray.scores import (
    GREEDY,
    EvaluationRow,
    Metric,
    Score,
    greedy_metrics,
    make_row,
    paired_difference,
    sampled_metrics,
    write_rows,
)
from rft_ray.study import TARGET, Checkpoints, Samplers, Study, icl_prompt, refresh
from rft_ray.types import Group

BEST_VALIDATION = f"{GREEDY}_best_validation"
Scores = dict[str, Score]


@dataclass(frozen=True, slots=True)
class Stage:
    """What a model is after a training: the first three columns of the result table."""

    model: str
    stage: str
    round: int = 0
    prompt: Prompt | None = None
    """How it is asked, where that is not the model's own prompt (in-context learning)."""
    is_live: bool = False
    """Whether its sampler holds the weights already, sent by a running trainer."""


class Scorer:
    """Scores checkpoints in the running samplers and logs what comes out."""

    def __init__(self, study: Study, samplers: Samplers) -> None:
        self.study = study
        self.samplers = samplers

    def policy_rows(self, stage: Stage, weights: Weights) -> list[EvaluationRow]:
        """A policy's row: greedy pass@1 on the held-out problems."""
        return _rows(stage, self.greedy(stage, weights, "heldout"), weights)

    def target_rows(self, stage: Stage, checkpoints: list[Weights]) -> list[EvaluationRow]:
        """All rows of the target at one stage; its last checkpoint is the one that counts."""
        last = checkpoints[-1]
        rows = _rows(stage, self.greedy(stage, last, "heldout"), last)
        # Of its exports an online run keeps the best alone, and that may be the last.
        is_chosen = len(checkpoints) > 1 or stage.stage == "online"
        if "validation" in self.study.problems and is_chosen:
            best = max(checkpoints, key=lambda own: self.validate(stage, own))
            score = self.greedy(stage, best, "heldout")[GREEDY]
            rows += _rows(stage, {BEST_VALIDATION: score}, best)
        if self.study.config.evaluation.samples:
            rows += _rows(stage, self.sampled(stage, last, "heldout"), last)
        for name in self.study.config.problems.out_of_domain:
            scores = self.greedy(stage, last, name)
            named = {f"{name}/{metric}": score for metric, score in scores.items()}
            rows += _rows(stage, named, last)
        return rows

    def validate(self, stage: Stage, weights: Weights) -> float:
        """Greedy pass@1 on the validation problems, which may choose a checkpoint."""
        return self.greedy(stage, weights, "validation")[GREEDY].value

    def greedy(self, stage: Stage, weights: Weights, problem_set: str) -> Scores:
        """Greedy pass@1 of one checkpoint on one set of problems."""
        config, problems = self.study.config, self.study.problems[problem_set]
        policy = self._policy(stage, weights)
        plan = evaluation.greedy_plan(policy, config.evaluation.max_tokens)
        path = self._place(weights, plan, problem_set, _how("greedy", stage))
        path = path.with_name(path.name + ".parquet")
        with self._scoring(stage, weights, problem_set, path.exists()) as advance:
            groups = evaluation.greedy_groups(problems, plan, config.verifier, path, advance)
            scores = _score(groups, greedy_metrics())
        return self._logged(stage, weights, problem_set, scores)

    def sampled(self, stage: Stage, weights: Weights, problem_set: str) -> Scores:
        """avg@n, pass@k and maj@k of one checkpoint on one set of problems."""
        config, problems = self.study.config, self.study.problems[problem_set]
        settings = config.evaluation
        plan = evaluation.sampled_plan(self._policy(stage, weights), settings)
        how = _how(f"{settings.samples}-samples", stage)
        folder = self._place(weights, plan, problem_set, how)
        with self._scoring(stage, weights, problem_set, folder.exists()) as advance:
            groups = evaluation.sampled_groups(problems, plan, config.verifier, folder, advance)
            scores = _score(groups, sampled_metrics(settings.samples, settings.ks))
        return self._logged(stage, weights, problem_set, scores)

    def _policy(self, stage: Stage, weights: Weights) -> Policy:
        prompt = stage.prompt or self.study.models[stage.model].prompt
        config = self.study.config
        stop = {policy.name: policy.sampling.stop for policy in config.policies}
        own = {"stop": stop.get(stage.model, config.sampling.stop)}
        served = Weights(LIVE, weights.version) if stage.is_live else weights
        return self.samplers.policy(stage.model, served, prompt, own)

    def _place(self, weights: Weights, plan: SamplingPlan, problem_set: str, how: str) -> Path:
        """Where the completions of a checkpoint by a plan are kept."""
        policy = plan.policies[0]
        asked = [asdict(policy.prompt), policy.sampling, plan.seed]
        return self.study.run.scored(weights.path, problem_set, how, asked)

    @contextmanager
    def _scoring(
        self, stage: Stage, weights: Weights, problem_set: str, is_done: bool
    ) -> Iterator[Callable[[int], None]]:
        """Bring the weights to the sampler and show progress, unless the result is there."""
        if is_done:
            yield lambda count: None
            return
        if not stage.is_live:
            refresh(self.study, self.samplers, stage.model, weights)
        label = f"evaluate {stage.model} {stage.stage}, step {weights.version}, {problem_set}"
        labels = {"model": stage.model, "stage": stage.stage, "round": stage.round}
        with (
            self.study.run.timed("evaluate", problem_set=problem_set, **labels),
            progress(label, len(self.study.problems[problem_set]), "problem") as advance,
        ):
            yield advance

    def _logged(self, stage: Stage, weights: Weights, problem_set: str, scores: Scores) -> Scores:
        for row in _rows(stage, scores, weights):
            self.study.run.log(
                "evaluation",
                model=row.model,
                stage=row.stage,
                round=stage.round,
                problem_set=problem_set,
                metric=row.metric,
                step=row.step,
                value=row.value,
                low=row.low,
                high=row.high,
                n=row.n,
            )
        return scores


def _how(kind: str, stage: Stage) -> str:
    return kind if stage.prompt is None else f"{kind}-{len(stage.prompt.shots)}-shots"


def _rows(stage: Stage, scores: Scores, weights: Weights) -> list[EvaluationRow]:
    return [
        make_row(stage.model, stage.stage, metric, score, weights.version)
        for metric, score in scores.items()
    ]


def _score(groups: Iterable[Group], metrics: dict[str, Metric]) -> Scores:
    """Every metric of a stream of groups, which is read once."""
    values: dict[str, dict[str, float]] = {metric: {} for metric in metrics}
    for group in groups:
        for metric, function in metrics.items():
            values[metric][group.problem.id] = function(group)
    return {metric: Score(own) for metric, own in values.items()}


def score_baselines(scorer: Scorer, checkpoints: dict[str, Checkpoints]) -> list[EvaluationRow]:
    """Rows of what there is before the first round: ICL, then each policy and the target after SFT.

    A model without SFT is scored as it is (stage `base`).
    """
    study = scorer.study
    rows: list[EvaluationRow] = []
    prompt = icl_prompt(study.config, study.problems["train"])
    if prompt:
        rows += scorer.target_rows(Stage(TARGET, "icl", prompt=prompt), [checkpoints[TARGET].base])
    for policy in study.policies:
        stage = Stage(policy.name, policy.baseline)
        rows += scorer.policy_rows(stage, checkpoints[policy.name].sft[-1])
    return rows + scorer.target_rows(baseline_stage(study), checkpoints[TARGET].sft)


def baseline_stage(study: Study) -> Stage:
    """The target before its RFT: after SFT, or the base where it has none."""
    return Stage(TARGET, study.target.baseline)


def rft_stage(study: Study, number: int) -> Stage:
    """The target after a round: RFT on the rollouts of its own base alone, or on other ones too."""
    is_own = len(study.config.policies) == len(study.config.own_policies)
    return Stage(TARGET, "rft_own" if is_own else "rft_pooled", number)


def score_round(
    scorer: Scorer,
    number: int,
    checkpoints: dict[str, Checkpoints],
    controls: dict[str, list[Weights]],
) -> list[EvaluationRow]:
    """Rows of a round: retrained policies, the target, and the target of each control.

    The target's gain over its baseline goes to the metrics and is said.
    """
    study = scorer.study
    stage = rft_stage(study, number)
    rows: list[EvaluationRow] = []
    if number and study.config.round(number).retrain_policies:
        for policy in study.policies:
            own = replace(stage, model=policy.name)
            rows += scorer.policy_rows(own, checkpoints[policy.name].newest)
    rows += scorer.target_rows(stage, checkpoints[TARGET].current)
    for control, trained in controls.items():
        rows += scorer.target_rows(replace(stage, stage=f"rft_{control}"), trained)
    log_gain(scorer, stage, checkpoints[TARGET])
    return rows


def log_gain(scorer: Scorer, stage: Stage, target: Checkpoints) -> None:
    """The paired difference to the target before RFT, whose completions are on disk."""
    baseline = baseline_stage(scorer.study)
    before = scorer.greedy(baseline, target.sft[-1], "heldout")[GREEDY]
    after = scorer.greedy(stage, target.newest, "heldout")[GREEDY]
    value, low, high = paired_difference(after, before)
    labels = {"metric": GREEDY, "stage": stage.stage, "round": stage.round}
    values = {"baseline": baseline.stage, "value": value, "low": low, "high": high}
    scorer.study.run.log("gain", **labels, **values)
    say(
        f"round {stage.round}, {stage.stage} - {baseline.stage}, {GREEDY}: {value:+.1%} "
        f"(95% interval {low:+.1%} to {high:+.1%})"
    )


def publish(study: Study, number: int, rows: list[EvaluationRow]) -> None:
    """The rows of a round to its `evaluation.json`, which marks the round as finished."""
    round_dir = study.run.round(number)
    write_rows(round_dir.evaluation, rows)
    write_atomically(round_dir.asked, json.dumps(what_is_asked(study.config), indent=1) + "\n")


def what_is_asked(config: RunConfig) -> dict[str, Any]:
    """What decides which rows a round has: a run that has its rows may be asked for more."""
    return {
        "evaluation": config.evaluation.model_dump(mode="json", exclude={"parity_tolerance"}),
        "out_of_domain": sorted(config.problems.out_of_domain),
        "controls": sorted(config.controls),
    }


def is_finished(study: Study) -> bool:
    """Whether every round has the rows it is asked for, so that there is nothing left to do.

    A run may end before its last round (`saturation.py`).
    """
    for number in range(study.config.num_rounds):
        rows, asked = _published(study, number), study.run.round(number).asked
        if not any(row["stage"].startswith(("rft", "online")) for row in rows):
            return False
        if not asked.exists() or json.loads(asked.read_text()) != what_is_asked(study.config):
            return False
        if is_saturated(study, number):
            break
    return True


def _published(study: Study, number: int) -> list[dict[str, Any]]:
    path = study.run.round(number).evaluation
    return read_rows(path) if path.exists() else []


def results_table(study: Study) -> str:
    """The result table of all rounds that are finished, a row a line."""
    lines = [
        f"{'model':16} {'stage':12} {'round':>5} {'metric':24} {'step':>6} {'value':>7}"
        "  95% interval"
    ]
    for number in range(study.config.num_rounds):
        for row in _published(study, number):
            lines.append(
                f"{row['model']:16} {row['stage']:12} {number:5d} {row['metric']:24} "
                f"{row['step']:6d} {row['value']:7.1%}  {row['low']:.1%} to {row['high']:.1%}"
                f"  (n = {row['n']})"
            )
    return "\n".join(lines)
