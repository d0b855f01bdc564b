"""The shape of the models that tests train and compare: Llama, as small as its parts allow.

Left out: models of other families, and the bases that the quickstart ships with.
"""

from typing import Any

from transformers import LlamaConfig

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def tiny_llama(**fields: Any) -> LlamaConfig:
    """The config, with these fields besides or instead."""
    return LlamaConfig(**{**TINY, **fields})
