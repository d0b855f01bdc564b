"""The dry run of a budget. Run: pytest tests/test_budget_plan.py"""

from pathlib import Path

import pytest

from rft_ray.budget import BudgetConfig, Tried
from rft_ray.budget_plan import draw_rates, known_rates, play
from rft_ray.cli import main
from rft_ray.records import write_groups
from rft_ray.types import Group, Problem, Rollout

CONFIG = str(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
UNIFORM = "budget={kind: uniform, correct: 4, first_wave: 2}"


def graded(number: int, accepted: int, rollouts: int = 200) -> Group:
    """A problem of which that many rollouts of each policy of the quickstart are right."""
    own = [
        Rollout(policy, "x", sample=i, verdict="correct" if i < accepted else "wrong")
        for policy in ("tied", "untied")
        for i in range(rollouts)
    ]
    return Group(Problem(f"p{number}", "q", "1"), own)


def test_a_fixed_budget_costs_k_whatever_the_pass_rates() -> None:
    cost = play(BudgetConfig(), {"a": 16, "b": 4}, [{}])
    assert cost.rollouts == {"a": 16 * cost.played, "b": 4 * cost.played}
    assert list(cost.waves) == [0]


@pytest.mark.parametrize("kind", ["uniform", "prop2diff"])
def test_easy_problems_are_foreseen_to_cost_little_and_hopeless_ones_the_most(kind: str) -> None:
    budget = BudgetConfig(kind=kind, correct=4, first_wave=4)
    easy, hopeless = {"a": Tried(10_000, 10_000)}, {"a": Tried(10_000, 0)}
    assert play(budget, {"a": 64}, [easy]).rollouts["a"] == pytest.approx(4 * 2_000, rel=0.01)
    assert play(budget, {"a": 64}, [hopeless]).rollouts["a"] == pytest.approx(64 * 2_000, rel=0.01)
    mixed = play(budget, {"a": 64}, [easy, hopeless])
    assert mixed.solved / mixed.played == pytest.approx(0.5, abs=0.02)


def test_what_is_hard_for_one_policy_is_hard_for_all_and_known_counts_narrow_the_draw() -> None:
    assert draw_rates(["a", "b"], {}, 0.3) == pytest.approx({"a": 0.3, "b": 0.3})
    known = {"a": Tried(1000, 250)}
    low, high = (draw_rates(["a"], known, quantile)["a"] for quantile in (0.05, 0.95))
    assert 0.22 < low < 0.25 < high < 0.28


def test_the_plan_says_what_a_budget_samples_by_stored_pass_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "graded.parquet"
    write_groups(source, [graded(number, 200 * (number % 2)) for number in range(10)])
    assert known_rates(source)[1] == {"tied": Tried(200, 200), "untied": Tried(200, 200)}
    arguments = ["plan", CONFIG, UNIFORM, "sampling.k=32", "problems.train.count=100"]
    assert main([*arguments, "--pass-rates", str(source)]) == 0
    out = capsys.readouterr().out
    # 50 problems end after one wave of 2 and 2, 50 get all 32 and 32
    row = next(line.split() for line in out.splitlines() if line.split()[0] == "all")
    assert int(row[1]) == 100 and all(1650 < int(cell) < 1760 for cell in row[2:])
    assert "machines" in out and "no pass rates" not in out
    assert main([*arguments, "policies.1.name=other", "--pass-rates", str(source)]) == 0
    assert "no pass rates of other:" in capsys.readouterr().out


def test_rollouts_without_verdicts_say_nothing_of_difficulty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "raw.jsonl"
    write_groups(source, [Group(Problem("1", "q", "1"), [Rollout("a", "x")])])
    assert main(["plan", CONFIG, "--pass-rates", str(source)]) == 2
    message = capsys.readouterr().err
    assert "raw.jsonl: problem '1': rollouts[0].verdict: none" in message
