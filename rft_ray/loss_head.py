"""The model's last layer and the loss behind it, computed together: no logits are ever held.

Hidden states times vocabulary are the largest tensors of a step. Here the layer's forward pass is
replaced for the length of a call: it picks the hidden states that have a target, goes through them
a few at a time, and turns each piece of logits into losses, entropies and gradients at once, in one
buffer. It replaces the layer's `forward`, not the layer, so that the hooks of ZeRO-3 gather its
weight. Where a model changes its logits afterwards (soft caps, scales) they are computed whole, of
the targets only. Left out: sharding the vocabulary over ranks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rft_ray.loss import ClipRange, LossSums, Targets, token_terms
from rft_ray.packing import PackedBatch
from rft_ray.training_config import LOGIT_BYTES


def packed_loss(model: nn.Module, packed: PackedBatch, device: torch.device | str) -> Tensor:
    """The share of the step's loss that a micro-batch of packed rows holds, without any ratio."""
    return _loss_sums(model, packed, Targets.of(packed, device), with_entropy=False).loss


def clipped_loss(
    model: nn.Module, packed: PackedBatch, device: torch.device | str, clip: ClipRange
) -> LossSums:
    """The same with the clipped ratio on tokens that carry log-probabilities, and statistics."""
    return _loss_sums(model, packed, Targets.of(packed, device, clip), with_entropy=True)


def _loss_sums(
    model: nn.Module, packed: PackedBatch, targets: Targets, with_entropy: bool
) -> LossSums:
    head = getattr(model, "module", model).get_output_embeddings()
    if type(head) is nn.Linear and not getattr(head, "logits_are_changed", False):
        sums: list[LossSums] = []

        def fused(hidden: Tensor) -> Tensor:
            chosen = hidden.flatten(0, 1)[targets.positions]
            sums.append(fused_sums(chosen, head.weight, head.bias, targets, with_entropy))
            return sums[0].loss

        with _forward(head, fused):
            loss = _run(model, packed, targets)
        if loss.data_ptr() == sums[0].loss.data_ptr():
            # The model's output, not the head's: it has the hooks of the engine's backward pass.
            return sums[0]._replace(loss=loss)
        head.logits_are_changed = True
    plain = head.forward
    with _forward(head, lambda hidden: plain(hidden.flatten(0, 1)[targets.positions][None])):
        logits = _run(model, packed, targets)
    return logits_sums(logits[0], targets)


