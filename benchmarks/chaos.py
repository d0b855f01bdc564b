"""Claim: whoever is killed, a job ends with the rollouts, verdicts and losses of a calm one.

    python benchmarks/chaos.py [--quick] [--seed N] [--kills N] [--stream-kills N]

Processes drawn at random are killed at random moments, now and then two of them at once, and a
driver that has ended is started again by the same command. First the stream alone (sample, verify,
select, write), whose engines are the simulated ones of `scaling.py`: drivers, stage actors, the
verifier's workers, Ray's own. Then whole small jobs of the quickstart with real engines: also
engines, replicas, training ranks, raylets. What is compared with a run that nobody disturbed is
each (problem, policy, sample) with its text, verdict and selection, which counts only where it is
there exactly once, and each step's loss. Seconds to recover go from a kill to the first result
after the dead process has a successor. The rival is the calm run.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_job import DRIVER, SPARE, Job, run_calmly, run_under_kills

from rft_ray.benchmark_summary import finish, row
from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics

ROOT = Path(__file__).parents[1]
STREAM_PROBLEMS, STREAM_K, REPLICAS = 1200, 4, 4
PAUSE_S = 0.3
"""On average, between a recovery and the next kill, without engines; with them it is longer."""
ENGINE_PAUSE_S = 8.0
# Who may be killed, by what its command line says, and how often beside the others.
STREAM_VICTIMS = {
    "sampling actor": ("(SimulatedGroups)", 6),
    "verifying actor": ("(VerifyGroups)", 6),
    "verifier worker": ("rft_ray.verifier_worker", 30),
    SPARE: ("ray::IDLE", 20),
    DRIVER: ("", 1),
}
ENGINE_VICTIMS = {
    "engine": ("VLLM::EngineCore", 3),
    "replica": ("ServeReplica:", 3),
    "training rank": ("RayTrainWorker", 3),
    "sampling actor": ("(SampleGroups)", 2),
    "verifying actor": ("(VerifyGroups)", 2),
    "verifier worker": ("rft_ray.verifier_worker", 2),
    "raylet": ("raylet/raylet", 1),
    DRIVER: ("", 1),
}
TINY = [
    "problems.train.count=64",
    "problems.validation=null",
    "problems.heldout.count=16",
    "sampling.k=6",
    "sampler.max_rollouts_in_flight=12",
    "sft.steps=60",
    "sft.export_every=null",
    "policies.1.sft.steps=60",
    "rft.steps=40",
    "rft.export_every=null",
    "trainer.checkpoint_every=10",
]
ONE_POLICY = [
    *(own for own in TINY if not own.startswith("policies")),
    "policies=[{name: tied, model: configs/quickstart_base/tied}]",
    "sampler.env={VLLM_CPU_KVCACHE_SPACE: '1', VLLM_CPU_OMP_THREADS_BIND: nobind}",
]


def main() -> None:
    """Measure, print the tables and, last, the JSON line of the benchmark contract."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed when")
    parser.add_argument("--kills", type=int, help="of jobs with engines (20, quick: 1)")
    parser.add_argument("--stream-kills", type=int, help="of the stream alone (1000, quick: 8)")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--problems", type=int, default=STREAM_PROBLEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if arguments.stream:
        run_stream(arguments.stream, arguments.problems)
        return
    few, some = (1, 8) if arguments.quick else (20, 1000)
    kills = few if arguments.kills is None else arguments.kills
    stream_kills = some if arguments.stream_kills is None else arguments.stream_kills
    print(f"seed {arguments.seed}")
    with tempfile.TemporaryDirectory() as folder:
        part = "sample" if arguments.quick else "run"
        problems = 320 if arguments.quick else STREAM_PROBLEMS
        stream = Trial("the stream", stream_command(problems), STREAM_VICTIMS, PAUSE_S)
        job = job_command(part, ONE_POLICY if arguments.quick else TINY)
        jobs = Trial("jobs with engines", job, ENGINE_VICTIMS, ENGINE_PAUSE_S)
        results = stream.rows(Path(folder) / "stream", stream_kills, arguments.seed)
        results += jobs.rows(Path(folder) / "jobs", kills, arguments.seed)
    finish(__file__, results, seed=arguments.seed)


def stream_command(problems: int) -> list[str]:
    """The driver of a stream with simulated engines; its folder is added."""
    script = str(ROOT / "benchmarks" / "chaos.py")
    return [sys.executable, script, "--problems", str(problems), "--stream", "{folder}"]


def job_command(part: str, overrides: list[str]) -> list[str]:
    """The driver of a small job of the quickstart, or of its sampling half."""
    command = [sys.executable, "-m", "rft_ray", part, "configs/quickstart.yaml", *overrides]
    return [*command, "run_dir={folder}"]


