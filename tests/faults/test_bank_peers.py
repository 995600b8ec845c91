"""Uploaders that vanish, downloaders that stop, and a broker that is away: others are not harmed.

The figures (FD12, FD13), two minutes::

    python -m pytest -m soak -s --timeout 600 tests/faults/test_bank_peers.py
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support.bank_process import BankProcess, Uploads, read_folder, seeded
from tests.support.cable import Cable
from tests.support.hearing import Heard
from tests.support.peers import open_sockets, until
from tests.support.places import Places
from tests.support.processes import Process, program

from labmesh.errors import LabmeshError
from labmesh.protocol.messages import (
    ChunkStored,
    Fetch,
    Fetched,
    UploadChunk,
    UploadGranted,
    UploadStart,
)
from labmesh.transport.link import Link

LIMIT_S = 30.0
MIB = 2**20
#: What a downloader asks for at a time.
WINDOW_BYTES = 8 * MIB

linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="another process is looked at in Linux's /proc"
)


# ── uploaders that vanish ───────────────────────────────────────────────────────────────────────


@linux
async def test_6_uploaders_vanish(tmp_path: Path) -> None:
    await _vanish(tmp_path, rounds=1, uploaders=6, idle_s=1.0)


@linux
@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_500_uploaders_vanish(tmp_path: Path) -> None:
    await _vanish(tmp_path, rounds=20, uploaders=25, idle_s=2.0, connections=True)


async def _vanish(
    folder: Path, *, rounds: int, uploaders: int, idle_s: float, connections: bool = False
) -> None:
    """FD12: nothing comes from them any more, and nobody says that they are gone.

    :param connections: wait also until the bank has found out that those are dead, some seconds.
    """
    limits = {"idle_s": idle_s, "chunk_bytes": MIB}
    under = "" if connections else str(folder / "bank" / "parts")
    with BankProcess(folder / "bank", {"limits": limits}) as bank:
        process = await asyncio.to_thread(bank.start)
        uploads = Uploads(bank.ingest)
        await uploads.one("before", seeded(3_000, 0))
        files_before, room_before = (
            _open_files(process.pid, under),
            _bytes_of(bank.folder / "parts"),
        )
        most_open = most_bytes = 0
        for round_ in range(rounds):
            async with (
                Cable(int(bank.ingest.rpartition(":")[2])) as cable,
                _broken_off(cable, round_ * uploaders, uploaders),
            ):
                most_open = max(most_open, (await bank.status())["uploads_open"])
                most_bytes = max(most_bytes, _bytes_of(bank.folder / "parts"))
                await _until_idle(bank)
                # Before anybody tells the bank that they ended.
                await until(
                    lambda: _open_files(process.pid, under) <= files_before,
                    LIMIT_S,
                    "files are closed",
                )
        left = (await bank.status())["uploads_open"]
        files, room = _open_files(process.pid, under), _bytes_of(bank.folder / "parts")
        bank.kill9()
    what = "open files and connections" if connections else "open files"
    print(
        f"FD12: {rounds * uploaders} uploaders vanished / left: uploads {left}, {what} "
        f"{files - files_before}, bytes {room - room_before} / at most {most_open} uploads and "
        f"{most_bytes >> 20} MiB at a time"
    )
    assert most_open == uploaders
    assert most_bytes >= uploaders * 4 * MIB
    assert (left, room) == (0, room_before)
    assert files <= files_before
    assert read_folder(folder / "bank") == {"before": uploads.sent["before"]}


@asynccontextmanager
async def _broken_off(cable: Cable, first: int, count: int) -> AsyncIterator[None]:
    """Uploads that have begun, have sent a chunk, or are in the middle of one; then silence."""
    async with AsyncExitStack() as stack:
        sockets = stack.enter_context(open_sockets())
        halves = []
        links = [Link(sockets, cable.endpoint, where="the bank") for _ in range(count)]
        for link in links:
            stack.callback(link.close)
            await link.wait_up(LIMIT_S)
        for number, link in enumerate(links):
            key = {"id": "-", "dataset_id": f"gone-{first + number}", "session": "0123456789abcdef"}
            start = UploadStart(**key, size=4 * MIB)
            await link.request(start, UploadGranted, timeout=LIMIT_S)
            chunk = UploadChunk(**key, offset=0)
            if number % 3 == 1:
                await link.request(chunk, ChunkStored, timeout=LIMIT_S, body=bytes(MIB))
            if number % 3 == 2:
                passed = cable.passed["up"]
                halves.append(asyncio.create_task(_send(link, chunk)))
                await until(lambda: cable.passed["up"] > passed, LIMIT_S)  # noqa: B023
        cable.hold()
        yield
        for each in halves:
            each.cancel()
        await asyncio.gather(*halves)


async def _send(link: Link, chunk: UploadChunk) -> None:
    try:
        await link.request(chunk, ChunkStored, timeout=LIMIT_S, body=bytes(MIB))
    except (LabmeshError, asyncio.CancelledError):
        return  # nobody may answer this one any more


async def _until_idle(bank: BankProcess) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await bank.status())["uploads_open"]:
            continue  # nobody tells when a bank gives an upload up; each look is a round trip


def _open_files(pid: int, under: str) -> int:
    """Descriptors of a process: of files in a folder, or of everything."""
    count = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(each).startswith(under)
        except FileNotFoundError:
            continue  # closed since
    return count


def _bytes_of(folder: Path) -> int:
    """Of the disk, not of the length: a part's room is reserved."""
    return sum(each.stat().st_blocks * 512 for each in folder.iterdir())


