"""A bank in this process: one that is listed, with a proxy of it, and links to one of its ports."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.places import Places

from labmesh import BankClient, DataBank
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

__all__ = ["asking", "bank_of", "object_of", "sha256_of"]

_LIMIT_S = 10.0


@asynccontextmanager
async def bank_of(places: Places, **options: Any) -> AsyncIterator[tuple[DataBank, BankClient]]:
    """A bank that is listed, and a proxy of it."""
    async with places.broker(), places.bank(**options) as bank, places.client() as client:
        await bank.ready
        yield bank, await client.get_databank_agent("bank-0")


@asynccontextmanager
async def asking(endpoint: str) -> AsyncIterator[Link]:
    """A link for requests of a test's own."""
    sockets = Sockets(Security("open"), "test")
    link = Link(sockets, endpoint, where="the bank")
    try:
        await link.wait_up(_LIMIT_S)
        yield link
    finally:
        link.close()
        sockets.close_all()


def sha256_of(content: bytes) -> str:
    """The digest by which a bank names content."""
    return hashlib.sha256(content).hexdigest()


def object_of(places: Places, content: bytes) -> Path | None:
    """The file of the bank whose bytes are these, found by its digest in its name."""
    found = list((places.folder / "bank-0" / "objects").rglob(sha256_of(content)))
    return found[0] if found else None
