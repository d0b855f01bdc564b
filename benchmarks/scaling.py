"""Claim: the stream keeps hundreds of replicas busy, and its memory does not grow with problems.

    python benchmarks/scaling.py [--quick] [--no-ray]

Simulated engines have a fixed speed and no weights: coroutines that take as long as a replica of
so many tokens a second would, then give real token ids. Everything else is the stream's own code:
prompts, seeds, decoding, groups, Parquet files. First the sampling actor alone, in this process,
for growing numbers of replicas; the rival is the engines alone, with as many requests at a time.
Its CPU time says how many replicas one actor can feed. Then, with Ray, the whole stream (sample,
verify, select, write) over simulated engines, for growing numbers of problems, and the quickstart's
real engines with one and two replicas (`--no-ray` leaves both out). What a verifier worker gives is
in `benchmarks/verifier.py`.
"""

import argparse
import asyncio
import heapq
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from rft_ray import stages
from rft_ray.benchmark_summary import finish, row
from rft_ray.config import PromptConfig, SelectionConfig, VerifierConfig
from rft_ray.prompts import make_prompt
from rft_ray.sampling import (
    GroupSampler,
    Policy,
    SampledTokens,
    SamplingPlan,
    Weights,
    load_tokenizer,
    request_seed,
)
from rft_ray.word_problems import generate_word_problems

ROOT = Path(__file__).parents[1]
BASE = str(ROOT / "configs/quickstart_base/tied")
TOKENS_S = 1000.0
"""Of a simulated replica; a GPU with a 7B model is ten times as fast, an edge device slower."""
SEQUENCES = 16
K = 4
IN_FLIGHT = 2
"""Rollouts asked of a replica at a time, in sequences that it decodes."""
GOAL = 0.95


