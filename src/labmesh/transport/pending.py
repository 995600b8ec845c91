"""A request of a link until it ends, and the frames in which it travels."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from labmesh.errors import TooLarge
from labmesh.protocol.caller import OpenRequest
from labmesh.protocol.codec import Buffer, Decoded
from labmesh.protocol.messages import Batch, Call, Request, Result
from labmesh.transport.inflow import ItemStream
from labmesh.transport.sockets import MAX_FRAME_BYTES

__all__ = ["Pending", "check_sizes", "decode_plain", "encode_plain", "method_of"]

_NUMBERS: Final = frozenset({type(None), bool, int, float})
_FEW: Final = 64
_pack = msgspec.msgpack.Encoder().encode


class _PlainResult(msgspec.Struct, tag_field="type", tag="result"):
    """A :class:`Result` of one number, text or nothing: the codec has nothing more to look at."""

    id: str
    value: bool | int | float | str | None = None


_PLAIN_RESULT: Final = b"\xa4type\xa6result\xa2id"
_PLAIN_BYTES: Final = 1024
_MAX_ID: Final = 64
_read_plain = msgspec.msgpack.Decoder(_PlainResult).decode


class Pending(OpenRequest):
    """An open request with what its link needs to send it and to end it."""

    __slots__ = ("body", "frames", "future", "patient", "request", "stream")

    def __init__(
        self,
        request: Request,
        request_id: str,
        deadline: float,
        future: asyncio.Future[Decoded],
        *,
        method: str = "",
        resumable: bool = False,
        patient: bool = False,
        frames: list[Buffer] | None = None,
    ) -> None:
        # As in OpenRequest, written out: there is one for every call.
        self.id = request_id
        self.deadline = deadline
        self.method = method
        self.resumable = resumable
        self.sendings = self.refusals = 0
        self.epoch = ""
        self.sent_at = self.heard_at = 0.0
        self.broken_at = math.inf
        self.state = ""
        self.request = request
        self.future = future
        self.patient = patient
        #: as they were sent first; None: to be made when the link is up
        self.frames = frames
        self.body: Buffer | None = None
        self.stream: ItemStream | None = None


def method_of(request: Request) -> str:
    """What an error calls it, when it moves an instrument."""
    if isinstance(request, Call):
        return request.method
    return f"a batch of {len(request.calls)} calls" if isinstance(request, Batch) else ""


def check_sizes(frames: list[Buffer]) -> None:
    """A relay cuts off whoever sends more, and the call would end as nobody knows how."""
    largest = max(memoryview(frame).nbytes for frame in frames)
    limit = MAX_FRAME_BYTES["relay"]
    if largest > limit:
        raise TooLarge(
            f"an argument of {largest} bytes; the limit is {limit}: nothing was sent; split it, or "
            "upload it as a dataset",
            limit=limit,
        )


# Calls and results of numbers are most of what a busy client sends and gets. The codec, which has
# every message in mind, needs two and three times as long for them: 0.7 and 0.9 µs more.


def encode_plain(call: Call) -> list[Buffer] | None:
    """The frames of a call whose arguments are a few numbers; None: it needs the codec's care."""
    if call.kwargs or not _NUMBERS.issuperset(map(type, call.args)) or len(call.args) > _FEW:
        return None
    try:
        return [_pack(call)]
    except (OverflowError, UnicodeEncodeError):
        return None  # the codec says what is wrong


def decode_plain(frames: Sequence[Buffer]) -> Result | None:
    """A result of one number, text or nothing; None: it needs the codec's care."""
    header = frames[0]
    if (
        len(frames) > 1
        or type(header) is not bytes
        or len(header) > _PLAIN_BYTES
        or not header.startswith(_PLAIN_RESULT, 1)
    ):
        return None
    try:
        plain = _read_plain(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None  # the codec says what is wrong, if anything is
    if len(plain.id) > _MAX_ID:
        return None
    return Result(id=plain.id, value=plain.value)
