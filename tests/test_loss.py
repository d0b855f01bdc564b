"""The loss against a brute force in float64, and packed samples that must not see each other."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rft_ray.config import RecipeConfig
from rft_ray.loss import packed_loss, predicting_positions, token_weights, weighted_nll
from rft_ray.packing import ExampleColumns, pack_batch, plan_steps
from rft_ray.trainer import planned_batches
from rft_ray.types import Example

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
KINDS = ("token_mean", "sequence_mean")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).double().eval()


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
        config = MistralConfig(**SHAPE, sliding_window=4)
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


def test_a_row_without_loss_gives_zero_with_a_zero_gradient() -> None:
    weights = torch.zeros(1, 8, dtype=torch.float64)
    positions = predicting_positions(weights)
    assert positions.tolist() == [0]
    logits = torch.randn(1, 1, 64, requires_grad=True)
    loss = weighted_nll(logits, torch.zeros(1, 8, dtype=torch.int64), weights, positions)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_low_precision_logits_are_widened_first() -> None:
    logits = torch.randn(1, 5, 64).bfloat16()
    ids, weights = torch.randint(64, (1, 6)), torch.full((1, 6), 0.2, dtype=torch.float64)
    positions = torch.arange(5)
    loss = weighted_nll(logits, ids, weights, positions)
    exact = weighted_nll(logits.double(), ids, weights, positions)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
