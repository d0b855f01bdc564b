"""Importing DeepSpeed on a training rank, without what it loads there that nobody here uses.

Its autotuner imports mlflow wherever that is installed. Its Muon optimiser, which every ZeRO engine
imports only to see that the optimiser is another one, is compiled while it is imported, and so all
of torch's compiler is loaded. Together they took a quarter of a rank's start. Left out: what the
ranks import besides.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any


def import_deepspeed() -> None:
    """Import DeepSpeed; a second call in the same process changes nothing."""
    with hidden("mlflow"):
        import deepspeed
    from deepspeed.runtime import compiler

    at_once, compiler.compile = compiler.compile, lambda: compiled_when_called
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = at_once


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """In the block an import of the module fails, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def compiled_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile`, but not before the first call."""

    @cache
    def compiled() -> Callable[..., Any]:
        import torch

        return torch.compile(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call
