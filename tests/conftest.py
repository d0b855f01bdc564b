"""Fixtures shared by tests: a real Ray session, in it a pair of real samplers; a small disk.

The samplers serve the two tiny Llama models that ship with the quickstart, one with tied and one
with untied embeddings; engines start once for all tests that use them.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

BASES = Path(__file__).parents[1] / "configs" / "quickstart_base"
RUN_ID = "tests"

# On a machine with other things to do an example may take any time.
settings.register_profile("any time", deadline=None)
settings.load_profile("any time")

# A shell starts what it puts into the background with interrupts ignored; the tests send some.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of the size that is the parameter; skipped where none can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="session")
def process_group() -> Iterator[None]:
    """A process group of this process alone, once: DeepSpeed keeps the first it was built on."""
    import torch

    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def one_rank(process_group: None) -> Iterator[None]:
    """This process is a DeepSpeed rank for one module; what other modules start is none."""
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(place, DS_ACCELERATOR="cpu")
    yield
    for name in place:
        del os.environ[name]


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray cluster with more logical CPUs than cores, so that placements never wait."""
    from rft_ray.ray_session import start_ray, stop_ray

    start_ray()
    yield
    stop_ray()


@pytest.fixture(scope="session")
def samplers(ray_session: None) -> Iterator[dict[str, object]]:
    """Serve handles of two running samplers, by name of the base: `tied`, `untied`."""
    from rft_ray.config import SamplerConfig
    from rft_ray.deployment import deployed_samplers

    config = SamplerConfig(
        vllm={"dtype": "float32", "max_model_len": 192, "max_num_seqs": 64},
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    models = {name: (str(BASES / name), config) for name in ("tied", "untied")}
    with deployed_samplers(models, RUN_ID, tolerance=1e-3) as handles:
        yield handles


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Writes a checkpoint of a base with perturbed weights and the log-probabilities to match.

    The probe is computed by transformers in float32: what a sampler has to agree with.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def write(base: str, seed: int) -> Path:
        folder = tmp_path_factory.mktemp(f"{base}-{seed}-")
        model = AutoModelForCausalLM.from_pretrained(BASES / base, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.add_(0.3 * weight.std().nan_to_num() * noise)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(BASES / base).save_pretrained(folder)
        ids = [
            torch.randint(3, model.config.vocab_size, (length,), generator=generator).tolist()
            for length in (2, 17, 64)
        ]
        probe = {"token_ids": ids, "logprobs": [hf_logprobs(model, own) for own in ids], "step": 1}
        (folder / "probe.json").write_text(json.dumps(probe))
        return folder

    def hf_logprobs(model: torch.nn.Module, ids: list[int]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        own = torch.tensor(ids[1:])
        return logits.log_softmax(-1)[torch.arange(len(own)), own].tolist()

    return write
