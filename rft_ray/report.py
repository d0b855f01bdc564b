"""The HTML report of a run, rebuilt from its folder alone: one file that needs nothing else.

    rft-ray report RUN_DIR

A run that was killed or is still going has a report too: what is not on disk is said to be not
computed yet. A continued run repeats lines of `metrics.jsonl`; the last one counts, except that
phases and weight refreshes took their time on every attempt and are summed. `plots.py` has the
pieces of the page, `rollout_report.py` what is read from the rollouts themselves.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rft_ray.errors import InputError
from rft_ray.plots import (
    Html,
    Line,
    interval_plot,
    join,
    number,
    page,
    show,
    show_interval,
    table,
    tag,
)
from rft_ray.rollout_report import (
    RolloutSummary,
    example_problems,
    path_curves,
    read_rollouts,
    rollout_statistics,
)
from rft_ray.run_dir import read_metrics, write_atomically
from rft_ray.study import TARGET
from rft_ray.training_report import phases, refreshes, training_jobs

NOT_YET = tag("p", "Not computed yet.", class_="note")
STAGES = {"icl": "prompted", "sft": "SFT", "rft_own": "RFT, own rollouts", "rft_pooled":
          "RFT, pooled rollouts", "online": "online RFT"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    """What the folder of a run holds; `rows` are of all `evaluation.json`, each with its round."""

    path: Path
    config_text: str
    config: Line
    versions: Line
    metrics: list[Line]
    rows: list[Line]
    rollouts: RolloutSummary | None

    def lines(self, kind: str, *identity: str) -> list[Line]:
        """Metrics of a kind in order; of those with the same identity only the last."""
        found = [line for line in self.metrics if line.get("kind") == kind]
        if not identity:
            return found
        last = {tuple(str(line.get(key)) for key in identity): line for line in found}
        return list(last.values())


def write_report(run_dir: str) -> str:
    """Write `RUN_DIR/report.html` and return its path; InputError where that is no run's folder."""
    run = _read_run(Path(run_dir))
    steps, examples = run.lines("train_step", "job", "step"), run.lines("examples", "job")
    document = page(
        f"RFT run {run.path.resolve().name}",
        _headline(run),
        _section("Evaluation", _evaluation(run)),
        _section("Rollouts", _counts(run)),
        _section("Distinct paths against samples", path_curves(run.rollouts)),
        _section("Training", training_jobs(steps, examples) if steps else ""),
        _section("Weight refreshes", refreshes(run.lines("refresh"))),
        _section("Where the time went", phases(run.lines("phase"))),
        _section("Example problems", example_problems(run.rollouts)),
        _configuration(run),
    )
    path = run.path / "report.html"
    try:
        write_atomically(path, document)
    except OSError as error:
        raise InputError(f"{path}: cannot write: {error.strerror}") from error
    return str(path)


def _read_run(path: Path) -> Run:
    if not (path / "config.yaml").is_file():
        raise InputError(f"{path}: not a run directory (there is no config.yaml in it)")
    text = (path / "config.yaml").read_text(encoding="utf-8", errors="replace")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path / 'config.yaml'}: not YAML: {reason}") from None
    selected = [folder for folder in sorted(path.glob("round-*/selected")) if folder.is_dir()]
    return Run(
        path=path,
        config_text=text,
        config=config if isinstance(config, dict) else {},
        versions=_read_json(path / "versions.json", {}),
        metrics=[line for line in read_metrics(path / "metrics.jsonl") if isinstance(line, dict)],
        rows=[
            {"round": file.parent.name.removeprefix("round-"), **row}
            for file in sorted(path.glob("round-*/evaluation.json"))
            for row in _read_json(file, [])
        ],
        rollouts=read_rollouts(selected[-1]) if selected else None,
    )


def _read_json(path: Path, missing: Any) -> Any:
    """A JSON file's value, or `missing` where there is no file."""
    if not path.exists():
        return missing
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    if type(value) is not type(missing):
        raise InputError(f"{path}: expected a JSON {type(missing).__name__}")
    return value


def _headline(run: Run) -> Html:
    ours = [r for r in run.rows if r.get("model") == TARGET and r.get("metric") == "pass@1"]
    before = [row for row in ours if row.get("stage") == "sft"]
    after = [row for row in ours if str(row.get("stage")).startswith(("rft", "online"))]
    gains = [line for line in run.lines("gain", "metric") if line.get("metric") == "pass@1"]
    return join(
        [
            _summary(run),
            tag(
                "div",
                _card("Target after SFT", before, "{:.1%}"),
                _card(f"Target after {_stage(after[-1]) if after else 'RFT'}", after, "{:.1%}"),
                _card("Gain, paired by problem", gains, "{:+.1%}"),
                class_="cards",
            ),
            tag("p", "Greedy pass@1 on held-out problems, last checkpoint, with 95% intervals. ",
                _gain_in_words(gains), class_="note"),
        ]
    )  # fmt: skip


