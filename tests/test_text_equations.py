"""Plain equations: found where they surely are equations, judged exactly, passed over elsewhere."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.text_equations import find_text_equations, is_text_equation_right

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k"


def wrong_equations(text: str) -> list[tuple[str, str]]:
    """Those of a text that do not hold."""
    return [sides for sides in find_text_equations(text) if not is_text_equation_right(sides)]


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("3 + 4 = 7", ("3 + 4", "7")),
        ("a total of 16 * 7 = 112 eggs.", ("16 * 7", "112")),
        ("He ran 15 x 60/100 = 9 meters", ("15 * 60/100", "9")),
        ("9 * 2 = $<<9*2=18>>18 a day", ("9 * 2", "$18")),
        ("1,000 \u00d7 2 = 2,000.", ("1,000 * 2", "2,000")),
        ("10 / 3 = 3.33", ("10 / 3", "3.33")),
        ("7 = 14 / 2", ("7", "14 / 2")),
    ],
)
def test_equations_are_found_and_right(text: str, sides: tuple[str, str]) -> None:
    assert list(find_text_equations(text)) == [sides]
    assert is_text_equation_right(sides)


@pytest.mark.parametrize(
    "text", ["so 3 + 4 = 8.", "5 \u00d7 6 = 31", "10 / 3 = 3", "3 + 4 = 7 + 1 = 8", "$5 + $6 = $12"]
)
def test_wrong_equations_are_wrong(text: str) -> None:
    assert len(wrong_equations(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "x = 5",
        "2x + 3 + 4 = 9",
        "x - 3 + 4 = 8",
        "x^2 + 3 = 5",
        "3 apples = 6",
        "3 apples x 2/3 = 2",
        "50% of 20 = 11",
        "10 / 3 = 3 remainder 1",
        "17/3 = 5 and 2/3",
        "$2.50 - $2.24 = 26 cents",
        "3/ 1/4 = 12",
        "2 + 3 = 5x",
        "2 + 3 = 5^2",
        "1 + 2 =",
        "= = =",
        "<<3+4=8>>",
    ],
)
def test_what_may_be_something_else_is_passed_over(text: str) -> None:
    assert wrong_equations(text) == []


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/=.,$() x<>\n", max_size=60) | st.text())
def test_any_text_is_looked_through(text: str) -> None:
    assert all(is_text_equation_right(s) in (True, False) for s in find_text_equations(text))


@pytest.mark.parametrize(
    "text", ["=" * 10**5, "1 + 1 = " * 10**4, "1+" * 10**5 + "=1", "<<" * 10**5]
)
def test_long_texts_take_linear_time(text: str) -> None:
    start = time.perf_counter()
    assert all(map(is_text_equation_right, find_text_equations(text))) in (True, False)
    assert time.perf_counter() - start < 10


@pytest.mark.skipif(not GSM8K.exists(), reason="shared data is not here")
def test_published_solutions_give_next_to_no_false_alarm() -> None:
    texts = [json.loads(line)["answer"] for line in (GSM8K / "train.jsonl").open()][:2000]
    found = sum(len(list(find_text_equations(text))) for text in texts)
    assert found > 4000
    assert sum(len(wrong_equations(text)) for text in texts) < found / 200