def main() -> None:
    """Measure, print the tables and, last, the JSON line of the benchmark contract."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--no-ray", action="store_true", help="the sampling actor alone")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    counts, seconds = ((1, 16, 64), 8) if arguments.quick else ((1, 16, 64, 256, 512), 20)
    with tempfile.TemporaryDirectory() as folder:
        results = [own for n in counts for own in actor_rows(Path(folder), n, seconds)]
        sizes = (2_000, 8_000) if arguments.quick else (100_000, 1_000_000)
        results += memory_rows(Path(folder), sizes)
        if not arguments.no_ray:
            results += stream_rows(Path(folder), sizes)
            results += replica_rows(Path(folder), 40 if arguments.quick else 200)
    finish(__file__, results)


@dataclass
class Replica:
    """An engine that gives a fixed number of tokens a second when its sequences are all in use."""

    texts: list[np.ndarray]
    tokens_s: float = TOKENS_S
    free: list[float] = field(default_factory=lambda: [0.0] * SEQUENCES)
    """When each of its sequences is next free."""
    ongoing: int = 0
    """Requests."""

    async def sample(
        self, prompt_ids: list[int], weights: Weights, sampling: dict[str, Any], seed: int
    ) -> SampledTokens:
        """`n` completions, once they would be done."""
        now = time.monotonic()
        chosen = [self.texts[(seed + n) % len(self.texts)] for n in range(sampling["n"])]
        ends = []
        for text in chosen:
            start = max(now, heapq.heappop(self.free))
            ends.append(start + len(text) * SEQUENCES / self.tokens_s)
            heapq.heappush(self.free, ends[-1])
        self.ongoing += 1
        await asyncio.sleep(max(ends) - now)
        self.ongoing -= 1
        return SampledTokens(
            token_ids=np.concatenate(chosen),
            lengths=np.array([len(text) for text in chosen], dtype=np.int32),
            stopped=np.ones(len(chosen), dtype=bool),
            policy_version=weights.version,
        )


class Router:
    """Sends a request as Serve does: of two replicas drawn at random to the one that has fewer."""

    def __init__(self, texts: list[np.ndarray], replicas: int) -> None:
        self.replicas = [Replica(texts) for _ in range(replicas)]
        self.draw = random.Random(0)

    def send(self, *asked: Any) -> Any:
        """What the replica will answer."""
        two = self.draw.choices(self.replicas, k=2)
        return min(two, key=lambda own: own.ongoing).sample(*asked)


class SimulatedGroups(stages.SampleGroups):
    """The sampling actor, whose requests go to simulated replicas."""

    def __init__(self, plan: SamplingPlan, folder: str) -> None:
        self.folder = Path(folder)
        self.sampler = object.__new__(GroupSampler)
        self.sampler.plan = plan
        self.sampler._in_flight = 0
        self.sampler._meter = SimpleNamespace(record=lambda points: None)
        (policy,) = plan.policies
        tokenizer = load_tokenizer(policy.tokenizer)
        self.sampler.tokenizers = {policy.name: tokenizer}
        texts = solutions(tokenizer)
        send = Router(texts, replicas_of(plan)).send
        remote = SimpleNamespace(sample=SimpleNamespace(remote=send))
        self.sampler.handles = {policy.name: remote}


def solutions(tokenizer: Any) -> list[np.ndarray]:
    """Token ids of real solutions, each with its end."""
    problems = generate_word_problems(200, seed=3, split="train")
    ids = (tokenizer.encode(p.solution, add_special_tokens=False) for p in problems)
    return [np.array([*own, tokenizer.eos_token_id], dtype=np.int32) for own in ids]


def make_plan(replicas: int, k: int = K) -> SamplingPlan:
    """One policy over so many replicas."""
    policy = Policy(
        name="simulated", application="none", tokenizer=BASE, weights=Weights(BASE, 0),
        prompt=make_prompt(PromptConfig(), []), sampling={"n": k}, max_model_len=4096,
        max_rollouts_in_flight=IN_FLIGHT * SEQUENCES * replicas,
    )  # fmt: skip
    return SamplingPlan([policy], seed=0, round=0)


def replicas_of(plan: SamplingPlan) -> int:
    """As many as a plan was made for."""
    return plan.policies[0].max_rollouts_in_flight // (IN_FLIGHT * SEQUENCES)


def problem_tables(count: int) -> Iterator[pa.Table]:
    """Problems in the blocks of the stream, made as they are asked for."""
    base = generate_word_problems(200, seed=5, split="train")
    for start in range(0, count, stages.GROUPS_PER_TASK):
        ids = range(start, min(count, start + stages.GROUPS_PER_TASK))
        rows = [asdict(replace(base[n % len(base)], id=f"problem-{n}")) for n in ids]
        yield pa.Table.from_pylist(rows)


async def feed(
    actor: stages.SampleGroups, count: int, calls: int
) -> tuple[list[float], list[float]]:
    """Run all problems, `calls` blocks at a time as Ray Data does; when each was done, and MB held.

    Memory is that of the process after each hundredth of the blocks.
    """
    room, done, memory = asyncio.Semaphore(calls), list[float](), list[float]()
    every = max(1, count // stages.GROUPS_PER_TASK // 100)

    async def run(table: pa.Table) -> None:
        try:
            await actor(table)
        finally:
            room.release()
        done.append(time.monotonic())
        if len(done) % every == 0:
            memory.append(resident_mb())

    tasks: set[asyncio.Task[None]] = set()
    for table in problem_tables(count):
        await room.acquire()
        task = asyncio.create_task(run(table))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return done, memory


async def ask_alone(replicas: int, count: int) -> list[float]:
    """The same requests, as many at a time, with nothing done about them; when each was done."""
    plan = make_plan(replicas)
    router = Router(solutions(load_tokenizer(BASE)), replicas)
    room, done = asyncio.Semaphore(plan.max_in_flight), list[float]()

    async def ask(problem: int) -> None:
        seed = request_seed(plan.seed, plan.round, "simulated", f"problem-{problem}")
        await router.send([], plan.policies[0].weights, {"n": K}, seed)
        room.release()
        done.append(time.monotonic())

    async with asyncio.TaskGroup() as group:
        for problem in range(count):
            await room.acquire()
            group.create_task(ask(problem))
    return done


def steady_rate(done: list[float], rollouts: int) -> float:
    """Rollouts/s, each of `done` being so many: the first quarter fills the engines, the last one
    empties them."""
    first, last = len(done) // 4, 3 * len(done) // 4
    return (last - first) * rollouts / (done[last] - done[first])


def resident_mb() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def actor_rows(
    folder: Path, replicas: int, seconds: float, repeats: int = 2
) -> Iterator[dict[str, Any]]:
    """Rollouts/s of one sampling actor in its steady state, and what its CPU time would feed."""
    mean = float(np.mean([len(text) for text in solutions(load_tokenizer(BASE))]))
    count = round(seconds * replicas * TOKENS_S / mean / K)
    count = stages.GROUPS_PER_TASK * max(16, count // stages.GROUPS_PER_TASK)
    rates, alone, costs = [], [], []
    for _ in range(repeats):
        alone.append(steady_rate(asyncio.run(ask_alone(replicas, count)), K))
        rate, cpu = run_actor(folder / "actor", replicas, count)
        rates.append(rate)
        costs.append(cpu)
    ratios = [own / rival for own, rival in zip(rates, alone, strict=True)]
    rate, rival, cpu = map(statistics.median, (rates, alone, costs))
    fed = mean / TOKENS_S / cpu
    print(
        f"{replicas:4d} replicas: {rate:7.0f} rollouts/s, alone {rival:7.0f}, ratio "
        f"{rate / rival:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); {cpu * 1e6:.0f} us of CPU a "
        f"rollout, enough for {fed:.0f} replicas"
    )
    what = f"rollouts/s of {replicas} simulated replicas"
    yield row(what, rate, "the engines alone", rival, GOAL, "rollouts/s")
    what = f"replicas of {TOKENS_S:g} tokens/s that one actor's core feeds, at {replicas}"
    yield row(what, fed, "asked for", replicas, 1.0, "replicas") | {"info": True}


def run_actor(folder: Path, replicas: int, count: int) -> tuple[float, float]:
    """Rollouts/s and CPU seconds a rollout over so many problems."""
    plan = make_plan(replicas)
    actor = SimulatedGroups(plan, str(folder))
    calls = -(-plan.max_in_flight // stages.GROUPS_PER_TASK)
    started = time.process_time()
    done, _ = asyncio.run(feed(actor, count, calls))
    cpu = (time.process_time() - started) / (count * K)
    shutil.rmtree(folder)
    return steady_rate(done, stages.GROUPS_PER_TASK * K), cpu


def memory_rows(folder: Path, sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """What a sampling actor holds at the end of many problems, against a tenth of them."""
    plan = make_plan(1024, k=1)
    actor = SimulatedGroups(plan, str(folder / "memory"))
    _, memory = asyncio.run(feed(actor, sizes[1], 256))
    shutil.rmtree(folder / "memory")
    early, late = memory[len(memory) // 10], memory[-1]
    print(f"actor's memory over {sizes[1]} problems: {early:.0f} MB after a tenth, {late:.0f} MB")
    what = f"MB of the actor after {sizes[1]} problems"
    return [row(what, late, "after a tenth", early, GOAL, "MB", early / late)]


def stream_rows(folder: Path, sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """The whole stream over simulated engines that are never waited for: growth with problems."""
    from rft_ray.ray_session import start_ray, stop_ray

    stages.SampleGroups = SimulatedGroups  # the stage looks its actor up when it is planned
    start_ray(job="benchmark scaling")
    figures = []
    try:
        for size in (200, *sizes):
            figures.append(run_stream(folder / f"stream-{size}", size))
    finally:
        stop_ray()
    (few, held), (many, grown) = figures[1:]
    print(f"stream: {few:.0f} problems/s of {sizes[0]}, {many:.0f} of {sizes[1]}; driver {held:.0f}"
          f" and {grown:.0f} MB")  # fmt: skip
    fewer, more = (f"{size} problems" for size in sizes)
    return [
        row(f"problems/s of the stream, {more}", many, fewer, few, GOAL, "problems/s"),
        row(f"MB of the driver, {more}", grown, fewer, held, GOAL, "MB", held / grown),
    ]


def run_stream(folder: Path, count: int) -> tuple[float, float]:
    """Problems/s from the first result to the last, and the most the driver held in MB."""
    base = generate_word_problems(200, seed=5, split="train")
    problems = [replace(base[n % len(base)], id=f"problem-{n}") for n in range(count)]
    plan = make_plan(1024, k=1)
    groups = stages.sample_groups(problems, plan, str(folder / "sampled"))
    groups = stages.verify_groups(groups, VerifierConfig(), is_metered=False)
    rows = stages.write_groups(
        stages.select_groups(groups, SelectionConfig()), str(folder / "selected")
    )
    next(rows)
    started, most, seen = time.perf_counter(), 0.0, 0
    for seen, _ in enumerate(rows, start=1):
        if seen % 100 == 0:
            most = max(most, resident_mb())
    rate = seen / (time.perf_counter() - started)
    shutil.rmtree(folder)
    return rate, max(most, resident_mb())


def replica_rows(folder: Path, problems: int) -> Iterator[dict[str, Any]]:
    """Real engines: problems/s of the quickstart's stream with one and with two replicas."""
    rates = [real_rate(folder / f"real-{n}", problems, n) for n in (1, 2)]
    print(f"real engines: {rates[0]:.1f} problems/s with a replica, {rates[1]:.1f} with two")
    own = row("problems/s, 2 real replicas", rates[1], "1 replica", rates[0], 1.5, "problems/s")
    yield own | {"info": True}


