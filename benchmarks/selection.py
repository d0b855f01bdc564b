"""Claim: the paper's selection, with the same choice, at a fraction of the published code's time.

    python benchmarks/selection.py [--quick]

Ours is `paper_rule.choose_by_paper`. The rivals are Algorithm 1 as published, every sum from
scratch, with the C library editdistance (what the published code calls; in `.venv-bench`, made by
`make bench-env`) and with rapidfuzz. All run on one core, in processes of their own that take
turns, on the same pools; every choice must be the same. A pool has the candidates of one problem:
10, 15 or 20 real lists of calculations, Zipf-distributed, written out with the lines of real GSM8K
solutions. `mixed` takes each line from another solution, so texts have little in common; `alike`
has one text for each list of calculations, in which every sixth word is changed. Compilation is
outside the times; what it costs is an info row. Other info rows: growth with n, memory of
`rft-ray select` at 10x the problems, and the Ray Data stage on all cores (`--no-stage` leaves it
out) with its share of the time that sampling takes.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
GSM8K = ROOT.parent / "shared/data/gsm8k/train.jsonl"
SHIPPED = sorted((ROOT / "configs/data").glob("*.jsonl"))
GOALS = {"editdistance": 10.0, "rapidfuzz": 1.8}
SIZES = (100, 400, 1600)
NUM_KEYS = (10, 15, 20)
STAGE_ROLLOUTS = 400
CALCULATION = re.compile("<<[^>]*>>")
Choice = list[str]


def main() -> None:
    """Measure all sides in turn and print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 4 minutes on 2 cores")
    parser.add_argument("--no-stage", action="store_true", help="without the Ray Data stage")
    parser.add_argument("--side", choices=["ours", *GOALS], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, json.load(sys.stdin))))
        return
    solutions = read_solutions()
    pools = {
        f"{kind} {size} {keys}": make_pool(solutions, kind, size, keys)
        for size in SIZES
        for kind in ("mixed", "alike")
        for keys in NUM_KEYS
    }
    sides = {side: list[dict[str, Any]]() for side in ("ours", *GOALS)}
    for _ in range(3 if arguments.quick else 7):
        for side, runs in sides.items():
            if run := run_side(side, pools):
                runs.append(run)
    results = compare(sides)
    results += [growth(sides["ours"]), first_use(pools), *memory(solutions, arguments.quick)]
    if not arguments.no_stage:
        results += stage(solutions, 40 if arguments.quick else 400)
    report(results)


def read_solutions() -> list[str]:
    """Real solutions in GSM8K's form: all of the training set, or the project's sample of it."""
    paths = [GSM8K] if GSM8K.exists() else SHIPPED
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line)["answer"] for line in lines]


def make_pool(solutions: list[str], kind: str, size: int, num_keys: int) -> list[str]:
    """Candidates in a random order, each with one of `num_keys` lists of calculations."""
    draw = random.Random(f"{kind} {size} {num_keys}")
    bases = [text for text in draw.sample(solutions, 40 * num_keys) if has_a_line_each(text)]
    bases = list({tuple(CALCULATION.findall(text)): text for text in bases}.values())[:num_keys]
    lines = [line for text in solutions for line in text.splitlines()
             if len(CALCULATION.findall(line)) == 1]  # fmt: skip
    words = [word for line in lines for word in CALCULATION.sub("", line).split()]
    weights = [1 / (1 + rank) for rank in range(num_keys)]
    chosen = bases + draw.choices(bases, weights, k=size - num_keys)
    draw.shuffle(chosen)
    if kind == "alike":
        return [change_words(base, words, draw) for base in chosen]
    return [change_lines(base, lines, draw) for base in chosen]


def has_a_line_each(text: str) -> bool:
    """Whether a solution has 2 to 6 calculations, each on a line of its own, and then its end."""
    *lines, end = text.splitlines()
    counts = [len(CALCULATION.findall(line)) for line in lines]
    return 2 <= len(lines) <= 6 and set(counts) == {1} and end.startswith("####")


def change_lines(base: str, lines: list[str], draw: random.Random) -> str:
    """The calculations of a solution in the lines of others."""
    *own, end = base.splitlines()
    found = [CALCULATION.findall(line)[0] for line in own]
    return "\n".join([*(CALCULATION.sub(lambda _, c=c: c, draw.choice(lines)) for c in found), end])


def change_words(base: str, words: list[str], draw: random.Random) -> str:
    """A solution with every sixth word changed, on average, but for its calculations."""
    return "\n".join(
        " ".join(
            word if "<<" in word or "####" in base.split("\n")[-1] == line or draw.random() > 1 / 6
            else draw.choice(words)
            for word in line.split(" ")
        )
        for line in base.split("\n")
    )  # fmt: skip


