"""How benchmarks end. Run: pytest tests/test_benchmark_summary.py"""

import json
from pathlib import Path

import pytest

from rft_ray.benchmark_summary import (
    HOLDER,
    NAMESPACE,
    FigureHolder,
    figure_points,
    finish,
    publish,
    rival_python,
    row,
)
from rft_ray.ray_metrics import METRICS
from tests.exported_metrics import wait_for_series

ROW = {"what": "speed", "ours": 3.0, "rival": "them", "rival_value": 2, "ratio": 1.5, "goal": 1.0,
       "unit": "tokens/s"}  # fmt: skip
# What a benchmark imports or starts has no options.
BENCHMARKS = [
    path
    for path in sorted(Path(__file__).parents[1].glob("benchmarks/*.py"))
    if '"--quick"' in path.read_text()
]


def test_the_last_line_and_the_result_file_are_the_same_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    finish(str(tmp_path / "speed.py"), [ROW], note="more")
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((tmp_path / "results" / "speed.json").read_text())
    assert summary.keys() == {"name", "results", "note", "machine", "versions"}
    assert (summary["name"], summary["results"]) == ("speed", [ROW])
    assert "cores" in summary["machine"] and "python" in summary["versions"]


def test_a_row_is_four_figures_with_the_tags_of_the_metric() -> None:
    assert row("speed", 3.0, "them", 2, 1.0, "tokens/s") == ROW
    assert row("peak", 4.0, "them", 2, 1.0, "MB", ratio=0.5)["ratio"] == 0.5
    assert row("missed", 0.0, "them", 0, 1.0, "rows", ratio=0.0)["ratio"] == 0.0
    points = figure_points({"name": "speed", "results": [ROW]})
    assert {tags["figure"]: value for _, value, tags in points} == {
        "ours": 3.0, "rival": 2.0, "ratio": 1.5, "goal": 1.0
    }  # fmt: skip
    assert all(tags.keys() == set(METRICS[name].tags) for name, _, tags in points)
    FigureHolder().hold(points)


def test_the_same_figure_beside_two_rivals_is_told_apart() -> None:
    rows = [ROW, {**ROW, "rival": "others", "rival_value": 1, "ratio": 3.0}]
    ratios = {
        tags["rival"]: value
        for _, value, tags in figure_points({"name": "speed", "results": rows})
        if tags["figure"] == "ratio"
    }
    assert ratios == {"them": 1.5, "others": 3.0}


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_ends_in_this_way(script: Path) -> None:
    text = script.read_text()
    assert "finish(__file__, results" in text
    assert '"rival_value":' not in text  # rows have the one form of `row`


def test_the_rivals_are_those_of_the_checkout_unless_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RFT_BENCH_PYTHON", raising=False)
    assert rival_python() == Path(__file__).parents[1] / ".venv-bench/bin/python"
    monkeypatch.setenv("RFT_BENCH_PYTHON", str(tmp_path / "python"))
    assert rival_python() == tmp_path / "python"


@pytest.mark.engine
def test_figures_are_exported_after_the_benchmark_and_replaced_by_the_next(
    ray_session: None,
) -> None:
    import ray

    for ours in (3.0, 4.0):
        publish({"name": "speed", "results": [{**ROW, "ours": ours}]})
    wait_for_series(
        {
            ("ray_rft_benchmark", 'figure="ours"', 4.0),
            ("ray_rft_benchmark", 'figure="ratio"', 1.5),
        }
    )
    ray.kill(ray.get_actor(HOLDER, NAMESPACE))