@contextmanager
def _forward(head: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    head.forward = torch.compiler.disable(forward)
    try:
        yield
    finally:
        del head.forward


def _run(model: nn.Module, packed: PackedBatch, targets: Targets) -> Tensor:
    """What the model returns in the place of logits."""

    def on_device(array: np.ndarray) -> Tensor:
        own = np.ascontiguousarray(array[:, packed.columns])
        return torch.from_numpy(own).to(targets.positions.device)

    # No attention mask: from position ids that restart, transformers itself builds the block-
    # diagonal one (or variable-length flash attention), sliding windows included.
    return model(
        input_ids=on_device(packed.token_ids),
        position_ids=on_device(packed.position_ids),
        use_cache=False,
    ).logits


def logits_sums(logits: Tensor, targets: Targets) -> LossSums:
    """The sums from logits of (count, vocabulary), through autograd, in at least fp32."""
    logprobs = logits.to(_wide(logits)).log_softmax(dim=-1)
    picked = logprobs.gather(1, targets.token_ids[:, None]).squeeze(1)
    terms, is_clipped = token_terms(picked, targets)
    entropy = -torch.linalg.vecdot(logprobs.detach().exp(), logprobs.detach()).sum()
    count = torch.tensor(len(terms), device=terms.device)
    return LossSums(terms.sum(), entropy, is_clipped.sum(), count)


def fused_sums(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Targets, with_entropy: bool
) -> LossSums:
    """The same from hidden states of (count, width) and the layer's (vocabulary, width) weight.

    `entropy` is 0 where it is not asked for.
    """
    loss, entropy, clipped = _FusedLoss.apply(hidden, weight, bias, targets, with_entropy)
    return LossSums(loss, entropy, clipped, torch.tensor(len(hidden), device=hidden.device))


class _FusedLoss(torch.autograd.Function):
    """The gradients are made in the forward pass, while a piece of logits is there."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Targets,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(hidden)
        loss, entropy, clipped = (hidden.new_zeros((), dtype=wide) for _ in range(3))
        grads = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        size = chunk_size(weight)
        for start in range(0, len(hidden), size):
            piece = slice(start, start + size)
            own = targets.slice(piece.start, piece.stop)
            # One kernel has each row in its cache: whole passes over the logits are what costs.
            logits = nn.functional.linear(hidden[piece], weight, bias).to(wide)
            logprobs = logits.log_softmax(dim=-1)
            del logits
            terms, is_clipped, slopes = _terms_and_slopes(logprobs, own)
            loss += terms.sum()
            clipped += is_clipped.sum()
            if with_entropy:
                entropy -= torch.linalg.vecdot(logprobs.exp(), logprobs).sum()
            if any(ctx.needs_input_grad):
                errors = logprobs.exp_()
                errors[torch.arange(len(errors), device=errors.device), own.token_ids] -= 1.0
                grads.add(piece, hidden, weight, errors, -slopes)
                del errors
            # Else it would be there still beside the next piece.
            del logprobs
        ctx.save_for_backward(*grads.tensors)
        ctx.mark_non_differentiable(entropy, clipped)
        return loss, entropy, clipped

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        # Exact for 1, which is what a sum of weighted terms is usually multiplied with.
        grads = (None if g is None else g.mul_(slope.to(g.dtype)) for g in ctx.saved_tensors)
        return (*grads, None, None)


class _Gradients:
    """Of a sum of losses with respect to hidden states, weight and bias; None where not needed."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]
    ) -> None:
        wide = _wide(hidden)
        self._hidden = torch.zeros_like(hidden) if needed[0] else None
        # A sum over many pieces: in bf16 it would lose the small ones.
        self._weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        self._bias = torch.zeros_like(bias, dtype=wide) if needed[2] else None
        self._types = (hidden.dtype, weight.dtype)

    def add(
        self, piece: slice, hidden: Tensor, weight: Tensor, errors: Tensor, scales: Tensor
    ) -> None:
        """Add a piece's share, given p - one-hot of its logits and what each row is multiplied
        with, which is done where rows are short: with the hidden states."""
        if self._bias is not None:
            self._bias += errors.t() @ scales
        narrow, scale = errors.to(hidden.dtype), scales[:, None].to(hidden.dtype)
        if self._hidden is not None:
            torch.mm(narrow, weight, out=self._hidden[piece]).mul_(scale)
        if self._weight is not None and narrow.dtype == self._weight.dtype:
            self._weight.addmm_(narrow.t(), hidden[piece] * scale)
        elif self._weight is not None:
            self._weight += narrow.t() @ (hidden[piece] * scale)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """In the types of what they are the gradients of."""
        narrow = self._types[1]
        weight, bias = (g if g is None else g.to(narrow) for g in (self._weight, self._bias))
        return self._hidden, weight, bias


@torch.enable_grad()
def _terms_and_slopes(logprobs: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Terms, whether they are clipped, and d term / d log p; `logprobs` is (count, vocabulary)."""
    picked = logprobs.detach().gather(1, targets.token_ids[:, None]).squeeze(1).requires_grad_()
    terms, is_clipped = token_terms(picked, targets)
    (slopes,) = torch.autograd.grad(terms.sum(), picked)
    return terms.detach(), is_clipped, slopes


def chunk_size(weight: Tensor) -> int:
    """How many hidden states go through a (vocabulary, width) weight at a time."""
    limit = LOGIT_BYTES * (4 if weight.is_cuda else 1)
    return max(1, limit // (weight.shape[0] * torch.finfo(_wide(weight)).bits // 8))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