def literal_algorithm(texts: list[str], distance: Callable[[str, str], int]) -> Choice:
    """Algorithm 1 as published: every sum from scratch, the incumbent left out by its text.

    The tests hold ours against it too.
    """
    kept: list[str] = []
    keys: list[str] = []
    for text in texts:
        key = "|".join(re.findall(r"<<([^>]*)>>", text)).replace(" ", "")
        if key not in keys:
            kept.append(text)
            keys.append(key)
            continue
        index = keys.index(key)
        others = [other for other in kept if other != kept[index]]
        challenge = sum(distance(text, other) for other in others)
        if challenge > sum(distance(kept[index], other) for other in others):
            kept[index] = text
    return kept


def algorithm(side: str) -> Callable[[list[str]], Choice]:
    """What a side chooses, by its name."""
    if side == "ours":
        from rft_ray.paper_rule import choose_by_paper

        return lambda texts: [texts[position] for position in choose_by_paper(texts)]
    if side == "rapidfuzz":
        from rapidfuzz.distance.Levenshtein import distance

        return lambda texts: literal_algorithm(texts, distance)
    import editdistance

    return lambda texts: literal_algorithm(texts, editdistance.eval)


def measure(side: str, pools: dict[str, list[str]]) -> dict[str, Any]:
    """Seconds and choice of one side on each pool, after one pool to warm up, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    select = algorithm(side)
    started = time.perf_counter()
    select(max(pools.values(), key=len)[:400])
    found: dict[str, Any] = {"warm_up": time.perf_counter() - started}
    for name, texts in pools.items():
        started = time.perf_counter()
        choice = select(texts)
        found[name] = {"seconds": time.perf_counter() - started, "choice": choice}
    return found


def run_side(
    side: str, pools: dict[str, list[str]], **environment: str
) -> dict[str, Any] | None:
    """One side in a fresh process; None, said aloud, where the rival is not installed."""
    from rft_ray.benchmark_summary import rival_python

    python = str(rival_python()) if side == "editdistance" else sys.executable
    if not Path(python).exists():
        print(f"MISSING: {side}; `make bench-env` installs it")
        return None
    command = [python, __file__, "--side", side]
    settings = {"PYTHONPATH": str(ROOT), **os.environ, **environment}
    done = subprocess.run(
        command, env=settings, input=json.dumps(pools), stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(sides: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each rival and size; every choice of every side must be the same."""
    ours = sides["ours"]
    pools = [name for name in ours[0] if name != "warm_up"]
    results = []
    for rival, goal in GOALS.items():
        runs = sides[rival]
        for name in pools:
            if any(run[name]["choice"] != ours[0][name]["choice"] for run in [*runs, *ours]):
                raise SystemExit(f"{rival} and ours differ on the pool {name}")
        for size in SIZES if runs else ():
            own = [name for name in pools if name.split()[1] == str(size)]
            results.append(compare_size(ours, runs, own, rival, size, goal))
    return results


def compare_size(
    ours: list[dict[str, Any]], runs: list[dict[str, Any]], pools: list[str], rival: str,
    size: int, goal: float,
) -> dict[str, Any]:  # fmt: skip
    """The time of all pools of a size, and the ratio's spread over repeats and over pools."""
    from rft_ray.benchmark_summary import row

    def seconds(runs: list[dict[str, Any]], names: list[str]) -> list[float]:
        return [sum(run[name]["seconds"] for name in names) for run in runs]

    mine, theirs = seconds(ours, pools), seconds(runs, pools)
    own, other = statistics.median(mine), statistics.median(theirs)
    repeats = [b / a for a, b in zip(mine, theirs, strict=True)]
    each = [statistics.median(seconds(runs, [p])) / statistics.median(seconds(ours, [p]))
            for p in pools]  # fmt: skip
    spread = {"repeats": [min(repeats), max(repeats)], "pools": [min(each), max(each)]}
    found = row(
        f"{size} candidates, {len(pools)} pools", own / len(pools) * 1e3,
        f"Algorithm 1 with {rival}", other / len(pools) * 1e3, goal, "ms a pool", other / own,
    ) | {"spread": spread}  # fmt: skip
    return found if size > min(SIZES) else {**found, "info": True}


