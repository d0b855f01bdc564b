"""A small study in two rounds, killed half-way and continued by the same command.

The policies are retrained between the rounds; ICL, SFT, RFT on pooled rollouts and a control are
scored, also out of domain.

Run: pytest tests/test_offline.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rft_ray.records import read_groups
from rft_ray.run_dir import read_metrics
from tests.oracle import oracle_select, oracle_verdict
from tests.terminal import chatter

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[1]
NUM_TRAIN, K = 48, 6
OVERRIDES = [
    f"problems.train.count={NUM_TRAIN}",
    "problems.validation.count=24",
    "problems.heldout.count=32",
    f"sampling.k={K}",
    "sampler.max_rollouts_in_flight=24",
    "sft.steps=40",
    "sft.export_every=20",
    "policies.1.sft.steps=30",
    "rft.steps=20",
    "rft.export_every=10",
    "trainer.checkpoint_every=10",
    "trainer.num_workers=1",
    "trainer.threads_per_worker=1",
    "num_rounds=2",
    "rounds=[{}, {retrain_policies: true, temperature: 0.8, target_start_from: sft}]",
    "controls=[random]",
    "problems.out_of_domain.other={format: word_problems, split: heldout, seed: 1, count: 16}",
    "evaluation.icl_shots=1",
]
STAGES = ("icl", "sft", "rft_pooled", "rft_random")


def start(run_dir: Path) -> subprocess.Popen[str]:
    """The main job in a process group of its own."""
    command = [sys.executable, "-m", "rft_ray", "run", "configs/quickstart.yaml"]
    return subprocess.Popen(
        [*command, f"run_dir={run_dir}", *OVERRIDES],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int], str]:
    """A run that was killed while it sampled, then finished: its folder, the files that were
    there at the kill with their times, and what the second command printed."""
    run_dir = tmp_path_factory.mktemp("runs") / "killed"
    first = start(run_dir)
    sampled = run_dir / "round-000" / "sampled"
    deadline = time.monotonic() + 900
    while len(list(sampled.glob("*.parquet"))) < 2:
        assert first.poll() is None, first.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in sampled.glob("*.parquet")}
    assert not (run_dir / "round-000" / "selected").exists()
    second = start(run_dir)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output[-3000:]
    return run_dir, kept, output


def test_nothing_that_reached_disk_is_sampled_again(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir, kept, _ = finished
    assert len(kept) >= 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    made = {(p, i) for p in ("tied", "untied") for i in range(K)}
    for number in range(2):
        sampled = list(read_groups(str(run_dir / f"round-{number:03d}" / "sampled")))
        assert Counter(g.problem.id for g in sampled) == {
            f"word-train-0-{i}": 1 for i in range(NUM_TRAIN)
        }
        for group in sampled:
            assert {(r.policy, r.sample) for r in group.rollouts} == made
            assert len(group.rollouts) == len(made)
            assert {r.round for r in group.rollouts} == {number}


def test_the_pool_grows_and_says_where_each_rollout_came_from(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir = finished[0]
    first, second = (
        {g.problem.id: g for g in read_groups(str(run_dir / f"round-{number:03d}" / "selected"))}
        for number in range(2)
    )
    assert len(first) == len(second) == NUM_TRAIN
    versions = set()
    for key, group in second.items():
        early, late = group.rollouts[: 2 * K], group.rollouts[2 * K :]
        assert [r.completion for r in early] == [r.completion for r in first[key].rollouts]
        assert {r.round for r in early} == {0} and {r.round for r in late} == {1}
        versions |= {(r.round, r.policy, r.policy_version) for r in group.rollouts}
    # the policies of the second round were trained for 20 steps on the pool of the first
    assert versions == {
        (0, "tied", 40), (0, "untied", 30), (1, "tied", 20), (1, "untied", 20),
    }  # fmt: skip


def test_training_is_not_repeated(finished: tuple[Path, dict[Path, int], str]) -> None:
    run_dir, _, _ = finished
    steps = Counter(
        (row["job"], row["round"], row["step"])
        for row in read_metrics(run_dir / "metrics.jsonl")
        if row["kind"] == "train_step"
    )
    assert set(steps.values()) == {1}
    # the target's SFT is the tied policy's, and the tied policy retrained is the target of the
    # first round: same base, same recipe, same data
    assert Counter((job, number) for job, number, _ in steps) == {
        ("sft-tied", 0): 40,
        ("sft-untied", 0): 30,
        ("rft-untied", 1): 20,
        **{
            (job, number): 20
            for job in ("rft-target", "rft-target-random")
            for number in range(2)
        },
    }
    counts = {
        (row["job"], row["round"]): row["kept"]
        for row in read_metrics(run_dir / "metrics.jsonl")
        if row["kind"] == "examples"
    }
    for number in range(2):
        assert counts["rft-target-random", number] == counts["rft-target", number] > NUM_TRAIN


def test_verdicts_and_selection_are_the_oracles(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir, _, _ = finished
    num_correct = 0
    for group in read_groups(str(run_dir / "round-001" / "selected")):
        accepted = []
        for rollout in group.rollouts:
            expected = oracle_verdict(group.problem, rollout.completion)
            # Never "correct" where the paper's rule is not; the other way only where there are
            # several final answers, of which the paper reads the first and ours none.
            if rollout.verdict == "correct":
                assert expected == "correct", rollout
            elif expected == "correct":
                assert rollout.completion.count("####") > 1, rollout
            if rollout.verdict == "correct" and rollout.finish_reason == "stop":
                accepted.append(rollout)
        chosen = {id(accepted[i]) for i in oracle_select([r.completion for r in accepted])}
        assert [id(r) in chosen for r in group.rollouts] == [r.selected for r in group.rollouts]
        num_correct += len(accepted)
    assert num_correct > 0


def test_every_refresh_agreed_with_the_trainer(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir, _, _ = finished
    refreshes = [r for r in read_metrics(run_dir / "metrics.jsonl") if r["kind"] == "refresh"]
    assert {r["model"] for r in refreshes} == {"tied", "untied", "target"}
    # a base model comes without the trainer's log-probabilities: there was no trainer yet
    assert all(r["parity_max_abs_diff"] is None for r in refreshes if r["step"] == 0)
    assert all(0 <= r["parity_max_abs_diff"] < 1e-3 for r in refreshes if r["step"] > 0)


def test_the_terminal_shows_the_run_alone(finished: tuple[Path, dict[Path, int], str]) -> None:
    assert chatter(finished[2]) == []


def test_results_are_there_and_consistent(finished: tuple[Path, dict[Path, int], str]) -> None:
    run_dir, _, output = finished
    tables: list[list[dict[str, Any]]] = [
        json.loads((run_dir / f"round-{number:03d}/evaluation.json").read_text())
        for number in range(2)
    ]
    first, second = ({(r["model"], r["stage"], r["metric"]) for r in rows} for rows in tables)
    assert {("tied", "sft", "pass@1"), ("untied", "sft", "pass@1")} < first
    assert {("tied", "rft_pooled", "pass@1"), ("untied", "rft_pooled", "pass@1")} < second
    metrics = ("pass@1", "other/pass@1")
    assert {("target", stage, metric) for stage in STAGES for metric in metrics} < first
    assert {("target", stage, metric) for stage in STAGES[2:] for metric in metrics} < second
    assert {r["stage"] for r in tables[1]} == set(STAGES[2:])
    for stage in ("sft", "rft_pooled"):
        assert ("target", stage, "pass@1_best_validation") in first
    for row in (row for rows in tables for row in rows):
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["n"] == (16 if row["metric"].startswith("other/") else 32)
    assert "rft_pooled" in output and "all rounds" in output
    report = (run_dir / "report.html").read_text()
    assert "<svg" in report and "http" + "://" not in report.replace("http://www.w3.org", "")


def test_scores_are_those_of_the_completions_on_disk(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir = finished[0]
    rows = json.loads((run_dir / "round-001/evaluation.json").read_text())
    (row,) = (r for r in rows if r["stage"] == "rft_pooled" and r["model"] == "target"
              and r["metric"] == "pass@1")  # fmt: skip
    (scored,) = run_dir.glob("scored/round-001-checkpoint-heldout-greedy-*.parquet")
    groups = list(read_groups(scored))
    right = [g.rollouts[0].completion.split("####")[-1].strip() == g.problem.answer for g in groups]
    assert row["value"] == sum(right) / 32


def test_a_finished_run_shows_its_results_again_and_computes_nothing(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    run_dir, _, output = finished
    before = (run_dir / "metrics.jsonl").read_text()
    again = start(run_dir)
    shown, _ = again.communicate(timeout=300)
    assert again.returncode == 0, shown[-3000:]
    assert (run_dir / "metrics.jsonl").read_text() == before
    table = [line for line in output.splitlines() if "(n = " in line]
    assert table == [line for line in shown.splitlines() if "(n = " in line] and table


def test_the_checkpoint_is_an_ordinary_model(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = finished[0] / "round-000" / "checkpoint"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    probe = json.loads((checkpoint / "probe.json").read_text())
    assert tokenizer.eos_token_id is not None and probe["step"] == 20
    ids = torch.tensor([probe["token_ids"][0]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    own = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    assert torch.allclose(own, torch.tensor(probe["logprobs"][0]), atol=1e-4)


def test_a_changed_recipe_is_refused_with_exit_code_2(
    finished: tuple[Path, dict[Path, int], str],
) -> None:
    command = [sys.executable, "-m", "rft_ray", "run", "configs/quickstart.yaml"]
    done = subprocess.run(
        [*command, f"run_dir={finished[0]}", *OVERRIDES, "rft.learning_rate=0.5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "another rft.learning_rate" in done.stderr and "Traceback" not in done.stderr
