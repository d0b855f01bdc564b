"""A made-up study with everything a report can show, written as a run leaves it.

Two policies, two rounds, three controls, two out-of-domain sets, sampled metrics and validation.
The numbers of `evaluation.json` are invented; the counts are those of the groups.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rft_ray.records import write_groups
from rft_ray.selection import group_statistics, select_group
from rft_ray.tally import Tally
from rft_ray.types import Group, Problem, Rollout

POLICIES = {"small": 0.35, "large": 0.6}


def make_group(number: int, rng: random.Random, k: int = 16, rounds: int = 1) -> Group:
    """A problem with k rollouts a policy and round: right on several paths, wrong, cut off."""
    a, b, c = rng.randint(2, 40), rng.randint(2, 40), rng.randint(2, 9)
    answer = (a + b) * c
    ways = [
        f"First {a}+{b}=<<{a}+{b}={a + b}>>{a + b}.\nThen <<{a + b}*{c}={answer}>>.\n#### {answer}",
        f"First {b}+{a}=<<{b}+{a}={a + b}>>{a + b}.\nThen <<{c}*{a + b}={answer}>>.\n#### {answer}",
        f"<<{a}*{c}={a * c}>> and <<{b}*{c}={b * c}>> make <<{a * c}+{b * c}={answer}>>.\n"
        f"#### {answer}",
        f"<<{a + b}*{c}={answer}>>\n#### {answer}",
    ]
    rollouts = [
        replace(make_rollout(policy, sample, ways, answer, skill, rng), round=in_round)
        for in_round in range(rounds)
        for policy, skill in POLICIES.items()
        for sample in range(k)
    ]
    prompt = f"Ann has {a} apples and Bob has {b}. Each apple costs {c} coins. What do all cost?"
    problem = Problem(f"made-up-{number:05d}", prompt, str(answer), "test", ways[0])
    return select_group(Group(problem, rollouts))


def make_rollout(
    policy: str, sample: int, ways: list[str], answer: int, skill: float, rng: random.Random
) -> Rollout:
    if rng.random() < skill:
        text, verdict = rng.choice(ways), "correct"
    else:
        text, verdict = rng.choice(
            [
                (f"I think it is\n#### {answer + 1}", "wrong"),
                (f"<<2+2=5>>\n#### {answer}", "miscalculated"),
                ("The apples are red and", "unparsable"),
            ]
        )
    finish = "length" if rng.random() < 0.05 else "stop"
    reward = float(verdict == "correct")
    return Rollout(policy, text, sample=sample, token_ids=[1, 2], logprobs=[-0.1, -0.2],
                   finish_reason=finish, verdict=verdict, reward=reward)  # fmt: skip


def of_rounds(group: Group, *rounds: int) -> Group:
    """The group with the rollouts of those rounds alone, marked as they are."""
    return Group(group.problem, [r for r in group.rollouts if r.round in rounds])


def make_run(
    folder: Path, num_problems: int = 40, extra: tuple[Group, ...] = (), rounds: int = 2
) -> Path:
    """A finished run directory; its groups are deterministic."""
    rng = random.Random(0)
    groups = [make_group(number, rng, rounds=rounds) for number in range(num_problems)]
    start_run(folder, rounds)
    for number in range(rounds):
        past = [select_group(of_rounds(group, *range(number + 1))) for group in groups]
        write_round(folder, number, [*past, *extra])
    log(folder, *training_lines("sft-small", 60), *training_lines("sft-target", 60))
    log(folder, *refresh_lines(), *phase_lines(rounds), *validation_lines(rounds))
    return folder


def write_round(folder: Path, number: int, groups: list[Group]) -> None:
    """What a finished round adds."""
    place = folder / f"round-{number:03d}"
    (place / "selected").mkdir(parents=True)
    (place / "checkpoint").mkdir()
    for part in range(0, len(groups), 16):
        write_groups(place / "selected" / f"part-{part}.parquet", groups[part : part + 16])
    log(folder, *select_lines(number, groups))
    for control, steps in (("", 620), ("-own", 400), ("-random", 620), ("-no-dedup", 760)):
        job = {"job": f"rft-target{control}", "round": number}
        log(folder, *({**line, **job} for line in training_lines(f"{control}{number}", steps)))
        log(folder, {"kind": "examples", **job, "kept": 512 + steps, "too_long": 3 + number})
    rows = list(evaluation_rows(number))
    (place / "evaluation.json").write_text(json.dumps(rows))
    for row in rows:
        name, _, metric = row["metric"].rpartition("/")
        line = {**row, "metric": metric, "problem_set": name or "heldout", "round": number}
        log(folder, {"kind": "evaluation", **line})
    for stage, gain in (("rft_pooled", 0.085), ("rft_random", 0.021)):
        value = gain + 0.03 * number
        line = {"value": value, "low": value - 0.033, "high": value + 0.033}
        log(folder, {"kind": "gain", "metric": "pass@1", "stage": stage, "round": number, **line})


def select_lines(number: int, groups: list[Group]) -> Iterator[dict[str, Any]]:
    """Counts of what a round sampled and, from the second on, of the pool."""
    of_round, pool = Tally(), Tally()
    for group in groups:
        of_round.add(group_statistics(of_rounds(group, number)))
        pool.add(group_statistics(group))
    line = {"kind": "select", "round": number}
    for name in of_round.names():
        yield {**line, "policy": name, **of_round.row(name)}
    if number:
        yield {**line, "policy": "all_rounds", **pool.row("pooled")}


def start_run(folder: Path, rounds: int = 1) -> None:
    """What is there as soon as a run has started."""
    folder.mkdir(parents=True)
    policies = "policies:\n- name: small\n- name: large\ntarget:\n  model: m\n"
    config = f"run_dir: runs/made-up\nnum_rounds: {rounds}\n{policies}"
    (folder / "config.yaml").write_text(config)
    (folder / "versions.json").write_text(json.dumps({"python": "3.11.2", "ray": "2.60.0"}))


def log(folder: Path, *lines: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"time": 0.0, **line}) + "\n" for line in lines)


def training_lines(job: str, steps: int) -> Iterator[dict[str, Any]]:
    rng = random.Random(job)
    for step in range(1, steps + 1):
        loss = 0.3 + 2.5 / (1 + step / 20) + rng.gauss(0, 0.06)
        rate = 2e-5 * min(1.0, step / (0.1 * steps)) * (1 - step / steps)
        yield {"kind": "train_step", "job": job, "round": 0, "step": step, "total_steps": steps,
               "loss": loss, "learning_rate": rate, "grad_norm": 1.0, "tokens": 2_000,
               "examples": 16, "fill": 0.93, "seconds": 0.4}  # fmt: skip


def refresh_lines() -> Iterator[dict[str, Any]]:
    for step, parity in ((60, 2.1e-5), (310, None), (620, 8.4e-6)):
        yield {"kind": "refresh", "sampler": "small", "model": "target", "step": step,
               "seconds": 0.2 + step / 5_000, "bytes": 28_400_000, "replicas": 2,
               "parity_max_abs_diff": parity}  # fmt: skip


def phase_lines(rounds: int = 1) -> Iterator[dict[str, Any]]:
    """Phases of 468 seconds a round."""
    for number in range(rounds):
        for phase, seconds, what in (
            ("train", 41.0, {"job": "sft-small"}),
            ("start samplers", 38.0, {}),
            ("evaluate", 6.0, {"model": "small", "stage": "sft", "problem_set": "heldout"}),
            ("evaluate", 7.0, {"model": "target", "stage": "sft", "problem_set": "heldout"}),
            ("sample verify select", 120.5, {}),
            ("train", 248.0, {"job": "rft-target"}),
            ("evaluate", 7.5, {"model": "target", "stage": "rft_pooled", "problem_set": "heldout"}),
        ):
            yield {"kind": "phase", "phase": phase, "seconds": seconds, **what,
                   **({"round": number} if number else {})}  # fmt: skip


VALUES = {("small", "sft"): 0.312, ("large", "sft"): 0.448, ("target", "icl"): 0.102,
          ("target", "sft"): 0.441, ("target", "rft_own"): 0.482, ("target", "rft_random"): 0.471,
          ("target", "rft_no_dedup"): 0.507, ("target", "rft_pooled"): 0.526}  # fmt: skip


def evaluation_rows(number: int) -> Iterator[dict[str, Any]]:
    """Rows of a round: invented values that differ between models, stages, sets and metrics."""
    for (model, stage), value in VALUES.items():
        if stage.startswith("rft") or number == 0:
            value += 0.024 * number
            for prefix, shift in (("", 0.0), ("svamp/", 0.07), ("gsm_hard/", -0.06)):
                for metric, factor in metrics_of(model, stage):
                    middle = factor * (value + shift)
                    yield {"model": model, "stage": stage, "metric": prefix + metric,
                           "value": middle, "n": 1319, "low": middle - 0.027,
                           "high": middle + 0.027, "step": 620}  # fmt: skip


def metrics_of(model: str, stage: str) -> Iterable[tuple[str, float]]:
    """Metric names with a factor each, those of sampling for the target alone."""
    yield "pass@1", 1.0
    if stage != "icl":
        yield "pass@1_best_validation", 1.01
    if model == "target":
        yield from (("avg@16", 0.95), ("pass@4", 1.3), ("pass@16", 1.5))
        yield from (("maj@4", 1.05), ("maj@16", 1.15))


def validation_lines(rounds: int) -> Iterator[dict[str, Any]]:
    """Four scored checkpoints of each training of the target."""
    for stage, number in [("sft", 0), *(("rft_pooled", r) for r in range(rounds))]:
        for step in (155, 310, 465, 620):
            value = VALUES["target", stage] + 0.02 * number - 20 / step
            yield {"kind": "evaluation", "model": "target", "stage": stage, "round": number,
                   "problem_set": "validation", "metric": "pass@1", "step": step, "value": value,
                   "low": value - 0.04, "high": value + 0.04, "n": 500}  # fmt: skip


def make_online_run(folder: Path, steps: int = 240, updates: int = 2) -> Path:
    """A finished online run of one policy; all numbers of its steps are invented."""
    start_run(folder)
    online = {"steps": steps, "problems_per_step": 32, "updates_per_batch": updates,
              "max_staleness": 1, "filters": ["all_wrong"]}  # fmt: skip
    with (folder / "config.yaml").open("a") as file:
        file.write(f"mode: online\nonline: {json.dumps(online)}\n")
    place = folder / "round-000"
    (place / "selected").mkdir(parents=True)
    (place / "checkpoint").mkdir()
    groups = [of_rounds(make_group(number, random.Random(number)), 0) for number in range(12)]
    write_groups(place / "selected" / "step-000001.parquet", groups)
    log(folder, *training_lines("sft-target", 60))
    log(folder, *(online_line(step) for step in range(1, steps + 1)))
    log(folder, *online_evaluations(steps), *select_lines(0, groups), *phase_lines())
    rows = [("sft", "pass@1", 0.412), ("online", "pass@1", 0.498)]
    (place / "evaluation.json").write_text(json.dumps([
        {"model": "target", "stage": stage, "metric": metric, "value": value, "n": 1319,
         "low": value - 0.027, "high": value + 0.027, "step": steps}
        for stage, metric, value in rows
    ]))  # fmt: skip
    log(folder, {"kind": "gain", "metric": "pass@1", "stage": "online", "round": 0,
                 "value": 0.086, "low": 0.053, "high": 0.119})  # fmt: skip
    return folder


def online_line(step: int, **changed: Any) -> dict[str, Any]:
    """The line of an online step: 32 problems with 8 rollouts each, its entropy going down."""
    rng = random.Random(step)
    accepted = min(256, round(256 * (0.3 + 0.4 * (1 - 0.99**step) + rng.gauss(0, 0.04))))
    stale, wrong, groups = int(step % 50 == 0), rng.randint(2, 8), 32
    ages = {"0": 8 * (step % 3)} | {"1": 8 * (groups - wrong - stale - step % 3)}
    return {"kind": "online_step", "round": 0, "step": step, "policy_version": step,
            "staleness_max": 1, "staleness": {age: n for age, n in ages.items() if n},
            "loss": 0.1 + 0.3 * 0.99**step + rng.gauss(0, 0.02), "grad_norm": 1 + rng.random(),
            "entropy": 0.6 * 0.992**step + 0.02 * rng.random(), "clipped": 0.02 * rng.random(),
            "learning_rate": 1e-5, "examples": accepted, "tokens": 40 * accepted, "fill": 0.8,
            "wait_seconds": 0.5 + rng.random(), "train_seconds": 1.5 + 0.2 * rng.random(),
            "save_seconds": 2.0 * (step % 60 == 0), "refresh_seconds": 0.4 + 0.1 * rng.random(),
            "problems": groups, "rollouts": 256, "accepted": accepted, "selected": 64,
            "reward": accepted / 256, "distinct_paths": round(70 * 0.997**step), "cut_off": 2,
            "sampled_tokens": 12_000, "verdicts": {"correct": accepted, "wrong": 256 - accepted},
            "dropped": {"all_wrong": wrong, **({"stale": 1} if stale else {}), "no_token_ids": 1},
            "sample_seconds": 2.0 + 0.3 * rng.random(), "verify_seconds": 0.1,
            **changed}  # fmt: skip


def online_evaluations(steps: int) -> Iterator[dict[str, Any]]:
    """Validation before online training and six times during it."""
    points = [("sft", 60, 0.405)]
    points += [("online", steps * n // 6, 0.40 + 0.02 * n - 0.001 * n**2) for n in range(1, 7)]
    for stage, step, value in points:
        yield {"kind": "evaluation", "model": "target", "stage": stage, "round": 0,
               "problem_set": "validation", "metric": "pass@1", "step": step, "value": value,
               "low": value - 0.04, "high": value + 0.04, "n": 500}  # fmt: skip
