"""``labmesh demo``: a tour of a whole mesh that ends by itself."""

from __future__ import annotations

import array
import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

from msgspec.structs import replace

from labmesh.cli import assembly
from labmesh.cli.options import Options
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, age, shown_state, size
from labmesh.cli.running import on_sigterm, run
from labmesh.cli.up import LocalMesh
from labmesh.client import BankClient, DirectorClientAgent
from labmesh.config import BankTable, BrokerTable, Config, RelayTable
from labmesh.content import packed
from labmesh.errors import ChecksumMismatch
from labmesh.events.reading import Reading
from labmesh.transport.keys import Security

__all__ = ["demo"]

_OPTIONS = Options()
_HERE = "tcp://127.0.0.1:*"
_CALLS = 500
_STATES = 3
_POINTS = 20_000
_BULK_BYTES = 20_000_000


def demo(*, options: Options = _OPTIONS) -> int:
    """A tour in a few seconds: a whole mesh in this process, with simulated instruments.

    Broker, bank and three relays talk over real sockets on free ports; the bank is a temporary
    folder. Nothing is left behind.

    For example:

        labmesh demo
        labmesh demo --json
    """
    try:
        return run(_Tour(options.out).go())
    except asyncio.CancelledError:  # SIGTERM, after everything was removed
        raise KeyboardInterrupt from None


