"""Whatever is killed, the same command ends with the rollouts, verdicts and losses of a calm run.

One cluster of two nodes; the sampler, one training rank and some of the stream are on the second.
Recovery times are printed (`pytest -m faults -s`). Tried elsewhere: a driver that samples
(`test_offline.py`, `test_waves.py`), a rank and a driver of a training (`test_online.py`,
`test_training_state.py`), replicas in refreshes (`test_refresh.py`), graders (`test_verifier.py`).

Run: pytest tests/test_faults.py
"""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics
from tests.two_nodes import TwoNodes, kill_group, two_nodes

pytestmark = [pytest.mark.engine, pytest.mark.faults]
NUM_TRAIN, K, RFT_STEPS = 128, 4, 60
RUN_PROCESSES = ("VLLM::EngineCore", "RayTrainWorker", "rft_ray.verifier_worker", "MapBatches")
PATIENCE_S = 400
"""For anything to happen; a machine with other things to do is slow."""
CPU_ENGINE = "env: {VLLM_CPU_KVCACHE_SPACE: '1', VLLM_CPU_OMP_THREADS_BIND: nobind}"
POLICY = f"name: tied, model: configs/quickstart_base/tied, sampler: {{{CPU_ENGINE}, "
OVERRIDES = [
    f"policies=[{{{POLICY} labels: {{place: worker}}}}}}]",
    # few at a time, so that there is something left to sample after every kill
    "sampler.max_rollouts_in_flight=8",
    # a rank on each node
    "trainer.cpus_per_worker=5",
    f"problems.train.count={NUM_TRAIN}",
    "problems.validation=null",
    "problems.heldout.count=8",
    f"sampling.k={K}",
    "sft.steps=60",
    "sft.export_every=null",
    f"rft.steps={RFT_STEPS}",
    "rft.export_every=null",
    "trainer.checkpoint_every=5",
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes() as own:
        yield own


@dataclass
class Run:
    """A run directory, and the driver that is at work on it."""

    nodes: TwoNodes
    folder: Path
    command: str
    driver: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Give the command, for the first time or again."""
        self.driver = self.nodes.run(
            self.command, "configs/quickstart.yaml", f"run_dir={self.folder}", *OVERRIDES
        )

    def wait_for(self, happens: Callable[[], Any], what: str) -> None:
        """Return as soon as something has happened; the driver must not end before."""
        deadline = time.monotonic() + PATIENCE_S
        while not happens():
            assert self.driver.poll() is None, self.driver.communicate()[0][-4000:]
            assert time.monotonic() < deadline, what
            time.sleep(0.2)

    def finish(self) -> str:
        """What the driver printed until its good end."""
        output, _ = self.driver.communicate(timeout=PATIENCE_S)
        assert self.driver.returncode == 0, output[-4000:]
        return output

    def sampled(self) -> set[Path]:
        """The files of sampled groups."""
        return set(self.folder.glob("round-000/sampled/*.parquet"))

    def wait_for_more(self, count: int = 1) -> None:
        """Until so many further files are there."""
        wanted = len(self.sampled()) + count
        self.wait_for(lambda: len(self.sampled()) >= wanted, f"{wanted} files")

    def step(self) -> int:
        """The step that the target's training has come to."""
        lines = read_metrics(self.folder / "metrics.jsonl")
        return max((row["step"] for row in lines if row.get("job") == "rft-target"
                    and row["kind"] == "train_step"), default=0)  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        """Until the target's training has come so far."""
        self.wait_for(lambda: self.step() >= step, f"step {step}")

    def recovers(self, what: str, title: str, act: Callable[[], None]) -> None:
        """Do something to the processes of a title; wait for others of it, and for results."""
        self.wait_for(lambda: self.nodes.processes(title), f"a {title}")
        before = {own.pid for own in self.nodes.processes(title)}
        started = time.monotonic()
        act()
        others = lambda: {own.pid for own in self.nodes.processes(title)} - before  # noqa: E731
        self.wait_for(others, f"another {title}")
        self.wait_for_more()
        print(f"recovered from: {what}: {time.monotonic() - started:.0f} s")

    def kill_one(self, title: str) -> Callable[[], None]:
        """SIGKILL for one process of a title."""
        return lambda: self.nodes.processes(title)[0].kill()


@pytest.fixture(scope="module")
def calm(nodes: TwoNodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    run = Run(nodes, tmp_path_factory.mktemp("calm") / "run", "run")
    with running(run):
        started = time.monotonic()
        run.finish()
        print(f"a calm run: {time.monotonic() - started:.0f} s")
    return run.folder


@contextmanager
def running(run: Run) -> Iterator[None]:
    """The driver works while the block runs, and is gone after it."""
    run.start()
    try:
        yield
    finally:
        kill_group(run.driver)


def begin_like(calm: Path, folder: Path) -> None:
    """A run directory in which the first training is done already."""
    shutil.copytree(calm / "sft", folder / "sft")


def rollouts_of(folder: Path) -> Counter[tuple[Any, ...]]:
    """Everything known of each rollout but its tokens; all counts are to be one."""
    return Counter(
        (group.problem.id, r.policy, r.sample, r.completion, r.verdict, r.selected)
        for group in read_groups(folder / "round-000/selected")
        for r in group.rollouts
    )


def samples_on_disk(folder: Path) -> Counter[tuple[str, str, int]]:
    """How often each sample stands in the files of the sampled groups."""
    sampled = read_groups(folder / "round-000/sampled")
    return Counter((g.problem.id, r.policy, r.sample) for g in sampled for r in g.rollouts)


EVERY_SAMPLE_ONCE = Counter(
    (f"word-train-0-{n}", "tied", sample) for n in range(NUM_TRAIN) for sample in range(K)
)


def losses_of(folder: Path) -> dict[int, float]:
    """The last loss of each step of the target's training."""
    lines = read_metrics(folder / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in lines if row.get("job") == "rft-target"
            and row["kind"] == "train_step"}  # fmt: skip


def test_one_run_survives_the_death_of_each_of_its_parts(
    nodes: TwoNodes, calm: Path, tmp_path: Path
) -> None:
    run = Run(nodes, tmp_path / "run", "run")
    begin_like(calm, run.folder)
    with running(run):
        run.wait_for_more(2)
        for what, title in (
            ("a grader", "rft_ray.verifier_worker"),
            ("the grading actor", "(VerifyGroups)"),
            ("the sampling actor", "(SampleGroups)"),
            ("the engine", "VLLM::EngineCore"),
            ("the replica", "ServeReplica:"),
        ):
            run.recovers(f"kill -9 of {what}", title, run.kill_one(title))
        # as one that swaps
        with nodes.stopped("worker"):
            time.sleep(8)
        run.wait_for_more()

        def lose_node() -> None:
            nodes.kill("worker")
            nodes.start("worker")

        run.recovers("the loss of a node and a new one", "VLLM::EngineCore", lose_node)
        assert not (run.folder / "round-000/selected").exists()

    # the driver is dead; a file of what is sampled is torn, the others are left as they are
    torn, *whole = sorted(run.sampled())
    times = {path: path.stat().st_mtime_ns for path in whole}
    torn.write_bytes(torn.read_bytes()[:1000])
    with running(run):
        run.wait_for_step(7)
        started = time.monotonic()
        nodes.processes("RayTrainWorker", "worker")[0].kill()
        run.wait_for_step(13)
        print(f"recovered from: kill -9 of a rank: {time.monotonic() - started:.0f} s")
    assert {path: path.stat().st_mtime_ns for path in whole} == times
    assert rollouts_of(run.folder) == rollouts_of(calm)
    assert samples_on_disk(run.folder) == EVERY_SAMPLE_ONCE

    # the driver is dead again, and a file of the newest training state is torn
    states = sorted(run.folder.glob("round-000/checkpoint.train/*/step-*/sizes.json"))
    newest = states[-1].parent
    file = max((newest / "state").iterdir(), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with running(run):
        output = run.finish()
    assert f"{newest}: a file is not as long as it was written" in output
    assert losses_of(run.folder) == pytest.approx(losses_of(calm), rel=1e-6)
    assert set(losses_of(run.folder)) == {*range(1, RFT_STEPS + 1)}
    name = "round-000/evaluation.json"
    assert (run.folder / name).read_text() == (calm / name).read_text()


@pytest.mark.parametrize("small_disk", ["300m"], indirect=True)
def test_a_full_disk_is_one_line_and_a_lost_head_costs_nothing_that_was_sampled(
    nodes: TwoNodes, calm: Path, small_disk: Path
) -> None:
    run = Run(nodes, small_disk / "run", "sample")
    begin_like(calm, run.folder)
    with running(run):
        run.wait_for_more(2)
        started = time.monotonic()
        ballast = fill(small_disk)
        output, _ = run.driver.communicate(timeout=PATIENCE_S)
        print(f"told of a full disk after {time.monotonic() - started:.0f} s")
    assert run.driver.returncode == 1 and "Traceback" not in output, output[-4000:]
    assert output.splitlines()[-1].startswith("rft-ray: error: the disk is full; make room")
    ballast.unlink()

    with running(run):
        run.wait_for_more(2)
        kept = {path: path.stat().st_mtime_ns for path in run.sampled()}
        started = time.monotonic()
        nodes.kill("head")
        output, _ = run.driver.communicate(timeout=PATIENCE_S)
        print(f"told of a lost head after {time.monotonic() - started:.0f} s: {output[-1500:]}")
        assert run.driver.returncode != 0
        nodes.kill("worker")
    started = time.monotonic()
    for place in ("head", "worker"):
        nodes.start(place)
    with running(run):
        run.wait_for_more(1)
        print(f"sampled again on a new cluster after {time.monotonic() - started:.0f} s")
        run.finish()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert rollouts_of(run.folder) == rollouts_of(calm)
    assert samples_on_disk(run.folder) == EVERY_SAMPLE_ONCE


def fill(disk: Path) -> Path:
    """A file that leaves no room for anything else."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return ballast


ONLINE = [
    f"policies=[{{{POLICY} num_replicas: 2, labels: {{place: worker}}}}}}]",
    "trainer={num_workers: 1, cpus_per_worker: 5, labels: {place: head}, row_tokens: 192}",
    "problems.train.count=32",
    "problems.validation=null",
    "problems.heldout.count=4",
    "sampling.k=4",
    "sft.steps=60",
    "online.steps=8",
    "online.problems_per_step=8",
    "online.refresh_timeout_s=6",
]


def test_a_cut_between_trainer_and_samplers_in_a_refresh_ends_with_the_right_weights(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    """Longer than the refresh's limit, shorter than what makes a node count as dead."""
    run_dir = tmp_path / "online"
    run = Run(nodes, run_dir, "run")
    run.driver = nodes.run("run", "configs/quickstart_online.yaml", f"run_dir={run_dir}", *ONLINE)
    try:
        run.wait_for(lambda: len(refreshes(run_dir)) >= 3, "three refreshes")
        started = time.monotonic()
        with nodes.cut():
            seen = len(refreshes(run_dir))
            time.sleep(9)
            assert len(refreshes(run_dir)) <= seen + 1
        run.wait_for(lambda: len(refreshes(run_dir)) >= seen + 2, "two more refreshes")
        print(f"recovered from: a cut of 9 s: {time.monotonic() - started:.0f} s")
        run.finish()
    finally:
        kill_group(run.driver)
    # no step twice, none left out, and parity with the trainer wherever it was looked at
    assert [row["step"] for row in refreshes(run_dir)] == [*range(9)]
    checked = [row["parity_max_abs_diff"] for row in refreshes(run_dir)]
    assert max(own for own in checked if own is not None) < 1e-3
    for step in range(1, 9):
        groups = list(read_groups(run_dir / f"round-000/sampled/step-{step:06d}.parquet"))
        keys = Counter((g.problem.id, r.sample) for g in groups for r in g.rollouts)
        assert len(keys) == 8 * 4 and set(keys.values()) == {1}
        versions = {r.policy_version for g in groups for r in g.rollouts}
        assert versions <= {max(0, step - 2), step - 1}


def refreshes(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of live refreshes."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [row for row in lines if row["kind"] == "refresh" and "pause_seconds" in row]


def test_no_process_of_a_run_outlives_it(nodes: TwoNodes) -> None:
    """After all of the above there is no engine, rank or grader left on either node."""
    deadline = time.monotonic() + 60
    left = [True]
    while left and time.monotonic() < deadline:
        left = [own for title in RUN_PROCESSES for own in nodes.processes(title)]
        time.sleep(1)
    assert not left
