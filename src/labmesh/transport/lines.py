"""Connections of threads that wait for their replies: one for each call that is open."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Protocol

import zmq

from labmesh.protocol.codec import Buffer
from labmesh.transport.channel import NOBLOCK, POLLIN, POLLOUT, Frames, events_of, receive_rest
from labmesh.transport.channel import send as send_frames
from labmesh.transport.spinning import Spin

__all__ = ["DealerLine", "Line", "LineLost", "Unsent"]


class Unsent(Exception):
    """Nothing was sent: there is no connection, or it is no call for a socket like this."""


class LineLost(Exception):
    """The connection has ended, or is of no use any more."""


class Line(Protocol):
    """A connection to a relay, for one thread at a time."""

    @property
    def closed(self) -> bool:
        """Nobody uses it again."""

    @property
    def is_open(self) -> bool:
        """A message can be sent."""

    @property
    def is_whole(self) -> bool:
        """No message was begun to be sent that may not be at its end."""

    @property
    def arrived_at(self) -> float:
        """When a part of a message came of which there is more to come, in monotonic time; 0: that
        was not so yet, or nobody can tell.
        """

    def send(self, frames: list[Buffer], gives_up: Callable[[], bool]) -> None:
        """Send a message.

        :param gives_up: asked now and then, where it takes long: is that to end?
        :raises Unsent: the other side has not got the whole of it, and will not.
        """

    def look(self, spin: Spin, since: float) -> None:
        """Wait a moment for a message without sleeping; see :meth:`Spin.look`. Raises
        :class:`LineLost`.
        """

    def receive(self) -> Frames | None:
        """The next message; None: none came for about as long as :meth:`be_patient` says.

        :raises LineLost: nothing comes any more.
        :raises ProtocolError: what comes is no message.
        """

    def be_patient(self, patience_ms: int) -> None:
        """How long :meth:`receive` waits."""

    @property
    def is_due(self) -> bool:
        """Whether :meth:`tend` may have something to do; asked in any thread."""

    def tend(self) -> None:
        """Do what is due while nobody waits for a reply."""

    def close(self, linger_ms: int = 0) -> None:
        """Twice is fine. ``linger_ms`` lets the last message leave."""


class DealerLine:
    """A socket of libzmq, which connects by itself, as often as it takes."""

    def __init__(self, dealer: zmq.Socket[bytes]) -> None:
        self._socket = dealer
        self.is_whole = True
        self.arrived_at = 0.0
        self.is_due = False
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is not None:
            self._poll.register(dealer.FD, select.POLLIN)

    @property
    def closed(self) -> bool:
        return self._socket.closed

    @property
    def is_open(self) -> bool:
        return bool(events_of(self._socket) & POLLOUT)

    def send(self, frames: list[Buffer], gives_up: Callable[[], bool]) -> None:
        # libzmq takes it at once, and one of a single frame as a whole.
        self.is_whole = len(frames) == 1
        try:
            try:
                if len(frames) == 1:
                    self._socket.send(frames[0], NOBLOCK)
                else:
                    send_frames(self._socket, frames)
            except zmq.Again:
                # A send does not always look whether a new connection is there; this look does.
                if not self.is_open:
                    raise
                send_frames(self._socket, frames)
        except zmq.ZMQError as exc:
            self.is_whole = True
            raise Unsent(str(exc)) from exc
        self.is_whole = True

    def look(self, spin: Spin, since: float) -> None:
        # The descriptor tells only of what comes when the socket was found empty before.
        try:
            if self._poll is not None and not events_of(self._socket) & POLLIN:
                spin.look(self._has_come, since)
        except zmq.ZMQError as exc:
            raise LineLost(str(exc)) from exc

    def _has_come(self) -> bool:
        assert self._poll is not None
        return bool(self._poll.poll(0) and events_of(self._socket) & POLLIN)

    def receive(self) -> Frames | None:
        try:
            frame = self._socket.recv(copy=False)
            frames: Frames = [frame.bytes]
            if frame.more:
                receive_rest(self._socket, frames)
        except zmq.Again:
            return None
        except zmq.ZMQError as exc:
            raise LineLost(str(exc)) from exc
        return frames

    def be_patient(self, patience_ms: int) -> None:
        self._socket.rcvtimeo = patience_ms

    def tend(self) -> None:
        """A thread of libzmq does that."""

    def close(self, linger_ms: int = 0) -> None:
        self._socket.close(linger_ms)
