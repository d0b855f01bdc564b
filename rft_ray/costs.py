"""Floating-point operations of training and sampling, by the formulas of Yuan et al. 2023, app. E.

They follow Kaplan et al. 2020: N counts a plain decoder's layers, 12 * layers * width^2, without
embeddings. For Llamas this is within 6 % of the real number (7 % for Llama-2-70B, whose layers are
not plain). Left out: what of these operations a GPU achieves, hence hours and money; padding;
recomputed activations, which add a third to training.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What the formulas know of a model: its layers and the width of its residual stream."""

    layers: int
    width: int

    @property
    def parameters(self) -> int:
        """N: attention's four matrices and a feed-forward layer of four times the width."""
        return 12 * self.layers * self.width**2


def training_flops(shape: DecoderShape, tokens_per_sample: float, samples: float) -> float:
    """6 N for each token, forward and backward; samples are counted once an epoch."""
    return 6.0 * shape.parameters * tokens_per_sample * samples


def token_flops(shape: DecoderShape, context: float, is_cached: bool = False) -> float:
    """A token's forward pass: 2 N, and the attention to `context` tokens.

    With `is_cached` the keys' and values' matrices are left out, 4 layers * width^2 operations,
    which makes it 1.66 N: the paper's count, though the new token's own have to be computed.
    """
    saved = 4.0 * shape.layers * shape.width**2 if is_cached else 0.0
    return 2.0 * shape.parameters - saved + 2.0 * shape.layers * context * shape.width


def sampling_flops(
    shape: DecoderShape, prompt_tokens: int, response_tokens: int, samples: float
) -> float:
    """Every sample reads its prompt, without sharing it, and then decodes with a cache."""
    prompt = prompt_tokens * token_flops(shape, prompt_tokens)
    positions = range(prompt_tokens, prompt_tokens + response_tokens)
    response = sum(token_flops(shape, position, is_cached=True) for position in positions)
    return samples * (prompt + response)
