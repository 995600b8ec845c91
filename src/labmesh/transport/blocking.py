"""The sockets of a client for calls of threads that wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time

import zmq

from labmesh.errors import LinkLost
from labmesh.protocol.messages import Batch, Call, Reply
from labmesh.transport.call_session import CallSession
from labmesh.transport.call_socket import CallSocket, Unsent
from labmesh.transport.connection import Standing
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets
from labmesh.transport.waiters import Waiters

__all__ = ["CallSockets"]

log = logging.getLogger(__name__)

#: How many sockets to one node are kept for the next calls.
_KEPT = 4
#: Threads that wait get so long to leave, once all is closed.
_LEAVE_S = 1.0
#: So often connections that wait for the next call are looked after: those that have ended are
#: closed, and whoever asks whether this client is there has to be answered.
_TEND_S = 0.5


class CallSockets:
    """The sockets of one client for calls of threads that wait.

    A call has its socket for itself, so there are as many as calls at a time, and few are kept.
    While a new connection is made its call does not wait for it, but is ``Unsent``; the next one
    finds it.

    There are no locks here: a signal's handler may make a call in the middle of another one.

    :param session: of the client whose calls these are.
    """

    def __init__(self, sockets: Sockets, session: CallSession) -> None:
        self._sockets = sockets
        self._session = session
        #: node id → sockets for the next calls; the one that was used last is the last
        self._idle: dict[str, list[CallSocket]] = {}
        self._held: set[CallSocket] = set()
        self._leaving: tuple[asyncio.AbstractEventLoop, Waiters] | None = None
        #: nothing more is sent
        self.closed = False

    def ask(self, request: Call | Batch, link: Link, standing: Standing, deadline: float) -> Reply:
        """Send a call over a socket of its own and wait; see :meth:`CallSocket.ask`.

        :raises Unsent: also when there is no connection that is free.
        """
        idle = self._idle.get(standing.node_id)
        if idle is None:
            idle = self._idle.setdefault(standing.node_id, [])
        socket = None
        try:
            try:
                socket = idle.pop()
            except IndexError:
                self.warm(link, standing)
                raise Unsent("a connection is only just being made") from None
            self._held.add(socket)
            socket.thread = threading.get_ident()
            if self.closed or socket.endpoint != link.endpoint:
                socket.close()
                raise Unsent("this client was closed, or the node has moved")
            return socket.ask(request, link, standing, deadline)
        finally:
            if socket is not None:
                try:
                    self._give_back(socket, idle)
                except BaseException:
                    # Ctrl-C comes here as well: what was not given back is closed.
                    if socket.thread == threading.get_ident():
                        socket.close()
                    self._held.discard(socket)
                    raise

    def warm(self, link: Link, standing: Standing) -> None:
        """Begin to connect, for calls to come."""
        idle = self._idle.setdefault(standing.node_id, [])
        if idle or self.closed:
            return
        try:
            socket = CallSocket(self._sockets, link.endpoint, self._session, self._is_closed)
        except (LinkLost, zmq.ZMQError) as exc:
            log.info("no socket for calls to %s: %s", link.where, exc)
            return
        idle.insert(0, socket)
        if len(idle) > _KEPT:  # others have made some at the same time
            _close_first(idle)
        self._keep_none_once_closed()

    async def tend(self) -> None:
        """Look after the sockets that wait for the next call, until cancelled."""
        while True:
            await asyncio.sleep(_TEND_S)
            for idle in list(self._idle.values()):
                for socket in idle.copy():
                    if socket.is_due:
                        self._tend_one(socket, idle)

    def _tend_one(self, socket: CallSocket, idle: list[CallSocket]) -> None:
        # As a call does: while it is looked after no thread finds it.
        try:
            idle.remove(socket)
        except ValueError:
            return  # a thread has just taken it
        socket.tend()
        if not socket.closed:
            idle.insert(0, socket)
        self._keep_none_once_closed()

    def is_held_here(self) -> bool:
        """Whether a call of this very thread is under way (a signal's handler may ask that)."""
        here = threading.get_ident()
        return any(each.thread == here for each in self._held.copy())

    async def close(self) -> None:
        """End open calls and close what is idle, within about a second; twice is fine."""
        waiters = Waiters()
        self._leaving = asyncio.get_running_loop(), waiters
        self.closed = True
        self._keep_none_once_closed()
        until = time.monotonic() + _LEAVE_S
        while self._is_in_use() and time.monotonic() < until:
            await waiters.wait(until)

    def _is_closed(self) -> bool:
        return self.closed

    def _is_in_use(self) -> bool:
        return any(each.thread and not each.closed for each in self._held.copy())

    def _give_back(self, socket: CallSocket, idle: list[CallSocket]) -> None:
        socket.thread = 0
        if not socket.closed:
            if socket.blocked_at:
                idle.insert(0, socket)  # the next call tries those first that work
            else:
                idle.append(socket)
            if len(idle) > _KEPT:
                _close_first(idle)
        self._held.discard(socket)
        self._keep_none_once_closed()
        if self._leaving is not None:
            loop, waiters = self._leaving
            # A loop that has ended waits no more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(waiters.wake)

    def _keep_none_once_closed(self) -> None:
        """Asked after each socket that was put where :meth:`close` may have looked already."""
        if not self.closed:
            return
        for idle in list(self._idle.values()):
            while idle:
                _close_first(idle)


def _close_first(idle: list[CallSocket]) -> None:
    # Another thread may just have taken it.
    with contextlib.suppress(IndexError):
        idle.pop(0).close()
