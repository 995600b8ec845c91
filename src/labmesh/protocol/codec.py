"""Messages to frames and back: the only place where bytes from the network are decoded.

A message is ``[header] [buffer]*``. The header is MessagePack, or JSON when its first byte is
``{``. Whatever is wrong with received frames raises one class, :class:`ProtocolError` (or a
subclass of it), and nothing else.

What is lenient and what is not: unknown fields are skipped, since versions mix. Of a key that comes
twice the last one wins, but each must be valid, and a second ``type`` must equal the first. Numbers
are exact: neither ``1.5``, ``1.0``, ``true`` nor ``"1"`` is an integer. NaN and infinities are
values, not control numbers; in JSON they are written ``{"$float": "nan"}``, and the words ``NaN``
and ``Infinity``, which are not JSON, are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, Union

import msgspec
from msgspec import Struct

from labmesh.errors import ProtocolError, TooLarge
from labmesh.protocol.arrays import ArrayData, Buffer
from labmesh.protocol.json_values import JsonLeaves, Restoring
from labmesh.protocol.messages import Event, Message, Stamp
from labmesh.protocol.msgpack_values import PackedLeaves, Unpacking
from labmesh.protocol.open_fields import is_plain, rewritten
from labmesh.protocol.refusals import FAULTS, Expected, Untyped, checked_header, is_json, refused
from labmesh.protocol.values import Checking, Limits, Lowering, too_long_an_integer
from labmesh.protocol.vetting import vet

__all__ = [
    "ArrayData",
    "Buffer",
    "Codec",
    "Decoded",
    "Limits",
    "decode_event",
    "decode_stamp",
    "decode_value",
    "encode_event",
    "encode_stamp",
    "encode_value",
]

S = TypeVar("S", bound=Struct)

_DEFAULTS = Limits()
#: In a smaller header no text or list can be over a limit.
_SMALL = 4096

Write = Callable[[Any], bytes]

_pack: Write = msgspec.msgpack.Encoder().encode
_write_json: Write = msgspec.json.Encoder().encode


class Decoded(NamedTuple):
    """A message that arrived. ``json``: the peer speaks JSON, answer in kind."""

    message: Message
    body: memoryview | None
    json: bool


class Codec:
    """Encodes and decodes the messages of one socket; not shared between threads.

    :param types: what :meth:`decode` accepts (:meth:`encode` takes any message).
    """

    def __init__(self, types: Sequence[type[Message]], *, limits: Limits = _DEFAULTS) -> None:
        self._limits = limits
        smallest = min(limits.max_header_bytes, limits.max_text_bytes, limits.max_keys)
        #: whether small plain messages are within all limits, so that nobody has to look
        self._trusts_plain = smallest >= _SMALL
        self._expected = Expected(types)
        self._packed = PackedLeaves(limits.max_frames - 1)
        self._framing = Lowering(self._packed, limits)
        self._inline = Lowering(PackedLeaves(), limits)
        self._to_json = Lowering(JsonLeaves(), limits)
        accepted: Any = Union[(*types, Untyped)]
        self._unpacking = Unpacking()
        self._msgpack = msgspec.msgpack.Decoder(accepted, ext_hook=self._unpacking.hook)
        self._json = msgspec.json.Decoder(accepted)
        self._checking, self._restoring = Checking(limits), Restoring(limits)

    def encode(
        self, message: Message, body: Buffer | None = None, *, json: bool = False
    ) -> list[Buffer]:
        """The frames of a message: ``[header, *buffers]``.

        Arrays and bytes of 4096 bytes and more in the message's ``value_fields``, and ``body``, are
        not copied: do not change them before the frames are sent. No value may be changed by
        another thread meanwhile.

        :param json: answer a peer that spoke JSON; all values go into the header.
        :raises ProtocolError: a value of a type that cannot travel (the text says which, and what
            to convert it to), or too deep.
        :raises TooLarge: over one of the limits.
        """
        if message.has_body != (body is not None):
            wants = "needs a body" if message.has_body else "takes no body"
            raise ProtocolError(f"{type(message).__name__} {wants}")
        if self._trusts_plain and not json and is_plain(message):
            header = self._packed_as_it_is(message)
            buffers: list[Buffer] = []
        else:
            header, buffers = self._lowered(message, json)
        if len(header) > self._limits.max_header_bytes:
            raise TooLarge(
                f"the header of this message would have {len(header)} bytes; the limit is "
                f"{self._limits.max_header_bytes}: send numpy arrays or bytes instead of long lists"
            )
        return [header, *buffers] if body is None else [header, body]

    def _packed_as_it_is(self, message: Message) -> bytes:
        try:
            return _pack(message)
        except _UNWRITABLE as cause:
            raise _unwritable(cause) from cause

    def _lowered(self, message: Message, json: bool) -> tuple[bytes, list[Buffer]]:
        lowering = self._framing if message.value_fields else self._inline
        if json:
            lowering = self._to_json
        lowering.begin()
        buffers: list[Buffer] = []
        self._packed.buffers = buffers
        try:
            lowered = rewritten(message, lowering)
            return (_write_json(lowered) if json else _pack(lowered)), buffers
        except _UNWRITABLE as cause:
            raise _unwritable(cause) from cause
        finally:
            # Kept here they would live on until the next message.
            self._packed.buffers = []

    def decode(self, frames: Sequence[Buffer]) -> Decoded:
        """The message in these frames (without routing id and empty delimiter).

        Arrays and body are views of the frames, not copies; read-only when the frames are.

        :raises ProtocolError: whatever is wrong. Its ``detail`` has ``json``, and ``id`` when the
            message's id could be read, so that a refusal finds its way.
        :raises UnsupportedVersion: a request of another protocol version.
        :raises TooLarge: over one of the limits.
        """
        if len(frames) == 1 and type(frames[0]) is bytes and len(frames[0]) < _SMALL:
            message = self._plain(frames[0])
            if message is not None:
                return Decoded(message, None, False)
        if not frames:
            raise ProtocolError("a message without frames; the first one must be its header")
        header = checked_header(frames[0], self._limits.max_header_bytes)
        json = is_json(header)
        try:
            if len(frames) > self._limits.max_frames:
                raise ProtocolError(
                    f"a message of {len(frames)} frames; the limit is {self._limits.max_frames}"
                )
            if len(frames) > 1:
                self._unpacking.begin(frames[1:])
            message = self._read_json(header) if json else self._read_msgpack(header)
            self._expected.check(message)
            body = memoryview(self._unpacking.body()) if message.has_body else None
            self._unpacking.end()
        except FAULTS as cause:
            error = self._expected.refusal(cause, header)
            if error is cause:
                raise
            raise error from cause
        finally:
            if len(frames) > 1:
                self._unpacking.begin(())
        return Decoded(message, body, json)

    def _plain(self, header: bytes) -> Message | None:
        """A short message without anything that needs a second look; None: look again.

        Most messages are like this, and all other steps of :meth:`decode` cost them more than this.
        """
        if not self._trusts_plain:
            return None
        try:
            message: Message = self._msgpack.decode(header)
        except FAULTS:
            return None
        if message.has_body or not self._expected.is_usual(message) or not is_plain(message):
            return None
        return message

    def _read_msgpack(self, header: Buffer) -> Message:
        vet(header, self._limits)
        message: Message = self._msgpack.decode(header)
        if len(header) < _SMALL and self._trusts_plain and is_plain(message):
            return message
        self._checking.begin()
        return rewritten(message, self._checking)

    def _read_json(self, header: Buffer) -> Message:
        # As text first: msgspec skips unknown fields without a look at their UTF-8.
        message: Message = self._json.decode(str(header, "utf-8"))
        self._restoring.begin()
        return rewritten(message, self._restoring)


# ── events, stamps, and values that stand alone ─────────────────────────────────────────────────


def encode_event(event: Event) -> bytes:
    """The header of an event."""
    return _pack(event)


def decode_event(frame: Buffer) -> Event:
    """The header of an event; raises :class:`ProtocolError`."""
    return _decoded(Event, frame)


def encode_stamp(stamp: Stamp) -> bytes:
    """What the broker puts behind an event."""
    return _pack(stamp)


def decode_stamp(frame: Buffer) -> Stamp:
    """What the broker put behind an event; raises :class:`ProtocolError`."""
    return _decoded(Stamp, frame)


def encode_value(value: Any, *, json: bool = False, limits: Limits = _DEFAULTS) -> bytes:
    """One value in one piece, arrays and all: the payload of an event, a file, a printed line.

    :raises ProtocolError: it, or something in it, cannot travel.
    :raises TooLarge: over one of the limits.
    """
    lowering = Lowering(JsonLeaves() if json else PackedLeaves(), limits)
    try:
        lowered = lowering.any(value)
        encoded = _write_json(lowered) if json else _pack(lowered)
    except _UNWRITABLE as cause:
        raise _unwritable(cause) from cause
    if len(encoded) > limits.max_value_bytes:
        raise TooLarge(
            f"this value has {len(encoded)} bytes; the limit is {limits.max_value_bytes}: "
            "store it as a dataset"
        )
    return encoded


def decode_value(frame: Buffer, *, json: bool | None = None, limits: Limits = _DEFAULTS) -> Any:
    """The value in a frame.

    :param json: None: JSON when the frame begins with ``{`` (and is not the number 123, which is
        that one byte in MessagePack).
    :raises ProtocolError: whatever is wrong.
    """
    view = memoryview(frame)
    if len(view) > limits.max_value_bytes:
        raise TooLarge(f"a value of {len(view)} bytes; the limit is {limits.max_value_bytes}")
    if not view:
        raise ProtocolError("the frame of a value is empty")
    if json is None:
        json = is_json(view) and len(view) > 1
    try:
        if json:
            return Restoring(limits).any(_read_json(str(view, "utf-8")))
        vet(view, limits)
        return Checking(limits).any(_unpack(view))
    except FAULTS as cause:
        raise refused(cause, view) from cause


#: Reads extension types where there are no buffers to name; it keeps nothing between calls.
_inline_hook = Unpacking().hook
_unpack = msgspec.msgpack.Decoder(ext_hook=_inline_hook).decode
_read_json = msgspec.json.Decoder().decode

_Reader = Callable[[Buffer], Any]
_READERS: dict[type[Struct], tuple[_Reader, _Reader]] = {
    kind: (msgspec.msgpack.Decoder(kind).decode, msgspec.json.Decoder(kind).decode)
    for kind in (Event, Stamp)
}


def _decoded(kind: type[S], frame: Buffer) -> S:
    header = checked_header(frame, _DEFAULTS.max_header_bytes)
    try:
        struct: S = _READERS[kind][is_json(header)](header)
        return rewritten(struct, Checking(_DEFAULTS))
    except FAULTS as cause:
        error = refused(cause, header)
        if error is cause:
            raise
        raise error from cause


#: What an encoder raises on a value that passed the walk, or on a control field of a wrong type.
_UNWRITABLE = (UnicodeEncodeError, OverflowError, TypeError)


def _unwritable(cause: Exception) -> ProtocolError:
    if isinstance(cause, UnicodeEncodeError):
        return ProtocolError("invalid unicode: a text with a lone surrogate cannot be sent")
    if isinstance(cause, OverflowError):
        return too_long_an_integer()
    return ProtocolError(f"this message cannot be encoded: {cause}")
