"""Pieces of a self-contained HTML page: escaped text, tables, bars and the one style sheet.

Everything that is not `Html` is escaped when it is put into a piece, so text written by a model
cannot become markup. Colours are CSS variables of the style sheet, which is how the same plot
suits light and dark screens. No script, no font, no image from outside. Plots with axes are
`plots.py`.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

NUM_COLOURS = 7
# Control characters, what reverses the reading direction, and lone surrogates.
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

Line = dict[str, Any]


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def clean(value: object) -> Html:
    """Any value as text that can stand anywhere in a page; `Html` as it is.

    "<b>&\\x00" -> "&lt;b&gt;&amp;\ufffd"
    """
    if isinstance(value, Html):
        return value
    return Html(html.escape(UNPRINTABLE.sub("\ufffd", str(value))))


def join(pieces: Iterable[object]) -> Html:
    """The pieces one after the other."""
    return Html("\n".join(map(clean, pieces)))


def tag(name: str, *children: object, **attributes: str) -> Html:
    """An element: tag("p", "a<b", class_="note") -> <p class="note">a&lt;b</p>."""
    written = "".join(f' {key.rstrip("_")}="{clean(text)}"' for key, text in attributes.items())
    return Html(f"<{name}{written}>{''.join(map(clean, children))}</{name}>")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], num_labels: int = 1) -> Html:
    """A table that scrolls sideways where it has to; the first columns are labels, not numbers."""
    kinds = ["label"] * num_labels + ["number"] * (len(headers) - num_labels)
    names = zip(headers, kinds, strict=True)
    head = tag("tr", *(tag("th", header, class_=kind) for header, kind in names))
    body = [
        tag("tr", *(tag("td", cell, class_=kind) for cell, kind in zip(row, kinds, strict=True)))
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll")


def number(line: Line, key: str) -> float:
    """A finite number of a metrics line; NaN where there is none."""
    value = line.get(key)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else math.nan


def round_of(line: Line) -> int:
    """The round of a metrics line; lines of before there were rounds are of the first."""
    value = line.get("round")
    return value if type(value) is int and value >= 0 else 0


def show(line: Line, key: str, form: str) -> str:
    """A number of a metrics line, formatted; a dash where there is none."""
    return form.format(number(line, key)) if math.isfinite(number(line, key)) else "\u2013"


def show_interval(line: Line, form: str) -> str:
    """The interval of a metrics line: "41.0% to 47.5%"."""
    return f"{show(line, 'low', form)} to {show(line, 'high', form)}"


def legend(names: Iterable[str], colours: Iterable[int]) -> Html:
    """The names beside their colours."""
    pairs = zip(names, colours, strict=True)
    return tag("p", *(tag("span", swatch(i), name) for name, i in pairs), class_="key")


def swatch(colour: int) -> Html:
    """A small square of a colour."""
    return tag("i", class_="swatch", style=f"background:{colour_of(colour)}")


def bar_panel(title: str, values: dict[str, float], form: str = "{:.2f}") -> Html:
    """Horizontal bars on a scale of their own, so that 100 rollouts do not hide 5 paths."""
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    largest = max([*finite.values(), 0.0]) or 1.0
    bars = [
        tag(
            "div",
            tag("span", name, class_="name"),
            tag("span", tag("b", style=_bar_style(value / largest, i)), class_="track"),
            tag("span", form.format(value), class_="value"),
            class_="bar",
        )
        for i, (name, value) in enumerate(finite.items())
    ]
    return tag("figure", tag("figcaption", title), *bars)


def stacked_bar(parts: Sequence[tuple[str, float, int]]) -> Html:
    """One bar of (label, size, colour) parts, each as wide as its share."""
    pieces = [
        tag("span", title=label, style=f"flex:{size:.6g} 0 0;background:{colour_of(colour)}")
        for label, size, colour in parts
        if size > 0
    ]
    return tag("div", *pieces, class_="stack")


def _bar_style(share: float, colour: int) -> str:
    return f"width:{100 * share:.1f}%;background:{colour_of(colour)}"


def colour_of(number: int) -> str:
    """The palette's colour of a number, which may be larger than the palette."""
    return f"var(--c{number % NUM_COLOURS})"