# ── downloaders that stop ───────────────────────────────────────────────────────────────────────


@linux
async def test_a_download_beside_6_readers_that_were_stopped(tmp_path: Path) -> None:
    # A share that also a busy machine leaves: what stopped readers hold up does not come at all.
    await _stopped(tmp_path, readers=6, size=8 * MIB, rounds=5, at_least=0.05)


@linux
@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_download_beside_50_readers_that_were_stopped(tmp_path: Path) -> None:
    await _stopped(tmp_path, readers=50, size=64 * MIB, rounds=9, at_least=0.9)


async def _stopped(folder: Path, *, readers: int, size: int, rounds: int, at_least: float) -> None:
    """FD13."""
    with BankProcess(folder / "bank") as bank, open_sockets() as sockets:
        process = await asyncio.to_thread(bank.start)
        await Uploads(bank.ingest).one("much", seeded(size, 13))
        link = Link(sockets, bank.retrieve, where="the bank")
        await link.wait_up(LIMIT_S)
        await _bytes_per_s(link, size)
        alone = [await _bytes_per_s(link, size) for _ in range(rounds)]
        memory_before = _memory(process.pid)
        arguments = [program("readers.py"), bank.retrieve, "much", str(readers)]
        with Process(arguments, cwd=folder) as others:
            await asyncio.to_thread(others.wait_for, "^reading", LIMIT_S)
            others.stop()
            beside = [await _bytes_per_s(link, size) for _ in range(rounds)]
            grown = _memory(process.pid) - memory_before
            others.cont()
        link.close()
    share = max(beside) / max(alone)
    print(
        f"FD13: {readers} readers stopped / the next one has {share:.0%} of "
        f"{max(alone) / 1e6:.0f} MB/s / the bank grew by {grown >> 20} MiB at most, of "
        f"{readers * WINDOW_BYTES >> 20} that they may have asked for"
    )
    assert share >= at_least
    # Beside their windows: its own threads' and the allocator's, which differ with the load.
    assert grown < readers * WINDOW_BYTES + 64 * MIB


async def _bytes_per_s(link: Link, size: int) -> float:
    begun = time.monotonic()
    places = iter(range(0, size, MIB))

    async def read() -> None:
        for offset in places:
            fetch = Fetch(id="-", dataset_id="much", offset=offset, size=MIB)
            await link.request(fetch, Fetched, timeout=LIMIT_S)

    await asyncio.gather(*(read() for _ in range(8)))
    return size / (time.monotonic() - begun)


def _memory(pid: int) -> int:
    """The most that a process ever had in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


# ── a broker that is away ───────────────────────────────────────────────────────────────────────


async def test_a_commit_without_a_broker_is_announced_also_after_a_kill(places: Places) -> None:
    """FD17."""
    options = {"broker_rpc": places.rpc, "broker_xsub": places.xsub}
    with BankProcess(places.folder / "bank", options) as bank:
        await asyncio.to_thread(bank.start)
        uploads = Uploads(bank.ingest)
        for number in range(3):
            await uploads.one(f"killed-{number}", seeded(1_000, number))
        bank.kill9()
        process = await asyncio.to_thread(bank.start)
        for number in range(3):
            await uploads.one(f"lived-{number}", seeded(1_000, 10 + number))
        assert (await bank.status())["unannounced"] == 6
        heard = Heard()
        # It finds the broker when somebody listens there: who comes later is not told.
        process.stop()
        async with places.broker(), places.client() as client:
            client.on_dataset(heard, since=0)
            await client.subscribed()
            process.cont()
            begun = time.monotonic()
            await heard.until(
                lambda items: {each["dataset_id"] for each in items} >= set(uploads.sent), LIMIT_S
            )
            took_s = time.monotonic() - begun
            async with asyncio.timeout(LIMIT_S):
                while (await bank.status())["unannounced"]:
                    continue
    lost = set(uploads.acknowledged) - {each["dataset_id"] for each in heard.items}
    print(
        f"FD17: 6 commits without a broker, a kill after 3 / never announced {len(lost)} / heard "
        f"{len(heard.items)} times, {took_s:.1f} s after a client came"
    )
    assert len(heard.items) == 6
