"""Which problems a step samples. Run: pytest tests/test_problem_slices.py"""

from hypothesis import given
from hypothesis import strategies as st

from rft_ray.problem_slices import problem_slice
from rft_ray.types import Problem


@given(st.integers(1, 30), st.integers(1, 40), st.integers(0, 3))
def test_every_pass_has_every_problem_once(count: int, size: int, seed: int) -> None:
    problems = [Problem(str(i), "q", "1") for i in range(count)]
    steps = -(-count // size)
    for number in range(3):
        first = number * steps + 1
        slices = [problem_slice(problems, size, first + i, seed) for i in range(steps)]
        assert all(slices)
        assert sorted(p.id for own in slices for p in own) == sorted(p.id for p in problems)


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    problems = [Problem(str(i), "q", "1") for i in range(20)]
    first, second = (problem_slice(problems, 20, step, 0) for step in (1, 2))
    assert first != second and first != problem_slice(problems, 20, 1, 1)
    assert first == problem_slice(problems, 20, 1, 0)
