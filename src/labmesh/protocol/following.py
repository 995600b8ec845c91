"""Which of two brokers a client follows: the one that it follows already, while that can be used.

Nothing but trouble makes a client turn: each turn costs events that have to be fetched again, and a
broker that has just come back knows nobody yet.
"""

from __future__ import annotations

__all__ = ["FIRST", "GRACE_S", "SETTLE_S", "SPARE", "Following"]

FIRST, SPARE = 0, 1
#: A break that heals within this time is no reason to turn.
GRACE_S = 0.25
#: A broker that answers has so long until its events come, too.
SETTLE_S = 3.0


class Following:
    """The choice of one client. Its time is the client's monotonic clock, in seconds.

    A broker is *usable* while it answers questions; the one that is followed is *whole* while its
    events come as well. One that is not whole is left for the other one, if that is usable: after
    ``grace_s``; after ``settle_s`` where it answers and its events are only on their way.
    """

    def __init__(self, now: float, *, grace_s: float = GRACE_S, settle_s: float = SETTLE_S) -> None:
        self._grace_s = grace_s
        self._settle_s = settle_s
        self._usable = [False, False]
        self._events = False
        #: since when the broker that is followed is not whole; None: it is
        self._broken_at: float | None = now
        #: it has been whole since it is followed
        self._was_whole = False
        self.followed = FIRST

    @property
    def other(self) -> int:
        """The broker that is not followed."""
        return SPARE if self.followed == FIRST else FIRST

    def usable(self, broker: int, is_usable: bool, now: float) -> None:
        """A broker answers questions, or does not any more."""
        came = is_usable and not self._usable[broker]
        self._usable[broker] = is_usable
        if came and broker == self.followed and not self._was_whole:
            self._broken_at = now  # from here on its events have their time
        self._look(now)

    def events(self, up: bool, now: float) -> None:
        """The events of the broker that is followed come, or do not any more."""
        self._events = up
        self._look(now)

    def next_deadline(self) -> float | None:
        """When :meth:`turn` next has something to do, if nothing changes until then."""
        if self._broken_at is None or not self._usable[self.other]:
            return None
        is_settling = self._usable[self.followed] and not self._was_whole
        return self._broken_at + (self._settle_s if is_settling else self._grace_s)

    def turn(self, now: float) -> bool:
        """Follow the other one, if it is time to; True: from now on :attr:`followed` is another."""
        due = self.next_deadline()
        if due is None or now < due:
            return False
        self.followed = self.other
        self._events = self._was_whole = False
        self._broken_at = now
        return True

    def _look(self, now: float) -> None:
        if self._usable[self.followed] and self._events:
            self._broken_at, self._was_whole = None, True
        elif self._broken_at is None:
            self._broken_at = now
