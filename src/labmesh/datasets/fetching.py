"""Ranges of a dataset's bytes."""

from __future__ import annotations

import asyncio
import logging

from labmesh.asking.holding import Client
from labmesh.errors import Busy, LinkLost, NoAnswer, ProtocolError
from labmesh.protocol.messages import DatasetId, Fetch, Fetched
from labmesh.transfer.patience import Patience

__all__ = ["fetch_range"]

log = logging.getLogger(__name__)

_REQUEST_BYTES = 4 * 2**20
_TIMEOUT_S = 10.0
#: As patient as a download: a person who restarts a bank needs half a minute.
_RETRIES, _PATIENCE_S = 5, 60.0


async def fetch_range(
    client: Client, bank_id: str, dataset_id: DatasetId, offset: int, size: int
) -> memoryview:
    """Exactly ``size`` bytes of a dataset from ``offset`` on; on the client's loop.

    :raises ConnectionError: the bank was lost, and several tries did not help.
    :raises ProtocolError: it sent other bytes.
    """
    pieces = []
    for begin in range(offset, offset + size, _REQUEST_BYTES):
        wanted = min(_REQUEST_BYTES, offset + size - begin)
        pieces.append(await _patiently(client, bank_id, dataset_id, begin, wanted))
    return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))


async def _patiently(
    client: Client, bank_id: str, dataset_id: DatasetId, offset: int, size: int
) -> memoryview:
    patience = Patience(_RETRIES, _PATIENCE_S)
    while True:
        try:
            return await _fetch(client, bank_id, dataset_id, offset, size)
        except (LinkLost, NoAnswer, Busy) as exc:
            pause_s = patience.pause_s(exc)
            if pause_s is None:
                raise
            log.warning("bytes of %s: %s; trying again", dataset_id, exc)
            await asyncio.sleep(pause_s)


async def _fetch(
    client: Client, bank_id: str, dataset_id: DatasetId, offset: int, size: int
) -> memoryview:
    request = Fetch(id="-", dataset_id=dataset_id, offset=offset, size=size)
    reply, body = await client.request(
        bank_id, request, Fetched, endpoint="retrieve", timeout=_TIMEOUT_S
    )
    piece = body if body is not None else memoryview(b"")
    if (reply.offset, len(piece)) != (offset, size):
        raise ProtocolError(
            f"bank {bank_id} sent {len(piece)} bytes at {reply.offset} of {dataset_id}, where "
            f"{size} at {offset} were asked for; try another bank or version"
        )
    return piece
