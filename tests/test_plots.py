"""Pieces of the report's page: escaping, axes, lines and rows of intervals."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_ray.page import clean, round_of, tag
from rft_ray.plots import interval_plot, line_plot, nice_ticks


def test_ticks_are_round_and_span_the_values() -> None:
    assert nice_ticks(0.0, 0.37) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert nice_ticks(1, 620, inside=True) == [200, 400, 600]
    assert nice_ticks(3, 3)[0] <= 3 <= nice_ticks(3, 3)[-1]


def test_pieces_escape_their_text() -> None:
    assert tag("p", "a<b", class_='"x') == '<p class="&quot;x">a&lt;b</p>'
    assert clean("\x00\ud800") == "\ufffd\ufffd"
    nan = float("nan")
    assert "no finite values" in line_plot("t", "x", {"a": [(1.0, nan)]})
    assert "nan" not in line_plot("t", "x", {"a": [(1.0, nan), (2.0, 3.0)]})


def test_lines_that_share_a_colour_differ_in_their_dashes() -> None:
    plot = line_plot("t", "x", {str(i): [(1.0, 1.0), (2.0, i)] for i in range(15)})
    styles = re.findall(r'stroke-dasharray="(.*?)"', plot)
    colours = re.findall(r'<g style="color:(.*?)"', plot)
    assert len(set(zip(colours, styles, strict=True))) == 15 and len(set(colours)) == 7


def test_marks_of_an_axis_leave_room_for_their_numbers() -> None:
    plot = line_plot("t", "k", {"a": [(float(k), 1.0) for k in (1, 60, 64, 100)]}, log_x=True)
    assert re.findall(r"middle\">(\d+)<", plot) == ["1", "64", "100"]
    assert ">3<" in line_plot("t", "round", {"a": [(3.0, 0.5)]}, shares=True)


def test_intervals_are_drawn_in_proportion() -> None:
    plot = interval_plot({"<m>": [("a", 0.5, 0.4, 0.7, 0)], "n": [("b", 0.2, 0.0, 1.0, 1)]})
    assert "left:40.00%;width:30.00%" in plot and "left:0.00%;width:100.00%" in plot
    assert "&lt;m&gt;" in plot and "50.0%" in plot
    assert interval_plot({}) == interval_plot({"m": []}) == ""


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_shares_stay_between_nothing_and_all(values: list[float]) -> None:
    rows = [("a", value, value, value, 0) for value in values]
    places = re.findall(r"left:(.*?)%", interval_plot({"m": rows}))
    assert all(0 <= float(place) <= 100 for place in places)
    shown = re.findall(r"<span style=[^>]*>([^<]*)%</span>", interval_plot({"m": rows}))
    assert 2 <= len(shown) <= 7 and float(shown[0]) >= 0 and float(shown[-1]) <= 100


@pytest.mark.parametrize(("line", "found"), [
    ({}, 0), ({"round": 2}, 2), ({"round": "2"}, 0), ({"round": -1}, 0), ({"round": True}, 0)
])  # fmt: skip
def test_a_line_without_a_round_is_of_the_first(line: dict[str, object], found: int) -> None:
    assert round_of(line) == found