def run_stream(folder: Path, count: int) -> None:
    """Sample, verify, select and write that many problems, as a round of a run does."""
    import shutil
    from dataclasses import replace

    import scaling
    from ray import cloudpickle

    from rft_ray import stages
    from rft_ray.config import SelectionConfig, VerifierConfig
    from rft_ray.ray_session import start_ray, stop_ray

    cloudpickle.register_pickle_by_value(scaling)
    stages.SampleGroups = scaling.SimulatedGroups
    base = scaling.generate_word_problems(200, seed=5, split="train")
    problems = [replace(base[n % len(base)], id=f"problem-{n}") for n in range(count)]
    place = folder / "round-000"
    partial = place / "selected.partial"
    shutil.rmtree(partial, ignore_errors=True)
    start_ray(job="chaos")
    plan = scaling.make_plan(REPLICAS, k=STREAM_K)
    groups = stages.sample_groups(problems, plan, str(place / "sampled"))
    groups = stages.select_groups(stages.verify_groups(groups, VerifierConfig()), SelectionConfig())
    written = sum(1 for _ in stages.write_groups(groups, str(partial)))
    assert written == count, written
    partial.rename(place / "selected")
    stop_ray()


@dataclass(frozen=True)
class Trial:
    """Jobs of one command, calm and under kills."""

    name: str
    command: list[str]
    victims: dict[str, tuple[str, int]]
    pause_s: float

    def rows(self, folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
        """Run calmly once, then under kills until there were enough; what came of it."""
        if not kills:
            return []
        calm = Job(self.command, folder / "calm", self.victims)
        started = time.time()
        run_calmly(calm)
        seconds = time.time() - started
        print(f"{self.name}: calm in {seconds:.0f} s", flush=True)
        draw, jobs, done = random.Random(seed), [], 0
        while done < kills:
            job = Job(self.command, folder / f"killed-{len(jobs)}", self.victims)
            done += run_under_kills(job, draw, kills - done, self.pause_s)
            jobs.append(job)
            print(f"{self.name}: {done} kills, {len(jobs)} done, command given "
                  f"{job.attempts} times", flush=True)  # fmt: skip
        return [*self.compare(calm, jobs, done), *recovery_rows(self.name, jobs, seconds)]

    def compare(self, calm: Job, jobs: list[Job], kills: int) -> list[dict[str, Any]]:
        """Of the calm run's rollouts and losses, how many each of the others has exactly once."""
        rows = []
        for what, read in (("rollouts", rollouts_of), ("losses", losses_of)):
            expected = read(calm.folder)
            if not expected:
                continue
            same = sum((read(job.folder) & expected).total() for job in jobs)
            extra = sum((read(job.folder) - expected).total() for job in jobs)
            total = expected.total() * len(jobs)
            print(f"{self.name}: {same} of {total} {what} as in the calm run, {extra} others")
            rows.append(row(f"{what} of {self.name} after {kills} kills, once and the same",
                            same - extra, "calm", total, 1.0, what))  # fmt: skip
        return rows


def rollouts_of(folder: Path) -> Counter[tuple[Any, ...]]:
    """Each rollout that was selected from, with its text and what became of it."""
    found: Counter[tuple[Any, ...]] = Counter()
    for place in sorted(folder.glob("round-*/selected")):
        for group in read_groups(place):
            for own in group.rollouts:
                key = (group.problem.id, own.policy, own.round, own.sample)
                found[*key, own.completion, own.verdict, own.selected] += 1
    return found


def losses_of(folder: Path) -> Counter[tuple[Any, ...]]:
    """The last loss of every training step, to a millionth."""
    lines = read_metrics(folder / "metrics.jsonl")
    steps = {(own["job"], own["step"]): own["loss"] for own in lines if own["kind"] == "train_step"}
    return Counter((*step, round(loss, 6)) for step, loss in steps.items())


def recovery_rows(name: str, jobs: list[Job], calm_s: float) -> list[dict[str, Any]]:
    """Median and longest seconds to recover, by who was killed; beside a whole calm run."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for job in jobs:
        for kind, own in job.recoveries.items():
            seconds[kind] += own
    rows = []
    for kind, own in sorted(seconds.items()):
        median = statistics.median(own)
        print(f"{name}: {kind:16s} {len(own):4d} killed, recovered in {median:6.2f} s "
              f"({min(own):.2f} to {max(own):.2f})")  # fmt: skip
        what = f"seconds to recover, {name}, {kind} ({len(own)} killed)"
        recovery = row(what, median, "a calm run", calm_s, 1.0, "s", calm_s / median)
        rows.append(recovery | {"most": max(own), "info": True})
    return rows


if __name__ == "__main__":
    main()
