"""Joining a Ray cluster, or starting a local one; and leaving it.

Inside a cluster (RAY_ADDRESS set, or a Ray job) the driver joins it as it is. Otherwise it starts
a local cluster of its own: a bare `ray.init()` might attach to somebody else's. A local cluster is
given more logical CPUs than the machine has cores, because samplers, trainer and stream take turns
on a laptop and would otherwise wait for each other's reservations for ever.
"""

import logging
import os

from rft_ray.config import cluster_address

LOCAL_LOGICAL_CPUS = 16


def start_ray() -> None:
    """Connect this process to Ray; a second call in the same process changes nothing."""
    import ray

    if ray.is_initialized():
        return
    if address := cluster_address():
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        return
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        num_cpus=max(LOCAL_LOGICAL_CPUS, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def stop_ray() -> None:
    """Leave the cluster; a local one ends with it."""
    import ray

    ray.shutdown()
