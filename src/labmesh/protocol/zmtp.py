"""ZMTP 3.1, the protocol of ZeroMQ's connections, as far as a client without security needs it.

After https://rfc.zeromq.org/spec/37/: the greeting, the NULL mechanism, messages, and heartbeats
that are answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from labmesh.errors import ProtocolError, TooLarge

__all__ = ["LARGE_BYTES", "MAX_FRAMES", "Incoming", "head_of"]

_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING_BYTES: Final = 64
#: How both greetings begin, with the bytes that do not matter between them.
_SIGNATURE, _SIGNED = b"\xff", b"\x7f"
_MECHANISM: Final = b"NULL".ljust(20, b"\0")
_MAJOR: Final = 3
_PING, _PONG = b"\x04PING", b"\x04PONG"
#: A ping says for how long its sender will be heard of, in tenths of a second; what is behind that
#: comes back.
_PING_BYTES: Final = len(_PING) + 2
_CONTEXT_BYTES: Final = 16
_READY, _ERROR = b"\x05READY", b"\x05ERROR"
_SOCKET_TYPE: Final = b"Socket-Type"

#: A frame from this size on is filled where it stays. Smaller ones are cut out of what was read.
LARGE_BYTES: Final = 2**16
#: Smaller frames, and the first one, are bytes; arrays are to lie in memory that may be changed.
_COPY_BELOW: Final = 4096
#: More than a message of labmesh may have: what is wrong with those, the codec says.
MAX_FRAMES: Final = 66
#: Who asks for more answers than this, and takes none, is hung up on.
_MAX_DUE: Final = 4096


def head_of(size: int, *, more: bool = False) -> bytes:
    """What comes before the bytes of a frame."""
    if size < 256:
        return bytes((_MORE * more, size))
    return bytes((_MORE * more | _LONG,)) + size.to_bytes(8, "big")


def _command(body: bytes) -> bytes:
    return bytes((_COMMAND, len(body))) + body


def _named(name: bytes, value: bytes) -> bytes:
    return bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value


#: What a client says first, all at once: the NULL mechanism has nothing to wait for.
_HELLO: Final = (
    _SIGNATURE
    + bytes(8)
    + _SIGNED
    + bytes((_MAJOR, 1))
    + _MECHANISM
    + bytes(32)
    + _command(_READY + _named(_SOCKET_TYPE, b"DEALER") + _named(b"Identity", b""))
)
_ROUTER: Final = _named(_SOCKET_TYPE, b"ROUTER")


def _cleared(size: int) -> memoryview:
    return memoryview(bytearray(size))


class Incoming:
    """What comes in over a connection, from its first byte on.

    Feed it what was read, then take messages until there is none. What it raises ends it.

    :param memory: makes room for a large frame of so many bytes; it may raise :class:`MemoryError`.
    """

    def __init__(self, memory: Callable[[int], memoryview] = _cleared) -> None:
        #: the other side has shaken hands
        self.ready = False
        #: what is to be sent before anything else; whoever sends it takes it away
        self.due = _HELLO
        #: after so many seconds without a byte the other side is gone; 0: it did not say
        self.ttl_s = 0.0
        self._memory = memory
        self._greeted = False
        self._data = b""
        self._at = 0
        self._frames: list[bytes | memoryview] = []
        # A large frame that is not filled yet, how far it is, and whether more follow it.
        self._large: memoryview | None = None
        self._filled = 0
        self._more = False

    @property
    def is_partial(self) -> bool:
        """A message has begun that is not at its end."""
        return bool(self._frames) or self._large is not None or self._at < len(self._data)

    def room(self) -> memoryview | None:
        """Where the bytes that come next belong; None: they are fed."""
        return None if self._large is None else self._large[self._filled :]

    def filled(self, count: int) -> None:
        """So many bytes were read into :meth:`room`."""
        self._filled += count

    def feed(self, data: bytes) -> None:
        """These bytes were read."""
        rest = self._data[self._at :] if self._at < len(self._data) else b""
        self._data, self._at = (rest + data if rest else data), 0

    def take(self) -> list[bytes | memoryview] | None:
        """The frames of the next message; None: it is not there yet.

        :raises ProtocolError: this is not ZMTP, or the other side ends it, or asks without end.
        :raises TooLarge: more frames, or a larger one, than this program has room for.
        """
        if not self._greeted and not self._is_greeted():
            return None
        frames = self._frames
        while True:
            frame: bytes | memoryview
            if self._large is None:
                found = self._next_frame()
                if found is None:
                    return None
                flags, frame = found
                if flags & _COMMAND:
                    self._obey(frame)
                    continue
                more = flags & _MORE
                if frames and len(frame) >= _COPY_BELOW:
                    frame = memoryview(bytearray(frame))
            elif self._filled < len(self._large):
                return None
            else:
                frame, more, self._large = self._large, self._more, None
                if not frames:
                    frame = bytes(frame)
            frames.append(frame)
            if not more:
                self._frames = []
                return frames

    def _is_greeted(self) -> bool:
        data = self._data
        if data[:1] != _SIGNATURE[: len(data)]:
            raise ProtocolError("the other side does not speak ZMTP")
        if len(data) < _GREETING_BYTES:
            return False
        if data[9:10] != _SIGNED or data[10] < _MAJOR:
            raise ProtocolError("the other side does not speak ZMTP 3")
        if data[12:32] != _MECHANISM:
            raise ProtocolError("the other side wants another mechanism than NULL")
        self._greeted, self._at = True, _GREETING_BYTES
        return True

    def _next_frame(self) -> tuple[int, bytes] | None:
        data, at = self._data, self._at
        left = len(data) - at
        if left < 2:
            return None
        flags = data[at]
        begin = at + 2
        size = data[at + 1]
        if flags & _LONG:
            if left < 9:
                return None
            begin = at + 9
            size = int.from_bytes(data[at + 1 : begin], "big")
        if flags & _COMMAND:
            if flags > 6 or flags & _MORE or size >= LARGE_BYTES:
                raise ProtocolError(f"no command of ZMTP begins with {flags:#x} and {size} bytes")
        else:
            self._check_frame(flags, size)
        if begin + size > len(data):
            if size >= LARGE_BYTES:
                self._begin_large(flags, size, data[begin:])
            return None
        self._at = begin + size
        return flags, data[begin : self._at]

    def _check_frame(self, flags: int, size: int) -> None:
        if flags > _MORE | _LONG:
            raise ProtocolError(f"no frame of ZMTP begins with {flags:#x}")
        if not self.ready:
            raise ProtocolError("a message before the handshake was over")
        if len(self._frames) == MAX_FRAMES:
            raise TooLarge(f"a message of more than {MAX_FRAMES} frames")

    def _begin_large(self, flags: int, size: int, beginning: bytes) -> None:
        try:
            self._large = self._memory(size)
        except (MemoryError, OverflowError):
            raise TooLarge(f"a frame of {size} bytes, for which there is no memory") from None
        self._large[: len(beginning)] = beginning
        self._filled, self._more = len(beginning), bool(flags & _MORE)
        self._data, self._at = b"", 0

    def _obey(self, command: bytes) -> None:
        if command.startswith(_PING):
            if len(command) < _PING_BYTES or len(self.due) > _MAX_DUE:
                raise ProtocolError("the other side asks without end, or without sense")
            self.ttl_s = int.from_bytes(command[len(_PING) : _PING_BYTES], "big") / 10
            self.due += _command(_PONG + command[_PING_BYTES:][:_CONTEXT_BYTES])
        elif command.startswith(_ERROR):
            raise ProtocolError(f"the other side refused: {command[len(_ERROR) + 1 :]!r}")
        elif command.startswith(_READY):
            # Also this very socket is none: where nobody listens, TCP may connect it with itself.
            if _ROUTER not in command:
                raise ProtocolError("the other side is no ROUTER")
            self.ready = True
