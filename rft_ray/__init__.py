"""Rejection-sampling fine-tuning of language models on a Ray cluster.

Here are the version and the verifier as a library, whose modules are loaded at first use.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["verify_answer", "verify_answers", "verify_groups"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from rft_ray import verification

        return getattr(verification, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
