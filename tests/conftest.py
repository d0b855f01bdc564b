"""Fixtures shared by all tests: one real Ray session for the whole run."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray cluster with more logical CPUs than cores, so that placements never wait."""
    from rft_ray.ray_session import start_ray, stop_ray

    start_ray()
    yield
    stop_ray()
