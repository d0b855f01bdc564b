"""Section of the report about scores: every model, stage, round and metric on every problem set.

Nothing is computed here: values and intervals are those of `evaluation.json` and of the metrics'
evaluation lines. Left out of plots, not of tables: values without a finite interval, and sampled
metrics of models other than the target.
"""

import math

from rft_ray.page import (
    NUM_COLOURS,
    Html,
    Line,
    join,
    number,
    round_of,
    show,
    show_interval,
    table,
    tag,
)
from rft_ray.plots import Interval, Series, interval_plot, line_plot
from rft_ray.score_rows import (
    BEST,
    GREEDY,
    HELDOUT,
    STAGES,
    TARGET,
    Score,
    baseline_score,
    cut,
    in_order,
    main_score,
    read_scores,
    score_of,
    split_metric,
    stage_label,
)


def evaluation_report(rows: list[Line], gains: list[Line], scored: list[Line]) -> Html:
    """Held-out problems, rounds, other problem sets, and the choice of checkpoints.

    `rows` are of `evaluation.json`, `gains` and `scored` the metrics' gain and evaluation lines.
    """
    scores = read_scores(rows)
    sets = sorted({score.problem_set for score in scores})
    parts = [_stage_notes(scores)] if scores else [tag("p", "Not computed yet.", class_="note")]
    for name in sets:
        parts.append(_problem_set(name, [score for score in scores if score.problem_set == name]))
        if name == HELDOUT:
            parts += [_gains(gains), _round_plots(scores)]
    if HELDOUT not in sets:
        parts.append(_gains(gains))
    return join([*parts, _validation(scored), _all_scored(scored)])


def _stage_notes(scores: list[Score]) -> Html:
    stages = {score.stage for score in scores}
    notes = [
        tag("li", tag("b", stage.label), ": ", stage.note)
        for name, stage in STAGES.items()
        if name in stages
    ]
    return tag("ul", *notes, class_="note") if notes else Html("")


def _problem_set(name: str, scores: list[Score]) -> Html:
    title = f"Out of domain: {name}" if name else "Held-out problems"
    has_rounds = any(score.round for score in scores)
    greedy: dict[str, list[Interval]] = {}
    for score in scores:
        if score.metric == GREEDY and all(map(math.isfinite, score.interval())):
            row = (score.label(has_rounds), *score.interval(), score.colour)
            greedy.setdefault(cut(score.model), []).append(row)
    sizes = {show(score.line, "n", "{:,.0f}") for score in scores}
    note = "Accuracy of one greedy completion a problem (pass@1), with 95% intervals."
    if len(sizes) == 1:
        note = f"{note[:-1]}, on {sizes.pop()} problems."
    if any(score.metric == BEST for score in scores):
        note += " Best step: the checkpoint that is best on the validation problems, not the last."
    return join(
        [
            tag("h3", title),
            tag("p", note, class_="note"),
            interval_plot(greedy),
            _sample_plots(scores, has_rounds),
            _score_table(scores, has_rounds),
        ]
    )


def _score_table(scores: list[Score], has_rounds: bool) -> Html:
    """A row for each model, stage and round, a column for each metric."""
    metrics = sorted({score.metric for score in scores}, key=_metric_order)
    rows: dict[tuple[str, str, int], dict[str, Score]] = {}
    for score in scores:
        rows.setdefault((score.model, score.stage, score.round), {})[score.metric] = score
    cells = [
        (
            *_names(next(iter(row.values())), has_rounds),
            *(_cell(row[metric]) if metric in row else "" for metric in metrics),
        )
        for row in rows.values()
    ]
    names = ("model", "stage", "round") if has_rounds else ("model", "stage")
    shown = ["pass@1, best step" if metric == BEST else cut(metric) for metric in metrics]
    return table((*names, *shown), cells, num_labels=len(names))


def _names(score: Score, has_rounds: bool) -> tuple[object, ...]:
    names = (score.model, stage_label(score.stage))
    return (*names, score.round if score.is_trained_in_rounds else "") if has_rounds else names


def _cell(score: Score) -> Html:
    step = f" at step {show(score.line, 'step', '{:.0f}')}" if score.metric == BEST else ""
    interval = tag("small", show_interval(score.line, "{:.1%}"))
    return join([show(score.line, "value", "{:.1%}") + step, interval])


def _metric_order(metric: str) -> tuple[int, int, str]:
    kinds = ("avg", "pass", "maj")
    kind, k = split_metric(metric)
    if metric in (GREEDY, BEST):
        return (0, len(metric), metric)
    return (1 + kinds.index(kind) if kind in kinds else len(kinds) + 1, k, metric)


def _sample_plots(scores: list[Score], has_rounds: bool) -> Html:
    """pass@K and maj@K of the target against K, each stage in the newest round it has."""
    newest = {score.stage: score.round for score in scores if score.model == TARGET}
    shown = [s for s in scores if s.model == TARGET and s.round == newest[s.stage]]
    plots = []
    for kind, title in (("pass", "pass@K: one of K is right"),
                        ("maj", "maj@K: the most frequent answer of K is right")):  # fmt: skip
        series: Series = {}
        colours = {}
        for score in shown:
            found, k = split_metric(score.metric)
            if score.metric != GREEDY and found in (kind, "avg"):
                label, place = score.label(has_rounds), 1 if found == "avg" else k
                series.setdefault(label, []).append((place, *score.interval()))
                colours[label] = score.colour
        series = {label: sorted(points) for label, points in series.items()}
        if any(k > 1 for points in series.values() for k, *_ in points):
            plots.append(line_plot(title, "K, sampled rollouts", series, log_x=True, shares=True,
                                   colours=list(colours.values())))  # fmt: skip
    if not plots:
        return Html("")
    note = "The target's sampled rollouts, with 95% intervals; at K = 1 stands avg@N, their mean."
    note += " Stages are shown in their newest round, all of them in the table." * has_rounds
    return join([tag("div", *plots, class_="pair"), tag("p", note, class_="note")])


