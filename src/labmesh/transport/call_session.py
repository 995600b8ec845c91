"""Who a client is to the relays that it calls."""

from __future__ import annotations

import itertools
import secrets
import time

__all__ = ["CallSession"]

#: Calls with unknown outcomes whose time is remembered.
_REMEMBERED = 4096


class CallSession:
    """A client over all its connections: a token, and the ids of its requests. In any thread.

    :param caller: who it is, as relays tell those who find an instrument busy.
    """

    def __init__(self, caller: str = "") -> None:
        self.caller = caller
        #: random; whoever knows it can ask for the results of this client's calls
        self.token = secrets.token_hex(16)
        self._ids = itertools.count(1)
        self._began_at = time.monotonic()
        self._unknown: dict[str, float] = {}

    def next_id(self) -> str:
        """An id that no other request of this client has."""
        return str(next(self._ids))

    def lost_sight(self, call_id: str, sent_at: float) -> None:
        """The outcome of a call, sent at this monotonic time, is unknown: somebody may ask."""
        self._unknown[call_id] = sent_at
        if len(self._unknown) > _REMEMBERED:
            self._unknown.pop(next(iter(self._unknown)), None)

    def age_s(self, call_id: str) -> float:
        """Seconds since a call of this client was sent; where that is not known, more."""
        return time.monotonic() - self._unknown.get(call_id, self._began_at)
