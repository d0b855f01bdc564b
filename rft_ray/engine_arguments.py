"""The names of vLLM's engine arguments, so that a wrong one is found before an engine starts.

They are read from the source of the installed package: importing it takes ten seconds. Left out:
what the arguments may be, and what a cluster with another vLLM would take.
"""

import ast
import difflib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

CLASSES = ("EngineArgs", "AsyncEngineArgs")


@cache
def engine_arguments() -> frozenset[str]:
    """All names; none where vLLM is not installed, or its source is arranged otherwise."""
    spec = find_spec("vllm")  # finds it without importing it
    source = Path(spec.origin).parent / "engine" / "arg_utils.py" if spec and spec.origin else None
    if source is None or not source.is_file():
        return frozenset()
    tree = ast.parse(source.read_text(encoding="utf-8"))
    classes = [own for own in tree.body if isinstance(own, ast.ClassDef) and own.name in CLASSES]
    fields = [own.target for cls in classes for own in cls.body if isinstance(own, ast.AnnAssign)]
    return frozenset(target.id for target in fields if isinstance(target, ast.Name))


def check_engine_argument(name: str) -> str:
    """The name itself; ValueError with the nearest one where vLLM has no such argument."""
    names = engine_arguments()
    if not names or name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"vLLM has no such engine argument{hint}")
