"""A second connection of a link, for what it asks: ZeroMQ's protocol over a plain socket.

Over a DEALER each message is handed to a thread of libzmq, and each reply is handed back by it.
Where nothing is encrypted the loop sends and receives by itself, which takes a quarter of a round
trip away. Whether the node is there at all is still found out over the DEALER: a lane is opened
beside a connection, does not heal, and ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Buffer
from labmesh.protocol.zmtp import Incoming, head_of
from labmesh.transport.channel import Frames
from labmesh.transport.large_memory import memory_for
from labmesh.transport.plain_socket import (
    JOINED_BYTES,
    QUIETLY,
    open_socket,
    pieces_of,
    read,
    send_some,
)

__all__ = ["Lane"]

log = logging.getLogger(__name__)

#: Beats are counted, not seconds: a loop that was blocked has not listened meanwhile.
_BEAT_S, _HANDSHAKE_BEAT_S = 0.6, 0.25
#: So many of them without a sign of life are the end. Ready, that is before a call is given up.
_QUIET_BEATS, _HANDSHAKE_BEATS = 4, 1
#: ZMTP's PING. It grants us an endless silence, which we need while our loop is blocked.
_ASK: Final = b"\x04\x07\x04PING\0\0"
#: Messages that are taken before others get their turn.
_BATCH: Final = 256
#: Of a lane that broke, so much is still taken: the other side may send without end.
_LAST_TURNS: Final = 256


class Lane:
    """One connection, on the running loop; it does not heal.

    :param address: its host is a number.
    :param on_message: called with each message; what it raises is logged.
    :param on_ready: called when the handshake is over.
    :param on_end: called with the reason when the lane has ended, unless it was closed.
    :param on_room: called when it takes messages again after it did not.
    :raises OSError: this process has as many files open as it may, or there is no way there.
    """

    def __init__(
        self,
        address: Address,
        *,
        name: str,
        on_message: Callable[[Frames], None],
        on_ready: Callable[[], None],
        on_end: Callable[[str], None],
        on_room: Callable[[], None],
    ) -> None:
        self._name = name
        self._on_message, self._on_ready = on_message, on_ready
        self._on_end, self._on_room = on_end, on_room
        self._incoming = Incoming(memory_for)
        #: the rest of the message that is on its way
        self._unsent: list[memoryview] = []
        self._is_full = False
        # There are messages that were read, and not taken yet.
        self._is_behind = self._goes_on = False
        # Whether there was a sign of life since the last beat, and how many had none.
        self._stirred, self._quiet = False, 0
        #: the handshake is over
        self.ready = False
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._socket = open_socket(address)
        self._arm()
        self._loop.add_reader(self._socket, self.drain)
        self._loop.add_writer(self._socket, self._writable)

    def close(self) -> None:
        """End it; nothing is called any more. Twice is fine."""
        if self._open:
            self._open = False
            self._timer.cancel()
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _beat(self) -> None:
        """Ask the other side whether it is there, and give it up when nothing is heard of it.

        A firewall that has forgotten this connection says nothing, and the system would send a
        message again and again for a quarter of an hour.
        """
        self._quiet = 0 if self._stirred and self.ready else self._quiet + 1
        self._stirred = False
        if self._quiet > (_QUIET_BEATS if self.ready else _HANDSHAKE_BEATS):
            self._broke("nothing was heard of the other side")
            return
        if self._quiet and self.ready and not self._unsent:
            self._push([memoryview(_ASK)])
        self._arm()

    def _arm(self) -> None:
        beat_s = _BEAT_S if self.ready else _HANDSHAKE_BEAT_S
        self._timer = self._loop.call_later(beat_s, self._beat)

    def _break_soon(self, why: str) -> None:
        """Not at once: whoever is just sending need not count with it."""
        self._loop.call_soon(self._break_off, why)

    def _break_off(self, why: str) -> None:
        # Replies that came in before the break are still good.
        for _ in range(_LAST_TURNS):
            if not self.drain():
                break
        self._broke(why)

    def _broke(self, why: str) -> None:
        if self._open:
            self.close()
            self._on_end(why)

    # ── sending ─────────────────────────────────────────────────────────────────────────────────

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send one message now; False: the other side does not keep up."""
        self._answer()
        if self._unsent or not self._open:
            self._is_full = True
            return False
        first = frames[0]
        if len(frames) > 1 or len(first) >= JOINED_BYTES:
            self._push(pieces_of(frames))
            return True
        message = head_of(len(first)) + first
        count = 0
        with contextlib.suppress(OSError):  # the other way looks at why
            count = self._socket.send(message, QUIETLY)
        if count < len(message):
            self._push([memoryview(message)[count:]])
        return True

    def send_all(self, messages: Sequence[Sequence[Buffer]]) -> int:
        """Send messages back to back; how many are sent, or will be before any other."""
        for count, frames in enumerate(messages):
            if not self.send(frames):
                return count
        return len(messages)

    def _push(self, pieces: list[memoryview]) -> None:
        """Send as much as there is room for, and the rest as soon as there is."""
        try:
            while pieces:
                pieces = send_some(self._socket, pieces)
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._writable)
        except OSError as exc:
            self._break_soon(str(exc))
        self._unsent = pieces

    def _writable(self) -> None:
        self._loop.remove_writer(self._socket)
        if self._unsent:
            # The other side has taken something of what there was no room for.
            self._stirred = True
            self._push(self._unsent)
        self._answer()
        if self._is_full and not self._unsent:
            self._is_full = False
            self._on_room()

    def _answer(self) -> None:
        """Send what the other side waits for: the greeting, and answers to its pings."""
        if self._incoming.due and not self._unsent:
            due, self._incoming.due = self._incoming.due, b""
            self._push([memoryview(due)])

    # ── receiving ───────────────────────────────────────────────────────────────────────────────

    def drain(self) -> bool:
        """Take what has arrived, up to a bound; True: there may be more, which is taken soon."""
        try:
            if not self._open or not (self._is_behind or read(self._socket, self._incoming)):
                return False
            self._stirred = True
            self._is_behind = self._take_some()
        except (OSError, ProtocolError) as exc:
            self._broke(str(exc))
        if not self._open:
            return False
        self._answer()
        if self._is_behind and not self._goes_on:
            self._goes_on = True
            self._loop.call_soon(self._go_on)
        if self._incoming.ready and not self.ready:
            self.ready = True
            self._timer.cancel()
            self._arm()
            self._on_ready()
        return self._open

    def _take_some(self) -> bool:
        """Take messages that were read; True: some may be left."""
        take = self._incoming.take
        for _ in range(_BATCH):
            if not self._open or (frames := take()) is None:
                return False
            self._handle(frames)
        return True

    def _go_on(self) -> None:
        self._goes_on = False
        self.drain()

    def _handle(self, frames: Frames) -> None:
        try:
            self._on_message(frames)
        except Exception:
            # The reader outlives every fault of what it feeds; the fault is ours, so say so.
            log.exception("%s: a message was not handled", self._name)
