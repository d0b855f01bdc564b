"""The Grafana dashboard and the Prometheus config against what the code exports.

Run: pytest tests/test_dashboard.py
"""

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rft_ray.ray_metrics import METRICS

CLUSTER = Path(__file__).parents[1] / "cluster"
DASHBOARD = json.loads((CLUSTER / "grafana" / "rft_ray.json").read_text())
SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
# What Ray exports itself, and labels that Ray or Prometheus put on every series.
BUILT_IN = {
    "ray_serve_deployment_queued_queries", "ray_serve_deployment_replica_healthy",
    "ray_node_gpus_utilization", "ray_node_mem_used", "ray_node_mem_total",
}  # fmt: skip
LABELS = {"SessionName", "instance", "application", "le"}


def expressions() -> Iterator[str]:
    """Every PromQL expression of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", expression))


def exported() -> dict[str, str]:
    """Names as Prometheus sees them, and ours for each."""
    return {
        f"ray_{name}{suffix}": name
        for name, metric in METRICS.items()
        for suffix in SUFFIXES[metric.kind]
    }


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_uses_what_is_exported_with_its_tags(expression: str) -> None:
    names = names_in(expression)
    assert names and names <= exported().keys() | BUILT_IN
    tags = {tag for name in names & exported().keys() for tag in METRICS[exported()[name]].tags}
    used = set(re.findall(r"(\w+)=~?\"", expression))
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        used |= set(group.split(", "))
    assert used <= tags | LABELS


def test_every_metric_has_a_panel() -> None:
    shown = {exported().get(name) for own in expressions() for name in names_in(own)}
    assert shown >= METRICS.keys()


def test_rays_own_names_are_those_of_rays_own_dashboards() -> None:
    (ray,) = importlib.util.find_spec("ray").submodule_search_locations
    folder = Path(ray) / "dashboard" / "modules" / "metrics" / "dashboards"
    known = {name for path in folder.glob("*.py") for name in names_in(path.read_text())}
    assert known >= BUILT_IN


def test_panels_are_told_apart_and_none_covers_another() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {(x, y) for x in range(place["x"], place["x"] + place["w"])
               for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not own & places and place["x"] + place["w"] <= 24
        places |= own


def test_variables_are_those_of_rays_dashboards() -> None:
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert names == {"datasource", "SessionName", "window"}
    assert all('SessionName=~"$SessionName"' in own for own in expressions())


def test_prometheus_reads_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    config = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    (discovery,) = scrape["file_sd_configs"]
    assert discovery["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]


def test_promtool_accepts_the_config_and_every_expression(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: apt-get install prometheus")
    rules = [
        {"record": f"rule:{number}", "expr": expression.replace("$window", "1m")}
        for number, expression in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for what in (["rules", path], ["config", "--syntax-only", CLUSTER / "prometheus.yml"]):
        done = subprocess.run([promtool, "check", *what], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
