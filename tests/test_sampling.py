"""Requests and their seeds, without engines. Run: pytest tests/test_sampling.py"""

import numpy as np

from rft_ray.sampling import SampledTokens, request_seed, to_rollouts


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