def real_rate(folder: Path, problems: int, replicas: int) -> float:
    """Problems/s of sampling alone; the second pass is measured, the first one warms up."""
    from rft_ray.config_file import load_config
    from rft_ray.offline import sampling_plan
    from rft_ray.study import Checkpoints, open_study, running_samplers

    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    sampler = {"num_replicas": replicas, "env": {**env, "OMP_NUM_THREADS": "1"}}
    config = load_config(
        "configs/quickstart_online.yaml",
        ["mode=offline", f"run_dir={folder}", f"problems.train.count={problems}",
         "problems.validation=null", "sampling.k=16"],
    )  # fmt: skip
    (live,) = config.policies
    own = live.sampler.model_copy(update=sampler)
    config = config.model_copy(
        update={"policies": [live.model_copy(update={"sampler": own})]}
    )
    with open_study(config) as study, running_samplers(study) as samplers:
        bases = {name: Weights(model.base, 0) for name, model in study.models.items()}
        checkpoints = {name: Checkpoints(own, [own], [own]) for name, own in bases.items()}
        plan = sampling_plan(study, samplers, 0, checkpoints)
        for attempt in ("warm-up", "measured"):
            groups = stages.sample_groups(study.problems["train"], plan, str(folder / attempt))
            started = time.perf_counter()
            count = sum(1 for _ in groups.iter_rows())
            seconds = time.perf_counter() - started
    return count / seconds


if __name__ == "__main__":
    main()
