"""A run as a job of a cluster that asks for a token: submitted, followed, refused, continued.

The cluster has fewer CPUs than samplers and trainer want together, so they take turns.

Run: pytest tests/test_cluster_job.py
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rft_ray.run_dir import read_metrics
from tests.terminal import chatter

pytestmark = [pytest.mark.engine, pytest.mark.faults]
ROOT = Path(__file__).parents[1]
TOKEN = "a-token-of-these-tests-and-of-no-other-cluster"
CPUS = 16
TINY = [
    "problems.train.count=16",
    "problems.validation.count=8",
    "problems.heldout.count=8",
    "sampling.k=4",
    "sampler.max_rollouts_in_flight=16",
    "sft.steps=30",
    "sft.export_every=15",
    "policies.1.sft.steps=20",
    "rft.steps=10",
    "rft.export_every=5",
    "trainer.num_workers=1",
    "trainer.threads_per_worker=1",
    f"trainer.cpus_per_worker={CPUS - 1}",
]


@dataclass(frozen=True, slots=True)
class Head:
    """A cluster of one node, as its clients see it."""

    url: str
    home: Path

    def run(self, *command: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """A command of this environment, with nothing of the caller's Ray in its own."""
        return subprocess.run(
            command, cwd=ROOT, env=environment(self.home, token), capture_output=True, text=True,
            timeout=1500,
        )  # fmt: skip

    def submit(self, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        """`rft-ray submit` of the quickstart; the packages are on the node already."""
        command = [sys.executable, "-m", "rft_ray", "submit", "configs/quickstart.yaml"]
        return self.run(*command, "--address", self.url, "--no-install", *arguments, token=token)


def environment(home: Path, token: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    own = {"HOME": str(home), "PATH": path, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    return {**kept, **own, **({"RAY_AUTH_TOKEN": token} if token else {})}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    home = Path(tempfile.mkdtemp(prefix="rft"))  # short: paths of sockets are limited
    port, dashboard = free_port(), free_port()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={CPUS}"]
    command += [f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    with (home / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--temp-dir={home}/ray"],
            env={**environment(home, TOKEN), "RAY_AUTH_MODE": "token"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 300
        while "To terminate the Ray runtime" not in (home / "head.log").read_text():
            assert process.poll() is None, (home / "head.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(1)
        yield Head(f"http://127.0.0.1:{dashboard}", home)
    finally:
        process.terminate()
        process.wait(timeout=60)
        shutil.rmtree(home, ignore_errors=True)


def test_without_the_token_one_line_says_how_to_get_it(head: Head, tmp_path: Path) -> None:
    for token, reason in (("", "asks for a token (401)"), ("wrong", "refuses the token")):
        done = head.submit(f"run_dir={tmp_path}/a", token=token)
        assert done.returncode == 2
        assert reason in done.stderr.splitlines()[-1] and "get-auth-token" in done.stderr


def test_what_the_cluster_lacks_is_said_at_once_and_is_the_jobs_exit_code(
    head: Head, tmp_path: Path
) -> None:
    asked = [f"run_dir={tmp_path}/a", "trainer.num_workers=500"]
    done = head.submit(*asked)
    missing = f"asked for 500 CPUs, cluster has {CPUS} on 1 node"
    assert done.returncode == 2, done.stderr
    assert missing in done.stdout and "Traceback" not in done.stdout
    assert f"dashboard: {head.url}/#/jobs/rft-a-" in done.stderr
    stock = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", "."]
    stock += ["--address", head.url, "--headers", f'{{"Authorization": "Bearer {TOKEN}"}}']
    run = ["--", "rft-ray", "run", "configs/quickstart.yaml"]
    assert missing in head.run(*stock, *run, *asked).stdout
    assert "run_dir: 'runs/a' is relative" in head.run(*stock, *run, "run_dir=runs/a").stdout


def test_a_run_is_detached_found_again_and_continued(head: Head, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    asked = [f"run_dir={run_dir}", *TINY]
    detached = head.submit(*asked, "--detach")
    assert detached.returncode == 0, detached.stderr
    assert f"ray job stop --address {head.url} rft-run-" in detached.stderr
    other = head.submit(*asked, "seed=1")
    assert other.returncode == 2 and "is being written by the job rft-run-" in other.stderr
    followed = head.submit(*asked)
    assert followed.returncode == 0, followed.stdout[-3000:] + followed.stderr[-3000:]
    assert "is being written by a job of this command already" in followed.stderr
    assert "rft_pooled" in followed.stdout
    assert chatter(detached.stderr + followed.stderr) == []
    # Ray begins the log of a job with a line of its own
    assert [line for line in chatter(followed.stdout) if "job_manager.py" not in line] == []
    assert (run_dir / "round-000" / "evaluation.json").exists()
    # the engines ended before the target was trained, and were started again to score it
    phases = [row["phase"] for row in read_metrics(run_dir / "metrics.jsonl") if "phase" in row]
    first, last = phases.index("start samplers"), len(phases) - 1 - phases[::-1].index("train")
    assert first < last and "start samplers" in phases[last:]
    again = head.submit(*asked)
    assert again.returncode == 0 and "rft_pooled" in again.stdout
    assert again.stderr.count("-2\n") >= 1  # the second attempt, which finds everything done
