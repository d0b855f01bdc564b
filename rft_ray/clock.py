"""How long the parts of a step took."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Clock:
    """Seconds since the last lap, by name."""

    laps: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, name: str) -> None:
        """End a lap."""
        now = time.perf_counter()
        self.laps[name] = now - self.last
        self.last = now
