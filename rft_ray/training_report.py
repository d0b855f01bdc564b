"""Sections of the report about work: training runs, weight refreshes and where the time went."""

import math
from collections import Counter
from statistics import fmean, median

from rft_ray.plots import (
    Html,
    Line,
    join,
    line_plot,
    number,
    show,
    stacked_bar,
    swatch,
    table,
    tag,
)

MAX_POINTS = 200
PHASES = ("train", "start samplers", "sample verify select", "evaluate")


def training_jobs(steps: list[Line], examples: list[Line]) -> Html:
    """Loss and learning rate against the optimiser step, and a row of sums for each job."""
    jobs: dict[str, list[Line]] = {}
    for line in sorted(steps, key=lambda line: number(line, "step")):
        jobs.setdefault(str(line.get("job")), []).append(line)
    plots = []
    for title, key in (("Loss", "loss"), ("Learning rate", "learning_rate")):
        curves = {job: _curve(rows, key) for job, rows in jobs.items()}
        plots.append(line_plot(title, "optimiser step", curves))
    width = max(map(_points_width, jobs.values()))
    note = f"A point is the mean of up to {width} steps." if width > 1 else ""
    return join(
        [
            tag("div", *plots, class_="pair"),
            tag("p", note, class_="note"),
            _job_table(jobs, {str(line.get("job")): line for line in examples}),
        ]
    )


def refreshes(lines: list[Line]) -> Html:
    """How long new weights took into the samplers, and how far these then were from the trainer."""
    if not lines:
        return Html("")
    samplers: dict[str, list[Line]] = {}
    for line in lines:
        samplers.setdefault(str(line.get("sampler")), []).append(line)
    headers = ("sampler", "refreshes", "replicas", "median seconds", "slowest", "MB read",
               "parity checked", "worst parity difference")  # fmt: skip
    rows = []
    for sampler, own in samplers.items():
        seconds, parity = _numbers(own, "seconds"), _numbers(own, "parity_max_abs_diff")
        rows.append(
            (
                sampler,
                len(own),
                show(own[-1], "replicas", "{:.0f}"),
                f"{median(seconds):.3f}" if seconds else "\u2013",
                f"{max(seconds):.3f}" if seconds else "\u2013",
                f"{sum(_numbers(own, 'bytes')) / 1e6:,.1f}",
                f"{len(parity)} of {len(own)}",
                f"{max(parity):.2g}" if parity else "not checked",
            )
        )
    note = (
        "New weights put into running engines, over all attempts of the run. Seconds count from "
        "pause to resume. The parity difference is the largest difference between the sampler's "
        "log-probabilities and those the trainer left beside the checkpoint."
    )
    return join([tag("p", note, class_="note"), table(headers, rows)])


def phases(lines: list[Line]) -> Html:
    """One bar of all phases, summed over attempts, and the same in numbers."""
    seconds: Counter[tuple[str, str]] = Counter()
    for line in lines:
        what = " ".join(str(line[key]) for key in ("job", "model", "stage") if line.get(key))
        if number(line, "seconds") > 0:
            seconds[str(line.get("phase")), what] += number(line, "seconds")
    if not seconds:
        return Html("")
    total = sum(seconds.values())
    colour = {phase: PHASES.index(phase) if phase in PHASES else 6 for phase, _ in seconds}
    parts = [(f"{p} {what}: {s:,.1f} s", s, colour[p]) for (p, what), s in seconds.items()]
    rows = [
        (join([swatch(colour[p]), p]), what, f"{s:,.1f}", f"{s / total:.1%}")
        for (p, what), s in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    note = (
        f"{_duration(total)} in finished phases, over all attempts of the run; what a killed "
        "attempt spent in an unfinished phase is not known."
    )
    headers = ("phase", "of", "seconds", "share")
    return join(
        [tag("p", note, class_="note"), stacked_bar(parts), table(headers, rows, num_labels=2)]
    )


def _points_width(rows: list[Line]) -> int:
    return math.ceil(len(rows) / MAX_POINTS)


def _curve(rows: list[Line], key: str) -> list[tuple[float, float]]:
    """Means of a few consecutive steps, those without a finite number left out."""
    width = _points_width(rows)
    points = [(number(row, "step"), number(row, key)) for row in rows]
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def _job_table(jobs: dict[str, list[Line]], examples: dict[str, Line]) -> Html:
    headers = ("job", "steps", "examples", "too long", "first loss", "last loss",
               "losses not finite", "tokens", "mean fill", "seconds")  # fmt: skip
    rows = []
    for job, steps in jobs.items():
        trained = examples.get(job, {})
        fill = _numbers(steps, "fill")
        rows.append(
            (
                job,
                f"{len(steps)} of {show(steps[-1], 'total_steps', '{:.0f}')}",
                show(trained, "kept", "{:,.0f}"),
                show(trained, "too_long", "{:,.0f}"),
                show(steps[0], "loss", "{:.4f}"),
                show(steps[-1], "loss", "{:.4f}"),
                len(steps) - len(_numbers(steps, "loss")),
                f"{sum(_numbers(steps, 'tokens')):,.0f}",
                f"{fmean(fill):.1%}" if fill else "\u2013",
                f"{sum(_numbers(steps, 'seconds')):,.1f}",
            )
        )
    return table(headers, rows)


def _numbers(lines: list[Line], key: str) -> list[float]:
    return [value for value in (number(line, key) for line in lines) if math.isfinite(value)]


def _duration(seconds: float) -> str:
    """61 -> "1 min 1 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
