"""Where a driver's thread finds calls: what a socket has to offer to be read by that thread."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Source"]


class Source(Protocol):
    """Where a worker finds calls. What it reads, it hands to :meth:`DriverWorker.submit`."""

    #: a thread waits, or is about to; set under the worker's lock
    listened: bool

    def read(self) -> bool:
        """Take what is there; False: nothing is. Called under the worker's lock."""

    def flush(self) -> None:
        """Send the results that wait to be sent. Called under the worker's lock."""

    def wait(self, timeout_s: float | None = None) -> None:
        """Until there may be something to read, or the bell rings. Called without the lock, when
        :meth:`read` has found nothing since the last wait."""

    def ring(self) -> None:
        """End the wait; in any thread."""
