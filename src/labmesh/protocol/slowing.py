"""How long refusals wait: who is refused again and again hears of it later and later."""

from __future__ import annotations

__all__ = ["Slowing"]


class Slowing:
    """Counts the refusals of each address, and says how long the next one is to wait.

    Those who are admitted never wait, wherever they come from: an office may be behind one address.

    :param free: refusals within ``window_s`` that are told at once.
    :param step_s: by so much each further one waits longer, up to ``most_s``.
    :param max_addresses: addresses that are remembered; the one unheard for longest is forgotten.
    """

    def __init__(
        self,
        *,
        free: int = 20,
        step_s: float = 0.05,
        most_s: float = 1.0,
        window_s: float = 60.0,
        max_addresses: int = 1024,
    ) -> None:
        self._free, self._step_s, self._most_s = free, step_s, most_s
        self._window_s, self._max_addresses = window_s, max_addresses
        #: address → beginning of its window, refusals in it; the one unheard for longest first
        self._refusals: dict[str, tuple[float, int]] = {}

    def refused(self, address: str, now: float) -> float:
        """Note a refusal; the seconds that it has to wait."""
        began, count = self._refusals.pop(address, (now, 0))
        if now - began > self._window_s:
            began, count = now, 0
        count += 1
        if len(self._refusals) >= self._max_addresses:
            del self._refusals[next(iter(self._refusals))]
        self._refusals[address] = began, count
        return min(self._most_s, max(0, count - self._free) * self._step_s)

    def counted(self, now: float) -> dict[str, int]:
        """How often each address was refused of late."""
        return {
            address: count
            for address, (began, count) in self._refusals.items()
            if now - began <= self._window_s
        }
