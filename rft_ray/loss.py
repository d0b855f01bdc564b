"""The RFT loss, exact however a step is split: cross-entropy with weights that are fixed up front.

The mean is over the whole optimiser step, whose counts the plan knows before anything is computed.
So each token carries its final weight, and the sum of weight x term over all rows, micro-batches
and ranks *is* the loss: nothing is averaged afterwards. Offline a term is the negative
log-likelihood; online, tokens that carry their sampler's log-probability get the clipped importance
ratio instead (RAFT++), so that several updates may be made on one batch. No KL term, no critic.
The model's last layer, where the memory goes, is `loss_head.py`'s.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from rft_ray.packing import PackedBatch

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


class Targets(NamedTuple):
    """The tokens of a micro-batch that have loss, and what it takes to have it; all of (count,).

    `positions` are those of the tokens before them, counted through the flattened rows of the piece
    that this rank computes: the only hidden states the model's last layer need see. `sampled` are
    the sampler's log-probabilities, NaN where there is none. The count may be 0: such a row still
    takes part in the collectives of its backward pass, with gradients of zero.
    """

    positions: Tensor
    token_ids: Tensor
    weights: Tensor
    sampled: Tensor
    clip: ClipRange

    @classmethod
    def of(
        cls, packed: PackedBatch, device: torch.device | str, clip: ClipRange | None = None
    ) -> Self:
        """Of a micro-batch; without a clip range no token has a ratio."""
        # The first token of a row has no weight, so that a row never trains on the one before.
        places = np.flatnonzero(packed.weights)
        own = packed.columns
        rows, columns = np.divmod(places - 1, packed.weights.shape[1])
        is_own = (own.start <= columns) & (columns < own.stop)
        positions = (rows * (own.stop - own.start) + columns - own.start)[is_own]
        places = places[is_own]
        weights = packed.weights.flat[places]
        has_ratio = clip is not None and packed.logprobs is not None
        sampled = packed.logprobs.flat[places] if has_ratio else np.full(len(places), np.nan)
        arrays = (positions, packed.token_ids.flat[places], weights, sampled)
        tensors = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
        return cls(*tensors, clip or ClipRange())

    def slice(self, start: int, stop: int) -> Self:
        """Some of them."""
        return type(self)(*(tensor[start:stop] for tensor in self[:4]), self.clip)


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


def token_terms(logprobs: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """The loss of each target, and whether the clip holds it back; all of (count,).

    A term is -min(r w, clip(r) w), r = exp(log p of the policy - log p of the sampler) and w the
    weight; at r = 1 its gradient is that of the plain -w x log p, which it is without `sampled`.
    """
    weights, sampled = (t.to(logprobs.dtype) for t in (targets.weights, targets.sampled))
    is_plain = sampled.isnan()
    # The branch that `where` does not take must have a finite gradient too.
    log_ratio = logprobs - torch.where(is_plain, logprobs.detach(), sampled)
    ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
    free = ratio * weights
    held = ratio.clamp(1 - targets.clip.low, 1 + targets.clip.high) * weights
    terms = torch.where(is_plain, -logprobs * weights, -torch.minimum(free, held))
    return terms, (held < free).detach()
