"""The loss against a brute force in float64, and packed samples that must not see each other."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from rft_ray.config import RecipeConfig
from rft_ray.loss import ClipRange, LossSums, Targets, token_terms, token_weights
from rft_ray.loss_head import clipped_loss, packed_loss
from rft_ray.packing import ExampleColumns, pack_batch, plan_step, plan_steps
from rft_ray.trainer import planned_batches, step_batch
from rft_ray.types import Example
from tests.tiny_models import TINY, tiny_llama

KINDS = ("token_mean", "sequence_mean")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_llama(initializer_range=0.3)).double().eval()


def make_examples(count: int, seed: int, longest: int = 20) -> list[Example]:
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        length = rng.randint(3, longest)
        prompt = rng.randint(1, length - 1)
        ids = [rng.randrange(64) for _ in range(length)]
        weight = rng.choice([0.0, 1.0, 1.0, 0.5])
        examples.append(Example(ids, [0] * prompt + [1] * (length - prompt), weight))
    return examples


def brute_force_loss(model, examples: list[Example], kind: str) -> torch.Tensor:
    """The definition, one example at a time, without padding, masks or packing."""
    sums = []
    for example in examples:
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0].double()
        terms = [
            -logits[t - 1].log_softmax(-1)[example.input_ids[t]]
            for t in range(1, len(example.input_ids))
            if example.loss_mask[t]
        ]
        sums.append((example.weight * torch.stack(terms).sum(), len(terms)))
    if kind == "token_mean":
        return sum(s for s, _ in sums) / sum(n for _, n in sums)
    return sum(s / n for s, n in sums) / len(sums)


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "row_tokens", "rows"), [(1, 20, 1), (1, 64, 2), (3, 40, 2)])
def test_loss_and_gradient_do_not_depend_on_the_split(model, kind, ranks, row_tokens, rows) -> None:
    examples = make_examples(11, seed=1)
    columns = ExampleColumns.of(examples)
    recipe = RecipeConfig(batch_size=11, steps=1, loss=kind)
    plan = plan_steps(columns.lengths, recipe, ranks, row_tokens, rows)
    parts = [
        packed_loss(model, packed, torch.device("cpu"))
        for rank in range(ranks)
        for batch in planned_batches(plan, columns, rank, first_step=1)
        for packed in batch.micro_batches
    ]
    loss, expected = torch.stack(parts).sum(), brute_force_loss(model, examples, kind)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "sliding window"])
def test_a_sample_does_not_see_its_neighbours(model, family) -> None:
    if family == "sliding window":
        config = MistralConfig(**TINY, initializer_range=0.3, sliding_window=4)
        model = MistralForCausalLM(config).double().eval()
    examples = make_examples(3, seed=2)
    changed = Example([(i + 7) % 64 for i in examples[1].input_ids], examples[1].loss_mask)

    def loss(middle: Example, rows: list[list[int]]) -> float:
        columns = ExampleColumns.of([examples[0], middle, examples[2]])
        batch = pack_batch(rows, columns, {0: 1.0, 1: 0.0, 2: 1.0})
        return packed_loss(model, batch, torch.device("cpu")).item()

    together = loss(examples[1], [[0, 1, 2]])
    assert together == loss(changed, [[0, 1, 2]])
    alone = loss(examples[1], [[0]]) + loss(examples[1], [[2]])
    assert together == pytest.approx(alone, rel=1e-12)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0.0, 0.5, 1.0])), min_size=1),
    st.sampled_from(KINDS),
)
@settings(deadline=None)
def test_weights_sum_to_one_where_every_example_counts(sizes, kind) -> None:
    counts = np.array([count for count, _ in sizes])
    if counts.sum() == 0:
        with pytest.raises(ValueError, match="no token"):
            token_weights(counts, np.ones(len(counts)), kind)
        return
    weights = token_weights(counts, np.ones(len(counts)), kind)
    share = 1 if kind == "token_mean" else (counts > 0).mean()
    assert (weights * counts).sum() == pytest.approx(share)
    importance = np.array([weight for _, weight in sizes])
    assert token_weights(counts, importance, kind) == pytest.approx(weights * importance)


def test_documented_weights() -> None:
    counts, ones = np.array([1, 3]), np.ones(2)
    assert token_weights(counts, ones, "token_mean").tolist() == [1 / 4, 1 / 4]
    assert token_weights(counts, ones, "sequence_mean") == pytest.approx([1 / 2, 1 / 6])


def test_a_row_without_loss_gives_zero_with_a_zero_gradient(model) -> None:
    columns = ExampleColumns.of([Example([1, 2, 3], [0, 1, 1])])
    for packed in (pack_batch([[]], columns, {}), pack_batch([[0]], columns, {0: 0.0})):
        loss = packed_loss(model, packed, "cpu")
        assert loss.item() == 0
        assert not any(gradient.any() for gradient in gradients(model, loss))


BASES = Path(__file__).parents[1] / "configs" / "quickstart_base"
CLIP = ClipRange(low=0.2, high=0.28)
NUM_SEQUENCES, NUM_TOKENS = 20, 400


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(BASES / request.param, dtype=torch.float64)
    return model.eval()


@torch.no_grad()
def true_logprobs(model, example: Example) -> torch.Tensor:
    ids = torch.tensor(example.input_ids)
    logprobs = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    return torch.cat([torch.zeros(1), logprobs.gather(1, ids[1:, None]).squeeze(1)])


def sampled_by_another(model, examples: list[Example], seed: int) -> list[Example]:
    """Log-probabilities around the model's own, on all examples but every third."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for number, example in enumerate(examples):
        logprobs = None
        if number % 3:
            own = true_logprobs(model, example)
            logprobs = (own + 0.3 * torch.randn(own.shape, generator=generator)).tolist()
        result.append(replace(example, logprobs=logprobs))
    return result


