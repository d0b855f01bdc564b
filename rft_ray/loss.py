"""The RFT loss, exact however a step is split: cross-entropy with weights that are fixed up front.

The mean is over the whole optimiser step, whose counts the plan knows before anything is computed.
So each token carries its final weight, and the sum of weight x term over all rows, micro-batches
and ranks *is* the loss: nothing is averaged afterwards. Offline a term is the negative
log-likelihood; online, tokens that carry their sampler's log-probability get the clipped importance
ratio instead (RAFT++), so that several updates may be made on one batch. No KL term, no critic.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rft_ray.packing import PackedBatch

ENTROPY_TOKENS = 128
"""Tokens whose distribution over the vocabulary is held at a time for the entropy."""

MAX_LOG_RATIO = 20.0
"""Beyond any clip range, and small enough that no gradient overflows."""


@dataclass(frozen=True, slots=True)
class ClipRange:
    """How far the policy may move from the sampler within a step: ratios in [1 - low, 1 + high].

    With weights I(o) >= 0 only `high` ever acts; `low` is that of negative weights.
    """

    low: float = 0.2
    high: float = 0.28


class LossSums(NamedTuple):
    """What a micro-batch adds to the step's loss and statistics; all sums, scalars.

    Only `loss` has a gradient. `entropy` is in nats over the trained tokens (weight not 0), which
    `tokens` counts; `clipped` counts those whose ratio has left the range, and so the gradient.
    """

    loss: Tensor
    entropy: Tensor
    clipped: Tensor
    tokens: Tensor


def token_weights(
    loss_tokens: np.ndarray,
    example_weights: np.ndarray,
    kind: Literal["token_mean", "sequence_mean"],
    num_sequences: int | None = None,
    num_tokens: int | None = None,
) -> np.ndarray:
    """Weight of every loss token of each example of a step, given the examples' loss-token counts.

    token_mean: w / all loss tokens. sequence_mean: w / (examples x the example's loss tokens), the
    per-sequence mean of DeepSeekMath eq. 8-11 with w = I(o). Counts 1, 3 and w 1 ->
    [1/4, 1/4] and [1/2, 1/6]. An example of weight 0 still counts in the mean. Rollouts that are
    not among the examples, I(o) being 0, count through `num_sequences` or `num_tokens`: what the
    mean is over, examples included.
    """
    sequences, tokens = len(loss_tokens), int(loss_tokens.sum())
    if tokens == 0:
        raise ValueError("no token of the step has loss")
    if (num_sequences or sequences) < sequences or (num_tokens or tokens) < tokens:
        raise ValueError("the mean is over less than the examples")
    if kind == "token_mean":
        return example_weights / (num_tokens or tokens)
    return example_weights / ((num_sequences or sequences) * np.maximum(loss_tokens, 1))


def predicting_positions(weights: Tensor) -> Tensor:
    """Positions (of any row) whose next token has weight: the only ones that need logits.

    Never empty: a row without loss still takes part in the collectives of its backward pass.
    """
    positions = (weights[:, 1:] != 0).any(dim=0).nonzero().squeeze(1)
    return positions if len(positions) else positions.new_zeros(1)


def weighted_nll(logits: Tensor, token_ids: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
    """Sum of weight x negative log-likelihood, in at least fp32.

    `logits` is (rows, positions, vocabulary), of the given positions only; `token_ids` and
    `weights` are (rows, width), as labels: position p predicts token p + 1.
    """
    nll = _token_nll(logits, token_ids[:, positions + 1].flatten())
    # An empty row has weight 0 everywhere; its gradient is zeros rather than absent.
    return (nll * weights[:, positions + 1].flatten().to(nll.dtype)).sum()


def packed_loss(model: nn.Module, packed: PackedBatch, device: torch.device | str) -> Tensor:
    """The share of the step's loss that a micro-batch of packed rows holds, without any ratio."""
    weights = torch.from_numpy(packed.weights).to(device)
    positions = predicting_positions(weights)
    token_ids = torch.from_numpy(packed.token_ids).to(device)
    return weighted_nll(_logits(model, packed, positions), token_ids, weights, positions)


def clipped_loss(
    model: nn.Module, packed: PackedBatch, device: torch.device | str, clip: ClipRange
) -> LossSums:
    """The same with the clipped ratio on the tokens that carry log-probabilities, and statistics.

    A token's term is -min(r w, clip(r) w), r = exp(log p of the policy - log p of the sampler) and
    w its weight; at r = 1 its gradient is that of the plain loss.
    """
    weights = torch.from_numpy(packed.weights).to(device)
    positions = predicting_positions(weights)

    def labels(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)[:, positions + 1].flatten()

    logits = _logits(model, packed, positions)
    nll = _token_nll(logits, labels(packed.token_ids))
    weights = labels(packed.weights).to(nll.dtype)
    is_trained = weights != 0
    if packed.logprobs is None:
        terms, is_clipped = nll * weights, torch.zeros_like(is_trained)
    else:
        sampled = labels(packed.logprobs).to(nll.dtype)
        terms, is_clipped = clipped_terms(-nll, sampled, weights, clip)
    return LossSums(
        loss=terms.sum(),
        entropy=entropy_sum(logits, is_trained),
        clipped=(is_clipped & is_trained).sum(),
        tokens=is_trained.sum(),
    )


def clipped_terms(
    logprobs: Tensor, sampled: Tensor, weights: Tensor, clip: ClipRange
) -> tuple[Tensor, Tensor]:
    """The loss of each token, and whether the clip holds it back; all tensors of one shape.

    Where `sampled` is NaN the term is the plain -weight x log p.
    """
    is_plain = sampled.isnan()
    # The branch that `where` does not take must have a finite gradient too.
    log_ratio = logprobs - torch.where(is_plain, logprobs.detach(), sampled)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    free = ratio * weights
    held = ratio.clamp(1 - clip.low, 1 + clip.high) * weights
    terms = torch.where(is_plain, -logprobs * weights, -torch.minimum(free, held))
    return terms, (held < free).detach()


@torch.no_grad()
def entropy_sum(logits: Tensor, is_counted: Tensor) -> Tensor:
    """Sum of the entropies, in nats, of the next-token distributions where `is_counted`.

    `logits` is (rows, positions, vocabulary), `is_counted` flat (rows x positions). A few tokens
    at a time, so that the logits are never copied as a whole.
    """
    flat = logits.flatten(0, 1)
    wide = torch.promote_types(logits.dtype, torch.float32)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for chosen in is_counted.nonzero().squeeze(1).split(ENTROPY_TOKENS):
        total += torch.special.entr(flat[chosen].softmax(dim=-1, dtype=wide)).sum()
    return total


def _token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(wide.flatten(0, 1), labels, reduction="none")


def _logits(model: nn.Module, packed: PackedBatch, positions: Tensor) -> Tensor:
    def on_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(positions.device)

    # No attention mask: from position ids that restart, transformers itself builds the block-
    # diagonal one (or variable-length flash attention), sliding windows included.
    return model(
        input_ids=on_device(packed.token_ids),
        position_ids=on_device(packed.position_ids),
        use_cache=False,
        logits_to_keep=positions,
    ).logits
