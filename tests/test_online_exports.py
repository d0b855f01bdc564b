"""Which exports of an online run stay. Run: pytest tests/test_online_exports.py"""

from pathlib import Path

import pytest

from rft_ray.online_exports import keep_best
from rft_ray.trainer import extra_exports


def export(output: Path, *steps: int) -> None:
    for step in steps:
        folder = Path(f"{output}.steps/step-{step:06d}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"weights")


def steps_of(output: Path) -> list[int]:
    return [int(folder.name[-6:]) for folder in extra_exports(output)]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({40: 0.1, 80: 0.3, 120: 0.2}, [80]),
        ({40: 0.3, 80: 0.3, 120: 0.3}, [40]),
        ({40: 0.0, 80: 0.0}, [40]),
        ({20: 0.9, 40: 0.1, 120: 0.2}, [120]),
        ({}, []),
    ],
)
def test_the_best_that_is_there_stays(
    tmp_path: Path, values: dict[int, float], kept: list[int]
) -> None:
    export(tmp_path / "checkpoint", 40, 80, 120)
    keep_best(tmp_path / "checkpoint", values)
    assert steps_of(tmp_path / "checkpoint") == kept
    folder = tmp_path / "checkpoint.steps"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{s:06d}" for s in kept]


def test_at_most_two_are_there_at_a_time_and_an_export_in_the_making_is_left(
    tmp_path: Path,
) -> None:
    output, values = tmp_path / "checkpoint", {10: 0.2, 20: 0.1, 30: 0.3, 40: 0.2}
    for step, best in zip(values, (10, 10, 30, 30), strict=True):
        export(output, step)
        assert len(steps_of(output)) <= 2
        Path(f"{output}.steps/step-000099.partial").mkdir(exist_ok=True)
        keep_best(output, {scored: values[scored] for scored in values if scored <= step})
        assert steps_of(output) == [best]
    assert Path(f"{output}.steps/step-000099.partial").is_dir()


def test_what_a_kill_left_half_removed_goes_with_the_next(tmp_path: Path) -> None:
    export(tmp_path / "checkpoint", 40)
    half = tmp_path / "checkpoint.steps/step-000020.gone"
    half.mkdir()
    keep_best(tmp_path / "checkpoint", {40: 0.5})
    assert steps_of(tmp_path / "checkpoint") == [40] and not half.exists()
    keep_best(tmp_path / "no exports", {})
