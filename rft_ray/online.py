"""Online RFT: the offline stages in a loop, the sampler being the model that is trained.

    rft-ray run configs/quickstart_online.yaml

DeepSeekMath (Shao et al. 2024, eq. 11): a step samples a slice of problems from the live policy,
verifies, trains on the right rollouts and refreshes every sampler replica. The driver samples; the
trainer runs in the background and refreshes the samplers itself (`online_trainer.py`); they meet in
the buffer and nowhere else. Left out: Ray Data, whose streams take longer to start than a slice to
sample. On GPUs that both share, samplers sleep while a step is trained (`gpu_turns.py`).
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rft_ray.config import RunConfig
from rft_ray.console import progress, say
from rft_ray.fine_tuning import fine_tune
from rft_ray.live_training import LiveTraining, live_training
from rft_ray.offline import show_results
from rft_ray.online_exports import keep_best
from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics
from rft_ray.sampling import SamplerUnavailableError
from rft_ray.scoring import (
    Scorer,
    Stage,
    baseline_stage,
    is_finished,
    log_gain,
    publish,
    score_baselines,
)
from rft_ray.selection import round_statistics
from rft_ray.slice_sampler import SliceSampler
from rft_ray.study import TARGET, Checkpoints, Study, open_study, running_samplers
from rft_ray.tally import Tally
from rft_ray.torn_files import set_torn_aside
from rft_ray.verifier import Verifier

ONLINE = Stage(TARGET, "online")


def run_online(config: RunConfig) -> None:
    """Fine-tune, then sample from the live target while it trains; evaluate."""
    with open_study(config) as study:
        if not is_finished(study):
            with running_samplers(study) as samplers:
                checkpoints = fine_tune(study)
                scorer = Scorer(study, samplers)
                with live_training(study, samplers, checkpoints) as training:
                    # beside the start of the trainer
                    rows = score_baselines(scorer, checkpoints)
                    if "validation" in study.problems:
                        # what the scores while training are to be compared with
                        scorer.validate(baseline_stage(study), checkpoints[TARGET].sft[-1])
                    checkpoints = sample_and_train(scorer, checkpoints, training)
                log_counts(study)
                rows += scorer.target_rows(ONLINE, checkpoints[TARGET].current)
                log_gain(scorer, ONLINE, checkpoints[TARGET])
                publish(study, 0, rows)
        show_results(study)


def sample_and_train(
    scorer: Scorer, checkpoints: dict[str, Checkpoints], training: LiveTraining
) -> dict[str, Checkpoints]:
    """The loop: a slice of problems a step, sampled, verified and handed to the trainer."""
    study, online = scorer.study, scorer.study.config.online
    set_torn_aside(study.run.round(0).sampled)
    watch = Watch(scorer, online.patience)
    with (
        Verifier(study.config.verifier) as verifier,
        progress("online", online.steps, "step") as advance,
    ):
        sampler = SliceSampler(study, scorer.samplers, checkpoints, verifier)
        for step in training.steps():
            try:
                groups, facts = sampler.sample(step)
            except SamplerUnavailableError:
                # Where training went back meanwhile nobody has weights so new any more, and the
                # steps before this one are asked for again.
                if training.wait_trained(sampler.oldest(step)):
                    raise
                continue
            training.put(step, groups, {**facts, "evaluate_seconds": watch.spent()})
            advance(1)
            is_due = step % online.evaluate_every == 0
            if is_due and training.wait_trained(step) and not watch.goes_on(step, training):
                break
        trained = training.finish()
    return {**checkpoints, TARGET: checkpoints[TARGET].after(trained)}


class Watch:
    """Scores exports on the validation problems while they are live, and says when to stop.

    What an earlier part of the run scored counts too, so a run that was killed stops where the
    uninterrupted one would.
    """

    def __init__(self, scorer: Scorer, patience: int | None) -> None:
        self._scorer = scorer
        self._patience = patience
        self._values = validation_values(scorer.study.run.metrics)
        self._seconds = 0.0

    def spent(self) -> float:
        """Seconds of scoring since this was last asked: the trainer has waited for them."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def goes_on(self, step: int, training: LiveTraining) -> bool:
        """Score the weights that are live after a step; False where training is to stop."""
        if "validation" not in self._scorer.study.problems:
            self._drop_exports(training, {})
            return True
        # The samplers hold these very weights: they need not be brought there.
        live, weights = replace(ONLINE, is_live=True), training.exported(step)
        started = time.perf_counter()
        self._values[step] = self._scorer.validate(live, weights)
        self._seconds += time.perf_counter() - started
        # Training may have gone back to a checkpoint: scores of later steps are not of this past.
        past = {scored: self._values[scored] for scored in sorted(self._values) if scored <= step}
        self._drop_exports(training, past)
        if is_improving(list(past.values()), self._patience):
            return True
        say(f"no better on validation for {self._patience} evaluations: stopping")
        return False

    def _drop_exports(self, training: LiveTraining, values: dict[int, float]) -> None:
        if self._scorer.study.config.online.keep_exports == "best":
            keep_best(training.output_dir, values)


def validation_values(metrics: Path) -> dict[int, float]:
    """Greedy pass@1 on the validation problems by step, as far as the metrics of a run go."""
    return {
        line["step"]: line["value"]
        for line in read_metrics(metrics)
        if line["kind"] == "evaluation"
        and (line["stage"], line["problem_set"]) == (ONLINE.stage, "validation")
    }


def is_improving(values: Sequence[float], patience: int | None) -> bool:
    """Whether the best of the last `patience` values is also the best of all; none: always."""
    return patience is None or max(values[-patience:]) >= max(values)


def log_counts(study: Study) -> None:
    """The counts of everything that was sampled, as a round's are logged."""
    tally = Tally()
    for path in sorted(study.run.round(0).selected.glob("*.parquet")):
        for group in read_groups(path):
            tally.add(round_statistics(group, 0, study.test_text))
    for name in tally.names():
        study.run.log("select", round=0, policy=name, **tally.row(name))
