"""How a driver in the middle of a long call learns that nobody waits for it any more.

A thread cannot be stopped from outside, so a driver that is to stop has to ask. The worker has a
flag for each call, makes it the current one of its thread while the call runs, and whoever takes
the call back raises the flag, in any thread.

The flag belongs to the thread, not to a context variable: an :class:`asyncio.Runner` runs
coroutines in a context that it copied long before the call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "CancelFlag",
    "CurrentCall",
    "cancel_requested",
    "current",
    "of_this_thread",
    "running",
    "set_current",
]


class CancelFlag:
    """Raised when the caller of one call took it back or is gone. It is never lowered."""

    __slots__ = ("is_set",)

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        """Raise it. In any thread, any number of times."""
        self.is_set = True


class CurrentCall:
    """The flag of the call that runs in one thread; None: no call runs. For that thread alone."""

    __slots__ = ("flag",)

    def __init__(self) -> None:
        self.flag: CancelFlag | None = None


class _Threads(threading.local):
    def __init__(self) -> None:
        self.current = CurrentCall()


_threads = _Threads()


def of_this_thread() -> CurrentCall:
    """Where this thread keeps its flag: who runs many calls looks it up once."""
    return _threads.current


def cancel_requested() -> bool:
    """True once the caller of the call that runs in this thread cancelled it or is gone.

    A driver asks between the steps of something that takes long, and ends in a safe place::

        for point in points:
            if labmesh.cancel_requested():
                break

    What the method then returns or raises reaches nobody. In a thread that the driver started
    itself, and outside any call, it is always False. It takes less than a microsecond.
    """
    flag = _threads.current.flag
    return flag is not None and flag.is_set


def current() -> CancelFlag | None:
    """The flag of the call that runs in this thread; None: no call runs."""
    return _threads.current.flag


def set_current(flag: CancelFlag | None) -> None:
    """From here on, the flag of the call that runs in this thread; None: no call runs."""
    _threads.current.flag = flag


@contextmanager
def running(flag: CancelFlag) -> Iterator[None]:
    """:func:`set_current` for a block, and what was current before behind it."""
    thread = _threads.current
    before, thread.flag = thread.flag, flag
    try:
        yield
    finally:
        thread.flag = before
