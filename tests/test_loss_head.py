"""Losses without logits: the values and gradients of plain autograd, whatever the pieces.

Run: pytest tests/test_loss_head.py
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

from rft_ray import loss_head
from rft_ray.loss import ClipRange, LossSums, Targets, token_terms
from rft_ray.loss_head import chunk_size, clipped_loss, fused_sums, logits_sums
from rft_ray.packing import ExampleColumns, pack_batch
from rft_ray.types import Example
from tests.tiny_models import TINY

WIDTH, VOCABULARY = 6, 50
CLIP = ClipRange(0.2, 0.28)


def make_targets(count: int, seed: int) -> Targets:
    """Some tokens with a sampler's log-probability, some without, some of negative weight."""
    generator = torch.Generator().manual_seed(seed)
    sampled = -3 - torch.rand(count, generator=generator, dtype=torch.float64)
    sampled[torch.rand(count, generator=generator) < 0.3] = torch.nan
    ids = torch.randint(VOCABULARY, (count,), generator=generator)
    weights = torch.randn(count, generator=generator, dtype=torch.float64)
    return Targets(torch.arange(count), ids, weights, sampled, CLIP)


def brute_force(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Targets) -> LossSums:
    """The definition, one token at a time."""
    # Connected even where there is no token.
    loss, entropy, num_clipped = 0 * (hidden.sum() + weight.sum()), 0.0, 0
    for i, (state, own) in enumerate(zip(hidden, targets.token_ids, strict=True)):
        logits = weight @ state + (0 if bias is None else bias)
        value = logits[own] - logits.exp().sum().log()
        w, sampled = targets.weights[i], targets.sampled[i]
        if not sampled.isnan():
            ratio = (value - sampled).exp()
            held = ratio.clamp(1 - CLIP.low, 1 + CLIP.high)
            num_clipped += bool(held * w < ratio * w)
            loss = loss - torch.minimum(ratio * w, held * w)
        else:
            loss = loss - w * value
        p = logits.detach().softmax(-1)
        entropy -= (p * p.log()).sum().item()
    counts = map(torch.tensor, (num_clipped, len(hidden)))
    return LossSums(loss, torch.tensor(entropy, dtype=torch.float64), *counts)


@given(st.integers(0, 9), st.integers(1, 4), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_pieces_have_the_loss_and_gradients_of_the_definition(count, chunk, has_bias, seed) -> None:
    torch.manual_seed(seed)
    tensors = [torch.randn(s).double() for s in ((count, WIDTH), (VOCABULARY, WIDTH))]
    tensors += [torch.randn(VOCABULARY).double()] if has_bias else []
    hidden, weight, *bias = (tensor.requires_grad_() for tensor in tensors)
    own_bias, targets = (bias[0] if bias else None), make_targets(count, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_head, "LOGIT_BYTES", chunk * VOCABULARY * 8)
        ours = fused_sums(hidden, weight, own_bias, targets, with_entropy=True)
    expected = brute_force(hidden, weight, own_bias, targets)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=1e-11, atol=1e-13)
    # Any factor before the backward pass is a factor of the gradients.
    inputs = [hidden, weight, *bias]
    mine = torch.autograd.grad(ours.loss * 3, inputs)
    theirs = torch.autograd.grad(expected.loss * 3, inputs, allow_unused=True)
    for gradient, other in zip(mine, theirs, strict=True):
        other = torch.zeros_like(gradient) if other is None else other
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-12)


def test_both_ways_of_a_head_agree() -> None:
    hidden, weight = torch.randn(7, WIDTH).double(), torch.randn(VOCABULARY, WIDTH).double()
    targets = make_targets(7, 1)
    whole = logits_sums(hidden @ weight.t(), targets)
    pieces = fused_sums(hidden, weight, None, targets, with_entropy=True)
    for mine, theirs in zip(pieces, whole, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double())


def test_low_precision_is_widened_before_anything_is_summed() -> None:
    hidden = torch.randn(300, WIDTH).bfloat16().requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH).bfloat16().requires_grad_()
    targets = make_targets(300, 2)._replace(sampled=torch.full((300,), torch.nan))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_head, "LOGIT_BYTES", VOCABULARY * 4)
        sums = fused_sums(hidden, weight, None, targets, with_entropy=True)
    logits = nn.functional.linear(hidden, weight).detach().double()
    assert sums.loss.dtype == torch.float32
    assert sums.loss.item() == pytest.approx(logits_sums(logits, targets).loss.item(), rel=1e-4)
    mine = torch.autograd.grad(sums.loss, [hidden, weight])
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact = torch.autograd.grad(fused_sums(*wide, None, targets, False).loss, wide)
    for gradient, theirs in zip(mine, exact, strict=True):
        assert gradient.dtype == torch.bfloat16
        error = (gradient.double() - theirs).norm() / theirs.norm()
        assert error < 0.01


def test_a_frozen_head_makes_no_gradient_of_its_own() -> None:
    hidden = torch.randn(5, WIDTH, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH)
    fused_sums(hidden, weight, None, make_targets(5, 3), with_entropy=False).loss.backward()
    assert weight.grad is None and hidden.grad.any()


def test_pieces_are_bounded_by_the_size_of_their_logits() -> None:
    weight = torch.empty(128_000, 1, device="meta")
    assert chunk_size(weight) == loss_head.LOGIT_BYTES // (128_000 * 4)
    assert chunk_size(torch.empty(10**9, 1, device="meta", dtype=torch.bfloat16)) == 1


SHAPE = {**TINY, "pad_token_id": 0}


def changed_logits(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "soft cap":
        config = Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.5)
        return Gemma2ForCausalLM(config).double().eval()
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)).double().eval()


@pytest.mark.parametrize("family", ["soft cap", "scale"])
def test_a_model_that_changes_its_logits_is_learned_as_it_is(family: str) -> None:
    model, rng = changed_logits(family), random.Random(0)
    ids = [[rng.randrange(64) for _ in range(9)] for _ in range(3)]
    examples = [Example(own, [0] * 4 + [1] * 5) for own in ids]
    packed = pack_batch([[0, 1], [2]], ExampleColumns.of(examples), dict.fromkeys(range(3), 0.1))
    logits = torch.stack([model(input_ids=torch.tensor([own])).logits[0, 3:-1] for own in ids])
    picked = logits.log_softmax(-1).gather(2, torch.tensor(ids)[:, 4:, None])
    expected = -0.1 * picked.sum()
    # The first call finds out, the second knows.
    for _ in range(2):
        loss = clipped_loss(model, packed, "cpu", CLIP).loss
        torch.testing.assert_close(loss, expected)
        pairs = zip(
            torch.autograd.grad(loss, list(model.parameters())),
            torch.autograd.grad(expected, list(model.parameters()), retain_graph=True),
            strict=True,
        )
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs)


def test_terms_are_of_the_tokens_alone() -> None:
    targets = make_targets(9, 4)
    logprobs = -4 * torch.rand(9, dtype=torch.float64)
    whole, _ = token_terms(logprobs, targets)
    pieces = [token_terms(logprobs[i : i + 2], targets.slice(i, i + 2))[0] for i in range(0, 9, 2)]
    torch.testing.assert_close(torch.cat(pieces), whole)
