"""Keys forgive exactly what they say they forgive."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_ray.equations import (
    equation_set_key,
    normalise_equation,
    normalised_key,
    path_key,
)


def test_the_papers_key_is_the_ordered_literal_list() -> None:
    assert path_key("3 + 4 = <<3+4=7>>7, <<7 * 2 = 14>>14") == "3+4=7|7*2=14"
    assert path_key("<<3+4=7>>") != path_key("<<4+3=7>>")
    assert path_key("<<1+2=3>><<3+4=7>>") != path_key("<<3+4=7>><<1+2=3>>")
    assert path_key("no calculations") == path_key("none here either") == ""


def test_a_set_forgives_order_and_repetition_alone() -> None:
    assert equation_set_key("<<7*2=14>> <<3+4=7>> <<7* 2=14>>") == "3+4=7|7*2=14"
    assert equation_set_key("<<3+4=7>>") != equation_set_key("<<4+3=7>>")


@pytest.mark.parametrize(
    ("equation", "expected"),
    [
        ("4 + 3 = 7.0", "3+4=7"),
        ("2*(4+3)=14", "(3+4)*2=14"),
        ("(4+3)*2=14", "(3+4)*2=14"),
        ("1,000*2=2,000", "1000*2=2000"),
        ("10-2-3=5", "10-2-3=5"),
        ("10-3-2=5", "10-2-3=5"),
        ("3*2/4=1.50", "2*3/4=1.5"),
        (".5 x 20=$10", "0.5*20=10"),
        ("50%*8=4", "50%*8=4"),
        ("(7)=7", "7=7"),
        ("-3+5=2", "-3+5=2"),
        ("3/(1/2)=6", "3/(1/2)=6"),
        ("3/1/2=1.5", "3/1/2=1.5"),
        ("2 + apples = 3", "2+apples=3"),
        ("(2+3 = 5", "(2+3=5"),
        ("", ""),
    ],
)
def test_operands_have_one_order_and_one_form(equation: str, expected: str) -> None:
    assert normalise_equation(equation) == expected
    assert normalise_equation(expected) == expected


@settings(deadline=None)
@given(st.text("0123456789.+-*/()=x$%, ", max_size=40))
def test_normalising_twice_is_normalising_once(equation: str) -> None:
    once = normalise_equation(equation)
    assert normalise_equation(once) == once


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), min_size=2, max_size=5), st.randoms())
def test_terms_and_factors_commute(numbers: list[int], draw) -> None:
    shuffled = draw.sample(numbers, len(numbers))
    for sign in "+*":
        own, other = (sign.join(map(str, some)) + "=1" for some in (numbers, shuffled))
        assert normalise_equation(own) == normalise_equation(other)


def test_equations_of_plain_text_are_found() -> None:
    text = "He has 3 x 4 = $12. So 12 - 2 = 10 are left. Then 1,000 + 2 = 1,002 in all; y = 5"
    assert normalised_key(text) == "3*4=12|12-2=10|1000+2=1002"
    assert normalised_key("<<4+3=7>> and 1+1=2") == normalised_key("so 3 + 4 = 7") == "3+4=7"
    assert normalised_key("no equation, x = y") == ""


@pytest.mark.parametrize("unit", ["1", "1+", "=", "1=", "(", "1 ", "-", "1+1=2 ", "x", ", "])
def test_hostile_text_takes_linear_time(unit: str) -> None:
    def seconds(length: int) -> float:
        started = time.process_time()
        normalised_key(unit * length)
        normalised_key(f"<<{unit * length}>>")
        return time.process_time() - started

    # 25 times the text in at most 125 times the time, where quadratic is 625
    assert seconds(50_000) < max(1.0, 125 * seconds(2_000))
