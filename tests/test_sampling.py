"""Requests and their seeds, without engines. Run: pytest tests/test_sampling.py"""

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rft_ray import sampling
from rft_ray.config import SamplingConfig
from rft_ray.prompts import Prompt
from rft_ray.sampling import (
    LIVE,
    GroupSampler,
    Policy,
    SampledTokens,
    SamplerUnavailableError,
    Weights,
    cut_at_stop,
    load_tokenizer,
    request_seed,
    sampling_params,
    to_rollouts,
)
from rft_ray.types import Rollout

BASES = Path(__file__).parents[1] / "configs/quickstart_base"


class Letters:
    """A tokenizer of one letter a token; 0 is EOS."""

    def batch_decode(self, ids: list[list[int]], *, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return ["".join(chr(96 + i) for i in own if i) for own in ids]


def test_flat_tokens_become_rollouts_and_only_stopped_ones_end_with_eos() -> None:
    sampled = SampledTokens(
        token_ids=np.array([1, 2, 0, 3, 3, 0], np.int32),
        lengths=np.array([3, 2, 1], np.int32),
        stopped=np.array([True, False, True]),
        policy_version=5,
    )
    rollouts = to_rollouts(sampled, "p", 1, Letters())
    assert [r.completion for r in rollouts] == ["ab", "cc", ""]
    assert [r.token_ids for r in rollouts] == [[1, 2, 0], [3, 3], [0]]
    assert [r.finish_reason for r in rollouts] == ["stop", "length", "stop"]
    assert [r.sample for r in rollouts] == [0, 1, 2]
    assert {(r.policy, r.round, r.policy_version) for r in rollouts} == {("p", 1, 5)}


@pytest.mark.parametrize("base", ["tied", "untied"])
def test_a_tokeniser_read_without_the_generic_loader_is_the_one_that_it_gives(base: str) -> None:
    from transformers import AutoTokenizer

    folder = str(BASES / base)
    ours, generic = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(generic)
    assert ours.backend_tokenizer.to_str() == generic.backend_tokenizer.to_str()
    text = "What is 2+2?\n#### 4<|endoftext|>"
    assert ours(text) == generic(text)


def test_no_process_of_the_stream_imports_torch_for_its_tokeniser() -> None:
    script = (
        "import sys; from rft_ray.sampling import load_tokenizer; load_tokenizer(sys.argv[1]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(BASES / "tied")]).returncode == 0


def test_a_seed_depends_on_everything_that_names_the_request_and_on_nothing_else() -> None:
    seed = request_seed(0, 0, "a", "1")
    assert seed == request_seed(0, 0, "a", "1") == 561025493175160346
    others = {
        request_seed(1, 0, "a", "1"),
        request_seed(0, 1, "a", "1"),
        request_seed(0, 0, "b", "1"),
        request_seed(0, 0, "a", "2"),
        request_seed(0, 0, "a1", ""),
        request_seed(0, 0, "a", "\ud800"),
    }
    assert len(others | {seed}) == 7
    # room for sample i at seed + i in 64 signed bits
    assert max(others) < 2**62


def test_a_stop_text_ends_the_completion_and_takes_the_token_ids_with_it() -> None:
    rollout = Rollout("p", "four\n\nQ: next", token_ids=[1, 2], finish_reason="length")
    cut = cut_at_stop(rollout, ["Q:", "\n\n"])
    assert (cut.completion, cut.token_ids, cut.finish_reason) == ("four", None, "stop")
    assert cut_at_stop(rollout, ["R:"]) is rollout


def test_a_rounds_temperature_goes_before_the_policys_own() -> None:
    config, prompt = SamplingConfig(k=3, temperature=0.7), Prompt("Q: {prompt}")
    assert sampling_params(config, prompt)["temperature"] == 0.7
    assert sampling_params(config, prompt, 0.0)["temperature"] == 0.0


def test_rollouts_end_at_the_stop_texts_of_the_config_and_of_the_prompt() -> None:
    prompt = Prompt("Q: {prompt}")
    assert "stop" not in sampling_params(SamplingConfig(), prompt)
    assert sampling_params(SamplingConfig(stop=["x"]), prompt)["stop"] == ["x"]
    # a base model that was shown solved problems goes on to make up more of them
    few_shot = Prompt("Q: {prompt}", shots=(("2+2?", "4"),))
    assert sampling_params(SamplingConfig(stop=["x"]), few_shot)["stop"] == ["x", "\n\nQ:"]


def test_live_weights_satisfy_requests_for_them_and_for_earlier_ones() -> None:
    held = Weights(LIVE, 4)
    assert Weights(LIVE, 4).satisfied_by(held)
    assert Weights(LIVE, 3).satisfied_by(held)
    assert not Weights(LIVE, 5).satisfied_by(held)
    assert not Weights(LIVE, 0).satisfied_by(None)
    assert not Weights(LIVE, 0).satisfied_by(Weights("folder", 0))


class DeadSampler:
    """Answers no request."""

    def __init__(self) -> None:
        self.sample, self.asked = self, 0

    async def remote(self, *asked: object) -> SampledTokens:
        self.asked += 1
        raise SamplerUnavailableError("the engine\nis dead")


def test_a_sampler_that_stays_away_is_named_with_what_it_said_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "RETRY_SECONDS", (0, 0))
    weights, prompt = Weights("folder", 0), Prompt("{prompt}")
    policy = Policy("tied", "app", "folder", weights, prompt, {"n": 1}, 64, 1)
    sampler, dead = object.__new__(GroupSampler), DeadSampler()
    sampler.handles = {"tied": dead}
    said = r"of tied has .* in 0 s: the engine is dead$"
    with pytest.raises(SamplerUnavailableError, match=said):
        asyncio.run(sampler._ask(policy, [1], 0))
    assert dead.asked == 3


def test_a_folders_weights_satisfy_requests_for_exactly_them() -> None:
    held = Weights("folder", 4)
    assert Weights("folder", 4).satisfied_by(held)
    assert not Weights("folder", 3).satisfied_by(held)
    assert not Weights("other", 4).satisfied_by(held)
