"""What the node of the tests' Ray session exports for Prometheus, and waiting for it."""

import time
from urllib.request import urlopen

# (name of a metric, a tag it has or "", value)
Series = tuple[str, str, float]


def wait_for_series(wanted: set[Series], exactly: bool = True, limit_s: float = 60) -> None:
    """Return when all are exported: with these values, or with at least these."""
    deadline = time.monotonic() + limit_s
    while missing := [series for series in wanted if not _has(*series, exactly)]:
        assert time.monotonic() < deadline, missing
        time.sleep(1)


def _has(name: str, tag: str, value: float, exactly: bool) -> bool:
    own = [line for line in _lines() if line.startswith(f"{name}{{") and tag in line]
    values = [float(line.rsplit(" ", 1)[1]) for line in own]
    return value in values if exactly else any(found >= value for found in values)


def _lines() -> list[str]:
    import ray

    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urlopen(address, timeout=10) as answer:
        return answer.read().decode().splitlines()
