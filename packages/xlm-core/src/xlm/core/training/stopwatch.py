"""The seconds of a training."""

import time


class Stopwatch:
    """Counts the seconds between ``start`` and ``stop``, again and again.

    Args:
        seconds: Seconds counted before, in a training that is resumed.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    def start(self) -> None:
        """Count from here."""
        self._seconds, self._started = self.seconds, time.perf_counter()

    def stop(self) -> None:
        """Count no longer."""
        self._seconds, self._started = self.seconds, None