def page(title: str, *sections: object) -> Html:
    """A whole document; its sections may scroll sideways, the page does not."""
    head = f'<meta charset="utf-8"><title>{clean(title)}</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width, initial-scale=1">'
    # The report shows hostile text: should escaping ever fail, nothing runs and nothing is fetched.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">{head}'
    body = tag("main", tag("h1", title), *sections)
    return Html(f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n')


STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #667080; --rule: #dfe3e8; --paper: #fff;
  --panel: #f6f7f9; --good: #1a7f4b; --bad: #b3392f; --c0: #2563b8; --c1: #c96a12; --c2: #23855a;
  --c3: #8a4fb0; --c4: #b3392f; --c5: #4d8ea8; --c6: #8a8f98; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #98a2b0; --rule: #343a42;
  --paper: #16191d; --panel: #1e2227; --good: #58c08a; --bad: #f08379; --c0: #6ea8f2; --c1: #f0a35c;
  --c2: #5cc493; --c3: #c492e6; --c4: #f08379; --c5: #86c5de; --c6: #9aa1ab; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1140px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 44px 0 6px; }
h3 { font-size: 15px; margin: 0 0 6px; } section > h3 { margin-top: 30px; }
p { margin: 6px 0 12px; }
p.note, ul.note { max-width: 860px; }
.note, figcaption + p, .key { color: var(--soft); font-size: 13.5px; }
.scroll { overflow-x: auto; } .scroll > svg { width: 100%; }
table { border-collapse: collapse; margin: 10px 0 16px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; } th { color: var(--soft); font-weight: 500; font-size: 13px;
  vertical-align: bottom; } td.label, th.label { text-align: left; }
.cards, .pair, .panels { display: grid; gap: 16px; margin: 16px 0; }
.cards { grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.panels { grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr));
  gap: 20px 48px; }
.pair > *, .panels > * { min-width: 0; }
.card { background: var(--panel); border-radius: 8px; padding: 14px 18px; }
.card p { margin: 0; } .card .big { font-size: 30px; font-weight: 600; line-height: 1.3; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px; }
.key { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 6px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 7px; }
.stroke { display: inline-block; width: 24px; border-top: 3px solid; vertical-align: 4px;
  margin-right: 7px; }
td small { display: block; color: var(--soft); font-size: 11.5px; }
ul.note { margin: 6px 0 12px; padding-left: 18px; }
svg { display: block; } svg text { fill: currentColor; font-size: 12px; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); }
.whisker, polyline { stroke: currentColor; stroke-width: 1.8; fill: none; }
.thin { stroke-width: 1; opacity: 0.7; } circle { fill: currentColor; }
.bar { display: grid; grid-template-columns: 84px 1fr 48px; gap: 10px; align-items: center;
  margin: 4px 0; font-size: 13px; } .bar .name { overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; } .bar .value { text-align: right; font-variant-numeric: tabular-nums; }
.track { height: 14px; background: var(--panel); } .track b { display: block; height: 100%; }
.intervals { max-width: 900px; margin: 8px 0 20px; } h4 { font-size: 13px; margin: 8px 0 2px; }
.interval { display: grid; grid-template: "name track value" 24px / 220px 1fr 48px;
  column-gap: 14px; align-items: center; font-size: 13px; }
.interval .name { grid-area: name; padding-left: 12px; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.interval b { grid-area: value; font-weight: 400; text-align: right; }
.interval .track { grid-area: track; position: relative; height: 100%; background: none;
  margin: 0 10px; } .interval i { position: absolute; top: 0; bottom: 0; }
.tick { border-left: 1px solid var(--rule); } .interval .span { top: 7px; bottom: 7px;
  border: solid currentColor; border-width: 0 2px;
  background: linear-gradient(currentColor, currentColor) center / 100% 2px no-repeat; }
.interval .dot { top: 7px; bottom: auto; width: 10px; height: 10px; margin-left: -5px;
  border-radius: 5px; background: currentColor; }
.marks .track span { position: absolute; white-space: nowrap; transform: translateX(-50%);
  color: var(--soft); }
@media (max-width: 640px) { .interval { row-gap: 0; grid-template: "name value" 20px
  "track track" 20px / 1fr auto; } .interval .span { top: 5px; bottom: 5px; }
  .interval .dot { top: 5px; } .interval.marks { grid-template: "track" 20px / 1fr; } }
.stack { display: flex; height: 26px; gap: 1px; margin: 10px 0; border-radius: 4px;
  overflow: hidden; } .bar .stack { height: 16px;
  margin: 2px 0; grid-column: 2 / 4; } .stack span { min-width: 0; }
pre { background: var(--panel); border-radius: 6px; padding: 10px 12px; margin: 4px 0 14px;
  white-space: pre-wrap; unicode-bidi: isolate; font: 13px/1.45 ui-monospace, SFMono-Regular,
  Menlo, "DejaVu Sans Mono", monospace; max-height: 420px; overflow: auto; }
.problem { border-top: 1px solid var(--rule); padding-top: 18px; margin-top: 18px; }
.meta { margin: 0; font-size: 13px; color: var(--soft); } .good { color: var(--good); }
.bad { color: var(--bad); } summary { cursor: pointer; font-weight: 600; margin: 10px 0; }
"""
