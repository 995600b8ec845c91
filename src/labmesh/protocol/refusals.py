"""Why received bytes were refused, in one class and in words for a person."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from labmesh.errors import ProtocolError, TooLarge, UnsupportedVersion
from labmesh.protocol.arrays import Buffer
from labmesh.protocol.messages import ID_PATTERN, PROTOCOL_VERSION, Message, Request

__all__ = ["FAULTS", "Expected", "Untyped", "checked_header", "is_json", "refused"]

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
_MAPS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
#: The longest quotation of what a peer sent.
_QUOTED = 200


class Untyped(Message, frozen=True, kw_only=True, tag=""):
    """Never sent. A decoder of one type takes a message without ``type`` for that type; a decoder
    of two does not, so each has this one as well."""


class _Envelope(Struct):
    # What may be readable of a message that is not: whom to answer, and why not.
    id: Any = None
    version: Any = PROTOCOL_VERSION
    type: Any = None


_peek_msgpack = msgspec.msgpack.Decoder(_Envelope).decode
_peek_json = msgspec.json.Decoder(_Envelope).decode


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
    if not is_json(header) and header[0] not in _MAPS:
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
        return ProtocolError(
            "an id has 1 to 128 ASCII letters, digits, '.', '_' or '-', begins with a letter or "
            f"digit and does not end in '.'; this has another at {str(cause).rpartition(' ')[2]}"
        )
    return ProtocolError(f"this cannot be decoded: {str(cause)[:_QUOTED]}")


class Expected:
    """The message types that a socket takes, and what is told to a peer that sends others."""

    def __init__(self, types: Sequence[type[Message]]) -> None:
        self._tags = [str(kind.__struct_config__.tag) for kind in types]
        self._requests = any(issubclass(kind, Request) for kind in types)

    def check(self, message: Message) -> None:
        """Refuse a request of another protocol version."""
        if isinstance(message, Request):
            _check_version(message.version)
        if isinstance(message, Untyped):
            raise self._unknown(message.__struct_config__.tag)

    def refusal(self, cause: BaseException, header: Buffer) -> ProtocolError:
        """The error for a message that could not be decoded, with what its sender needs.

        Another protocol version comes first: it explains all other differences.
        """
        error = refused(cause, header)
        envelope = _peek(header)
        if envelope is not None:
            try:
                if self._requests:
                    _check_version(envelope.version)
                if error is not cause and envelope.type not in self._tags:
                    error = self._unknown(envelope.type)
            except UnsupportedVersion as unsupported:
                error = unsupported
            if isinstance(envelope.id, str) and 0 < len(envelope.id) <= 64:
                error.detail["id"] = envelope.id
        error.detail["json"] = is_json(header)
        return error

    def _unknown(self, found: object) -> ProtocolError:
        what = (
            f"unknown message type {found[:40]!r}" if isinstance(found, str) else "no type (text)"
        )
        return ProtocolError(f"{what}; this socket takes: {', '.join(self._tags)}")


def _check_version(version: object) -> None:
    if type(version) is not int or version != PROTOCOL_VERSION:
        shown = repr(version)[:40] if isinstance(version, int | str | float) else "given"
        raise UnsupportedVersion(
            f"protocol version {shown} is not supported; supported: {PROTOCOL_VERSION}"
        )


def _peek(header: Buffer) -> _Envelope | None:
    try:
        return _peek_json(header) if is_json(header) else _peek_msgpack(header)
    except FAULTS:
        # Nothing is readable: the refusal goes out without an id.
        return None
