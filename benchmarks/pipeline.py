"""Claim: a round's time grows with its work and with nothing else.

    python benchmarks/pipeline.py [--quick]

One study on the quickstart's models: its phases are timed one by one, then the stream of a round
(sample, verify, select, write) is run at 1x and 4x the problems, at 1x and 4x the k, and with one
and two policies, in turns, in the same running samplers. The rival is the same stream at 1x: a
ratio of 1 says that rollouts/s did not fall; two policies have an engine and a core each.
"""

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMES = 4


def main() -> None:
    """Measure, print the table and, last, the JSON line of the benchmark contract."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    size = (48, 4, 1) if arguments.quick else (100, 8, 2)
    with tempfile.TemporaryDirectory() as folder:
        phases, rates = measure(Path(folder), *size)
    report(phases, rates, size)


def measure(
    folder: Path, problems: int, k: int, repeats: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of each phase of a round, and rollouts/s of the stream by setting and repeat."""
    from rft_ray.config_file import load_config
    from rft_ray.fine_tuning import fine_tune, train_target
    from rft_ray.offline import sample_verify_select, sampling_plan
    from rft_ray.scoring import Scorer, score_baselines
    from rft_ray.study import open_study, running_samplers

    overrides = [
        f"run_dir={folder / 'run'}",
        f"problems.train.count={problems}",
        "problems.heldout.count=200",
        "problems.validation=null",
        f"sampling.k={k}",
        "sft.export_every=null",
        "rft.export_every=null",
        "sft.steps=80",
        "policies.1.sft.steps=80",
        "rft.steps=80",
    ]
    config = load_config("configs/quickstart.yaml", overrides)
    phases: dict[str, float] = {}
    with open_study(config) as study:
        checkpoints = timed(phases, "SFT of two models, 80 steps each", lambda: fine_tune(study))
        started = time.perf_counter()
        with running_samplers(study) as samplers:
            # The first thing that is asked of them.
            plan = sampling_plan(study, samplers, 0, checkpoints)
            phases["start two samplers"] = time.perf_counter() - started
            rates = measure_growth(folder, plan, study.problems["train"], k, repeats)
            timed(
                phases,
                f"sample, verify, select: {problems} problems, 2 x {k} rollouts",
                lambda: sample_verify_select(study, samplers, 0, checkpoints),
            )
            selected = study.run.round(0).selected
            shutil.rmtree(selected)
            timed(
                phases,
                "the same, sampled before: verify, select and write alone",
                lambda: sample_verify_select(study, samplers, 0, checkpoints),
            )
            timed(phases, "RFT, 80 steps", lambda: train_target(study, 0, checkpoints))
            timed(
                phases,
                "evaluate three models on 200 problems",
                lambda: score_baselines(Scorer(study, samplers), checkpoints),
            )
    return phases, rates


def timed(phases: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    """Call and note the seconds."""
    started = time.perf_counter()
    result = function()
    phases[name] = time.perf_counter() - started
    return result


def measure_growth(
    folder: Path, plan: Any, problems: list[Any], k: int, repeats: int
) -> dict[str, list[float]]:
    """Rollouts/s of the stream, the settings taking turns, one repeat to warm up left out."""
    from rft_ray.word_problems import generate_word_problems

    many = generate_word_problems(TIMES * len(problems), seed=7, split="train")

    def with_k(number: int) -> Any:
        policies = [replace(p, sampling={**p.sampling, "n": number}) for p in plan.policies]
        return replace(plan, policies=policies)

    settings = {
        "1x": (plan, problems),
        f"{TIMES}x problems": (plan, many),
        f"{TIMES}x k": (with_k(TIMES * k), problems),
        "1 policy": (replace(plan, policies=plan.policies[:1]), problems),
    }
    rates: dict[str, list[float]] = {name: [] for name in settings}
    counter = itertools.count()
    stream(plan, problems, folder / "warm-up")
    for _ in range(repeats):
        for name, (chosen, own) in settings.items():
            rates[name].append(stream(chosen, own, folder / f"growth-{next(counter)}"))
    return rates


def stream(plan: Any, problems: list[Any], folder: Path) -> float:
    """Rollouts/s of one whole stream, from problems to selected files, start-up included."""
    from rft_ray import stages
    from rft_ray.config import SelectionConfig, VerifierConfig

    started = time.perf_counter()
    groups = stages.sample_groups(problems, plan, str(folder / "sampled"))
    groups = stages.select_groups(
        stages.verify_groups(groups, VerifierConfig()), SelectionConfig()
    )
    rows = list(stages.write_groups(groups, str(folder / "selected")))
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return sum(row["pooled"]["rollouts"] for row in rows) / seconds


def report(
    phases: dict[str, float], rates: dict[str, list[float]], size: tuple[int, int, int]
) -> None:
    """The phases and the growth as tables, a result file, and the JSON line."""
    from rft_ray.benchmark_summary import finish, row

    print(f"1x: {size[0]} problems, k = {size[1]}, two policies; {size[2]} repeats")
    for name, seconds in phases.items():
        print(f"{seconds:8.1f} s  {name}")
    results = [
        row(f"seconds: {name}", seconds, "none", seconds, 1.0, "s", ratio=1.0) | {"info": True}
        for name, seconds in phases.items()
    ]
    pairs = [(f"{TIMES}x problems", "1x"), (f"{TIMES}x k", "1x"), ("1x", "1 policy")]
    for name, rival in pairs:
        mine, theirs = (statistics.median(rates[which]) for which in (name, rival))
        spread = [a / b for a in rates[name] for b in rates[rival]]
        label = "2 policies" if name == "1x" else name
        print(
            f"{label:12} {mine:8.1f} rollouts/s, {rival} {theirs:8.1f}: ratio {mine / theirs:.3f}, "
            f"from {min(spread):.3f} to {max(spread):.3f}"
        )
        what = f"rollouts/s, {label}"
        results.append(row(what, mine, f"the same, {rival}", theirs, 0.95, "rollouts/s"))
    finish(__file__, results)


if __name__ == "__main__":
    main()