def _summary(run: Run) -> Html:
    policies = run.config.get("policies") or []
    names = [str(p.get("name")) for p in policies if isinstance(p, dict)]
    done = {
        "rollouts selected": any(run.path.glob("round-*/selected")),
        "target trained": any(run.path.glob("round-*/checkpoint")),
        "target evaluated": bool(run.rows),
    }
    state = ", ".join(f"{name}{'' if is_done else ' (not yet)'}" for name, is_done in done.items())
    return tag("p", f"Policies: {', '.join(names) or 'none named'}. State: {state}.", class_="note")


def _card(title: str, lines: list[Line], form: str) -> Html:
    """A number with its interval: that of the last line, if there is one."""
    if not lines:
        return tag("div", tag("p", title), NOT_YET, class_="card")
    return tag(
        "div",
        tag("p", title),
        tag("p", show(lines[-1], "value", form), class_="big"),
        tag("p", show_interval(lines[-1], form), class_="note"),
        class_="card",
    )


def _gain_in_words(gains: list[Line]) -> str:
    if not gains:
        return ""
    if number(gains[-1], "low") > 0 or number(gains[-1], "high") < 0:
        return "The gain's interval excludes zero."
    return "The gain's interval contains zero: no difference is shown at this number of problems."


def _evaluation(run: Run) -> Html:
    parts = []
    if run.rows:
        has_rounds = len({row["round"] for row in run.rows}) > 1
        parts = [interval_plot(_points(run.rows, has_rounds)), _score_table(run.rows)]
        if gains := run.lines("gain", "metric"):
            parts.append(tag("p", "Gain of the target over its SFT, paired by problem:"))
            rows = [
                (g.get("metric"), show(g, "value", "{:+.1%}"), show_interval(g, "{:+.1%}"))
                for g in gains
            ]
            parts.append(table(("metric", "gain", "95% interval"), rows))
    else:
        parts.append(NOT_YET)
    scored = run.lines("evaluation", "model", "stage", "problem_set", "step")
    if scored:
        title = f"Every scored checkpoint, validation included ({len(scored)})"
        parts.append(tag("details", tag("summary", title), _score_table(scored, "problem_set")))
    return join(parts)


def _points(rows: list[Line], has_rounds: bool) -> list[tuple[str, float, float, float, int]]:
    points = []
    for row in rows:
        label = f"{row.get('model')}, {_stage(row)}"
        label += "" if row.get("metric") == "pass@1" else f", {row.get('metric')}"
        label += f", round {row['round']}" if has_rounds else ""
        values = [number(row, key) for key in ("value", "low", "high")]
        if all(map(math.isfinite, values)):
            shown = label if len(label) <= 50 else label[:49] + "\u2026"
            points.append((shown, *values, 0 if row.get("model") == TARGET else 6))
    return points


def _score_table(rows: list[Line], third: str = "metric") -> Html:
    headers = ("model", "stage", third.replace("_", " "), "step", "pass@1", "95% interval", "n")
    cells = [
        (
            row.get("model"),
            _stage(row),
            row.get(third),
            show(row, "step", "{:.0f}"),
            show(row, "value", "{:.1%}"),
            show_interval(row, "{:.1%}"),
            show(row, "n", "{:.0f}"),
        )
        for row in rows
    ]
    return table(headers, cells, num_labels=3)


def _counts(run: Run) -> Html:
    """The counts of the newest round that has any."""
    rows = run.lines("select", "round", "policy")
    newest = [row for row in rows if row.get("round") == rows[-1].get("round")]
    return rollout_statistics(newest) if newest else Html("")


def _configuration(run: Run) -> Html:
    versions = table(("package", "version"), run.versions.items(), num_labels=2)
    return tag(
        "section",
        tag("h2", "Configuration and versions"),
        tag("details", tag("summary", "config.yaml"), tag("pre", run.config_text)),
        tag("details", tag("summary", "versions.json"), versions if run.versions else NOT_YET),
    )


def _section(title: str, body: Html | str) -> Html:
    return tag("section", tag("h2", title), body or NOT_YET)


def _stage(row: Line) -> str:
    stage = str(row.get("stage"))
    return STAGES.get(stage, stage)
