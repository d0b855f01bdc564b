"""What the pages of cluster/ quote and list, against the code.

A quoted message stands in a block that names its file: ```text rft_ray/offline.py

Run: pytest tests/test_cluster_docs.py
"""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from rft_ray.config import RunConfig
from rft_ray.ray_metrics import METRICS, Metric

ROOT = Path(__file__).parents[1]
TROUBLESHOOTING = (ROOT / "cluster" / "TROUBLESHOOTING.md").read_text(encoding="utf-8")
OBSERVABILITY = (ROOT / "cluster" / "OBSERVABILITY.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^```text (\S+)\n(.+)\n```$", TROUBLESHOOTING, re.MULTILINE)
GAP, NONE = "\0", "\u2013"


def source(name: str) -> Path:
    """A file of this repository, or of an installed package."""
    if (ROOT / name).exists():
        return ROOT / name
    package, _, inside = name.partition("/")
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    return Path(folder) / inside


def texts_of(path: Path) -> list[str]:
    """Every string of a Python file, with a gap for each replacement field."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [p.value if isinstance(p, ast.Constant) else GAP for p in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.mark.parametrize(("name", "message"), QUOTED)
def test_a_quoted_message_is_in_the_code(name: str, message: str) -> None:
    path = source(name)
    if path.suffix != ".py":
        assert message.encode() in path.read_bytes()
        return
    pattern = f"{GAP}+".join(map(re.escape, message.split("…")))
    assert any(re.search(pattern, text) for text in texts_of(path)), message


def test_every_trouble_of_the_list_has_a_section_that_quotes_what_is_seen() -> None:
    titles = re.findall(r"^## (.+)$", TROUBLESHOOTING, re.MULTILINE)
    assert {"Nothing was accepted", "The loss is flat", "Waiting for placement", "Out of memory",
            "Refresh parity breach", "Verifier time-outs"} <= set(titles)  # fmt: skip
    for section in TROUBLESHOOTING.split("\n## ")[1:]:
        assert "```text " in section


def test_fields_that_are_to_be_changed_exist() -> None:
    fields = RunConfig.model_fields
    sections = {name: annotation_fields(field.annotation) for name, field in fields.items()}
    named = re.findall(r"`([a-z]+)\.([a-z_]+)", TROUBLESHOOTING)
    checked = [(section, field) for section, field in named if sections.get(section)]
    assert len(checked) > 15
    for section, field in checked:
        assert field in sections[section], f"{section}.{field}"


def annotation_fields(annotation: object) -> set[str]:
    """The fields of a section of the config; none where it is no section."""
    return set(getattr(annotation, "model_fields", {}))


@pytest.mark.parametrize(("name", "metric"), METRICS.items())
def test_a_metric_is_documented_as_it_is(name: str, metric: Metric) -> None:
    tags = ", ".join(f"`{tag}`" for tag in metric.tags) or NONE
    row = f"| `{name}` | {metric.kind} | {metric.unit or NONE} | {tags} | {metric.where} |"
    assert f"{row} {metric.what} |\n" in OBSERVABILITY


def test_every_picture_is_shown_and_small() -> None:
    shown = re.findall(r"^!\[.+\]\((images/.+)\)$", OBSERVABILITY, re.MULTILINE)
    files = {path.name: path for path in (ROOT / "cluster" / "images").iterdir()}
    assert shown and {Path(name).name for name in shown} == files.keys()
    assert all(path.stat().st_size < 200_000 for path in files.values())


def test_no_metric_is_documented_that_is_not_there() -> None:
    rows = re.findall(r"^\| `(rft_\w+)` \|", OBSERVABILITY, re.MULTILINE)
    assert rows == list(METRICS)
    named = re.findall(r"`(rft_[a-z_]+)`", TROUBLESHOOTING)
    assert named and set(named) <= METRICS.keys()