class _Tour:
    def __init__(self, out: Output) -> None:
        self._out = out
        self._steps = 0

    async def go(self) -> int:
        tour = asyncio.current_task()
        assert tour is not None
        on_sigterm(tour.cancel)
        self._out.line("A tour of labmesh. The instruments are simulated; the network is real.")
        self._out.line()
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="labmesh-demo-") as folder:
            async with self._mesh(Path(folder)) as client:
                await self._look(client)
                await self._call(client)
                await self._watch(client)
                await self._transfer(client, Path(folder))
                await self._measure(client)
        self._end(time.perf_counter() - began)
        return DONE

    @asynccontextmanager
    async def _mesh(self, folder: Path) -> AsyncIterator[DirectorClientAgent]:
        began = time.perf_counter()
        security = Security.resolve().without_keys()
        mesh = LocalMesh(_config(folder), security)
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(make()) for make in mesh.factories]
            for node in nodes:
                await node.ready
            client = DirectorClientAgent(broker_rpc=str(mesh.broker.rpc), security=security)
            await stack.enter_async_context(client)
            self._step(
                "start a broker, a bank and three relays, and connect a client",
                time.perf_counter() - began,
                f"broker at {mesh.broker.rpc}, bank in {folder}",
                broker=str(mesh.broker.rpc),
                security=security.mode,
                simulated=True,
            )
            yield client

    async def _look(self, client: DirectorClientAgent) -> None:
        began = time.perf_counter()
        nodes = await client.list_nodes()
        seconds = time.perf_counter() - began
        there = ", ".join(f"{each.node_id} ({each.kind})" for each in nodes)
        self._step("labmesh ls", seconds, there, nodes=[each.node_id for each in nodes])

    async def _call(self, client: DirectorClientAgent) -> None:
        psu = await client.get_relay_agent("Inst-0")
        began = time.perf_counter()
        voltage = await psu.call("set_voltage", {"value": 2.5})
        seconds = time.perf_counter() - began
        self._step(
            "labmesh call Inst-0 set_voltage value=2.5",
            seconds,
            f"it answers {voltage}",
            value=voltage,
        )
        await psu.call("set_output", [True])

    async def _watch(self, client: DirectorClientAgent) -> None:
        readings: asyncio.Queue[Reading] = asyncio.Queue()

        def take(reading: Reading) -> None:
            if reading.relay_id == "Inst-0":
                readings.put_nowait(reading)

        began = time.perf_counter()
        subscription = client.on_reading(take)
        seen = [await readings.get() for _ in range(_STATES)]
        subscription.cancel()
        self._step(
            f"labmesh watch Inst-0 --count {_STATES}",
            time.perf_counter() - began,
            *(shown_state(each.value) for each in seen),
            states=[each.value for each in seen],
        )

    async def _transfer(self, client: DirectorClientAgent, folder: Path) -> None:
        scope = await client.get_relay_agent("Scope-0")
        waveform = await scope.call("acquire", {"channel": 1, "points": _POINTS})
        if isinstance(waveform, list):  # without numpy
            content, kind = array.array("d", waveform).tobytes(), "bytes"
        else:
            file = packed(waveform)
            content, kind = cast("IO[bytes]", file.content).read(), file.kind
        bank = await client.get_databank_agent()
        await self._store(bank, content, f"a waveform of {_POINTS} samples", kind, folder)
        await self._store(bank, os.urandom(_BULK_BYTES), "random bytes", "bytes", folder)

    async def _store(
        self, bank: BankClient, content: bytes, what: str, kind: str, folder: Path
    ) -> None:
        began = time.perf_counter()
        record = await bank.upload(content, name=what, kind=kind)
        seconds = time.perf_counter() - began
        self._step(
            f"labmesh data put ({what}, {size(len(content))})",
            seconds,
            f"stored as {record.dataset_id}, {_rate(len(content), seconds)}",
            size=len(content),
            dataset_id=record.dataset_id,
        )
        file = folder / "download"
        began = time.perf_counter()
        await bank.download(record.dataset_id, file)
        seconds = time.perf_counter() - began
        digest = hashlib.sha256(content).hexdigest()
        if await asyncio.to_thread(file.read_bytes) != content or record.sha256 != digest:
            raise ChecksumMismatch(f"{record.dataset_id} came back with other bytes")
        self._step(
            "labmesh data get",
            seconds,
            f"the same bytes, {_rate(len(content), seconds)}",
            f"sha256 {digest}",
            sha256=digest,
            verified=True,
        )

    async def _measure(self, client: DirectorClientAgent) -> None:
        thermometer = await client.get_relay_agent("Thermo-0")
        times = []
        began = time.perf_counter()
        for _ in range(_CALLS):
            started = time.perf_counter()
            await thermometer.call("read")
            times.append(time.perf_counter() - started)
        self._step(
            f"call Thermo-0 read, {_CALLS} times",
            time.perf_counter() - began,
            f"median round trip {median(times) * 1e6:.0f} µs, from a client in this process",
            median_s=median(times),
            calls=_CALLS,
        )

    def _step(self, title: str, seconds: float, *lines: str, **facts: Any) -> None:
        self._steps += 1
        if self._out.json:
            self._out.record({"step": self._steps, "title": title, "seconds": seconds, **facts})
            return
        self._out.line(f"{self._steps:>2}. {title}  ({age(seconds)})", "bold")
        for line in lines:
            self._out.line(f"      {line}")

    def _end(self, seconds: float) -> None:
        if self._out.json:
            self._out.record({"event": "done", "seconds": seconds})
            return
        self._out.line()
        self._out.line(f"Done in {age(seconds)}; everything is closed and removed. Next:")
        self._out.line("  labmesh up      the same mesh, in a terminal of its own, until Ctrl-C")
        self._out.line(
            "  labmesh ls      in another terminal: who is there; then show, call, watch"
        )
        self._out.line("  labmesh init    write labmesh.toml, and put your own instruments into it")


def _config(folder: Path) -> Config:
    config = assembly.simulated(
        Config(
            broker=BrokerTable(rpc_bind=_HERE, xsub_bind=_HERE, xpub_bind=_HERE),
            relay=RelayTable(state_interval=0.2),
            bank=BankTable(
                ingest_bind=_HERE, retrieve_bind=_HERE, default_data_dir=str(folder / "bank")
            ),
        )
    )
    return replace(config, relays=tuple(replace(each, bind=_HERE) for each in config.relays))


def _rate(count: int, seconds: float) -> str:
    return f"{size(int(count / max(seconds, 1e-6)))}/s"
