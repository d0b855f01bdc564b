"""When another round is not worth its rollouts: new distinct paths for each one sampled.

Yuan et al. 2023 (section 4) find that distinct paths, not rollouts, are what helps, and that more
rollouts find ever fewer new ones. Read off the counts that every round logs, so a run that ended
early is found to have ended when it is started again.
"""

from typing import Any

from rft_ray.console import say
from rft_ray.run_dir import read_metrics
from rft_ray.study import Study
from rft_ray.tally import ALL_ROUNDS, POOLED


def is_saturated(study: Study, number: int) -> bool:
    """Whether a selected round found too little that is new for another one to follow it."""
    least = study.config.budget.min_new_paths
    if least == 0:
        return False
    found, rollouts = count_new_paths(study, number)
    # a round whose budget asks for nothing any more can find nothing
    return found < least * rollouts or not rollouts


def note_new_paths(study: Study, number: int) -> None:
    """Log what a selected round added, and say so where the run will end with it."""
    found, rollouts = count_new_paths(study, number)
    per_rollout = found / rollouts if rollouts else 0.0
    counts = {"new_paths": found, "rollouts": rollouts, "per_rollout": per_rollout}
    study.run.log("new_paths", round=number, **counts)
    if number + 1 < study.config.num_rounds and is_saturated(study, number):
        say(
            f"round {number}: {found} new distinct paths of {rollouts} rollouts, fewer for each "
            f"than budget.min_new_paths ({study.config.budget.min_new_paths:g}): the last round"
        )


def count_new_paths(study: Study, number: int) -> tuple[int, int]:
    """`new_paths` of a round of this run."""
    return new_paths([r for r in read_metrics(study.run.metrics) if r["kind"] == "select"], number)


def new_paths(lines: list[dict[str, Any]], number: int) -> tuple[int, int]:
    """Distinct paths that a round added to those of the rounds before, and the rollouts it took.

    `lines` are the metrics of kind `select`; the last one of a round and name counts.
    """
    counts = {(line["round"], line["policy"]): line for line in lines}

    def paths(until: int) -> int:
        """Summed over problems, all policies and rounds together; round 0 is a pool of its own."""
        if until < 0:
            return 0
        return counts[until, ALL_ROUNDS if until else POOLED]["distinct_paths"]

    return paths(number) - paths(number - 1), counts[number, POOLED]["rollouts"]