def _gains(gains: list[Line]) -> Html:
    if not gains:
        return Html("")
    has_rounds = any(round_of(gain) for gain in gains)
    headers = ["metric", "stage", "round", "gain", "95% interval"]
    rows = []
    for gain in sorted(gains, key=round_of):
        stage = stage_label(str(gain["stage"])) if gain.get("stage") else "\u2013"
        names = [gain.get("metric"), stage, *([round_of(gain)] if has_rounds else [])]
        rows.append([*names, show(gain, "value", "{:+.1%}"), show_interval(gain, "{:+.1%}")])
    headers = headers if has_rounds else [name for name in headers if name != "round"]
    over = stage_label(str(gains[-1].get("baseline", "sft")))
    title = f"Gain of the target over its {over}, paired by problem:"
    return join([tag("p", title), table(headers, rows, num_labels=len(headers) - 2)])


def _round_plots(scores: list[Score]) -> Html:
    """Greedy accuracy against the round: the stages, and the target's main stage on other sets."""
    greedy = [s for s in scores if s.metric == GREEDY and s.is_trained_in_rounds]
    rounds = sorted({score.round for score in greedy if score.problem_set == HELDOUT})
    main = main_score(scores)
    if len(rounds) < 2 or main is None:
        return Html("")
    stages: Series = {}
    sets: Series = {}
    colours: dict[str, int] = {}
    for score in greedy:
        point = (score.round, *score.interval())
        if score.problem_set == HELDOUT:
            name = stage_label(score.stage)
            name = name if score.model == TARGET else f"{cut(score.model)}: {name}"
            stages.setdefault(name, []).append(point)
            colours[name] = score.colour + NUM_COLOURS * (score.model != TARGET)
        elif (score.model, score.stage) == (TARGET, main.stage):
            sets.setdefault(cut(score.problem_set), []).append(point)
    if before := baseline_score(scores):
        name = stage_label(before.stage)
        stages[name] = [(r, before.interval()[0]) for r in (rounds[0], rounds[-1])]
        colours[name] = before.colour + NUM_COLOURS
    plots = [line_plot("Held-out pass@1 against rounds", "round", stages, shares=True,
                       colours=list(colours.values()))]  # fmt: skip
    if sets:
        title = f"Out of domain, pass@1 after {stage_label(main.stage)}"
        plots.append(line_plot(title, "round", sets, shares=True))
    return join([tag("h3", "Rounds"), tag("div", *plots, class_="pair")])


def _validation(scored: list[Line]) -> Html:
    """Accuracy on the validation problems against the optimiser step, a plot for each model.

    Online steps are batches; theirs is `online_report.py`'s.
    """
    scores = in_order([
        score_of(line, HELDOUT, GREEDY)
        for line in scored
        if is_validation(line) and line.get("stage") != "online"
    ])  # fmt: skip
    has_rounds = any(score.round for score in scores)
    newest = max((score.round for score in scores), default=0)
    curves: dict[str, Series] = {}
    colours: dict[str, dict[str, int]] = {}
    for score in scores:
        label = score.label(has_rounds)
        place = (number(score.line, "step"), number(score.line, "value"))
        curves.setdefault(score.model, {}).setdefault(label, []).append(place)
        # Earlier rounds have the colour of their stage in dashes.
        age = newest - score.round if score.is_trained_in_rounds else 0
        colours.setdefault(score.model, {})[label] = score.colour + NUM_COLOURS * age
    plots = [
        line_plot(cut(model), "optimiser step", {name: sorted(p) for name, p in series.items()},
                  shares=True, colours=list(colours[model].values()))
        for model, series in curves.items()
        if max(map(len, series.values())) > 1
    ]  # fmt: skip
    if not plots:
        return Html("")
    note = (
        "Greedy pass@1 on the validation problems, from which the best step is chosen; the "
        "intervals are in the table of every scored checkpoint."
    )
    return join([tag("h3", "Validation"), tag("p", note, class_="note"),
                 tag("div", *plots, class_="pair")])  # fmt: skip


def is_validation(line: Line) -> bool:
    """Whether a line is greedy accuracy on the validation problems."""
    return line.get("problem_set") == "validation" and line.get("metric", GREEDY) == GREEDY


def _all_scored(scored: list[Line]) -> Html:
    if not scored:
        return Html("")
    has_rounds = any(map(round_of, scored))
    scores = in_order([
        score_of(line, str(line.get("problem_set")), str(line.get("metric", GREEDY)))
        for line in scored
    ])  # fmt: skip
    names = ("model", "stage", "round") if has_rounds else ("model", "stage")
    headers = (*names, "problem set", "metric", "step", "value", "95% interval", "problems")
    cells = [
        (*_names(s, has_rounds), s.problem_set, s.metric, show(s.line, "step", "{:.0f}"),
         show(s.line, "value", "{:.1%}"), show_interval(s.line, "{:.1%}"),
         show(s.line, "n", "{:,.0f}"))
        for s in scores
    ]  # fmt: skip
    title = f"Every scored checkpoint, validation included ({len(scored)})"
    rows = table(headers, cells, num_labels=len(names) + 2)
    return tag("details", tag("summary", title), rows)
