"""The stream on real engines: files first, nothing twice, the same as asking one by one.

Run: pytest tests/test_stages.py
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rft_ray.config import SelectionConfig, VerifierConfig
from rft_ray.prompts import Prompt, make_example
from rft_ray.records import read_groups
from rft_ray.sampling import Policy, SamplingPlan, Weights
from rft_ray.types import Group, Problem
from rft_ray.word_problems import generate_word_problems
from tests.conftest import BASES, RUN_ID

pytestmark = pytest.mark.engine
PROMPT = Prompt("Question: {prompt}\nAnswer:\n")


def make_plan(round: int = 0) -> SamplingPlan:
    """Three rollouts from each of the two base models, which would rather say nothing at all."""
    from rft_ray.deployment import application_name

    sampling = {"n": 3, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 16}
    sampling["ignore_eos"] = True
    policies = [
        Policy(
            name=name,
            application=application_name(RUN_ID, name),
            tokenizer=str(BASES / name),
            weights=Weights(str(BASES / name), 0),
            prompt=PROMPT,
            sampling=sampling,
            max_model_len=192,
            max_rollouts_in_flight=24,
        )
        for name in ("tied", "untied")
    ]
    return SamplingPlan(policies, seed=0, round=round)


def run_stream(problems: list[Problem], folder: Path) -> tuple[list[Any], dict[str, Group]]:
    """Sample, verify, select and write; the statistics and the groups by problem."""
    from rft_ray.stages import sample_groups, select_groups, verify_groups, write_groups

    # a round begins its selection afresh; only what was sampled is kept
    shutil.rmtree(folder / "selected", ignore_errors=True)
    groups = sample_groups(problems, make_plan(), str(folder / "sampled"))
    verified = verify_groups(groups, VerifierConfig())
    selected = select_groups(verified, SelectionConfig())
    statistics = list(write_groups(selected, str(folder / "selected")))
    return statistics, {g.problem.id: g for g in read_groups(str(folder / "selected"))}


def test_a_stream_that_lost_files_samples_only_what_is_missing_and_gives_the_same(
    samplers: dict[str, Any], tmp_path: Path
) -> None:
    problems = generate_word_problems(10, seed=0, split="train")
    # longer than any context: it is counted, not sampled, and stops nothing
    problems.append(replace(problems[0], id="long", prompt="many pens and " * 200))
    statistics, first = run_stream(problems, tmp_path)
    assert len(statistics) == len(first) == 11
    assert first["long"].rollouts == []
    for problem in problems[:10]:
        rollouts = first[problem.id].rollouts
        assert first[problem.id].problem == problem
        assert [(r.policy, r.sample) for r in rollouts] == [
            (name, sample) for name in ("tied", "untied") for sample in range(3)
        ]
        assert all(r.verdict is not None and r.selected is not None for r in rollouts)

    files = sorted((tmp_path / "sampled").glob("*.parquet"))
    times = {path: path.stat().st_mtime_ns for path in files[1:]}
    files[0].unlink()
    (tmp_path / "sampled" / "half-written.partial").write_text("PAR1 and then the power went")
    _, second = run_stream(problems, tmp_path)
    assert second == first
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_second_round_stands_behind_the_first_and_is_selected_with_it(
    samplers: dict[str, Any], tmp_path: Path
) -> None:
    from rft_ray.stages import (
        join_pool,
        sample_groups,
        select_groups,
        verify_groups,
        write_groups,
    )

    problems = generate_word_problems(6, seed=0, split="train")
    _, first = run_stream(problems, tmp_path)
    groups = sample_groups(problems, make_plan(1), str(tmp_path / "sampled-1"))
    groups = join_pool(verify_groups(groups, VerifierConfig()), str(tmp_path / "selected"))
    groups = select_groups(groups, SelectionConfig())
    statistics = list(write_groups(groups, str(tmp_path / "selected-1"), round=1))
    second = {g.problem.id: g for g in read_groups(str(tmp_path / "selected-1"))}
    for problem in problems:
        rollouts = second[problem.id].rollouts
        assert [r.round for r in rollouts] == [0] * 6 + [1] * 6
        earlier = [replace(r, selected=None) for r in rollouts[:6]]
        assert earlier == [replace(r, selected=None) for r in first[problem.id].rollouts]
        # other seeds, so other rollouts
        assert [r.token_ids for r in rollouts[:6]] != [r.token_ids for r in rollouts[6:]]
    assert {row["pooled"]["rollouts"] for row in statistics} == {6}
    assert {row["all_rounds"]["rollouts"] for row in statistics} == {12}


def test_prompts_are_the_same_tokens_in_sampling_and_in_training(
    samplers: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASES / "tied")
    (problem,) = generate_word_problems(1, seed=1, split="train")
    _, groups = run_stream([problem], tmp_path)
    prompt_ids = PROMPT.encode(problem, tokenizer)
    for rollout in groups[problem.id].rollouts[:3]:
        example = make_example(problem, rollout.completion, tokenizer, PROMPT)
        assert example.input_ids[: len(prompt_ids)] == prompt_ids
        assert example.loss_mask.index(1) == len(prompt_ids)
        # asked again with exactly those ids, the engine draws exactly that rollout
        asked = samplers["tied"].sample.remote(
            example.input_ids[: len(prompt_ids)],
            make_plan().policies[0].weights,
            {**make_plan().policies[0].sampling, "n": 1},
            request_seed_of(problem) + rollout.sample,
        )
        assert asked.result().token_ids.tolist() == rollout.token_ids


def test_a_stop_text_ends_a_rollout_early(samplers: dict[str, Any], tmp_path: Path) -> None:
    from rft_ray.stages import sample_groups

    problems = generate_word_problems(4, seed=2, split="train")
    plan = make_plan()
    stopping = [replace(p, sampling={**p.sampling, "stop": ["e"]}) for p in plan.policies]
    groups = sample_groups(problems, replace(plan, policies=stopping), str(tmp_path / "stopped"))
    groups.materialize()
    stopped = read_groups(str(tmp_path / "stopped"))
    texts = {group.problem.id: group.rollouts for group in stopped}
    cut = [r for own in texts.values() for r in own if r.token_ids is None]
    assert cut and all(r.finish_reason == "stop" and "e" not in r.completion for r in cut)
    # the same seeds without stop texts: the same rollouts, only longer
    sample_groups(problems, plan, str(tmp_path / "free")).materialize()
    for group in read_groups(str(tmp_path / "free")):
        for free, own in zip(group.rollouts, texts[group.problem.id], strict=True):
            assert own.completion == free.completion.partition("e")[0]


def request_seed_of(problem: Problem) -> int:
    """The seed of the tied policy's first rollout."""
    from rft_ray.sampling import request_seed

    return request_seed(0, 0, "tied", problem.id)


def test_a_stream_is_called_after_the_folder_it_fills() -> None:
    from rft_ray.stages import stream_name

    assert stream_name(Path("/runs/a/round-000/selected.partial")) == "round-000-selected"
    # it becomes part of a log file's name
    assert stream_name(Path("/runs/a b/scored x/sft.v1 2.partial")) == "scored-x-sft-v1-2"
