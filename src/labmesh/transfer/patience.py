"""How long a transfer goes on trying."""

from __future__ import annotations

import random
import time

from labmesh.errors import Busy, LabmeshError

__all__ = ["Patience"]

_PAUSE_S, _PAUSE_MAX_S = 0.1, 2.0


class Patience:
    """Ends after more than ``retries`` tries in a row that brought nothing, but not before
    ``least_s`` seconds without progress have passed.

    Tries alone would not do: a bank that is being restarted refuses connections at once, and a
    person needs half a minute for that.
    """

    def __init__(self, retries: int, least_s: float) -> None:
        self._retries = retries
        self._least_s = least_s
        #: tries in a row that brought nothing
        self.failures = 0
        self._moved_at = time.monotonic()

    def moved(self) -> None:
        """There was progress."""
        self.failures = 0
        self._moved_at = time.monotonic()

    def pause_s(self, error: LabmeshError) -> float | None:
        """A try has failed: seconds until the next one; None: it is enough."""
        self.failures += 1
        waited_s = time.monotonic() - self._moved_at
        if self.failures > self._retries and waited_s >= self._least_s:
            return None
        # 2.0**5 is beyond the longest pause.
        pause_s = min(_PAUSE_S * 2.0 ** min(self.failures, 5), _PAUSE_MAX_S)
        # Those whom a busy bank has turned away must not come back all at once.
        return pause_s * random.uniform(0.3, 1.0) if isinstance(error, Busy) else pause_s