def growth(ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Time a candidate at 1,600 candidates against 400: 1 where the time is linear."""
    def of_size(size: int) -> float:
        return statistics.median(
            sum(run[n]["seconds"] for n in run if n != "warm_up" and n.split()[1] == str(size))
            for run in ours
        ) / size  # fmt: skip

    few, many = of_size(400) / 6 * 1e6, of_size(1600) / 6 * 1e6
    return info("time a candidate, 1600 candidates", many, "400 candidates", few, "us")


def first_use(pools: dict[str, list[str]]) -> dict[str, Any]:
    """What the first pool of a process costs before and after this machine has compiled code."""
    few = {name: pool for name, pool in pools.items() if len(pool) == 400}
    with tempfile.TemporaryDirectory() as folder:
        first = run_side("ours", few, NUMBA_CACHE_DIR=folder)
        again = run_side("ours", few, NUMBA_CACHE_DIR=folder)
    assert first and again
    return info(
        "first pool of the first process on a machine", first["warm_up"],
        "of a later process", again["warm_up"], "s",
    )  # fmt: skip


def memory(solutions: list[str], quick: bool) -> list[dict[str, Any]]:
    """Peak memory of `rft-ray select` at 10x the problems."""
    problems = 50 if quick else 200
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 10):
            path = Path(folder) / f"{times}.jsonl"
            write_groups_file(path, solutions, problems * times, 100)
            peaks.append(peak_megabytes(path))
    what = f"peak memory of rft-ray select, {10 * problems} problems"
    return [info(what, peaks[1], f"{problems} problems", peaks[0], "MB")]


def write_groups_file(path: Path, solutions: list[str], problems: int, rollouts: int) -> None:
    """Graded groups, each a pool of its own."""
    from rft_ray.records import write_groups
    from rft_ray.types import Group, Problem, Rollout

    pools = [make_pool(solutions, "mixed", rollouts, 10 + n) for n in range(10)]

    def groups() -> Any:
        for number in range(problems):
            texts = pools[number % len(pools)]
            yield Group(
                Problem(f"p{number}", "question", "1"),
                [Rollout("p", text, sample=i, verdict="correct") for i, text in enumerate(texts)],
            )

    write_groups(path, groups())


def peak_megabytes(path: Path) -> float:
    """Peak resident memory of the command on a file."""
    command = [sys.executable, "-m", "rft_ray", "select", str(path), "-o", f"{path}.out.jsonl"]
    settings = {"PYTHONPATH": str(ROOT), **os.environ}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=settings, stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"rft-ray select ended with status {status}")
    return usage.ru_maxrss / 1024


def stage(solutions: list[str], problems: int) -> list[dict[str, Any]]:
    """Problems a second of the Ray Data stage on all cores, and its share of a round's sampling."""
    from rft_ray.config import SelectionConfig
    from rft_ray.ray_session import start_ray, stop_ray
    from rft_ray.stages import read_groups_dataset, select_groups

    start_ray(job="benchmark selection")
    with tempfile.TemporaryDirectory() as folder:
        for part in range(8):
            path = Path(folder) / f"{part}.parquet"
            write_groups_file(path, solutions, -(-problems // 8), STAGE_ROLLOUTS)
        rates = []
        for _ in range(3):
            started = time.perf_counter()
            groups = select_groups(read_groups_dataset(folder), SelectionConfig())
            count = sum(batch.num_rows for batch in groups.iter_batches(batch_format="pyarrow"))
            rates.append(count / (time.perf_counter() - started))
    stop_ray()
    print(f"the stage: {[round(rate, 1) for rate in rates]} problems/s, the first is cold")
    rate = max(rates)
    what = f"the Ray Data stage, {STAGE_ROLLOUTS} rollouts a problem"
    rows = [info(what, rate, "its first pass", rates[0], "problems/s")]
    return rows + share_of_sampling(solutions, 1 / rate)


def share_of_sampling(solutions: list[str], seconds: float) -> list[dict[str, Any]]:
    """Seconds a problem beside those of sampling it, at the rate that was measured for that."""
    measured = ROOT / "benchmarks/results/sampling.json"
    if not measured.exists():
        print("MISSING: benchmarks/results/sampling.json, so no share of a round")
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs/quickstart_base/tied")
    texts = make_pool(solutions, "mixed", 100, 10)
    tokens = sum(map(len, tokenizer(texts)["input_ids"])) / len(texts) * STAGE_ROLLOUTS
    rate = json.loads(measured.read_text())["results"][0]["ours"]
    what = f"selection of a problem with {STAGE_ROLLOUTS} rollouts"
    rival = f"sampling it at {rate:,.0f} tokens/s (results/sampling.json)"
    return [info(what, seconds, rival, tokens / rate, "s")]


def info(what: str, ours: float, rival: str, rival_value: float, unit: str) -> dict[str, Any]:
    """A context row; the ratio is higher where ours is better."""
    from rft_ray.benchmark_summary import row

    ratio = ours / rival_value if unit == "problems/s" else rival_value / ours
    return row(what, ours, rival, rival_value, 1.0, unit, ratio) | {"info": True}


def report(results: list[dict[str, Any]]) -> None:
    """A small table and, last, the JSON line of the benchmark contract."""
    from rft_ray.benchmark_summary import finish

    for row in results:
        spread = row.get("spread")
        tail = "" if spread is None else (
            f"  repeats {spread['repeats'][0]:.1f} to {spread['repeats'][1]:.1f},"
            f" pools {spread['pools'][0]:.1f} to {spread['pools'][1]:.1f}"
        )  # fmt: skip
        print(
            f"{row['what']:50} {row['ours']:10.3f} {row['unit']:10} {row['rival_value']:10.3f}"
            f"  {row['rival']}: ratio {row['ratio']:.2f}{tail}"
        )
    finish(__file__, results)


if __name__ == "__main__":
    main()
