"""What tests and demonstrations need: doubles, and a whole mesh in one process.

Doubles: :class:`MemoryBlobStore` and :class:`MemoryCatalog` for a bank without a disk,
:class:`ManualClock` for time that stands still, :class:`ScriptedInstrument` for a driver that
answers from a script. :class:`LocalMesh` runs real nodes, with real sockets on free ports of this
machine; :func:`demo` does the same for scripts and notebooks.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import AsyncExitStack
from os import PathLike
from pathlib import Path
from typing import Any, Self

from labmesh.broker import DirectoryBroker
from labmesh.client import DirectorClientAgent
from labmesh.databank import DataBank
from labmesh.instruments.scripted import (
    After,
    Held,
    RecordedCall,
    RecordedCalls,
    ScriptedInstrument,
)
from labmesh.instruments.simulated import Oscilloscope, PowerSupply, Thermometer
from labmesh.mesh import Mesh, connect_within
from labmesh.relay import RelayAgent
from labmesh.storage.memory import MemoryBlobStore, MemoryCatalog
from labmesh.transport.keys import Security

__all__ = [
    "After",
    "Held",
    "LocalMesh",
    "ManualClock",
    "MemoryBlobStore",
    "MemoryCatalog",
    "RecordedCall",
    "RecordedCalls",
    "ScriptedInstrument",
    "demo",
]

_ANYWHERE = "tcp://127.0.0.1:*"
_READY_S = 15.0


class ManualClock:
    """A clock that moves when it is told to: ``clock()`` gives seconds, ``advance(1.5)`` moves it.

    It goes where a clock is a parameter. In any thread.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Move it on; the new time.

        :raises ValueError: back: the clocks that it stands for never go back.
        """
        if not seconds >= 0:
            raise ValueError(f"a monotonic clock cannot be moved by {seconds} seconds")
        with self._lock:
            self._now += seconds
            return self._now

    def sleep(self, seconds: float) -> None:
        """Pass the time without waiting, where a ``sleep`` is a parameter."""
        self.advance(seconds)

    def __repr__(self) -> str:
        return f"ManualClock({self._now!r})"


class LocalMesh:
    """Broker, banks and relays on free loopback ports, in the running event loop.

    ::

        async with LocalMesh({"Inst-0": PowerSupply()}) as mesh:
            client = await mesh.client()
            psu = await client.get_relay_agent("Inst-0")
            await psu.set_voltage(2.5)

    When it is entered, all nodes are registered. Leaving it ends clients, nodes and, where it made
    them, the banks' folders.

    :param drivers: relay id → driver object.
    :param banks: how many banks: ``bank-0``, ``bank-1``, ...
    :param data_dir: where the banks' folders go; None: a temporary folder.
    :param in_memory: banks without a disk.
    :param state_interval: seconds between two states.
    :param heartbeat_seconds: seconds between the heartbeats of a node.
    :param ttl_seconds: a node that was not heard for so long leaves the directory.
    :param security: by default what the environment says; no keys of this machine's.
    """

    def __init__(
        self,
        drivers: Mapping[str, object] | None = None,
        *,
        banks: int = 1,
        data_dir: str | PathLike[str] | None = None,
        in_memory: bool = False,
        state_interval: float = 0.1,
        heartbeat_seconds: float = 0.5,
        ttl_seconds: float = 30.0,
        security: Security | None = None,
    ) -> None:
        self._drivers = dict(drivers or {})
        self._bank_count = banks
        self._data_dir = data_dir
        self._folder: str | PathLike[str]
        self._in_memory = in_memory
        self._state_interval = state_interval
        self._heartbeat = heartbeat_seconds
        self._ttl = ttl_seconds
        self._security = security
        self.broker: DirectoryBroker
        self.relays: dict[str, RelayAgent] = {}
        self.banks: dict[str, DataBank] = {}

    @property
    def address(self) -> str:
        """The broker's address, for :func:`labmesh.connect` and :class:`DirectorClientAgent`."""
        return str(self.broker.rpc)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._stack = stack
            await self._start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    async def client(self, **options: Any) -> DirectorClientAgent:
        """A client that is connected, and closed with the mesh."""
        options.setdefault("security", self._security)
        client = DirectorClientAgent(broker_rpc=self.address, **options)
        return await self._stack.enter_async_context(client)

    async def start_relay(self, relay_id: str, driver: object, **options: Any) -> RelayAgent:
        """One more relay, registered; ``options`` are those of :class:`RelayAgent`."""
        relay = self._relay(relay_id, driver, options)
        await self._entered(relay)
        return relay

    async def restart_relay(self, relay_id: str, driver: object | None = None) -> RelayAgent:
        """Stop a relay, and start it again at another port, with this driver or its old one."""
        old = self.relays[relay_id]
        await old.stop()
        return await self.start_relay(relay_id, old.driver if driver is None else driver)

    async def start_bank(self, bank_id: str, **options: Any) -> DataBank:
        """One more bank, registered; ``options`` are those of :class:`DataBank`."""
        bank = self._bank(bank_id, options)
        await self._entered(bank)
        return bank

    async def restart_bank(self, bank_id: str) -> DataBank:
        """Stop a bank, and start it again on the same folder at other ports; one in memory begins
        empty.
        """
        await self.banks[bank_id].stop()
        return await self.start_bank(bank_id)

    async def restart_broker(self) -> DirectoryBroker:
        """Stop the broker, and start another one, who knows nobody, at the same addresses."""
        old = self.broker
        addresses = [str(each) for each in (old.rpc, old.xsub, old.xpub)]
        await old.stop()
        self.broker = await self._stack.enter_async_context(self._broker(*addresses))
        return self.broker

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    async def _start(self) -> None:
        if self._security is None:
            self._security = Security.resolve().without_keys()
        if not self._in_memory:
            self._folder = self._data_dir or self._temporary_folder()
        broker = self._broker(_ANYWHERE, _ANYWHERE, _ANYWHERE)
        self.broker = await self._stack.enter_async_context(broker)
        nodes: list[RelayAgent | DataBank] = [
            *(self._relay(relay_id, driver, {}) for relay_id, driver in self._drivers.items()),
            *(self._bank(f"bank-{number}", {}) for number in range(self._bank_count)),
        ]
        await self._entered(*nodes)

    async def _entered(self, *nodes: RelayAgent | DataBank) -> None:
        for node in nodes:
            await self._stack.enter_async_context(node)
        async with asyncio.timeout(_READY_S):
            for node in nodes:
                await node.ready

    def _broker(self, rpc: str, xsub: str, xpub: str) -> DirectoryBroker:
        return DirectoryBroker(rpc, xsub, xpub, ttl_seconds=self._ttl, security=self._security)

    def _relay(self, relay_id: str, driver: object, options: dict[str, Any]) -> RelayAgent:
        relay = RelayAgent(
            relay_id,
            driver,
            **{
                "broker_rpc": self.address,
                "rpc_bind": _ANYWHERE,
                "state_pub": str(self.broker.xsub),
                "state_interval": self._state_interval,
                "heartbeat_seconds": self._heartbeat,
                "security": self._security,
                **options,
            },
        )
        self.relays[relay_id] = relay
        return relay

    def _bank(self, bank_id: str, options: dict[str, Any]) -> DataBank:
        bank = DataBank(
            **{
                "ingest_bind": _ANYWHERE,
                "retrieve_bind": _ANYWHERE,
                "broker_rpc": self.address,
                "broker_xsub": str(self.broker.xsub),
                "bank_id": bank_id,
                "heartbeat_sec": self._heartbeat,
                "security": self._security,
                **self._storage(bank_id),
                **options,
            }
        )
        self.banks[bank_id] = bank
        return bank

    def _storage(self, bank_id: str) -> dict[str, Any]:
        if self._in_memory:
            return {"store": MemoryBlobStore(), "catalog": MemoryCatalog()}
        return {"data_dir": Path(self._folder) / bank_id}

    def _temporary_folder(self) -> str:
        # No TemporaryDirectory: at the exit of the interpreter it goes before the bank does.
        folder = tempfile.mkdtemp(prefix="labmesh-")
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder


def demo(relays: Mapping[str, object] | None = None, *, state_interval: float = 0.5) -> Mesh:
    """A whole mesh in this process, to try things out: ``with labmesh.demo() as mesh: ...``

    Broker, bank (in a temporary folder, removed at the end) and relays, on free ports of this
    machine. They end with the mesh: with the ``with`` statement, ``mesh.close()``, or the program.

    :param relays: relay id → driver object; by default simulated instruments: a power supply
        ``Inst-0``, a thermometer ``Thermo-0`` and an oscilloscope ``Scope-0``.
    :param state_interval: seconds between two states.
    """
    drivers: Mapping[str, object] = relays if relays is not None else _simulated()
    security = Security.resolve().without_keys()
    local = LocalMesh(drivers, state_interval=state_interval, security=security)
    return connect_within(local, lambda: local.address, security=security)


def _simulated() -> dict[str, object]:
    return {"Inst-0": PowerSupply(), "Thermo-0": Thermometer(), "Scope-0": Oscilloscope()}
