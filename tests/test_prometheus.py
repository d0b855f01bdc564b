"""A real Prometheus scrapes a real Ray session, and answers the dashboard's questions.

Needs the Debian package `prometheus`, installed or its program on PATH (`.ci/run` sees to that);
the test says so and is skipped where it is missing.
Run: pytest tests/test_prometheus.py
"""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from tests.test_dashboard import CLUSTER, expressions

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]
LIMIT_S = 180.0
DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"
# A Ray session with a dashboard, which keeps the list of nodes; it ends with its standard input.
SESSION = """
import os, sys
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
import ray
ray.init(address="local", num_cpus=8, include_dashboard=True, log_to_driver=False)
from ray._private import worker
from rft_ray.benchmark_summary import publish, row
from rft_ray.ray_metrics import Meter, line_points, verdict_points
from rft_ray.replica_meter import ReplicaMeter
from rft_ray.sampling import RefreshReport
from tests.test_ray_metrics import GROUP, STEP, TRAIN

@ray.remote
class Trainer:
    def __init__(self):
        self.meter = Meter()
    def step(self, line):
        self.meter.record(line_points(line))

@ray.remote
class Replica:
    def __init__(self, name):
        self.meter = ReplicaMeter(Meter(policy="small", replica=name))
    def work(self, tokens):
        with self.meter.request() as start:
            start()
            self.meter.sampled(tokens)
        self.meter.refreshed(RefreshReport(0.5, 1000, 1e-5, 0.25, 0.125), 3)

trainer, verifier = Trainer.remote(), Meter()
replicas = [Replica.remote(name) for name in ("a", "b")]
publish({"name": "made-up", "results": [row("speed", 3.0, "them", 2.0, 1.0, "1/s")]})
print(worker._global_node.get_session_dir_path(), flush=True)
# counters have to grow while they are looked at: the first value of a series has no rate
for line in sys.stdin:
    ray.get([replica.work.remote(40) for replica in replicas])
    ray.get(trainer.step.remote({**STEP, "mfu": 0.4}))
    ray.get(trainer.step.remote(TRAIN))
    verifier.record(verdict_points([GROUP]))
    verifier.record([("rft_groups_in_flight", 4.0, {})])
ray.shutdown()
"""


@contextmanager
def ray_with_dashboard() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The session's driver and its folder."""
    driver = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert driver.stdin is not None and driver.stdout is not None
        folder = driver.stdout.readline().strip()
        assert folder, "the Ray session did not start"
        yield driver, Path(folder)
    finally:
        driver.stdin.close()
        driver.wait(timeout=60)


@contextmanager
def prometheus(program: str, folder: Path, discovery: Path) -> Iterator[str]:
    """Prometheus with our config, for the nodes of one session; the address of its API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    text = (CLUSTER / "prometheus.yml").read_text()
    assert DISCOVERY in text
    config = yaml.safe_load(text.replace(DISCOVERY, str(discovery)))
    config["global"]["scrape_interval"] = "2s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yml'}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            yield f"http://{address}/api/v1/query?query="
        finally:
            server.terminate()
            server.wait(timeout=60)


def ask(api: str, expression: str) -> list[dict[str, Any]]:
    """The series that an expression has now; none while the server is starting.

    Raises HTTPError where Prometheus cannot read the expression.
    """
    try:
        with urlopen(api + quote(expression), timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except URLError as error:
        if hasattr(error, "code") and error.code == 400:
            raise
        return []


def wait_for_values(api: str, expression: str, wanted: dict[tuple[str, ...], float]) -> None:
    """Return when the answer has these values by the labels' values, in the labels' order."""
    deadline = time.monotonic() + LIMIT_S
    while (found := values_of(ask(api, expression))) != wanted:
        assert time.monotonic() < deadline, (expression, found)
        time.sleep(1)


def values_of(series: list[dict[str, Any]]) -> dict[tuple[str, ...], float]:
    return {
        tuple(value for _, value in sorted(own["metric"].items())): float(own["value"][1])
        for own in series
    }


def test_prometheus_has_an_answer_to_every_question_of_the_dashboard(tmp_path: Path) -> None:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is missing: apt-get install prometheus")
    asked = [own.replace("$SessionName", ".*").replace("$window", "1m") for own in expressions()]
    # nothing to see without GPUs, and without a Serve application
    blank = [own for own in asked if "gpus" in own or "ray_serve" in own]
    asked = [own for own in asked if own not in blank]
    with (
        ray_with_dashboard() as (driver, session),
        prometheus(program, tmp_path, session / Path(DISCOVERY).name) as api,
    ):
        turns, deadline = 0, time.monotonic() + LIMIT_S
        while missing := [own for own in asked if not ask(api, own)]:
            assert time.monotonic() < deadline, missing
            print("work", file=driver.stdin, flush=True)
            turns += 1
            time.sleep(2)
        assert [ask(api, own) for own in blank] == [[]] * len(blank)  # but they can be asked
        # every process reports in its own time
        tokens = "sum(ray_rft_sampled_tokens_total) by (replica)"
        wait_for_values(api, tokens, {("a",): 40.0 * turns, ("b",): 40.0 * turns})
        by_verdict = {("correct",): 2.0 * turns, ("wrong",): 1.0 * turns}
        wait_for_values(api, "sum(ray_rft_verdicts_total) by (verdict)", by_verdict)
        wait_for_values(api, "sum(ray_rft_accepted_rollouts_total)", {(): 1.0 * turns})
        ratio = 'sum(ray_rft_benchmark{figure="ratio"}) by (benchmark, rival)'
        wait_for_values(api, ratio, {("made-up", "them"): 1.5})
