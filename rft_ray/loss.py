"""The RFT loss, exact however a step is split: cross-entropy with weights that are fixed up front.

The mean is over the whole optimiser step, whose counts the plan knows before anything is computed.
So each token carries its final weight, and the sum of weight x negative log-likelihood over all
rows, micro-batches and ranks *is* the loss: nothing is averaged afterwards. No KL term and no
importance weights: RFT is cross-entropy on accepted rollouts.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rft_ray.packing import PackedBatch


def token_weights(
    loss_tokens: np.ndarray,
    example_weights: np.ndarray,
    kind: Literal["token_mean", "sequence_mean"],
) -> np.ndarray:
    """Weight of every loss token of each example of a step, given the examples' loss-token counts.

    token_mean: w / all loss tokens. sequence_mean: w / (examples x the example's loss tokens), the
    per-sequence mean of DeepSeekMath eq. 8-11 with w = I(o). Counts 1, 3 and w 1 ->
    [1/4, 1/4] and [1/2, 1/6]. An example of weight 0 still counts in the mean.
    """
    total = int(loss_tokens.sum())
    if total == 0:
        raise ValueError("no token of the step has loss")
    if kind == "token_mean":
        return example_weights / total
    return example_weights / (len(loss_tokens) * np.maximum(loss_tokens, 1))


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
    labels = token_ids[:, positions + 1]
    wide = logits if logits.dtype == torch.float64 else logits.float()
    nll = functional.cross_entropy(wide.flatten(0, 1), labels.flatten(), reduction="none")
    # An empty row has weight 0 everywhere; its gradient is zeros rather than absent.
    return (nll * weights[:, positions + 1].flatten().to(nll.dtype)).sum()


def packed_loss(model: nn.Module, packed: PackedBatch, device: torch.device | str) -> Tensor:
    """The share of the step's loss that a micro-batch of packed rows holds."""
    token_ids = torch.from_numpy(packed.token_ids).to(device)
    weights = torch.from_numpy(packed.weights).to(device)
    positions = predicting_positions(weights)
    # No attention mask: from position ids that restart, transformers itself builds the block-
    # diagonal one (or variable-length flash attention), sliding windows included.
    logits = model(
        input_ids=token_ids,
        position_ids=torch.from_numpy(packed.position_ids).to(device),
        use_cache=False,
        logits_to_keep=positions,
    ).logits
    return weighted_nll(logits, token_ids, weights, positions)
