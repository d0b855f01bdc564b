"""Plots of the report: values with intervals in rows of HTML, and lines over two axes in SVG.

Rows are as wide as the screen; an SVG scrolls in its own box where the screen is much narrower.
Colours are numbers: the palette of `page.py` repeats after seven, and lines that repeat a colour
are dashed, then dotted.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from rft_ray.page import NUM_COLOURS, Html, clean, colour_of, tag

WIDTH, HEIGHT = 520, 270
LEFT, TOP, BOTTOM, MARGIN = 56, 12, 42, 16
# Marks on the x axis are this far apart, so that their numbers do not touch.
TICK_ROOM = 30
DODGE = 4
DASHES = (("solid", "none"), ("dashed", "7 4"), ("dotted", "2 4"))

Scale = Callable[[float], float]
# A point is (x, y) or, with an interval, (x, y, low, high).
Point = tuple[float, ...]
Series = dict[str, list[Point]]
# A label, its value, the interval's ends, and a colour.
Interval = tuple[str, float, float, float, int]


def interval_plot(groups: Mapping[str, Sequence[Interval]]) -> Html:
    """Rows of shares with their intervals under a heading for each group."""
    rows = [row for group in groups.values() for row in group]
    if not rows:
        return Html("")
    ticks = _share_ticks([end for row in rows for end in row[1:4]])
    x_of = _scale(ticks[0], ticks[-1], 0.0, 100.0)
    pieces = []
    for name, group in groups.items():
        pieces.append(tag("h4", name))
        pieces += [_interval_row(row, ticks, x_of) for row in group]
    axis = [tag("span", _percent(tick), style=f"left:{x_of(tick):.2f}%") for tick in ticks]
    pieces.append(tag("div", tag("span", *axis, class_="track"), class_="interval marks"))
    return tag("figure", *pieces, class_="intervals")


def _interval_row(row: Interval, ticks: Sequence[float], x_of: Scale) -> Html:
    label, value, low, high, colour = row
    marks = [tag("i", class_="tick", style=f"left:{x_of(tick):.2f}%") for tick in ticks]
    start, width = x_of(low), x_of(high) - x_of(low)
    style = f"left:{start:.2f}%;width:{width:.2f}%;color:{colour_of(colour)}"
    marks.append(tag("i", class_="span", style=style))
    style = f"left:{x_of(value):.2f}%;color:{colour_of(colour)}"
    marks.append(tag("i", class_="dot", style=style))
    name, number = tag("span", label, class_="name"), tag("b", f"{value:.1%}")
    return tag("div", name, number, tag("span", *marks, class_="track"), class_="interval")


def line_plot(
    title: str,
    x_label: str,
    series: Series,
    *,
    log_x: bool = False,
    shares: bool = False,
    colours: Sequence[int] | None = None,
) -> Html:
    """Lines by name; points that are not finite are left out.

    The y axis has 0, except for shares: these are written in percent and fill the height.
    """
    lines = [[p for p in points if all(map(math.isfinite, p))] for points in series.values()]
    points = [point for line in lines for point in line]
    if not points:
        return tag("figure", tag("figcaption", title), tag("p", "no finite values", class_="note"))
    numbers = range(len(lines)) if colours is None else colours
    xs, ys = sorted({p[0] for p in points}), [y for p in points for y in p[1:]]
    y_ticks = _share_ticks(ys) if shares else nice_ticks(min(0.0, *ys), max(0.0, *ys))
    x_of = _scale(xs[0], xs[-1], LEFT + MARGIN, WIDTH - MARGIN, log_x)
    y_of = _scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_ticks = xs if log_x or len(xs) <= 10 else nice_ticks(xs[0], xs[-1], inside=True)
    marks = _axes(x_label, _spread(x_ticks, x_of), (y_ticks, shares), x_of, y_of)
    has_intervals = any(len(point) > 2 for point in points)
    for i, (line, colour) in enumerate(zip(lines, numbers, strict=True)):
        # Intervals at the same x would cover each other.
        shift = DODGE * (i - (len(lines) - 1) / 2) if has_intervals else 0.0
        places = [(x_of(x) + shift, *map(y_of, rest)) for x, *rest in line]
        marks.append(_drawn(places, colour))
    key = tag("p", *map(_key, series, numbers), class_="key")
    return tag("figure", tag("figcaption", title), key, _svg(WIDTH, HEIGHT, marks))


def nice_ticks(low: float, high: float, inside: bool = False) -> list[float]:
    """About five round numbers that span low to high, or lie inside: 0, 0.37 -> 0, .1, .2, .3, .4.

    Where low is high, one unit of room is made.
    """
    high = high if high > low else low + 1.0
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [n * step for n in range(first, last + 1)]
    return [tick for tick in ticks if low <= tick <= high] if inside else ticks


def _share_ticks(values: Sequence[float]) -> list[float]:
    """Marks around shares that span two points at least, within 0 and 1 where the values are."""
    low, high = min(values), max(values)
    room = max(0.0, 0.02 - (high - low)) / 2
    return nice_ticks(max(min(0.0, low), low - room), min(max(1.0, high), high + room))


def _spread(ticks: Sequence[float], x_of: Scale) -> list[float]:
    """The marks that have room for their numbers, the last one always among them."""
    kept: list[float] = []
    for tick in reversed(ticks):
        if not kept or x_of(kept[-1]) - x_of(tick) >= TICK_ROOM:
            kept.append(tick)
    return kept[::-1]


def _scale(low: float, high: float, start: float, end: float, log: bool = False) -> Scale:
    """From values to places; a scale of one value has it in the middle."""
    if log:
        low, high = math.log(low), math.log(high)
    if low == high:
        low, high = low - 1.0, high + 1.0

    def place(value: float) -> float:
        return start + ((math.log(value) if log else value) - low) / (high - low) * (end - start)

    return place


def _axes(
    x_label: str,
    x_ticks: Sequence[float],
    y_ticks: tuple[Sequence[float], bool],
    x_of: Scale,
    y_of: Scale,
) -> list[Html]:
    marks = [_text((LEFT + WIDTH) / 2, HEIGHT - 6, x_label)]
    ticks, are_shares = y_ticks
    for tick in ticks:
        shown = _percent(tick) if are_shares else _number(tick)
        marks.append(_line(LEFT, y_of(tick), WIDTH, y_of(tick), "grid"))
        marks.append(_text(LEFT - 8, y_of(tick) + 4, shown, "end"))
    bottom = HEIGHT - BOTTOM
    for tick in x_ticks:
        marks.append(_line(x_of(tick), bottom, x_of(tick), bottom + 4, "axis"))
        marks.append(_text(x_of(tick), bottom + 17, f"{tick:.6g}"))
    return marks


def _drawn(places: Sequence[Point], colour: int) -> Html:
    """A line through its points, which are marked where they are few, with their intervals."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in places)
    _, dashes = _dashes(colour)
    pieces = [Html(f'<polyline points="{path}" stroke-dasharray="{dashes}"></polyline>')]
    if len(places) <= 16:
        pieces += [_dot(x, y, 3) for x, y, *_ in places]
    for x, _, *ends in places:
        if ends:
            pieces.append(_line(x, ends[0], x, ends[1], "whisker thin"))
    return tag("g", *pieces, style=f"color:{colour_of(colour)}")


def _key(name: str, colour: int) -> Html:
    style, _ = _dashes(colour)
    stroke = tag("i", class_="stroke", style=f"border-top-style:{style};color:{colour_of(colour)}")
    return tag("span", stroke, name)


def _dashes(colour: int) -> tuple[str, str]:
    return DASHES[colour // NUM_COLOURS % len(DASHES)]


def _svg(width: float, height: float, marks: Iterable[Html]) -> Html:
    # Much smaller, the text could not be read: then the plot scrolls.
    limits = f"min-width:{0.7 * width:.0f}px;max-width:{width:.0f}px"
    box = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "role": "img", "style": limits}
    return tag("div", tag("svg", *marks, **box), class_="scroll")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return Html(
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"></line>'
    )


def _dot(x: float, y: float, radius: float) -> Html:
    return Html(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"></circle>')


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Html:
    return Html(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{clean(text)}</text>')


def _number(value: float) -> str:
    """0.025, 2,500, 1e+07: as short as the room beside the axis."""
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
