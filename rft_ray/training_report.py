"""Sections of the report about work: training runs, weight refreshes and where the time went."""

import math
from collections import Counter
from statistics import fmean, median

from rft_ray.page import (
    Html,
    Line,
    join,
    number,
    round_of,
    show,
    stacked_bar,
    swatch,
    table,
    tag,
)
from rft_ray.plots import Series, line_plot

MAX_POINTS = 200
PHASES = ("train", "start samplers", "sample verify select", "evaluate")

# A training run is the job of that name in that round.
Job = tuple[str, int]


def training_jobs(steps: list[Line], examples: list[Line]) -> Html:
    """Loss and learning rate against the optimiser step, and a row of sums for each job."""
    jobs: dict[Job, list[Line]] = {}
    for line in sorted(steps, key=lambda line: (round_of(line), number(line, "step"))):
        jobs.setdefault(_job(line), []).append(line)
    width = max(map(points_width, jobs.values()))
    note = f"A point is the mean of up to {width} steps." if width > 1 else ""
    return join(
        [
            *_curves_by_family(jobs),
            tag("p", note, class_="note"),
            _job_table(jobs, {_job(line): line for line in examples}),
        ]
    )


def _curves_by_family(jobs: dict[Job, list[Line]]) -> list[Html]:
    """Plots of the jobs that belong together; those of earlier rounds are folded away."""
    has_rounds = any(in_round for _, in_round in jobs)
    families: dict[tuple[str, int], dict[Job, list[Line]]] = {}
    for job, lines in jobs.items():
        families.setdefault((job[0].partition("-")[0], job[1]), {})[job] = lines
    newest = dict(sorted(families))
    parts = []
    for (kind, in_round), own in families.items():
        of_round = f", round {in_round}" if has_rounds else ""
        plots = tag("div", *_curves(own, of_round), class_="pair")
        if newest[kind] != in_round:
            summary = tag("summary", f"Curves of {len(own)} jobs ({kind}{of_round})")
            plots = tag("details", summary, plots)
        parts.append(plots)
    return parts


def _curves(jobs: dict[Job, list[Line]], of_round: str) -> list[Html]:
    plots = []
    for title, key in (("Loss", "loss"), ("Learning rate", "learning_rate")):
        curves: Series = {name: curve(rows, key) for (name, _), rows in jobs.items()}
        plots.append(line_plot(title + of_round, "optimiser step", curves))
    return plots


def _job(line: Line) -> Job:
    return str(line.get("job")), round_of(line)


def refreshes(lines: list[Line]) -> Html:
    """How long new weights took into the samplers, and how far these then were from the trainer."""
    if not lines:
        return Html("")
    samplers: dict[str, list[Line]] = {}
    for line in lines:
        samplers.setdefault(str(line.get("sampler")), []).append(line)
    headers = ("sampler", "refreshes", "replicas", "median seconds", "slowest", "drain",
               "transfer", "MB read", "parity checked", "worst parity difference")  # fmt: skip
    rows = []
    for sampler, own in samplers.items():
        seconds, parity = numbers(own, "seconds"), numbers(own, "parity_max_abs_diff")
        rows.append(
            (
                sampler,
                len(own),
                show(own[-1], "replicas", "{:.0f}"),
                _median(seconds),
                f"{max(seconds):.3f}" if seconds else "\u2013",
                _median(numbers(own, "drain_seconds")),
                _median(numbers(own, "transfer_seconds")),
                f"{sum(numbers(own, 'bytes')) / 1e6:,.1f}",
                f"{len(parity)} of {len(own)}",
                f"{max(parity):.2g}" if parity else "not checked",
            )
        )
    note = (
        "New weights put into running engines, over all attempts of the run. Seconds count from "
        "pause to resume; before the pause, the requests in flight are waited for (drain, median), "
        "and within it weights are received and loaded (transfer, median). The parity "
        "difference is the largest difference between the sampler's log-probabilities and those "
        "the trainer left beside the checkpoint."
    )
    pauses = numbers(lines, "pause_seconds")
    if pauses:
        note += (
            " Live refreshes, sent by a running trainer, count all of their time; of it the "
            f"samplers stood still for {median(pauses):.3f} seconds (median), and the trainer "
            "compares with its own log-probabilities."
        )
    return join([tag("p", note, class_="note"), table(headers, rows)])


def _median(values: list[float]) -> str:
    return f"{median(values):.3f}" if values else "\u2013"


