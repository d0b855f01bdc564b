"""What the makers of GPUs state of them: memory, its bandwidth, and the peak of dense bfloat16.

Left out: other types of numbers, sparsity, prices (a config states them), and GPUs that are not in
the table, of which a config states what is needed.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    tflops: float
    """1e12 dense bfloat16 operations a second."""
    bandwidth_gb_s: float
    """Of its memory, in 10^9 bytes a second."""
    memory_gb: float
    """In 10^9 bytes."""


GPUS = {
    "B200": Gpu(2250, 8000, 180),
    "H200 NVL": Gpu(835, 4800, 141),
    "H200": Gpu(989, 4800, 141),
    "H100 NVL": Gpu(835, 3900, 94),
    "H100 PCIe": Gpu(756, 2000, 80),
    "H100": Gpu(989, 3350, 80),
    "A100": Gpu(312, 2039, 80),
    "A100-40GB": Gpu(312, 1555, 40),
    "A10G": Gpu(70, 600, 24),
    "A10": Gpu(125, 600, 24),
    "L40S": Gpu(362, 864, 48),
    "L40": Gpu(181, 864, 48),
    "L4": Gpu(121, 300, 24),
}
"""By what the name of a device contains; the longest that it contains is meant."""


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a device's name; None where the table does not have it.

    "NVIDIA H100 80GB HBM3" -> H100
    """
    found = [known for known in GPUS if known in name]
    return GPUS[max(found, key=len)] if found else None
