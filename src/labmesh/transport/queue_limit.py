"""What may wait for a subscriber that does not keep up."""

from __future__ import annotations

import zmq

__all__ = ["QueueLimit"]

#: What waits for one subscriber that does not keep up: bytes, and events of any size.
_QUEUE_BYTES = 64 * 2**20
_QUEUE_EVENTS = (128, 20_000)
#: libzmq counts events, not bytes. The limit follows their mean size when it is off by this much.
_OFF = 1.25


class QueueLimit:
    """How many events may wait for a subscriber, so that they are not too many bytes.

    libzmq drops events for one whose queue is full, and for nobody else.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._bytes, self._events = 0, 0
        self._limit = _QUEUE_EVENTS[1]
        socket.sndhwm = self._limit

    def passed(self, events: int, size: int) -> None:
        """So many were forwarded, with ``size`` bytes: adjust the limit to the mean of late."""
        self._bytes += size
        self._events += events
        if self._events < 100 and self._bytes < _QUEUE_BYTES // 16:
            return
        mean = max(1, self._bytes // self._events)
        self._bytes = self._events = 0
        least, most = _QUEUE_EVENTS
        limit = min(most, max(least, _QUEUE_BYTES // mean))
        if not self._limit / _OFF <= limit <= self._limit * _OFF:
            self._limit = limit
            self._socket.sndhwm = limit
