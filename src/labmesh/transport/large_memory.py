"""Memory of large messages, used again instead of fetched anew from the system."""

from __future__ import annotations

from functools import cache

__all__ = ["keep_freed_memory"]

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
