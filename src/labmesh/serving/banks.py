"""Which bank a relay's dataset goes to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from labmesh.errors import AuthenticationError, LabmeshError, NoSpace, NotFound, NotSent, Stopping
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import GetStatus, ListNodes, NodeList, NodeRecord, Status
from labmesh.protocol.spooling import BankRoom, roomiest
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

__all__ = ["Bank", "Banks", "ListedBanks"]

log = logging.getLogger(__name__)

_STATUS_S = 2.0
_FRESH_S = 5.0
_DIRECTORY_S = 5.0


class Bank(NamedTuple):
    """A bank, and where it takes uploads."""

    bank_id: str
    endpoint: str


class ListedBanks:
    """The banks of the directory; while no broker answers, those that were listed last.

    :param broker: the link to a broker; None: the relay is not up.
    """

    def __init__(self, relay_id: str, broker: Callable[[], Link | None]) -> None:
        self._relay_id = relay_id
        self._broker = broker
        self._known: list[NodeRecord] = []

    async def __call__(self) -> list[NodeRecord]:
        """The lines of the banks.

        :raises LinkLost: no broker answers, and none has ever listed one.
        """
        broker = self._broker()
        if broker is None:
            raise Stopping(f"{self._relay_id} is not running: it cannot upload")
        if broker.up or not self._known:
            answer = await broker.request(ListNodes(id="-"), NodeList, timeout=_DIRECTORY_S)
            self._known = [each for each in answer.nodes if each.kind == "bank"]
        return self._known


class Banks:
    """Finds banks by their ids, and the one with most room. It belongs to one loop.

    :param list_banks: the banks of the directory; raises when nobody can tell.
    """

    def __init__(
        self, sockets: Sockets, list_banks: Callable[[], Awaitable[list[NodeRecord]]]
    ) -> None:
        self._sockets = sockets
        self._list = list_banks
        self._rooms: list[BankRoom] = []
        self._asked_at: float | None = None

    def forget(self) -> None:
        """Something went wrong with a bank: ask again before the next choice."""
        self._asked_at = None

    async def named(self, bank_id: str) -> Bank:
        """The bank of this id.

        :raises NotFound: it is not on the mesh.
        """
        banks = await self._listed()
        for each in banks:
            if each.node_id == bank_id:
                return _bank(each)
        known = [each.node_id for each in banks]
        near = did_you_mean(bank_id, known)
        raise NotFound(
            f"no bank {bank_id!r} is on the mesh{near and f' ({near})'}; the broker lists "
            f"{', '.join(known) or 'none'}"
        )

    async def any(self, size: int | None, *, sure: bool = False) -> Bank:
        """The bank with most room for ``size`` bytes (None: not known).

        Each is asked for its room, at most once in a few seconds.

        :param sure: only one that has answered; else the only bank of a mesh is taken as it is.
        :raises NotFound: there is none.
        :raises NotSent: none answers.
        :raises NoSpace: all are read-only.
        """
        banks = await self._listed()
        if not banks:
            self.forget()
            raise NotFound("no bank is on the mesh: start one with 'labmesh bank'")
        if len(banks) == 1 and not sure:
            return _bank(banks[0])
        rooms = await self._fresh(banks)
        if not rooms:
            names = ", ".join(each.node_id for each in banks)
            raise NotSent(f"no bank answers: {names}; look after it")
        best = roomiest(rooms, size)
        if best is None:
            names = ", ".join(each.bank_id for each in rooms)
            raise NoSpace(f"every bank is read-only for now: {names}; look at their disks")
        return _bank(next(each for each in banks if each.node_id == best))

    async def _listed(self) -> list[NodeRecord]:
        banks = await self._list()
        if self._sockets.security.guard is None:
            return banks
        trusted = []
        for each in banks:
            try:
                await asyncio.to_thread(self._sockets.learn, each)
                trusted.append(each)
            except AuthenticationError as exc:
                # One bank that is not trusted is no reason to do without the others.
                log.warning("%s is left out: %s", each.node_id, exc)
        return trusted

    async def _fresh(self, banks: list[NodeRecord]) -> list[BankRoom]:
        now = time.monotonic()
        listed = {each.node_id for each in banks}
        known = {each.bank_id for each in self._rooms}
        if self._asked_at is None or now - self._asked_at > _FRESH_S or known != listed:
            answers = await asyncio.gather(*(self._ask(each) for each in banks))
            self._rooms = [each for each in answers if each is not None]
            self._asked_at = now if self._rooms else None
        return [each for each in self._rooms if each.bank_id in listed]

    async def _ask(self, bank: NodeRecord) -> BankRoom | None:
        link = Link(self._sockets, bank.endpoints["ingest"], where=f"bank {bank.node_id}")
        try:
            await link.wait_up(_STATUS_S)
            status = await link.request(GetStatus(id="-"), Status, timeout=_STATUS_S)
        except LabmeshError as exc:
            log.info("%s does not tell its room: %s", bank.node_id, exc)
            return None
        finally:
            link.close()
        return BankRoom.of(bank.node_id, status.facts)


def _bank(record: NodeRecord) -> Bank:
    return Bank(record.node_id, record.endpoints["ingest"])
