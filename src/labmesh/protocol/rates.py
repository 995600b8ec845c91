"""How often one asker may ask."""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Rate"]


class Rate:
    """A bucket for each asker: ``burst`` at once, ``per_s`` in the long run.

    :param max_askers: askers that are remembered; the one unheard for longest is forgotten.
    """

    def __init__(self, per_s: float, burst: int, *, max_askers: int = 10_000) -> None:
        self._per_s, self._burst, self._max_askers = per_s, burst, max_askers
        #: asker → when it was last looked at, what it had left; the one unheard for longest first
        self._left: dict[Hashable, tuple[float, float]] = {}

    def allows(self, asker: Hashable, now: float) -> bool:
        """Somebody asks; False: too often."""
        known = self._left.pop(asker, None)
        left = float(self._burst)
        if known is not None:
            left = min(left, known[1] + (now - known[0]) * self._per_s)
        elif len(self._left) >= self._max_askers:
            del self._left[next(iter(self._left))]
        allowed = left >= 1
        self._left[asker] = now, left - allowed
        return allowed
