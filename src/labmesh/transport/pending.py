"""A request of a link until it ends, and the frames in which it travels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from labmesh.errors import TooLarge
from labmesh.protocol.caller import OpenRequest
from labmesh.protocol.codec import Buffer, Decoded
from labmesh.protocol.messages import Batch, Call, Request, Result
from labmesh.protocol.packs import MAX_PACK, all_fit, fits, pack
from labmesh.transport.inflow import ItemStream
from labmesh.transport.sockets import MAX_FRAME_BYTES

__all__ = ["MAX_CALL_BYTES", "Answered", "Pending", "check_sizes", "method_of", "together"]

#: All frames of a call or batch. A relay takes more for a message without an end.
MAX_CALL_BYTES = 48 * 2**20

#: What a request ends with: a message, and what came behind it; a result by itself, if it is plain.
Answered = Decoded | Result


class Pending(OpenRequest, kw_only=True, eq=False):
    """An open request with what its link needs to send it and to end it."""

    request: Request
    future: asyncio.Future[Answered]
    #: it waits for the link to be up
    patient: bool = False
    #: as they were sent first; None: to be made when the link is up
    frames: list[Buffer] | None = None
    body: Buffer | None = None
    stream: ItemStream | None = None


def method_of(request: Request) -> str:
    """What an error calls it, when it moves an instrument."""
    if isinstance(request, Call):
        return request.method
    return f"a batch of {len(request.calls)} calls" if isinstance(request, Batch) else ""


def check_sizes(frames: list[Buffer]) -> None:
    """A relay cuts off whoever sends more, and the call would end as nobody knows how."""
    sizes = [memoryview(frame).nbytes for frame in frames]
    for what, size, limit in (
        ("an argument of {} bytes", max(sizes), MAX_FRAME_BYTES["relay"]),
        ("arguments of {} bytes in all", sum(sizes), MAX_CALL_BYTES),
    ):
        if size > limit:
            raise TooLarge(
                f"{what.format(size)}; the limit is {limit}: nothing was sent; split it, or "
                "upload it as a dataset",
                limit=limit,
            )


def together(waiting: list[Pending]) -> list[tuple[Sequence[Buffer], list[Pending]]]:
    """The messages in which these leave: small calls that follow each other in packs.

    Only calls are worth a pack: they come in crowds, other requests hardly.
    """
    alone = [each.frames for each in waiting if each.method and each.frames]
    small = [frames[0] for frames in alone if len(frames) == 1]
    if len(small) == len(waiting) > 0 and all_fit(small):
        # As nearly always: one pack, and nothing to look at one by one.
        return [([pack(small)], waiting)]
    messages: list[tuple[Sequence[Buffer], list[Pending]]] = []
    packed: list[Pending] = []
    headers: list[Buffer] = []
    for pending in waiting:
        frames = pending.frames or []
        is_small = bool(pending.method) and len(frames) == 1 and fits(frames[0])
        if headers and (not is_small or len(headers) == MAX_PACK):
            messages.append(([pack(headers)], packed))
            packed, headers = [], []
        if is_small:
            packed.append(pending)
            headers.append(frames[0])
        else:
            messages.append((frames, [pending]))
    if headers:
        messages.append(([pack(headers)], packed))
    return messages
