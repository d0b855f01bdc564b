"""A rank's DeepSpeed comes without mlflow and torch's compiler, and its Muon is still compiled.

Run: pytest tests/test_deepspeed_import.py
"""

import json
import subprocess
import sys

import pytest

IMPORT = """
import json, sys
from rft_ray.deepspeed_import import import_deepspeed
import_deepspeed()
loaded = [name for name in ("mlflow", "torch._inductor.lowering") if name in sys.modules]
import mlflow  # can be imported still
import torch
from deepspeed.runtime.zero.muon.original_muon import zeropower_via_newtonschulz5 as orthogonal
with torch.compiler.set_stance("force_eager"):
    singular = torch.linalg.svdvals(orthogonal(torch.randn(8, 8), steps=5).float())
compiled = "torch._inductor.lowering" in sys.modules
print(json.dumps([loaded, compiled, singular.max().item()]))
"""


@pytest.mark.engine
@pytest.mark.local
def test_what_nobody_uses_is_not_loaded_and_works_when_called() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env={"DS_ACCELERATOR": "cpu", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, compiled, largest = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    assert compiled and 0.5 < largest < 1.5
