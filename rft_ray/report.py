"""The HTML report of a run, rebuilt from its folder alone: one file that needs nothing else.

    rft-ray report RUN_DIR

A run that was killed or is still going has a report too: what is not on disk is said to be not
computed yet. A continued run repeats lines of `metrics.jsonl`; the last one counts, except that
phases and weight refreshes took their time on every attempt and are summed. A line without a round
is of the first, 0. The sections are `evaluation_report.py`, `online_report.py`,
`rollout_report.py`, `training_report.py` and `example_report.py`; `page.py` and `plots.py` have the
pieces.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rft_ray.errors import InputError
from rft_ray.evaluation_report import evaluation_report
from rft_ray.example_report import example_problems
from rft_ray.online_phases import idle_shares, online_phases
from rft_ray.online_report import last_steps, online_report
from rft_ray.page import Html, Line, join, number, page, round_of, show, show_interval, table, tag
from rft_ray.rollout_report import path_curves, rollout_statistics
from rft_ray.rollout_summary import RolloutSummary, read_rollouts
from rft_ray.run_dir import read_metrics, write_atomically
from rft_ray.score_rows import (
    GREEDY,
    Score,
    baseline_score,
    main_score,
    read_rows,
    read_scores,
    stage_label,
)
from rft_ray.training_report import phases, refreshes, training_jobs

NOT_YET = tag("p", "Not computed yet.", class_="note")


@dataclass(frozen=True, slots=True)
class Run:
    """What the folder of a run holds; `rows` are of all `evaluation.json`, each with its round."""

    path: Path
    rounds: dict[int, Path]
    config_text: str
    config: Line
    versions: Line
    metrics: list[Line]
    rows: list[Line]
    rollouts: RolloutSummary | None

    @property
    def is_online(self) -> bool:
        """Whether the rollouts are of a model while it is trained."""
        return self.config.get("mode") == "online" or bool(self.lines("online_step"))

    @property
    def online(self) -> Line:
        """The config's settings of online steps."""
        settings = self.config.get("online")
        return settings if isinstance(settings, dict) else {}

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
    steps = run.lines("train_step", "job", "round", "step")
    examples = run.lines("examples", "job", "round")
    document = page(
        f"RFT run {run.path.resolve().name}",
        _headline(run),
        _section("Evaluation", _evaluation(run)),
        _section("Online training", _online(run)) if run.is_online else "",
        _section("Rollouts", _counts(run)),
        _section("Distinct paths against samples", _path_curves(run)),
        _section("Training", training_jobs(steps, examples) if steps else ""),
        _section("Weight refreshes", refreshes(run.lines("refresh"))),
        _section("Where the time went", _phases(run)),
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
    rounds = _round_folders(path)
    selected = [number for number, folder in rounds.items() if (folder / "selected").is_dir()]
    return Run(
        path=path,
        rounds=rounds,
        config_text=text,
        config=config if isinstance(config, dict) else {},
        versions=_read_json(path / "versions.json", {}),
        metrics=[
            {**line, "round": round_of(line)}
            for line in read_metrics(path / "metrics.jsonl")
            if isinstance(line, dict)
        ],
        rows=[
            {**row, "round": number}
            for number, folder in rounds.items()
            if (folder / "evaluation.json").exists()
            for row in read_rows(folder / "evaluation.json")
        ],
        rollouts=read_rollouts(rounds[selected[-1]] / "selected", selected[-1])
        if selected
        else None,
    )  # fmt: skip


def _round_folders(path: Path) -> dict[int, Path]:
    """The folders of the rounds in order, by their number."""
    names = ((re.fullmatch(r"round-([0-9]{1,9})", f.name, re.ASCII), f) for f in path.iterdir())
    return dict(sorted((int(name[1]), folder) for name, folder in names if name))


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
    scores = read_scores(run.rows)
    before, after = baseline_score(scores), main_score(scores)
    start = stage_label(before.stage) if before else "SFT"
    label = after.label(len(run.rounds) > 1) if after else "RFT"
    gains = _main_gains(run, after)
    return join(
        [
            _summary(run),
            tag(
                "div",
                _card(
                    "Target before training" if start == "base" else f"Target after {start}",
                    [before.line] if before else [],
                    "{:.1%}",
                ),
                _card(f"Target after {label}", [after.line] if after else [], "{:.1%}"),
                _card(f"Gain over {start}, paired by problem", gains, "{:+.1%}"),
                class_="cards",
            ),
            tag("p", "Greedy pass@1 on held-out problems, last checkpoint, with 95% intervals. ",
                _gain_in_words(gains), class_="note"),
        ]
    )  # fmt: skip


def _main_gains(run: Run, after: Score | None) -> list[Line]:
    """The gain of the stage on the second card; one without a stage is of before there were any."""
    gains = [line for line in _gain_lines(run) if line.get("metric") == GREEDY]
    if after is None:
        return gains
    return [
        line
        for line in gains
        if round_of(line) == after.round and line.get("stage", after.stage) == after.stage
    ]


def _gain_lines(run: Run) -> list[Line]:
    return run.lines("gain", "metric", "stage", "round")


def _summary(run: Run) -> Html:
    policies = run.config.get("policies") or []
    names = [str(p.get("name")) for p in policies if isinstance(p, dict)]
    newest = max(run.rounds, default=0)
    folder = run.rounds.get(newest, run.path / "round-000")
    first = {"rollouts selected": (folder / "selected").exists()}
    done = {
        **(_steps_done(run) if run.is_online else first),
        "target trained": (folder / "checkpoint").exists(),
        "target evaluated": any(row["round"] == newest for row in run.rows),
    }
    state = ", ".join(f"{name}{'' if is_done else ' (not yet)'}" for name, is_done in done.items())
    planned = run.config.get("num_rounds", 1)
    where = f" of round {newest} (rounds 0 to {planned - 1})" if _is_several(planned) else ""
    text = f"Policies: {', '.join(names) or 'none named'}. State{where}: {state}."
    return tag("p", text, class_="note")


def _steps_done(run: Run) -> dict[str, bool]:
    num_steps, planned = len(last_steps(run.lines("online_step"))), run.online.get("steps")
    return {f"{num_steps} of {planned} online steps": num_steps > 0}


def _is_several(planned: object) -> bool:
    return isinstance(planned, int) and planned > 1


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
    identity = ("model", "stage", "round", "problem_set", "metric", "step")
    return evaluation_report(run.rows, _gain_lines(run), run.lines("evaluation", *identity))


def _online(run: Run) -> Html:
    identity = ("model", "stage", "round", "problem_set", "metric", "step")
    return online_report(run.lines("online_step"), run.lines("evaluation", *identity), run.online)


def _phases(run: Run) -> Html:
    steps = run.lines("online_step")
    found = phases(run.lines("phase") + online_phases(steps))
    return join([idle_shares(steps), found]) if found else found


def _counts(run: Run) -> Html:
    rows = run.lines("select", "round", "policy")
    return _of_steps(run, rollout_statistics(rows)) if rows else Html("")


def _path_curves(run: Run) -> Html:
    curves = path_curves(run.rollouts)
    return _of_steps(run, curves) if curves else curves


def _of_steps(run: Run, body: Html) -> Html:
    """The same with a word on what is counted, where a problem comes again in later steps."""
    note = "Of an online run: a problem counts anew in every step that sampled it."
    return join([tag("p", note, class_="note"), body]) if run.is_online else body


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
