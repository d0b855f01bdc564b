"""Shares of a device's peak. Run: pytest tests/test_utilisation.py"""

from pathlib import Path

import pytest

from rft_ray.config import TrainerConfig
from rft_ray.costs import DecoderShape
from rft_ray.utilisation import Utilisation, device_peak
from tests.conftest import BASES


def test_a_step_at_the_peak_has_a_share_of_one() -> None:
    shape = DecoderShape(layers=32, width=4096)
    use = Utilisation(shape, peak=8 * 989e12)
    tokens, at_peak = 100_000, 6 * shape.parameters * 100_000 / (8 * 989e12)
    assert use.share(tokens, at_peak) == pytest.approx(1)
    assert use.share(tokens, 2 * at_peak) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10G", 70), ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362), ("NVIDIA L4", 121), ("Tesla T4", None),
    ],
)  # fmt: skip
def test_a_device_is_known_by_the_longest_name_in_its_own(name: str, tflops: int | None) -> None:
    assert device_peak(name, "bfloat16") == (tflops and tflops * 1e12)
    assert device_peak(name, "float32") is None


def test_nothing_is_said_of_cpus_and_of_models_whose_shape_is_not_plain(tmp_path: Path) -> None:
    on_cpu = Utilisation.of(str(BASES / "tied"), TrainerConfig())
    assert on_cpu.shape.layers > 0 and on_cpu.share(1000, 1.0) is None
    (tmp_path / "config.json").write_text('{"text_config": {"num_hidden_layers": 3}}')
    unknown = Utilisation.of(str(tmp_path), TrainerConfig(gpus_per_worker=1))
    assert unknown.share(1000, 1.0) is None


def test_a_step_of_no_time_has_no_share() -> None:
    assert Utilisation(DecoderShape(2, 8), 1e12).share(10, 0.0) is None
