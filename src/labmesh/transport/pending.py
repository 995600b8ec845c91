"""A request of a link until it ends, and the frames in which it travels."""

from __future__ import annotations

import asyncio
import math

from labmesh.errors import TooLarge
from labmesh.protocol.caller import OpenRequest
from labmesh.protocol.codec import Buffer, Decoded
from labmesh.protocol.messages import Batch, Call, Request
from labmesh.transport.inflow import ItemStream
from labmesh.transport.sockets import MAX_FRAME_BYTES

__all__ = ["Pending", "check_sizes", "method_of"]


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
