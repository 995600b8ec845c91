"""Waiting for a ZeroMQ socket in a thread that others can wake."""

from __future__ import annotations

import os
import select
import socket as stdlib_socket
from functools import partial

from labmesh.transport.spinning import Spin

__all__ = ["Bell"]


class Bell:
    """A wait for a descriptor, which :meth:`ring` ends from any thread.

    It costs half a microsecond where the system has ``eventfd`` and ``poll``; elsewhere it is made
    of a pair of sockets and ``select``.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pair: tuple[stdlib_socket.socket, stdlib_socket.socket] | None = None
        self._event = -1
        if hasattr(os, "eventfd"):
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._pair = stdlib_socket.socketpair()
            for each in self._pair:
                each.setblocking(False)
            self._event = self._pair[0].fileno()
        self._poll = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
            self._poll.register(self._event, select.POLLIN)
            self._look = partial(self._poll.poll, 0)

    def wait(self, timeout_s: float | None = None) -> None:
        """Until the descriptor is readable, the bell rang, or the time is over."""
        if self._poll is None:
            both = [self._descriptor, self._event]
            if self._event in select.select(both, [], [], timeout_s)[0]:
                self._silence()
            return
        self._heard(self._poll.poll(timeout_s and timeout_s * 1000))

    def look(self, spin: Spin, since: float) -> bool:
        """:meth:`wait` for a moment, awake; False: it was in vain. See :meth:`Spin.look`."""
        found = self._poll and spin.look(self._look, since)
        if not found:
            return False
        self._heard(found)
        return True

    def _heard(self, found: list[tuple[int, int]]) -> None:
        for descriptor, _ in found:
            if descriptor == self._event:
                self._silence()

    def ring(self) -> None:
        """End the wait that is under way, or the next one. In any thread."""
        if self._pair is None:
            os.eventfd_write(self._event, 1)
            return
        try:
            self._pair[1].send(b"!")
        except BlockingIOError:
            return  # it is full of rings that nobody has heard yet

    def close(self) -> None:
        """Nobody waits any more; twice is fine."""
        if self._pair is None:
            if self._event >= 0:
                os.close(self._event)
                self._event = -1
            return
        for each in self._pair:
            each.close()

    def __del__(self) -> None:
        # A thread that hangs in its driver keeps it; when that ends, nobody else closes it.
        self.close()

    def _silence(self) -> None:
        try:
            if self._pair is None:
                os.eventfd_read(self._event)
            else:
                while self._pair[0].recv(4096):
                    continue
        except BlockingIOError:
            return
