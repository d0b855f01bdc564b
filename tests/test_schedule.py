"""Learning rates by step. Run: pytest tests/test_schedule.py"""

from itertools import pairwise

import pytest

from rft_ray.config import RecipeConfig
from rft_ray.schedule import learning_rate

PEAK = 1e-3
RECIPE = RecipeConfig(learning_rate=PEAK, warmup_fraction=0.2)


def test_the_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 10, RECIPE) for step in range(1, 12)]
    assert rates[:3] == pytest.approx([PEAK / 3, 2 * PEAK / 3, PEAK])
    assert rates[6] == pytest.approx(PEAK / 2)
    assert all(later < earlier for earlier, later in pairwise(rates[2:]))
    assert rates[10] == pytest.approx(0)


def test_a_line_falls_by_equal_parts_to_where_it_is_told() -> None:
    recipe = RECIPE.model_copy(update={"schedule": "linear", "final_fraction": 0.2})
    rates = [learning_rate(step, 10, recipe) for step in range(3, 12)]
    assert rates[0] == pytest.approx(PEAK)
    assert rates[-1] == pytest.approx(PEAK / 5)
    assert [a - b for a, b in pairwise(rates)] == pytest.approx([PEAK * 0.8 / 8] * 8)


def test_a_constant_rate_stays_whatever_the_final_fraction() -> None:
    held = RECIPE.model_copy(update={"schedule": "constant", "final_fraction": 0.5})
    assert {learning_rate(step, 10, held) for step in range(3, 11)} == {PEAK}
