"""Section of the report about online training: what steps sampled, learned, dropped and took.

Everything is read from the `online_step` lines of the metrics and from the evaluations of the
validation problems. Where training went back to a checkpoint, steps were trained again: of each the
last line counts, and lines of later steps from before are of weights that are gone. Weight
refreshes are `training_report.py`'s, and so are the means of a few steps that long curves are made
of.
"""

import math
from collections import Counter

from rft_ray.evaluation_report import is_validation
from rft_ray.page import (
    NUM_COLOURS,
    Html,
    Line,
    bar_panel,
    join,
    legend,
    number,
    show,
    stacked_bar,
    table,
    tag,
)
from rft_ray.plots import Point, Series, line_plot
from rft_ray.score_rows import BASELINES, STAGES, TARGET
from rft_ray.training_report import curve, numbers, points_width

ONLINE = "online"
# The parts of a step: each side's, in order, with their colours of the page's palette.
DRIVER = {"sample": 2, "verify": 3}
TRAINER = {"train": 0, "save": 5, "refresh": 1, "sleep": 4, "wait": 6}
REST = "other"
# What a reason for dropping counts, and what it means.
REASONS = {
    "all_wrong": ("groups", "not one rollout was accepted"),
    "all_right": ("groups", "every rollout was accepted"),
    "no_rollouts": ("groups", "the prompt is too long for the model"),
    "stale": ("groups", "a rollout was older than online.max_staleness"),
    "no_token_ids": ("rollouts", "accepted, but cut at a stop text"),
    "over_max_length": ("rollouts", "accepted, but longer than the recipe's max_length"),
    "too_long": ("groups", "every rollout was cut off by the token limit"),
}


def online_report(lines: list[Line], scored: list[Line], settings: Line) -> Html:
    """All about the steps; empty where there are none.

    `lines` are the `online_step` lines in the order they were written, `scored` the evaluation
    lines, `settings` the config's `online`.
    """
    steps = last_steps(lines)
    if not steps:
        return Html("")
    return join(
        [
            tag("p", _summary(lines, steps, settings), class_="note"),
            _found(steps),
            _learned(steps, settings),
            _validation(scored),
            _staleness(steps, settings),
            _dropped(steps),
            _time(steps, settings),
        ]
    )


def last_steps(lines: list[Line]) -> list[Line]:
    """The steps as they counted in the end, in order: 1, 2, 3, 2 is 1 and the second 2."""
    steps: dict[int, Line] = {}
    for line in lines:
        if type(line.get("step")) is int:
            while steps and next(reversed(steps)) >= line["step"]:
                steps.popitem()
            steps[line["step"]] = line
    return list(steps.values())


def _summary(lines: list[Line], steps: list[Line], settings: Line) -> str:
    planned = show(settings, "steps", "{:.0f}")
    text = f"{len(steps)} of {planned} steps; a step is a batch of problems, sampled from the live "
    text += "policy, verified, trained on and followed by a refresh of the samplers. "
    again = len(lines) - len(steps)
    if again:
        text += f"{again} lines of steps that were trained again after a failure are left out. "
    empty = sum(number(step, "examples") == 0 for step in steps)
    if empty:
        text += f"{empty} steps had nothing to learn from and left the weights alone. "
    if points_width(steps) > 1:
        text += f"A point of a curve is the mean of up to {points_width(steps)} steps. "
    return text


def _found(steps: list[Line]) -> Html:
    """What the verifier found in each step's rollouts, before any filter."""
    rows = [
        {
            "step": step.get("step"),
            "accepted": _ratio(step, "accepted", "rollouts"),
            "reward": step.get("reward"),
            "paths": _ratio(step, "distinct_paths", "problems"),
            "entropy": step.get("entropy"),
        }
        for step in steps
    ]
    shares: Series = {
        "accepted share": curve(rows, "accepted"),
        "mean reward": curve(rows, "reward"),
    }
    if shares["accepted share"] == shares["mean reward"]:
        shares = {"accepted share, which is the mean reward": shares["accepted share"]}
    plots = [
        line_plot("Accepted share and mean reward", "step", shares, shares=True,
                  colours=[2, 0][: len(shares)]),
        line_plot("Distinct paths per problem", "step", {"distinct paths": curve(rows, "paths")}),
        line_plot("Entropy", "step", {"nats a trained token": curve(rows, "entropy")}, colours=[3]),
        line_plot("Rollouts learned from", "step", {"of a step": curve(steps, "examples")}),
    ]  # fmt: skip
    note = (
        "The first two are of all rollouts of a step, before filters; each step has other "
        "problems, so the curves are noisy. Entropy is that of the policy at the tokens it is "
        "trained on. Training on right rollouts alone is known to collapse it: when it nears 0, "
        "sampling repeats itself, the distinct paths become few, and there is nothing new to learn "
        "from."
    )
    return join([tag("div", *plots, class_="pair"), tag("p", note, class_="note")])


