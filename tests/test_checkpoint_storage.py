"""Where the checkpoints of a training go.

Run: pytest tests/test_checkpoint_storage.py
"""

from pathlib import Path

import pytest

from rft_ray.checkpoint_storage import open_storage, remove_storage, storage_path
from rft_ray.config import TrainerConfig
from rft_ray.errors import InputError


@pytest.mark.parametrize(
    ("storage", "path"),
    [
        (None, "/runs/a/checkpoint.train"),
        ("/mnt/shared/", "/mnt/shared/runs/a/checkpoint.train"),
        ("s3://bucket", "s3://bucket/runs/a/checkpoint.train"),
        ("s3://b/c?region=x", "s3://b/c/runs/a/checkpoint.train?region=x"),
        ("fsspec+memory://m", "fsspec+memory://m/runs/a/checkpoint.train"),
    ],
)
def test_every_output_has_a_place_of_its_own(storage: str | None, path: str) -> None:
    own = storage_path("/runs/a/checkpoint", TrainerConfig(checkpoint_storage=storage))
    assert own == path
    if storage is None or not storage.startswith("s3:"):  # whose region the network tells
        assert open_storage(own)[1].endswith("/runs/a/checkpoint.train")


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nope://x", "Unrecognized filesystem type"),
        ("fsspec+nope://x", "Protocol not known: nope"),
        ("here/below", "URI has empty scheme"),
    ],
)
def test_a_storage_nobody_knows_is_one_clear_line(storage: str, message: str) -> None:
    path = storage_path("/runs/a", TrainerConfig(checkpoint_storage=storage))
    with pytest.raises(InputError, match=f"trainer.checkpoint_storage: .*{message}") as caught:
        open_storage(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "file://", "fsspec+file://"])
def test_what_is_removed_is_gone_and_may_be_gone_before(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "a/step").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    for _ in range(2):
        remove_storage(f"{scheme}{tmp_path}/a")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
