"""Completions to score by, on real engines. Run: pytest tests/test_sampled_evaluation.py"""

from pathlib import Path
from typing import Any

import pytest

from rft_ray.config import EvaluationConfig, VerifierConfig
from rft_ray.evaluation import greedy_groups, greedy_plan, sampled_groups, sampled_plan
from rft_ray.prompts import Prompt
from rft_ray.sampling import Policy, Weights
from rft_ray.scores import Score, greedy_metrics, sampled_metrics
from rft_ray.word_problems import generate_word_problems
from tests.conftest import BASES, RUN_ID

pytestmark = pytest.mark.engine


def make_policy() -> Policy:
    """The tied base model."""
    from rft_ray.deployment import application_name

    return Policy(
        name="tied",
        application=application_name(RUN_ID, "tied"),
        tokenizer=str(BASES / "tied"),
        weights=Weights(str(BASES / "tied"), 0),
        prompt=Prompt("Question: {prompt}\nAnswer:\n"),
        sampling={},
        max_model_len=192,
        max_rollouts_in_flight=24,
    )


def test_completions_are_sampled_graded_and_kept(samplers: dict[str, Any], tmp_path: Path) -> None:
    problems = generate_word_problems(8, seed=3, split="heldout")
    advanced: list[int] = []
    plan = greedy_plan(make_policy(), max_tokens=8)
    path = tmp_path / "greedy.parquet"
    groups = list(greedy_groups(problems, plan, VerifierConfig(), path, advanced.append))
    assert [group.problem for group in groups] == problems and sum(advanced) == 8
    assert all(len(g.rollouts) == 1 and g.rollouts[0].verdict for g in groups)
    (metric,) = greedy_metrics().values()
    score = Score({g.problem.id: metric(g) for g in groups})
    assert 0 <= score.interval[0] <= score.value <= score.interval[1]
    # what is kept is read, not sampled again
    again = list(greedy_groups(problems, plan, VerifierConfig(), path, advanced.append))
    assert again == groups and sum(advanced) == 16


def test_many_rollouts_go_through_the_stream_and_are_kept(
    samplers: dict[str, Any], tmp_path: Path
) -> None:
    problems = generate_word_problems(6, seed=4, split="heldout")
    config = EvaluationConfig(samples=4, ks=[2, 4], temperature=1.0, max_tokens=8)
    advanced: list[int] = []
    plan, folder = sampled_plan(make_policy(), config), tmp_path / "samples"
    groups = list(sampled_groups(problems, plan, VerifierConfig(), folder, advanced.append))
    assert {g.problem.id for g in groups} == {p.id for p in problems} and sum(advanced) == 6
    assert all([r.sample for r in g.rollouts] == [0, 1, 2, 3] for g in groups)
    assert all(rollout.verdict for group in groups for rollout in group.rollouts)
    for metric in sampled_metrics(4, [2, 4]).values():
        assert all(0 <= metric(group) <= 1 for group in groups)
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]
    again = list(sampled_groups(problems, plan, VerifierConfig(), folder, advanced.append))
    assert again == groups
