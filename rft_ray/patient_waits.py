"""How an engine's processes wait for each other on CPUs: asleep, instead of trying again and again.

vLLM 0.29's worker and scheduler are two processes that take turns at every token. Whoever waits
looks at shared memory in a loop for a second before it sleeps, which is right where cores are
plenty; where both are kept to one core (`sampler.cores`) it takes from the other half of the turn.
Left out: engines on GPUs and engines with all cores, which lose more by waking up.
"""

import time
from functools import cache

PATIENT_ENGINE = "RFT_RAY_PATIENT_ENGINE"
"""Environment variable of the engines whose processes are to wait like this."""
# Not only until it is woken: vLLM drops a notice that follows the one before too closely.
LOOK_AGAIN_MS = 1
IDLE_SECONDS = 1.0


@cache
def wait_patiently() -> None:
    """Let every queue that this process makes from now on wait asleep."""
    from vllm.distributed.device_communicators import shm_broadcast

    class PatientCondition(shm_broadcast.SpinCondition):
        """vLLM's condition, asleep from the first moment."""

        def wait(self, timeout_ms: int | None = None) -> None:
            """Return when there may be something to read."""
            is_idle = time.monotonic() > self.last_read + IDLE_SECONDS
            # vLLM's own wait sleeps where the last read is longer ago than this.
            self.busy_loop_s = -1.0
            super().wait(timeout_ms if is_idle else LOOK_AGAIN_MS)

    shm_broadcast.SpinCondition = PatientCondition  # type: ignore[misc]
