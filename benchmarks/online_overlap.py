"""Claim: an online step costs what its parts cost, and with staleness 1 only the longer of them.

    python benchmarks/online_overlap.py [--quick]

Two online runs of the quickstart's model, in both all that generates (driver, engine, verifier)
kept to one core and training to another. With max_staleness 0 a step should take generation +
training + refresh; with 1, generation of the next step overlaps with training on this one, so it
should take the longer of the two. The rival of each row is that ideal, made of the parts as the
strictly alternating run measured them. Info row: what one core does beside a busy other, which no
overlap can win back.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GENERATION_CORE, TRAINING_CORE = "0", "1"
WARM_UP = 4
GOALS = {1: 0.87, 0: 0.95}
OVERRIDES = [
    "problems.train.count=200",
    "problems.validation=null",
    "problems.heldout.count=32",
    f"sampler.cores=[{GENERATION_CORE}]",
    f"trainer.cores=[{TRAINING_CORE}]",
    "trainer.num_workers=1",
    "sft.steps=160",
    "online.filters=[]",
    "online.clip_low=0.2",
    "online.updates_per_batch=4",
    "online.evaluate_every=1000",
    "online.parity_first=1",
    "online.parity_every=0",
    "trainer.checkpoint_every=0",
]


def main() -> None:
    """Run both, print the table and, last, the JSON line of the benchmark contract."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    arguments = parser.parse_args()
    steps = 16 if arguments.quick else 60
    with tempfile.TemporaryDirectory() as folder:
        alternating = run(Path(folder) / "staleness-0", 0, steps, None)
        overlapped = run(Path(folder) / "staleness-1", 1, steps, Path(folder) / "staleness-0")
    report(alternating, overlapped, steps)


def run(run_dir: Path, staleness: int, steps: int, tuned: Path | None) -> list[dict[str, Any]]:
    """The steps' lines of one run; SFT is taken over from the run `tuned`."""
    if tuned:
        run_dir.mkdir()
        shutil.copytree(tuned / "sft", run_dir / "sft")
    command = ["taskset", "-c", GENERATION_CORE, sys.executable, "-m", "rft_ray", "run"]
    command += ["configs/quickstart_online.yaml", f"run_dir={run_dir}", *OVERRIDES]
    command += [f"online.max_staleness={staleness}", f"online.steps={steps}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] in ("online_step", "refresh")]


def step_seconds(lines: list[dict[str, Any]]) -> list[float]:
    """Wall time of each step after the first few, from the end of the one before to its own."""
    ends = [line["time"] for line in lines if line["kind"] == "online_step"]
    return [b - a for a, b in pairwise(ends)][WARM_UP:]


def parts(lines: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of generation (verification included), training and refresh, by step."""
    steps = [line for line in lines if line["kind"] == "online_step"][WARM_UP + 1 :]
    return {
        "generation": [line["sample_seconds"] + line["verify_seconds"] for line in steps],
        "training": [line["train_seconds"] + line["save_seconds"] for line in steps],
        "refresh": [line["refresh_seconds"] for line in steps],
    }


def report(alternating: list[dict[str, Any]], overlapped: list[dict[str, Any]], steps: int) -> None:
    """The table, the result file and the JSON line."""
    from rft_ray.benchmark_summary import finish, row

    alone = parts(alternating)
    ideals = {
        0: [sum(values) for values in zip(*alone.values(), strict=True)],
        1: [
            max(after, now)
            for now, after in zip(alone["training"], alone["generation"][1:], strict=False)
        ],
    }
    print(f"{steps} steps a run, the first {WARM_UP + 1} left out; medians")
    for name, values in alone.items():
        print(f"{name:12} {statistics.median(values):7.3f} s, max {max(values):.3f} s")
    results = []
    for staleness, lines in ((1, overlapped), (0, alternating)):
        ours = statistics.mean(step_seconds(lines))
        ideal = statistics.mean(ideals[staleness])
        spread = statistics.quantiles(step_seconds(lines), n=10)
        what = "max(generation, training)" if staleness else "generation + training + refresh"
        print(
            f"staleness {staleness}: step {ours:.3f} s (deciles {spread[0]:.3f} to "
            f"{spread[-1]:.3f}), {what} {ideal:.3f} s, ratio {ideal / ours:.3f}"
        )
        goal = GOALS[staleness]
        results.append(row(f"staleness {staleness}", ours, what, ideal, goal, "s", ideal / ours))
    alone_speed, beside = core_speed(1), core_speed(2)
    print(f"a core beside a busy one does {beside / alone_speed:.3f} of what it does alone")
    what = "a core's work beside a busy other"
    share = row(what, beside, "alone", alone_speed, 1.0, "products/s", beside / alone_speed)
    results.append(share | {"info": True})
    finish(__file__, results)


def core_speed(busy: int) -> float:
    """Matrix products a second on the first core while so many cores are busy with them."""
    code = (
        "import time, torch; torch.set_num_threads(1); a = torch.ones(512, 512); n = 0\n"
        "end = time.time() + 8\n"
        "while time.time() < end: a @ a; n += 1\n"
        "print(n / 8)"
    )
    cores = (GENERATION_CORE, TRAINING_CORE)[:busy]
    loops = [
        subprocess.Popen(
            ["taskset", "-c", core, sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )
        for core in cores
    ]
    first, *_ = [loop.communicate()[0] for loop in loops]
    return float(first)


if __name__ == "__main__":
    main()
