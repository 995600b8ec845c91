"""Memory of both sides of a transfer does not depend on its size."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.places import Places
from tests.support.processes import Process, free_ports, program

from labmesh.transfer import upload_dataset

LIMIT_S = 30.0
MIB = 2**20
BLOCK = bytes(range(256)) * 4096

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this system has no /proc"
)


def resident_bytes(pid: int | str = "self") -> int:
    """Memory of a process that is its own: without the pages of files that it has mapped."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(
        int(line.split()[1]) * 1024
        for line in status.splitlines()
        if line.startswith(("RssAnon", "RssShmem"))
    )


def blocks(count: int) -> Iterator[bytes]:
    """A stream of unknown length, generated on the way."""
    for number in range(count):
        yield number.to_bytes(8, "little") + BLOCK[8:]


async def test_a_stream_of_300_mb_takes_less_than_100_mb_of_each_side(places: Places) -> None:
    await measure(places, 300)


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_a_stream_of_20_gb_takes_less_than_100_mb_of_each_side(places: Places) -> None:
    await measure(places, 20_000)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


async def measure(places: Places, mib: int) -> None:
    """Send a stream up and fetch it, and look at the memory of both processes on the way."""
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
    options = {
        "kind": "bank",
        "bank_id": "bank-0",
        "broker_rpc": places.rpc,
        "broker_xsub": places.xsub,
        "data_dir": str(places.folder / "bank-0"),
        "ingest_bind": ports[0],
        "retrieve_bind": ports[1],
    }
    command = [program("nodes.py"), json.dumps([options])]
    async with places.broker(), places.client() as client:
        with Process(command, cwd=places.folder) as bank:
            await asyncio.to_thread(bank.wait_for, "ready bank-0", LIMIT_S)
            await upload_dataset(ports[0], blocks(4))
            before = resident_bytes(), resident_bytes(bank.pid)
            peaks = [0, 0]

            def watch(done: int, _size: int | None) -> None:
                if done // (16 * MIB) != (done - MIB) // (16 * MIB):
                    peaks[0] = max(peaks[0], resident_bytes() - before[0])
                    peaks[1] = max(peaks[1], resident_bytes(bank.pid) - before[1])

            await upload_dataset(ports[0], blocks(mib), dataset_id="stream", progress=watch)
            up, peaks = peaks, [0, 0]
            proxy = await client.get_databank_agent("bank-0")
            await proxy.download("stream", places.folder / "fetched", progress=watch)
    print(
        f"{mib} MiB: up {up[0] / 1e6:.0f} MB here, {up[1] / 1e6:.0f} MB at the bank; down "
        f"{peaks[0] / 1e6:.0f} and {peaks[1] / 1e6:.0f} above the start"
    )
    assert max(*up, *peaks) < 100e6
