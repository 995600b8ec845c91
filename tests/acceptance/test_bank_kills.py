"""A bank that is killed in the middle of a transfer and started again: the transfer goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.places import Places
from tests.support.processes import Process, Start, free_ports, program

from labmesh.transfer import upload_dataset

LIMIT_S = 30.0
BLOCK = random.Random(4).randbytes(2**20)
MIB = 2**20


class KilledBank:
    """A bank that the progress of a transfer kills when it is half through."""

    def __init__(self, start: Start, places: Places) -> None:
        self._start = start
        self._places = places
        self._options = {
            "kind": "bank",
            "bank_id": "bank-0",
            "broker_rpc": places.rpc,
            "broker_xsub": places.xsub,
            "data_dir": str(places.folder / "bank-0"),
            "heartbeat_sec": 0.5,
        }
        self.ingest, self.retrieve = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
        self._restarting: asyncio.Task[None] | None = None
        self.process = self._begin()
        self.process.wait_for("ready bank-0", LIMIT_S)
        self.killed_at = 0
        self.steps_after: list[int] = []

    def _begin(self) -> Process:
        options = {**self._options, "ingest_bind": self.ingest, "retrieve_bind": self.retrieve}
        return self._start([program("nodes.py"), json.dumps([options])], cwd=self._places.folder)

    def arm(self, size: int) -> Any:
        """A progress callback that kills it at half of ``size``, once, and starts it again."""
        self.killed_at, self.steps_after = 0, []

        def progress(done: int, _size: int | None) -> None:
            if self.killed_at:
                self.steps_after.append(done)
            elif done >= size // 2:
                self.killed_at = done
                self.process.kill9()
                self._restarting = asyncio.ensure_future(asyncio.to_thread(self._again))

        return progress

    def move(self) -> None:
        """It will be started at other ports."""
        self.ingest, self.retrieve = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))

    def _again(self) -> None:
        self.process = self._begin()
        self.process.wait_for("ready bank-0", LIMIT_S)


def blocks(count: int) -> Iterator[bytes]:
    """A stream that nobody can read twice."""
    for number in range(count):
        yield number.to_bytes(8, "little") + BLOCK[8:]


def written(path: Path, count: int) -> str:
    """A file of the same bytes; its SHA-256."""
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        for block in blocks(count):
            file.write(block)
            sha256.update(block)
    return sha256.hexdigest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def survive(start: Start, folder: Path, mib: int) -> None:
    """Kill -9 the bank in an upload of a stream, one of a file, and in two downloads."""
    places = Places(folder)
    size = mib * MIB
    source = folder / "source"
    sha256 = await asyncio.to_thread(written, source, mib)
    async with places.broker():
        bank = await asyncio.to_thread(KilledBank, start, places)
        for name, content in (("stream", blocks(mib)), ("file", source)):
            progress = bank.arm(size)
            await upload_dataset(bank.ingest, content, dataset_id=name, progress=progress)
            resumed = min(bank.steps_after) / MIB
            print(
                f"upload of a {name}, {mib} MiB: killed at {bank.killed_at / MIB:.0f} MiB, went on "
                f"at {resumed:.0f}"
            )
            assert bank.steps_after[-1] == size
            if name == "stream":
                assert min(bank.steps_after) >= bank.killed_at - 17 * MIB
        async with places.client() as client:
            proxy = await client.get_databank_agent("bank-0")
            for name in ("stream", "file"):
                progress = bank.arm(size)
                if name == "file":
                    bank.move()
                got = await proxy.download(name, folder / "fetched", progress=progress)
                print(
                    f"download, {mib} MiB: killed at {bank.killed_at / MIB:.0f} MiB, went on at "
                    f"{bank.steps_after[0] / MIB:.0f}"
                )
                assert (got["size"], got["sha256"]) == (size, sha256)
                assert await asyncio.to_thread(sha256_of, folder / "fetched") == sha256
                assert bank.steps_after[0] > bank.killed_at


async def test_transfers_of_48_mb_survive_a_bank_that_is_killed(
    start: Start, tmp_path: Path
) -> None:
    await survive(start, tmp_path, mib=48)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_transfers_of_2_gb_survive_a_bank_that_is_killed(
    start: Start, tmp_path: Path
) -> None:
    await survive(start, tmp_path, mib=2048)