def brute_force_sums(model, examples: list[Example], kind: str) -> LossSums:
    """The definition, token by token; the mean is over more rollouts than the examples."""
    loss, entropy, num_clipped, num_tokens = torch.zeros(()).double(), 0.0, 0, 0
    for example in examples:
        logprobs = model(input_ids=torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        trained = [t for t in range(1, len(example.input_ids)) if example.loss_mask[t]]
        divisor = NUM_TOKENS if kind == "token_mean" else NUM_SEQUENCES * len(trained)
        for t in trained:
            if example.weight == 0:
                continue
            value = logprobs[t - 1, example.input_ids[t]]
            if example.logprobs is not None:
                ratio = (value - example.logprobs[t]).exp()
                value = min(ratio, ratio.clamp(1 - CLIP.low, 1 + CLIP.high))
                num_clipped += ratio.item() > 1 + CLIP.high
            loss = loss - example.weight * value / divisor
            row = logprobs[t - 1].detach()
            entropy -= (row.exp() * row).sum().item()
            num_tokens += 1
    counts = map(torch.tensor, (num_clipped, num_tokens))
    return LossSums(loss, torch.tensor(entropy, dtype=torch.float64), *counts)


def packed_sums(model, examples, kind, ranks, row_tokens, rows) -> LossSums:
    columns, ids = ExampleColumns.of(examples), list(range(len(examples)))
    step = plan_step(ids, columns.lengths, ranks, row_tokens, rows)
    weights = token_weights(columns.loss_tokens, columns.weights, kind, NUM_SEQUENCES, NUM_TOKENS)
    parts = [
        clipped_loss(model, packed, "cpu", CLIP)
        for rank in range(ranks)
        for packed in step_batch(1, step, columns, weights, rank).micro_batches
    ]
    return LossSums(*(torch.stack(part).sum() for part in zip(*parts, strict=True)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("ranks", "row_tokens", "rows"), [(1, 20, 1), (1, 64, 2), (3, 40, 2)])
def test_the_clipped_loss_is_the_definition_whatever_the_split(
    base, kind, ranks, row_tokens, rows
) -> None:
    examples = sampled_by_another(base, make_examples(11, seed=3), seed=4)
    ours = packed_sums(base, examples, kind, ranks, row_tokens, rows)
    expected = brute_force_sums(base, examples, kind)
    assert 0 < expected.clipped < expected.tokens
    assert (ours.clipped, ours.tokens) == (expected.clipped, expected.tokens)
    torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.entropy, expected.entropy, rtol=1e-10, atol=0)
    pairs = zip(gradients(base, ours.loss), gradients(base, expected.loss), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_at_ratio_one_the_gradient_is_the_plain_losss(base) -> None:
    plain = make_examples(8, seed=5)
    own = [replace(e, logprobs=true_logprobs(base, e).tolist()) for e in plain]
    ours, expected = (packed_sums(base, es, "sequence_mean", 2, 40, 1) for es in (own, plain))
    for mine, theirs in zip(
        gradients(base, ours.loss), gradients(base, expected.loss), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert ours.clipped == 0
    # The value is the expectation of nothing: minus the sum of the weights.
    columns = ExampleColumns.of(plain)
    weights = token_weights(columns.loss_tokens, columns.weights, "sequence_mean", NUM_SEQUENCES)
    assert -ours.loss.item() == pytest.approx((weights * columns.loss_tokens).sum())


def test_without_log_probabilities_the_loss_is_bit_for_bit_the_plain_one() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama(initializer_range=0.3)).eval()
    columns = ExampleColumns.of(make_examples(5, seed=6))
    packed = pack_batch([[0, 1, 2], [3, 4]], columns, dict.fromkeys(range(5), 0.1))
    assert packed.logprobs is None
    plain, sums = packed_loss(model, packed, "cpu"), clipped_loss(model, packed, "cpu", CLIP)
    assert plain.item() == sums.loss.item()
    for mine, theirs in zip(gradients(model, sums.loss), gradients(model, plain), strict=True):
        assert torch.equal(mine, theirs)


def make_targets(sampled: list[float], weights: list[float], clip: ClipRange) -> Targets:
    count = len(sampled)
    ids = torch.zeros(count, dtype=torch.int64)
    return Targets(torch.arange(count), ids, torch.tensor(weights), torch.tensor(sampled), clip)


@given(
    st.floats(-200, 0), st.floats(-200, 0), st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
    st.sampled_from([ClipRange(), ClipRange(0.0, 0.0), ClipRange(0.9, 4.0)]),
)  # fmt: skip
@settings(deadline=None)
def test_no_ratio_breaks_the_gradient(ours, theirs, weight, clip) -> None:
    logprob = torch.tensor([ours], requires_grad=True)
    terms, is_clipped = token_terms(logprob, make_targets([theirs], [weight], clip))
    terms.sum().backward()
    assert math.isfinite(terms.item()) and math.isfinite(logprob.grad.item())
    if is_clipped.item():
        assert logprob.grad.item() == 0
    if weight > 0:
        # An accepted token is never made less likely, and its gain is bounded.
        assert logprob.grad.item() <= 0
        assert -terms.item() <= weight * (1 + clip.high) * (1 + 1e-6)


def test_the_low_bound_holds_negative_weights() -> None:
    ratios = torch.tensor([0.5, 0.9, 1.1, 2.0])
    for sign, expected in ((1.0, [False] * 3 + [True]), (-1.0, [True] + [False] * 3)):
        terms, is_clipped = token_terms(ratios.log(), make_targets([0.0] * 4, [sign] * 4, CLIP))
        assert is_clipped.tolist() == expected
        bounded = ratios.clamp(max=1.28) if sign > 0 else ratios.clamp(min=0.8)
        torch.testing.assert_close(terms, -sign * bounded)


def test_rejected_rollouts_count_in_the_mean() -> None:
    counts, ones = np.array([1, 3]), np.ones(2)
    assert token_weights(counts, ones, "sequence_mean", num_sequences=8) == pytest.approx(
        [1 / 8, 1 / 24]
    )
    assert token_weights(counts, ones, "token_mean", num_tokens=10).tolist() == [0.1, 0.1]
    for fewer in ({"num_sequences": 1}, {"num_tokens": 3}):
        with pytest.raises(ValueError, match="less than the examples"):
            token_weights(counts, ones, "sequence_mean", **fewer)


def test_prompt_and_padding_never_count_and_eos_does(model) -> None:
    """Only what the mask marks, the last token of a row among it, is worth anything."""
    example = Example([5, 6, 7, 8, 2], [0, 0, 0, 1, 1])
    columns = ExampleColumns.of([example])
    logprobs = true_logprobs(model, example)
    loss = packed_loss(model, pack_batch([[0]], columns, {0: 1.0}), "cpu")
    assert loss.item() == pytest.approx(-(logprobs[3] + logprobs[4]).item(), rel=1e-12)
    without_eos = ExampleColumns.of([replace(example, loss_mask=[0, 0, 0, 1, 0])])
    less = packed_loss(model, pack_batch([[0]], without_eos, {0: 1.0}), "cpu")
    assert (loss - less).item() == pytest.approx(-logprobs[4].item(), rel=1e-9)


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
@settings(deadline=None, max_examples=15)
def test_any_packing_has_the_loss_of_its_parts(seed, count, ranks, rows) -> None:
    """Row lengths, ranks and micro-batches at random; sources of every weight."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_llama(initializer_range=0.3)).double().eval()
    examples, rng = make_examples(count, seed), random.Random(seed)
    kind, row_tokens = rng.choice(KINDS), rng.randint(20, 90)
    loss = packed_sums(model, examples, kind, ranks, row_tokens, rows).loss
    expected = brute_force_sums(model, examples, kind).loss
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=1e-14)