def phases(lines: list[Line]) -> Html:
    """One bar of all phases, summed over attempts, and the same in numbers."""
    lines = [line for line in lines if number(line, "seconds") > 0]
    if not lines:
        return Html("")
    total = sum(number(line, "seconds") for line in lines)
    by_phase: dict[str, Counter[int]] = {}
    for line in lines:
        of_rounds = by_phase.setdefault(str(line.get("phase")), Counter())
        of_rounds[round_of(line)] += number(line, "seconds")
    others = [phase for phase in by_phase if phase not in PHASES]
    colours = {phase: i for i, phase in enumerate([*PHASES, *others])}
    parts = [(f"{phase}: {_duration(seconds.total())}", seconds.total(), colours[phase])
             for phase, seconds in by_phase.items()]  # fmt: skip
    note = (
        f"{_duration(total)} in finished phases, over all attempts of the run; what a killed "
        "attempt spent in an unfinished phase is not known."
    )
    return join(
        [
            tag("p", note, class_="note"),
            stacked_bar(parts),
            _phase_table(by_phase, colours, total),
            _all_phases(lines),
        ]
    )


def _phase_table(by_phase: dict[str, Counter[int]], colours: dict[str, int], total: float) -> Html:
    """A row for each phase, a column for each round where there are several."""
    rounds = sorted({r for seconds in by_phase.values() for r in seconds})
    rounds = rounds if len(rounds) > 1 else []
    rows = [
        (
            join([swatch(colours[phase]), phase]),
            *(f"{seconds[r]:,.1f}" if r in seconds else "" for r in rounds),
            f"{seconds.total():,.1f}",
            f"{seconds.total() / total:.1%}",
        )
        for phase, seconds in sorted(by_phase.items(), key=lambda item: -item[1].total())
    ]
    return table(("phase", *(f"round {r}" for r in rounds), "seconds", "share"), rows)


def _all_phases(lines: list[Line]) -> Html:
    has_rounds = any(map(round_of, lines))
    seconds: Counter[tuple[str, str, int]] = Counter()
    for line in lines:
        keys = ("job", "model", "stage", "problem_set")
        what = " ".join(str(line[key]) for key in keys if line.get(key))
        seconds[str(line.get("phase")), what, round_of(line)] += number(line, "seconds")
    rows = [
        (phase, what, *([in_round] if has_rounds else []), f"{spent:,.1f}")
        for (phase, what, in_round), spent in seconds.most_common()
    ]
    names = ("phase", "of", "round") if has_rounds else ("phase", "of")
    listed = table((*names, "seconds"), rows, num_labels=len(names))
    return tag("details", tag("summary", f"Every phase ({len(rows)})"), listed)


def points_width(rows: list[Line]) -> int:
    """How many steps a point of a curve is the mean of."""
    return math.ceil(len(rows) / MAX_POINTS)


def curve(rows: list[Line], key: str) -> list[tuple[float, float]]:
    """Means of a few consecutive steps, those without a finite number left out."""
    width = points_width(rows)
    points = [(number(row, "step"), number(row, key)) for row in rows]
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def _job_table(jobs: dict[Job, list[Line]], examples: dict[Job, Line]) -> Html:
    has_rounds = any(in_round for _, in_round in jobs)
    names = ("job", "round") if has_rounds else ("job",)
    headers = (*names, "steps", "examples", "too long", "first loss", "last loss",
               "losses not finite", "tokens", "mean fill", "seconds")  # fmt: skip
    rows = []
    for job, steps in jobs.items():
        trained = examples.get(job, {})
        fill = numbers(steps, "fill")
        rows.append(
            (
                *job[: len(names)],
                f"{len(steps)} of {show(steps[-1], 'total_steps', '{:.0f}')}",
                show(trained, "kept", "{:,.0f}"),
                show(trained, "too_long", "{:,.0f}"),
                show(steps[0], "loss", "{:.4f}"),
                show(steps[-1], "loss", "{:.4f}"),
                len(steps) - len(numbers(steps, "loss")),
                f"{sum(numbers(steps, 'tokens')):,.0f}",
                f"{fmean(fill):.1%}" if fill else "\u2013",
                f"{sum(numbers(steps, 'seconds')):,.1f}",
            )
        )
    return table(headers, rows, num_labels=len(names))


def numbers(lines: list[Line], key: str) -> list[float]:
    """The finite numbers under a key."""
    return [value for value in (number(line, key) for line in lines) if math.isfinite(value)]


def _duration(seconds: float) -> str:
    """61 -> "1 min 1 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"
