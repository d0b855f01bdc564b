"""The card of an exported dataset: what is in it, and what made it where the run tells.

Names come from users, so they stand in code spans that they cannot leave, and never in the front
matter. Left out: a license, which is the user's to state, and claims about quality.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rft_ray import __version__
from rft_ray.errors import InputError, first_words

if TYPE_CHECKING:
    from rft_ray.dataset import ExportCounts

MAX_NAME_CHARS = 120
MAX_ROWS = 200
SAMPLING_KEYS = ("k", "temperature", "top_p", "top_k", "max_tokens", "stop")
FRONT_MATTER = """\
---
pretty_name: Rejection-sampled solutions
tags:
- rft
- rejection-sampling
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
---
"""
MEANINGS = {
    "query-response": "a `query` and a `response` to learn; of each problem the gold solution "
    "first, where there is one, then the selected rollouts",
    "messages": "a chat of two `messages`, the user's and the assistant's; of each problem the "
    "gold solution first, where there is one, then the selected rollouts",
    "preference": "a `prompt`, a `chosen` and a `rejected` text: a selected rollout, and one of "
    "the same problem that the verifier rejected",
}


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run directory says about how its rollouts came about."""

    policies: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    rule: Any = None
    versions: dict[str, Any] = field(default_factory=dict)


def read_run_facts(groups: str | Path) -> RunFacts | None:
    """The facts of the run that a groups file lies in, as RUN_DIR/round-000/selected; else None.

    The config is read as plain data, so that a run of another version of the package will do.
    """
    run = _find_run(Path(groups).resolve())
    if run is None:
        return None
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        path = run / "versions.json"
        versions = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = first_words(str(error), MAX_NAME_CHARS)
        raise InputError(f"{run}: cannot read config.yaml or versions.json: {reason}") from None
    config = _as_dict(config)
    return RunFacts(
        policies=_dicts(config.get("policies")),
        rounds=_dicts(config.get("rounds")),
        rule=_as_dict(config.get("selection")).get("rule"),
        versions=_as_dict(versions),
    )


def dataset_card(format: str, counts: "ExportCounts", facts: RunFacts | None) -> str:
    """The text of README.md: front matter, format, counts and, with facts, models and settings."""
    selected = sum(counts.selected.values())
    rows = [
        ("problems", counts.problems),
        ("problems without a row", counts.left_out),
        ("rows", counts.rows),
        ("gold solutions", counts.gold),
        ("selected rollouts", selected),
    ]
    by_policy = sorted(counts.selected.items())
    parts = [
        FRONT_MATTER,
        "# Rejection-sampled solutions\n",
        f"Format `{format}`: each row is {MEANINGS[format]}.\n",
        markdown_table(("what", "count"), [(what, f"{count:,}") for what, count in rows]),
        "## Selected rollouts\n",
        markdown_table(
            ("policy", "round", "rollouts"),
            [(code_span(name), number, f"{count:,}") for (name, number), count in by_policy],
        ),
        *(_facts_parts(facts) if facts is not None else ()),
        f"Written by rft_ray {__version__}.",
    ]
    return "\n".join(parts) + "\n"


def _facts_parts(facts: RunFacts) -> list[str]:
    policies = [
        (code_span(p.get("name")), code_span(model_name(p.get("model"))), _settings(p))
        for p in facts.policies
    ]
    parts = ["## Models and sampling\n", markdown_table(("policy", "model", "sampling"), policies)]
    temperatures = [
        f"- round {number}: temperature {code_span(entry['temperature'])} for every policy"
        for number, entry in enumerate(facts.rounds[:MAX_ROWS])
        if entry.get("temperature") is not None
    ]
    if temperatures:
        parts.append("\n".join(temperatures) + "\n\nThe last entry holds for all later rounds.\n")
    if facts.rule is not None:
        parts.append(f"Selection rule: {code_span(facts.rule)}.\n")
    versions = [(code_span(name), code_span(version)) for name, version in facts.versions.items()]
    return [*parts, "## Versions\n", markdown_table(("package", "version"), versions)]


def _settings(policy: dict[str, Any]) -> str:
    sampling = _as_dict(policy.get("sampling"))
    given = [key for key in SAMPLING_KEYS if sampling.get(key) not in (None, [])]
    return ", ".join(f"{key} {code_span(sampling[key])}" for key in given)


def model_name(model: Any) -> Any:
    """A folder's own name only: where it lies on a machine is nobody's business."""
    return Path(model).name if isinstance(model, str) and model.startswith(("/", "~")) else model


def code_span(value: Any) -> str:
    """A value as a code span, in which Markdown and HTML mean nothing and that it cannot end."""
    text = first_words(str(value), MAX_NAME_CHARS)
    return "`" + (text.replace("`", "'").replace("|", "\u00a6") or " ") + "`"


def markdown_table(headers: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table of cells that are safe already; long ones are cut."""
    lines = [headers, ("---",) * len(headers), *rows[:MAX_ROWS]]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
    left_out = len(rows) - MAX_ROWS
    return text if left_out <= 0 else f"{text}\nand {left_out:,} more\n"


def _find_run(path: Path) -> Path | None:
    for place in (path, *path.parents):
        is_round = re.fullmatch("round-[0-9]{3,}", place.name) is not None
        if is_round and (place.parent / "config.yaml").is_file():
            return place.parent
    return None


def _as_dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[dict[Any, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
