"""Whether a thread that waits for a message goes on looking for a moment before it sleeps.

A thread that sleeps has to be woken, and its core with it: with calls that follow each other at
once, that is half of their time. So whoever waits for the next message of such a row looks again
and again, for a moment, and offers its core to others between two looks. Where messages come now
and then nobody ever looks twice, and who looked in vain stops for a while.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["SPIN_S", "VARIABLE", "Spin", "may_spin"]

T = TypeVar("T")

#: ``0``: threads that wait sleep at once.
VARIABLE: Final = "LMH_SPIN"

#: One message is looked for at most so long. It covers the round trip of a quick call whose other
#: side still sleeps: both find out by themselves that looking pays, one behind the other.
SPIN_S: Final = 0.0004
#: What comes so quickly to a thread that slept may come within the other time to one that looks.
NEAR_S: Final = 0.0006
#: So many messages in a row came quickly before anybody looks; each look in vain doubles it.
FEW: Final = 4
MOST: Final = 64

_offer_core: Callable[[], object] = getattr(os, "sched_yield", int)

#: One thread of a process looks at a time: others have work for the interpreter.
_looking = threading.Lock()


class Spin:
    """What one waiting thread has learnt about the messages that it waits for.

    :param allowed: False: it never pays; None: as :func:`may_spin` says.
    :param clock: monotonic seconds.
    :param rest: offers the core to others.
    """

    __slots__ = ("_allowed", "_clock", "_quick", "_rest", "_wanted")

    def __init__(
        self,
        *,
        allowed: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[], object] = _offer_core,
    ) -> None:
        self._allowed = may_spin() if allowed is None else allowed
        self._clock, self._rest = clock, rest
        self._quick, self._wanted = 0, FEW

    @property
    def pays(self) -> bool:
        """Whether to :meth:`look` for the next message before sleeping."""
        return self._quick >= self._wanted

    def came(self, waited_s: float) -> None:
        """A message came, after so many seconds of waiting for it, asleep or not."""
        if self._quick < self._wanted:
            is_quick = self._allowed and waited_s < NEAR_S
            self._quick = self._quick + 1 if is_quick else 0
        elif waited_s <= SPIN_S:
            self._wanted = FEW
        else:
            self._quick = 0
            self._wanted = min(2 * self._wanted, MOST)

    def look(self, find: Callable[[], T], since: float) -> T | None:
        """Ask ``find`` until it has found something, up to :data:`SPIN_S` behind ``since``.

        None: it has not, or another thread of this process is looking for its own message.
        """
        until = since + SPIN_S
        clock, rest = self._clock, self._rest
        if not _looking.acquire(blocking=False):
            return None
        try:
            while not (found := find()):
                if clock() >= until:
                    return None
                rest()
            return found
        finally:
            _looking.release()


def may_spin() -> bool:
    """Not where :data:`VARIABLE` says no, on one core, or on a system without ``sched_yield``."""
    if os.environ.get(VARIABLE) == "0" or not hasattr(os, "sched_yield"):
        return False
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1