def _learned(steps: list[Line], settings: Line) -> Html:
    plots = [
        line_plot("Loss", "step", {"loss": curve(steps, "loss")}),
        line_plot("Gradient norm", "step", {"before clipping": curve(steps, "grad_norm")}),
    ]
    if number(settings, "updates_per_batch") > 1:
        clipped: Series = {"of the trained tokens": curve(steps, "clipped")}
        plots.append(line_plot("Share of clipped ratios", "step", clipped, shares=True))
    title = tag("h3", "Optimisation")
    return join([title, tag("div", *plots, class_="pair")])


def _validation(scored: list[Line]) -> Html:
    """Accuracy against the step, with where the target was before the first."""
    lines = [line for line in scored if is_validation(line) and line.get("model") == TARGET]
    last = {number(line, "step"): line for line in lines if line.get("stage") == ONLINE}
    points = [_point(last[step]) for step in sorted(last) if math.isfinite(step)]
    if not points:
        return Html("")
    series: Series = {STAGES[ONLINE].label: points}
    note = "Greedy pass@1 on the validation problems with 95% intervals; steps are batches."
    before = [line for line in lines if line.get("stage") in BASELINES]
    if before:
        baseline = max(before, key=lambda line: number(line, "step"))
        value, ends = number(baseline, "value"), (min(0.0, points[0][0]), points[-1][0])
        label, shown = STAGES[baseline["stage"]].label, show(baseline, "value", "{:.1%}")
        series[label] = [(x, value) for x in ends]
        note += f" {label} is where online training began: {shown}."
    else:
        note += " What it began with was not scored on them."
    colours = [STAGES[ONLINE].colour, STAGES["sft"].colour + NUM_COLOURS]
    plot = line_plot("Validation pass@1", "step", series, shares=True,
                     colours=colours[: len(series)])  # fmt: skip
    title = tag("h3", "Validation while training")
    return join([title, tag("p", note, class_="note"), plot])


def _point(line: Line) -> Point:
    ends = number(line, "low"), number(line, "high")
    place = number(line, "step"), number(line, "value")
    return (*place, *ends) if all(map(math.isfinite, ends)) else place


def _staleness(steps: list[Line], settings: Line) -> Html:
    """How old rollouts were when they were learned from, against the bound."""
    ages: Counter[int] = Counter()
    for step in steps:
        ages.update(_ages(step))
    total, bound = ages.total(), number(settings, "max_staleness")
    title = tag("h3", "Staleness")
    if not total:
        return join([title, tag("p", "No rollouts of the live policy.", class_="note")])
    shares = {_age(age): count / total for age, count in sorted(ages.items())}
    rows = [
        (_age(age), f"{count:,}", f"{count / total:.1%}") for age, count in sorted(ages.items())
    ]
    oldest = max(ages)
    verdict = tag("b", "within" if oldest <= bound else "above",
                  class_="good" if oldest <= bound else "bad")  # fmt: skip
    against = [", ", verdict, f" the bound of {_age(int(bound))}"] if math.isfinite(bound) else []
    note = tag(
        "p",
        "Steps that were trained between sampling a rollout and learning from it. The oldest is ",
        f"{_age(oldest)} old",
        *against,
        " (online.max_staleness). Counted are rollouts of the groups that reached the trainer.",
        class_="note",
    )
    panel = bar_panel("Rollouts by age", shares, "{:.1%}")
    sizes = table(("age", "rollouts", "share"), rows)
    return join([title, note, tag("div", panel, sizes, class_="pair")])


def _age(steps: int) -> str:
    return f"{steps} step{'' if steps == 1 else 's'}"


def _dropped(steps: list[Line]) -> Html:
    """Groups and rollouts that were not learned from, by reason."""
    counts: Counter[str] = Counter()
    for step in steps:
        counts.update(_counts(step, "dropped"))
    sizes = {"groups": _total(steps, "problems"), "rollouts": _total(steps, "accepted")}
    rows = []
    for reason, count in counts.most_common():
        unit, meaning = REASONS.get(reason, ("\u2013", ""))
        share = count / (sizes.get(unit) or math.nan)
        rows.append((reason, meaning, unit, f"{count:,}",
                     f"{share:.1%}" if math.isfinite(share) else "\u2013"))  # fmt: skip
    title = tag("h3", "Dropped")
    if not rows:
        return join([title, tag("p", "Nothing was dropped.", class_="note")])
    note = (
        "Shares are of all groups, or of all accepted rollouts. Rejected rollouts of the groups "
        "that are kept are not learned from either; those are no drops."
    )
    names = ("reason", "meaning", "what", "dropped", "share")
    return join([title, tag("p", note, class_="note"), table(names, rows, num_labels=3)])


