"""A ZeroMQ socket on an asyncio loop: one reader, drained in batches.

The descriptor of a ZeroMQ socket is edge-triggered: it tells that *something changed*, once. So
after every receive and every send the socket's ``EVENTS`` are looked at again before the loop may
sleep. This costs a third of what ``zmq.asyncio`` costs a message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import cast

import zmq

from labmesh.errors import TooLarge
from labmesh.protocol.seldom import Seldom

__all__ = ["Channel", "Frames", "proved", "receive", "receive_rest", "send", "skip"]

log = logging.getLogger(__name__)

Frames = list[bytes | memoryview]

#: Plain numbers: each operation on pyzmq's enumerations costs a microsecond.
NOBLOCK, SNDMORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)
POLLIN, POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
EVENTS, RCVMORE = int(zmq.EVENTS), int(zmq.RCVMORE)
_MORE = NOBLOCK | SNDMORE

_BATCH = 256
_MAX_FRAMES = 66
#: Frames of an endless message that are dropped before others get their turn.
_SKIPPED = 2000
_COPY_BELOW = 4096


def receive(socket: zmq.Socket[bytes]) -> Frames:
    """One whole message, without waiting; large frames behind the first are views, not copies.

    :raises zmq.Again: nothing is there.
    :raises TooLarge: more frames than any message may have; :func:`skip` the rest of them.
    """
    frame = socket.recv(NOBLOCK, copy=False)
    frames: Frames = [frame.bytes]
    if frame.more:
        receive_rest(socket, frames)
    return frames


def proved(frame: zmq.Frame) -> str:
    """Who sent the message of this frame, as the handshake proved it; empty: nobody knows."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:  # a connection without a handshake that proves anything
        return ""


def receive_rest(socket: zmq.Socket[bytes], frames: Frames) -> None:
    """The frames of a message behind its first ones, as in :func:`receive`."""
    more = True
    # Asking the frame, not the socket, costs a quarter.
    while more:
        if len(frames) == _MAX_FRAMES:
            raise TooLarge(f"a message of more than {_MAX_FRAMES} frames")
        frame = socket.recv(NOBLOCK, copy=False)
        frames.append(frame.bytes if len(frame) < _COPY_BELOW else frame.buffer)
        more = frame.more


def send(socket: zmq.Socket[bytes], frames: Sequence[bytes | bytearray | memoryview]) -> None:
    """One whole message, without waiting; large frames are not copied.

    :raises zmq.Again: there is no connection, or its peer does not keep up.
    """
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        flags = _MORE if index < last else NOBLOCK
        # Only the first frame can be refused: a message is taken whole.
        socket.send(frame, flags, copy=len(frame) < _COPY_BELOW)


def skip(socket: zmq.Socket[bytes], at_most: int | None = None) -> bool:
    """Drop the frames that are left of a message; False: ``at_most`` were, and more are left."""
    dropped = 0
    more = bool(socket.getsockopt(RCVMORE))
    while more:
        if dropped == at_most:
            return False
        more = socket.recv(NOBLOCK, copy=False).more
        dropped += 1
    return True


def events_of(socket: zmq.Socket[bytes]) -> int:
    """What the socket is ready for now."""
    return cast(int, socket.getsockopt(EVENTS))


class Channel:
    """Reads a socket and hands each whole message to ``on_message``, on the running loop.

    :param on_message: a plain function; it must not block. What it raises is logged: no input may
        end the reader.
    :param read: takes one message from the socket, as :func:`receive` does.
    :param on_writable: called once the socket takes messages again after a :meth:`send` that it
        did not take.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_message: Callable[[Frames], None],
        *,
        name: str,
        read: Callable[[zmq.Socket[bytes]], Frames] = receive,
        on_writable: Callable[[], None] | None = None,
    ) -> None:
        self._socket = socket
        self._on_message = on_message
        self._read = read
        self._on_writable = on_writable
        self._is_full = False
        self._skipping = False
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._descriptor: int = socket.FD
        self._scheduled = False
        self._open = True
        self._warnings = Seldom()
        self.dropped = 0
        #: the last message that was not sent had no such receiver; else it does not keep up
        self.is_gone = False
        self._loop.add_reader(self._descriptor, self.drain)
        self._look_again()

    def close(self) -> None:
        """Stop reading. The socket itself is closed by whoever made it."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._descriptor)

    def send(self, frames: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Send one message now; False: there is no connection, or its peer does not keep up."""
        sent = self._try_to_send(frames)
        self._is_full = self._is_full or not sent
        return sent

    def send_all(self, messages: Sequence[Sequence[bytes | bytearray | memoryview]]) -> int:
        """Send messages back to back; how many were sent. See :meth:`send`.

        libzmq's thread, which each message may have to wake, stays awake while they follow each
        other at once: nothing else is done between them.
        """
        count = 0
        push = self._socket.send
        for frames in messages:
            try:
                if len(frames) == 1 and len(frames[0]) < _COPY_BELOW:
                    push(frames[0], NOBLOCK)
                else:
                    send(self._socket, frames)
            except zmq.ZMQError:
                # Rare, and the other way looks at why.
                if not self.send(frames):
                    break
            count += 1
        self._look_again()
        return count

    def _try_to_send(self, frames: Sequence[bytes | bytearray | memoryview]) -> bool:
        self.is_gone = False
        try:
            try:
                send(self._socket, frames)
            except zmq.Again:
                # A send does not always look whether a new connection is there; this look does.
                if not events_of(self._socket) & POLLOUT:
                    return False
                send(self._socket, frames)
        except zmq.Again:
            return False
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            self.is_gone = True
            return False
        finally:
            self._look_again()
        return True

    def drain(self) -> bool:
        """Take what has arrived, up to a bound; True: there may be more, which is taken soon."""
        for _ in range(_BATCH):
            if not self._open:
                return False
            if self._skipping:
                # A hundred thousand frames take a tenth of a second: in slices, others get theirs.
                self._skipping = not skip(self._socket, _SKIPPED)
                break
            events = events_of(self._socket)
            if self._is_full and events & POLLOUT:
                self._is_full = False
                self._room_again()
                continue
            if not events & POLLIN:
                return False
            try:
                frames = self._read(self._socket)
            except zmq.Again:
                continue
            except TooLarge as exc:
                self.dropped += 1
                self._skipping = True
                if self._warnings.due(time.monotonic()) is not None:
                    log.warning("%s: dropped %s (%d so far)", self._name, exc, self.dropped)
                continue
            try:
                self._on_message(frames)
            except Exception:
                # The reader outlives every fault of what it feeds; the fault is ours, so say so.
                log.exception("%s: a message was not handled", self._name)
        self._look_again()
        return True

    def _room_again(self) -> None:
        if self._on_writable is not None:
            self._on_writable()

    def _look_again(self) -> None:
        if not self._scheduled and self._open:
            self._scheduled = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._scheduled = False
        self.drain()
