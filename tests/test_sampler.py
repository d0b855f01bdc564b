"""Samplers on real vLLM engines: seeds, versions, refreshes and their parity check.

Run: pytest tests/test_sampler.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rft_ray.sampling import SampledTokens, Weights
from tests.conftest import BASES

pytestmark = pytest.mark.engine
Checkpoints = Callable[[str, int], Path]
PROMPT = [5, 17, 33, 60, 61]


def sample(handle: Any, weights: Weights, seed: int = 3, **changes: Any) -> SampledTokens:
    """Four short completions of one prompt."""
    sampling = {"n": 4, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 12, **changes}
    return handle.sample.remote(PROMPT, weights, sampling, seed).result()


def base_weights(name: str) -> Weights:
    """What a sampler starts with."""
    return Weights(str(BASES / name), 0)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_every_refresh_brings_the_trainers_log_probabilities(
    samplers: dict[str, Any], make_checkpoint: Checkpoints, name: str
) -> None:
    from rft_ray.deployment import refresh_sampler

    first, second = make_checkpoint(name, 1), make_checkpoint(name, 2)
    scores = []
    for step, folder in enumerate([first, second, first]):
        weights = Weights(str(folder), step + 1)
        (report,) = refresh_sampler(samplers[name], weights)
        assert report.parity_max_abs_diff < 1e-3
        assert report.num_bytes == (folder / "model.safetensors").stat().st_size
        probe = json.loads((first / "probe.json").read_text())
        scores.append(samplers[name].score.remote(probe["token_ids"][1], weights).result())
    # the check itself can fail: other weights give other log-probabilities, and these come back
    assert max(abs(a - b) for a, b in zip(scores[0], scores[1], strict=True)) > 0.1
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    assert scores[0] == pytest.approx(probe["logprobs"][1], abs=1e-3)


def test_a_request_for_other_weights_gets_them_and_their_version(
    samplers: dict[str, Any], make_checkpoint: Checkpoints
) -> None:
    base, other = base_weights("tied"), Weights(str(make_checkpoint("tied", 3)), 11)
    before = sample(samplers["tied"], base)
    assert before.policy_version == 0
    during = sample(samplers["tied"], other)
    assert during.policy_version == 11
    assert during.token_ids.tolist() != before.token_ids.tolist()
    assert sample(samplers["tied"], base).token_ids.tolist() == before.token_ids.tolist()


def test_no_process_counts_usage(samplers: dict[str, Any]) -> None:
    import ray

    named = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    assert "SERVE_CONTROLLER_ACTOR" in named
    assert not any("telemetry" in name for name in named)


def test_requests_for_two_versions_at_once_never_mix(
    samplers: dict[str, Any], make_checkpoint: Checkpoints
) -> None:
    wanted = [base_weights("tied"), Weights(str(make_checkpoint("tied", 4)), 4)]
    alone = [sample(samplers["tied"], weights).token_ids.tolist() for weights in wanted]
    sampling = {"n": 4, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 12}
    responses = [
        (i % 2, samplers["tied"].sample.remote(PROMPT, wanted[i % 2], sampling, 3))
        for i in range(12)
    ]
    for which, response in responses:
        assert response.result().token_ids.tolist() == alone[which]


def test_weights_that_disagree_with_the_trainer_are_never_served(
    samplers: dict[str, Any], make_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    good = make_checkpoint("untied", 5)
    bad = shutil.copytree(good, tmp_path / "bad")
    shutil.copy(make_checkpoint("untied", 6) / "model.safetensors", bad)
    with pytest.raises(Exception, match=r"log-probabilities differ from the\s+trainer's"):
        sample(samplers["untied"], Weights(str(bad), 1))
    # still refused the second time, and the replica recovers
    with pytest.raises(Exception, match="differ"):
        sample(samplers["untied"], Weights(str(bad), 1))
    assert sample(samplers["untied"], Weights(str(good), 1)).policy_version == 1


def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    samplers: dict[str, Any], make_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    torn = shutil.copytree(make_checkpoint("tied", 7), tmp_path / "torn")
    tensors = load_file(torn / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, torn / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"lacks model\.layers\.1\.mlp\.down_proj"):
        sample(samplers["tied"], Weights(str(torn), 1))
    assert sample(samplers["tied"], base_weights("tied")).policy_version == 0


def test_a_seed_fixes_the_samples_and_eos_closes_exactly_the_stopped_ones(
    samplers: dict[str, Any],
) -> None:
    weights = base_weights("tied")
    once, again = (sample(samplers["tied"], weights, max_tokens=40) for _ in range(2))
    assert once.token_ids.tolist() == again.token_ids.tolist()
    other = sample(samplers["tied"], weights, seed=4, max_tokens=40)
    assert other.token_ids.tolist() != once.token_ids.tolist()
    eos = json.loads((BASES / "tied/config.json").read_text())["eos_token_id"]
    ends = once.lengths.cumsum()
    for start, end, stopped in zip([0, *ends], ends, once.stopped, strict=False):
        completion = once.token_ids[start:end].tolist()
        assert (completion[-1] == eos) == stopped
        assert eos not in completion[:-1]


def test_many_seeded_requests_at_once_outlast_the_engines_token_budget(
    samplers: dict[str, Any],
) -> None:
    # more prompt tokens than one step takes: a prompt cut in two killed the engine on CPUs
    sampling = {"n": 8, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 4}
    prompts = [[seed % 200 + 5] + PROMPT * 20 for seed in range(60)]
    responses = [
        samplers["tied"].sample.remote(prompt, base_weights("tied"), sampling, seed)
        for seed, prompt in enumerate(prompts)
    ]
    assert sum(len(response.result().lengths) for response in responses) == 480


def test_greedy_completions_are_those_of_transformers(samplers: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASES / "untied", dtype=torch.float32)
    prompt = torch.tensor([PROMPT])
    expected = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, len(PROMPT) :]
    ours = sample(
        samplers["untied"], base_weights("untied"), n=1, temperature=0.0, max_tokens=24
    )
    assert ours.token_ids.tolist() == expected.tolist()
