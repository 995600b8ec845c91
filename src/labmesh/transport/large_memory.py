"""Memory of large messages, used again instead of fetched anew from the system."""

from __future__ import annotations

import mmap
import sys
from functools import cache

__all__ = ["keep_freed_memory", "memory_for"]

_LARGEST_BYTES = 16 * 2**20


@cache
def keep_freed_memory() -> None:
    """Have the C library keep what is freed of large blocks for the next ones, up to 32 MiB.

    glibc gives them back to the system, and then each page of the next block costs a page fault: a
    tenth of the processor time of an upload. It stops doing so for blocks up to the largest one
    that was ever freed, and keeps twice as much. So one is freed here, of which no page was ever
    touched. Where the C library is another one, this does nothing.
    """
    bytes(_LARGEST_BYTES)


def memory_for(size: int) -> memoryview:
    """Memory to read so many bytes into, which may be changed.

    It is not cleared where that can be avoided, which takes as long as to copy it. And none of a
    block over 16 MiB is taken from the system before it is used: a size is easily claimed.

    :raises MemoryError: there is not so much.
    """
    # Without it numpy is not there, or another thread is importing it.
    uncleared = getattr(sys.modules.get("numpy"), "empty", None)
    try:
        if uncleared is not None:
            return memoryview(uncleared(size, "u1"))
        if size <= _LARGEST_BYTES:
            return memoryview(bytearray(size))
        return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except (OSError, OverflowError, ValueError) as exc:
        raise MemoryError(str(exc)) from exc
