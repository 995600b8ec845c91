"""Why received bytes were refused, in one class and in words for a person."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from labmesh.errors import ProtocolError, TooLarge, UnsupportedVersion
from labmesh.protocol.arrays import Buffer
from labmesh.protocol.ids import ID_RULE
from labmesh.protocol.messages import ID_PATTERN, PROTOCOL_VERSION, Message, Request

__all__ = ["FAULTS", "MAPS", "Expected", "Untyped", "checked_header", "is_json", "refused"]

#: What decoding can raise. RecursionError: nesting; MemoryError: a length that lies.
FAULTS: Final = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
    MemoryError,
)

_BRACE: Final = ord("{")
#: First bytes of a MessagePack map.
MAPS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
#: The longest quotation of what a peer sent.
_QUOTED = 200
#: An id of 64 characters in the longest spelling that JSON has for them.
_SHORT = 1024


class Untyped(Message, frozen=True, kw_only=True, tag=""):
    """Never sent. A decoder of one type takes a message without ``type`` for that type; a decoder
    of two does not, so each has this one as well."""


class _Envelope(Struct):
    # What may be readable of a message that is not; as bytes, since they may be anything.
    id: Raw = Raw()
    version: Raw = Raw()
    type: Raw = Raw()


_peek_msgpack = msgspec.msgpack.Decoder(_Envelope).decode
_peek_json = msgspec.json.Decoder(_Envelope).decode
_read_msgpack = msgspec.msgpack.Decoder().decode
_read_json = msgspec.json.Decoder().decode


def is_json(header: Buffer) -> bool:
    """Whether a header is JSON: its first byte says it."""
    return header[0] == _BRACE


def checked_header(frame: Buffer, max_bytes: int) -> bytes | memoryview:
    """The frame, when it can be a header: not too large, and a map or an object."""
    header = frame if isinstance(frame, bytes) else memoryview(frame)
    if not header:
        raise ProtocolError("the header frame is empty")
    if len(header) > max_bytes:
        raise TooLarge(
            f"a header of {len(header)} bytes; the limit is {max_bytes}: large values belong into "
            "frames of their own",
            json=is_json(header),
        )
    if not is_json(header) and header[0] not in MAPS:
        raise ProtocolError(
            f"object expected: the header begins with byte 0x{header[0]:02x}, but it must be a "
            "MessagePack map, or a JSON object with '{' as its very first byte"
        )
    return header


def refused(cause: BaseException, header: Buffer) -> ProtocolError:
    """The one error for whatever decoding raised; the cause itself when it is one already."""
    if isinstance(cause, ProtocolError):
        return cause
    if isinstance(cause, RecursionError):
        return ProtocolError("too deep: lists and objects within each other")
    if isinstance(cause, UnicodeError) or (is_json(header) and _LONE_SURROGATE.search(header)):
        return ProtocolError("invalid unicode: text is UTF-8 without lone surrogates")
    if ID_PATTERN[:30] in str(cause):
        return ProtocolError(f"this is no id, {str(cause).rpartition(' ')[2]}; the rule: {ID_RULE}")
    return ProtocolError(f"this cannot be decoded: {str(cause)[:_QUOTED]}")


class Expected:
    """The message types that a socket takes, and what is told to a peer that sends others."""

    def __init__(self, types: Sequence[type[Message]]) -> None:
        self._tags = [str(kind.__struct_config__.tag) for kind in types]
        self._requests = any(issubclass(kind, Request) for kind in types)

    def is_usual(self, message: Message) -> bool:
        """Whether :meth:`check` would find nothing."""
        if isinstance(message, Request):
            return message.version == PROTOCOL_VERSION
        return not isinstance(message, Untyped)

    def check(self, message: Message) -> None:
        """Refuse a request of another protocol version."""
        if isinstance(message, Request) and not _is_supported(message.version):
            raise _unsupported(message.version)
        if isinstance(message, Untyped):
            raise self._unknown(message.__struct_config__.tag)

    def refusal(self, cause: BaseException, header: Buffer) -> ProtocolError:
        """The error for a message that could not be decoded, with what its sender needs.

        Another protocol version comes first: it explains all other differences.
        """
        error = refused(cause, header)
        readable = _peek(header)
        if readable is not None:
            request_id, version, tag = readable
            if self._requests and not _is_supported(version):
                error = _unsupported(version)
            elif error is not cause and tag not in self._tags:
                error = self._unknown(tag)
            if isinstance(request_id, str) and 0 < len(request_id) <= 64:
                error.detail["id"] = request_id
        error.detail["json"] = is_json(header)
        return error

    def _unknown(self, found: object) -> ProtocolError:
        what = (
            f"unknown message type {found[:40]!r}" if isinstance(found, str) else "no type (text)"
        )
        return ProtocolError(f"{what}; this socket takes: {', '.join(self._tags)}")


def _is_supported(version: object) -> bool:
    return type(version) is int and version == PROTOCOL_VERSION


def _unsupported(version: object) -> UnsupportedVersion:
    shown = repr(version)[:40] if isinstance(version, int | str | float) else "of this type"
    return UnsupportedVersion(
        f"protocol version {shown} is not supported; supported: {PROTOCOL_VERSION}"
    )


def _peek(header: Buffer) -> tuple[Any, Any, Any] | None:
    """Id, version and type, each when it is there and short; None: nothing is readable."""
    peek, read = (_peek_json, _read_json) if is_json(header) else (_peek_msgpack, _read_msgpack)
    try:
        envelope = peek(header)
        return (
            _short(envelope.id, read, None),
            _short(envelope.version, read, PROTOCOL_VERSION),
            _short(envelope.type, read, None),
        )
    except FAULTS:
        # The refusal goes out without an id.
        return None


def _short(field: Raw, read: Callable[[Raw], Any], absent: Any) -> Any:
    if not len(field):
        return absent
    return read(field) if len(field) <= _SHORT else ()
