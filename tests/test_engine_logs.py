"""Which log files a failed start points to. Run: pytest tests/test_engine_logs.py"""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rft_ray.engine_logs import complaints, naming_engine_logs
from tests.conftest import BASES


def write_log(folder: Path, name: str, text: str, changed: float) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    os.utime(path, (changed, changed))
    return path


def test_the_newest_complaints_come_first_and_old_or_quiet_files_not_at_all(
    tmp_path: Path,
) -> None:
    write_log(tmp_path, "worker-a.err", "ValueError: of yesterday", 50)
    write_log(tmp_path, "worker-b.err", "Loading weights", 200)
    write_log(tmp_path, "gcs_server.out", "ERROR of somebody else", 200)
    engine = write_log(tmp_path, "worker-c.err", "(EngineCore) ERROR: no such model", 150)
    replica = write_log(tmp_path, "serve/replica_x.log", "Traceback (most recent call last)", 160)
    assert complaints(tmp_path, since=100) == [replica, engine]


def test_an_error_is_told_the_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="deploying failed") as raised:  # noqa: SIM117
        with naming_engine_logs(tmp_path):
            # the clock of files may lag behind that of processes
            path = write_log(tmp_path, "worker-c.out", "OSError: no such model", 2**33)
            raise RuntimeError("deploying failed")
    assert raised.value.__notes__ == [f"engine log: {path}"]


def test_without_a_file_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised, naming_engine_logs(tmp_path):
        raise RuntimeError("deploying failed")
    assert str(tmp_path) in raised.value.__notes__[0]


@pytest.mark.engine
@pytest.mark.faults
def test_an_engine_that_cannot_start_is_explained_by_the_file_that_the_error_names(
    ray_session: None, tmp_path: Path
) -> None:
    from rft_ray.config import SamplerConfig
    from rft_ray.deployment import deployed_samplers

    broken = shutil.copytree(BASES / "tied", tmp_path / "broken")
    save_file({"of_another_model": torch.zeros(1)}, broken / "model.safetensors")
    config = SamplerConfig(
        vllm={"dtype": "float32", "max_model_len": 64},
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )
    models = {"broken": (str(broken), config)}
    with pytest.raises(Exception, match="broken") as raised:  # noqa: SIM117
        with deployed_samplers(models, "torn", tolerance=1e-3):
            pass
    named = [note.removeprefix("engine log: ") for note in raised.value.__notes__]
    assert named and all(Path(path).is_file() for path in named)
    assert any("of_another_model" in Path(path).read_text(errors="replace") for path in named)