def _time(steps: list[Line], settings: Line) -> Html:
    """Both sides of the buffer, second by second, and how many tokens they moved."""
    trainer = TRAINER.copy()
    if not _total(steps, "sleep_seconds"):
        del trainer["sleep"]
    spent = {part: _total(steps, f"{part}_seconds") for part in (*DRIVER, *trainer)}
    whole = sum(spent[part] for part in trainer)
    if not whole:
        return Html("")
    spent[REST] = max(0.0, whole - sum(spent[part] for part in DRIVER))
    curves: Series = {part: curve(steps, f"{part}_seconds") for part in (*DRIVER, *trainer)}
    colours = [*DRIVER.values(), *trainer.values()]
    plots = [
        line_plot("Seconds of a step", "step", curves, colours=colours),
        line_plot("Tokens a second", "step", _speeds(steps, settings), colours=[2, 0]),
    ]
    note = (
        "Two sides work at the same time: the driver samples and verifies, the trainer trains, "
        "saves, refreshes the samplers, and waits for the next batch. The bars are all steps "
        f"together, as the trainer saw them. The driver's {REST} is what is left of that: it "
        "waits for the trainer, or scores the validation problems, for which the trainer waits. "
        "With online.in_flight at wait, a refresh begins by waiting for the requests in flight. "
        "With online.share_gpus, samplers fall asleep before a step is trained."
    )
    return join(
        [
            tag("h3", "Time and throughput"),
            tag("p", note, class_="note"),
            legend([*list(spent)[:-2], f"wait, the driver's {REST}"], colours),
            _bar("driver", {**DRIVER, REST: TRAINER["wait"]}, spent),
            _bar("trainer", trainer, spent),
            tag("div", *plots, class_="pair"),
            tag("div", _time_table(spent, trainer, len(steps)),
                _speed_table(steps, spent, whole, settings), class_="pair"),
        ]
    )  # fmt: skip


def _bar(name: str, parts: dict[str, int], spent: dict[str, float]) -> Html:
    pieces = [(f"{part}: {spent[part]:,.1f} s", spent[part], c) for part, c in parts.items()]
    return tag("div", tag("span", name, class_="name"), stacked_bar(pieces), class_="bar")


def _time_table(spent: dict[str, float], trainer: dict[str, int], num_steps: int) -> Html:
    sides = [*(("driver", part) for part in (*DRIVER, REST)), *(("trainer", p) for p in trainer)]
    whole = sum(spent[part] for part in trainer)
    rows = [
        (side, part, f"{spent[part]:,.1f}", f"{spent[part] / num_steps:.3f}",
         f"{spent[part] / whole:.1%}")
        for side, part in sides
    ]  # fmt: skip
    return table(("side", "part", "seconds", "a step", "share"), rows, num_labels=2)


def _speed_table(steps: list[Line], spent: dict[str, float], whole: float, settings: Line) -> Html:
    """Tokens a second while at work and over all, and how much of the time nothing was done."""
    tokens = _total(steps, "sampled_tokens"), _updates(settings) * _total(steps, "tokens")
    rows = []
    for name, count, part in zip(
        ("sampling", "training"), tokens, ("sample", "train"), strict=True
    ):
        at_work = count / spent[part] if spent[part] else math.nan
        idle = max(0.0, 1 - spent[part] / whole) if part == "sample" else spent["wait"] / whole
        rows.append(
            (name, f"{count:,.0f}", f"{at_work:,.0f}" if math.isfinite(at_work) else "\u2013",
             f"{count / whole:,.0f}", f"{idle:.1%}")
        )  # fmt: skip
    names = ("", "tokens", "a second at work", "a second over all", "idle")
    note = (
        "Samplers are idle while no batch is being sampled, evaluation included; the trainer while "
        "it waits. Trained tokens are those of completions, counted once an optimiser step."
    )
    return tag("div", table(names, rows), tag("p", note, class_="note"))


def _speeds(steps: list[Line], settings: Line) -> Series:
    rows = [
        {
            "step": step.get("step"),
            "sampled": _ratio(step, "sampled_tokens", "sample_seconds"),
            "trained": _updates(settings) * _ratio(step, "tokens", "train_seconds"),
        }
        for step in steps
    ]
    return {"sampled": curve(rows, "sampled"), "trained": curve(rows, "trained")}


def _updates(settings: Line) -> float:
    updates = number(settings, "updates_per_batch")
    return updates if updates >= 1 else 1.0


def _ratio(line: Line, part: str, whole: str) -> float:
    return number(line, part) / (number(line, whole) or math.nan)


def _total(lines: list[Line], key: str) -> float:
    return sum(numbers(lines, key))


def _counts(line: Line, key: str) -> dict[str, int]:
    """A field that counts by name; what is no count is left out."""
    value = line.get(key)
    found = value.items() if isinstance(value, dict) else ()
    return {name: count for name, count in found if type(count) is int}


def _ages(line: Line) -> dict[int, int]:
    counts = _counts(line, "staleness")
    return {int(age): count for age, count in counts.items() if age.isdecimal()}
