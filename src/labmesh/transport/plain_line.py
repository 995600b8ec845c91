"""A thread that waits speaks ZeroMQ's protocol itself, where nothing is encrypted.

Over a DEALER a message and its reply go through a thread of libzmq, which is woken for the one and
wakes the caller for the other. Over a plain socket the caller sends and receives by itself, which
takes half of a round trip away. The relay, a ROUTER, sees no difference.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Buffer
from labmesh.protocol.zmtp import Incoming, head_of
from labmesh.transport.channel import Frames
from labmesh.transport.large_memory import memory_for
from labmesh.transport.lines import LineLost, Unsent
from labmesh.transport.plain_socket import (
    JOINED_BYTES,
    QUIETLY,
    READ_BYTES,
    open_socket,
    pieces_of,
    read,
    send_some,
)
from labmesh.transport.spinning import Spin

__all__ = ["PlainLine"]

#: The other side may take nothing for so long in the middle of a message.
_STUCK_MS: Final = 2000
_SLICE_MS: Final = 100
#: So often a line is read while nobody waits; what is left then waits for the next time.
_TENDED_READS: Final = 64


class PlainLine:
    """A :class:`Line` over a plain socket.

    It shakes hands as far as that goes without waiting whenever somebody looks, and is closed by
    whatever goes wrong.

    :param address: its host is a number: no name is looked up here.
    :raises OSError: this process has as many files open as it may, or there is no way there.
    """

    def __init__(self, address: Address) -> None:
        self._incoming = Incoming(memory_for)
        self._is_up = False
        self._patience_ms = 0
        self.is_whole = True
        self.arrived_at = 0.0
        # Whether anything was read since somebody tended it, and by when that was so.
        self._heard, self._heard_at = True, 0.0
        self._socket = open_socket(address)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self.tend()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    @property
    def is_open(self) -> bool:
        if not self._is_up:
            self.tend()
        return self._is_up and not self.closed

    def close(self, linger_ms: int = 0) -> None:
        if linger_ms and self._is_up and not self.closed:
            # The system throws away what was sent last if something is left to be read.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
                for _ in range(_TENDED_READS):
                    if not self._socket.recv(READ_BYTES):
                        break
        self._socket.close()

    # ── sending ─────────────────────────────────────────────────────────────────────────────────

    def send(self, frames: list[Buffer], gives_up: Callable[[], bool]) -> None:
        """Send one message.

        :raises Unsent: the other side has not got the whole of it, and will not.
        """
        if not self._is_up and not self.is_open:
            raise Unsent("there is no connection (yet)")
        try:
            if self._incoming.due:
                self._push()
            first = frames[0]
            self.is_whole = False
            if len(frames) == 1 and len(first) < JOINED_BYTES:
                message = head_of(len(first)) + first
                count = self._socket.send(message, QUIETLY)
                if count < len(message):
                    self._send_on([memoryview(message)[count:]], gives_up, has_begun=True)
            else:
                self._send_on(pieces_of(frames), gives_up, has_begun=False)
        except BlockingIOError:
            self.is_whole = True
            raise Unsent("the other side does not keep up") from None
        except (LineLost, OSError) as exc:
            # Of a message that was sent in part nothing is ever delivered.
            self.close()
            raise Unsent(str(exc)) from exc
        self.is_whole = True

    def _send_on(
        self, pieces: list[memoryview], gives_up: Callable[[], bool], *, has_begun: bool
    ) -> None:
        """Send a message, or what is left of one.

        :raises BlockingIOError: nothing was sent.
        :raises TimeoutError: the other side does not take the rest of it.
        """
        while pieces:
            try:
                pieces = send_some(self._socket, pieces)
                has_begun = True
            except BlockingIOError:
                if not has_begun:
                    raise
                self._wait_for_room(gives_up)

    def _wait_for_room(self, gives_up: Callable[[], bool]) -> None:
        room = select.poll()
        room.register(self._socket, select.POLLOUT)
        for _ in range(_STUCK_MS // _SLICE_MS):
            if gives_up():
                raise TimeoutError("it was over before all of it was sent")
            if room.poll(_SLICE_MS):
                return
        raise TimeoutError("the other side does not keep up")

    # ── receiving ───────────────────────────────────────────────────────────────────────────────

    def be_patient(self, patience_ms: int) -> None:
        self._patience_ms = patience_ms

    def look(self, spin: Spin, since: float) -> None:
        spin.look(self._read, since)

    def receive(self) -> Frames | None:
        until = 0.0
        while (message := self._take()) is None:
            if not self._readable.poll(self._patience_ms):
                return None
            self._read()
            now = time.monotonic()
            if self._incoming.is_partial:
                self.arrived_at = now
            # Whoever sends a little now and then does not keep its caller here.
            until = until or now + self._patience_ms / 1000
            if now > until:
                return None
        return message

    @property
    def is_due(self) -> bool:
        incoming, descriptor = self._incoming, self._socket.fileno()
        if not self._is_up or incoming.due or incoming.ttl_s or descriptor < 0:
            return True
        # A poll of its own: a thread that has just taken the line may use the other one.
        look = select.poll()
        look.register(descriptor, select.POLLIN)
        return bool(look.poll(0))

    def tend(self) -> None:
        """Answer what the other side asks; what came for nobody is dropped."""
        if self.closed:
            return
        try:
            with contextlib.suppress(BlockingIOError):
                self._push()
                for _ in range(_TENDED_READS):
                    while self._take() is not None:
                        continue
                    if not self._read():
                        break
            self._check_life()
        except (LineLost, ProtocolError):
            self.close()
        self._is_up = self._incoming.ready

    def _check_life(self) -> None:
        """Raises :class:`LineLost` if the other side said that it would be heard of by now."""
        now, ttl_s = time.monotonic(), self._incoming.ttl_s
        if self._heard:
            self._heard, self._heard_at = False, now
        elif ttl_s and now - self._heard_at > ttl_s:
            raise LineLost(f"the other side was not heard of for {ttl_s:g} s")

    def _read(self) -> bool:
        """Read some of what is there; False: nothing is."""
        try:
            found = read(self._socket, self._incoming)
        except OSError as exc:
            raise LineLost(exc.strerror or str(exc)) from exc
        self._heard = self._heard or found
        return found

    def _take(self) -> Frames | None:
        message = self._incoming.take()
        if self._incoming.due:
            try:
                self._push()
            except BlockingIOError:
                pass  # there is room for it later
            except LineLost:
                if message is None:
                    raise
        return message

    def _push(self) -> None:
        """Send what is to be sent first; raises BlockingIOError: there is no room for it yet."""
        self.is_whole = False
        try:
            while due := self._incoming.due:
                self._incoming.due = due[self._socket.send(due, QUIETLY) :]
        except OSError as exc:
            # Some systems say that it is not connected while they connect.
            if isinstance(exc, BlockingIOError) or exc.errno == errno.ENOTCONN:
                self.is_whole = True
                raise BlockingIOError from exc
            raise LineLost(str(exc)) from exc
        self.is_whole = True
