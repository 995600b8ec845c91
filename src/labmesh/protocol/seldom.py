"""A line for the log that may come often: said once an interval, with a count of the others."""

from __future__ import annotations

__all__ = ["Seldom"]


class Seldom:
    """Decides whether to say it now. What a peer sends must not fill anybody's log.

    :param interval_s: seconds between two that are said.
    """

    def __init__(self, interval_s: float = 1.0) -> None:
        self._interval_s = interval_s
        self._said_at: float | None = None
        self._held_back = 0

    def due(self, now: float) -> int | None:
        """How many were held back since the last one; None: hold this one back as well."""
        if self._said_at is not None and now - self._said_at < self._interval_s:
            self._held_back += 1
            return None
        self._said_at = now
        held_back, self._held_back = self._held_back, 0
        return held_back
