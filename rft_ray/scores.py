"""Scores: what graded completions say about a model, with intervals. Pure functions of groups.

A score is a mean over problems of a value in [0, 1]: whether the one greedy completion is right
(pass@1), the share of right rollouts (avg@n), the unbiased estimate of solving a problem with k
tries (pass@k), or whether the most frequent final answer of k rollouts is right (maj@k). Sampling
and grading are `evaluation.py`'s.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

from scipy.stats import binomtest, norm

from rft_ray.grading import final_number
from rft_ray.run_dir import write_atomically
from rft_ray.types import Group, Rollout

CONFIDENCE = 0.95
GREEDY = "pass@1"
Metric = Callable[[Group], float]


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value of each problem of a set, by problem id."""

    values: dict[str, float]

    @property
    def value(self) -> float:
        """The mean over problems."""
        return sum(self.values.values()) / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of `value` for another draw of problems.

        Wilson's where a problem is solved or not; else normal for a mean, within [0, 1], and
        Wilson's again, which is then too wide, where all problems have the same value.
        """
        count = len(self.values)
        error = _standard_error(list(self.values.values()))
        if error == 0 or set(self.values.values()) <= {0.0, 1.0}:
            solved = round(sum(self.values.values()))
            interval = binomtest(solved, count).proportion_ci(CONFIDENCE, method="wilson")
            low, high = float(interval.low), float(interval.high)
            return min(low, self.value), max(high, self.value)
        half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * error
        return max(0.0, self.value - half), min(1.0, self.value + half)


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One row of `evaluation.json`, which `score_rows.read_rows` reads."""

    model: str
    stage: str
    metric: str
    value: float
    n: int
    low: float
    high: float
    step: int


def greedy_metrics() -> dict[str, Metric]:
    """What one greedy completion per problem is scored by."""
    return {GREEDY: lambda group: float(any(map(_is_right, group.rollouts)))}


def sampled_metrics(samples: int, ks: list[int]) -> dict[str, Metric]:
    """What `samples` rollouts per problem are scored by; k of pass@k and maj@k from `ks`.

    pass@1 of sampled rollouts is avg@n, so it does not share a name with the greedy one.
    """
    metrics: dict[str, Metric] = {f"avg@{samples}": lambda group: pass_at_k(group, 1)}
    for k in ks or [samples]:
        if k > 1:
            metrics[f"pass@{k}"] = lambda group, k=k: pass_at_k(group, k)
            metrics[f"maj@{k}"] = lambda group, k=k: majority_at_k(group, k)
    return metrics


def pass_at_k(group: Group, k: int) -> float:
    """Unbiased chance that k of the group's rollouts hold a right one (Chen et al. 2021, eq. 1).

    With n rollouts of which c are right: 1 - C(n - c, k) / C(n, k). A problem without rollouts
    (too long for the model) counts as unsolved.
    """
    total, right = len(group.rollouts), sum(map(_is_right, group.rollouts))
    if total == 0:
        return 0.0
    k = min(k, total)
    return 1.0 - math.comb(total - right, k) / math.comb(total, k)


def majority_at_k(group: Group, k: int) -> float:
    """Share of the group's consecutive blocks of k rollouts whose most frequent answer is right.

    Answers are compared as numbers, so 10 and 10.0 vote together; rollouts without a readable
    answer do not vote; of answers with equally many votes the first seen wins (Yuan et al. 2023).
    """
    k = min(k, len(group.rollouts))
    starts = range(0, len(group.rollouts) - k + 1, k) if k else range(0)
    blocks = [_majority_is_right(group.rollouts[start : start + k]) for start in starts]
    return sum(blocks) / len(blocks) if blocks else 0.0


def _majority_is_right(rollouts: list[Rollout]) -> bool:
    votes: Counter[Fraction] = Counter()
    is_right: dict[Fraction, bool] = {}
    for rollout in rollouts:
        answer = final_number(rollout.completion)
        if answer is not None:
            votes[answer] += 1
            is_right[answer] = is_right.get(answer, False) or _is_right(rollout)
    # most_common keeps the order of first appearance among equals
    return bool(votes) and is_right[votes.most_common(1)[0][0]]


def _is_right(rollout: Rollout) -> bool:
    return rollout.verdict == "correct"


def paired_difference(better: Score, base: Score) -> tuple[float, float, float]:
    """Difference of two scores on the same problems and its 95% interval (value, low, high).

    Normal approximation of the mean of per-problem differences.
    """
    deltas = [better.values[key] - base.values[key] for key in base.values]
    mean = sum(deltas) / len(deltas)
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * _standard_error(deltas)
    return mean, mean - half, mean + half


def _standard_error(values: list[float]) -> float:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return math.sqrt(variance / len(values))


def make_row(model: str, stage: str, metric: str, score: Score, step: int) -> EvaluationRow:
    """A score as a row of the result table."""
    low, high = score.interval
    return EvaluationRow(model, stage, metric, score.value, len(score.values), low, high, step)


def write_rows(path: Path, rows: list[EvaluationRow]) -> None:
    """The result table of a round, in the order it is printed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
