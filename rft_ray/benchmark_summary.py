"""How a benchmark ends: a result file, its figures among Ray's metrics, and the JSON line.

    finish(__file__, [row("speed", 3.0, "the rival", 2.0, 1.2, "tokens/s")])

On a cluster the figures are held by a detached actor, `benchmark-figures`, so that they can be read
off the dashboard until the cluster ends; a laptop's own Ray ends with the script and has none. Left
out: what is measured, and the table, which every script words itself.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

from rft_ray.config import cluster_address
from rft_ray.ray_metrics import Meter, Point
from rft_ray.run_dir import installed_versions, write_atomically

FIGURES = {"ours": "ours", "rival": "rival_value", "ratio": "ratio", "goal": "goal"}
HOLDER, NAMESPACE = "benchmark-figures", "rft-ray"
BENCH_ENV = Path(__file__).parents[1] / ".venv-bench"


def rival_python() -> Path:
    """The interpreter that has the rivals: that of `make bench-env`, or what RFT_BENCH_PYTHON says.

    A Ray job's copy of the sources has no environments in it.
    """
    return Path(os.environ.get("RFT_BENCH_PYTHON") or BENCH_ENV / "bin" / "python")


def finish(script: str, results: list[dict[str, Any]], **more: Any) -> None:
    """Write `results/NAME.json` beside the script, publish the figures and print the last line.

    `results` are rows of the benchmark contract; `more` are further fields of the summary.
    """
    path = Path(script)
    summary = {
        "name": path.stem,
        "results": results,
        **more,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": installed_versions(),
    }
    folder = path.parent / "results"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{path.stem}.json", json.dumps(summary, indent=1) + "\n")
    if cluster_address():
        publish(summary)
    print(json.dumps(summary), flush=True)


def row(
    what: str, ours: float, rival: str, value: float, goal: float, unit: str,
    ratio: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A row of the benchmark contract; `value` is the rival's.

    The ratio, of which more is better, is ours to the rival's where none is given.
    """
    return {
        "what": what,
        "ours": ours,
        "rival": rival,
        "rival_value": value,
        "ratio": ours / value if ratio is None else ratio,
        "goal": goal,
        "unit": unit,
    }


def figure_points(summary: dict[str, Any]) -> list[Point]:
    """Four points a row of the results: ours, the rival's, their ratio and the goal."""
    return [
        ("rft_benchmark", float(row[field]),
         {"benchmark": summary["name"], "what": row["what"], "rival": row["rival"],
          "unit": row["unit"], "figure": figure})
        for row in summary["results"]
        for figure, field in FIGURES.items()
    ]  # fmt: skip


class FigureHolder:
    """An actor whose gauges outlive the benchmark."""

    def __init__(self) -> None:
        self._meter = Meter()

    def hold(self, points: list[Point]) -> None:
        """Set gauges; those of the same benchmark's earlier run are replaced."""
        self._meter.record(points)


def publish(summary: dict[str, Any]) -> None:
    """Hand the figures to the cluster's holder, which is started where there is none."""
    import ray

    from rft_ray.ray_session import start_ray, stop_ray

    was_connected = ray.is_initialized()
    start_ray(job=f"benchmark {summary['name']}")
    holder = (
        ray.remote(num_cpus=0)(FigureHolder)
        .options(name=HOLDER, namespace=NAMESPACE, lifetime="detached", get_if_exists=True)
        .remote()
    )
    ray.get(holder.hold.remote(figure_points(summary)))
    if not was_connected:
        stop_ray()
