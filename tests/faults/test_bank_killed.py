"""A bank that is killed at any moment has what it acknowledged, and uploads go on.

The figures (FD1, FD2), half an hour::

    python -m pytest -m soak -s --timeout 3600 tests/faults/test_bank_killed.py
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from tests.support.bank_process import BankProcess, Tracer, Uploads, seeded, skip_without_strace

LIMIT_S = 60.0
SIZES = (1_000, 30_000, 300_000, 3_000_000, 12_000_000, 50_000_000)
#: Every call by which a bank changes its disk. The nth of a kind is counted in each thread for
#: itself: the kinds apart reach what a thread of few calls does after one of many.
KINDS = (
    "fsync,fdatasync",
    "rename,renameat,renameat2",
    "write,pwrite64",
    "openat",
    "unlink,unlinkat,ftruncate,fallocate,mkdir",
)
CHANGES = ",".join(KINDS)


async def test_3_kills_at_random_moments(tmp_path: Path) -> None:
    await _kills(tmp_path, kills=3, uploaders=4, sizes=SIZES[:4], seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_1000_kills_at_random_moments(tmp_path: Path) -> None:
    await _kills(tmp_path, kills=1000, uploaders=8, sizes=SIZES, seed=1)


async def _kills(
    folder: Path, *, kills: int, uploaders: int, sizes: tuple[int, ...], seed: int
) -> None:
    """FD1."""
    chance = random.Random(seed)
    with BankProcess(folder / "bank") as bank:
        await asyncio.to_thread(bank.start)
        uploads = Uploads(bank.ingest)
        ended = asyncio.Event()
        tasks = [
            asyncio.create_task(_upload_on(uploads, number, sizes, ended, seed))
            for number in range(uploaders)
        ]
        for number in range(kills):
            await asyncio.sleep(chance.uniform(0.0, 0.6))  # the moment of the kill is the fault
            bank.kill9()
            if number % 20 == 0:
                await asyncio.to_thread(uploads.check, bank.folder)
            await asyncio.to_thread(bank.start)
        ended.set()
        await asyncio.wait_for(asyncio.gather(*tasks), LIMIT_S)
        bank.kill9()
        figures = await asyncio.to_thread(uploads.check, bank.folder)
        starts_s = sorted(bank.starts_s)
        print(
            f"FD1: {kills} kills, seed {seed} / lost {figures['lost']}, corrupt "
            f"{figures['corrupt']} / {figures['acknowledged']} acknowledged, start median "
            f"{starts_s[len(starts_s) // 2]:.2f} s, max {starts_s[-1]:.2f} s"
        )
        assert figures["acknowledged"] >= uploaders
        assert (figures["lost"], figures["corrupt"]) == (0, 0)
        assert figures["stored"] == figures["acknowledged"]


async def _upload_on(
    uploads: Uploads, number: int, sizes: tuple[int, ...], ended: asyncio.Event, seed: int
) -> None:
    chance = random.Random(seed * 100 + number)
    count = 0
    while not ended.is_set():
        count += 1
        content = seeded(chance.choice(sizes), number * 10_000 + count)
        await uploads.one(f"upload-{number}-{count}", content)


async def test_kills_at_some_system_calls(tmp_path: Path) -> None:
    skip_without_strace()
    await _killed_at(tmp_path, [3, 9], CHANGES)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("calls", [CHANGES, *KINDS])
async def test_kills_at_every_system_call(calls: str, tmp_path: Path) -> None:
    skip_without_strace()
    await _killed_at(tmp_path, list(range(1, 1000)), calls)


async def _killed_at(folder: Path, points: list[int], calls: str) -> None:
    """FD2: kill the bank at its nth call that changes the disk, for every n, until none is left."""
    survived, killed = 0, 0
    again_s: list[float] = []
    with BankProcess(folder / "bank") as bank:
        uploads = Uploads(bank.ingest)
        for point in points:
            process = await asyncio.to_thread(bank.start)
            inject = f"inject={calls}:signal=KILL:when={point}"
            trace = folder / "trace"
            with Tracer(process.pid, trace, f"trace={calls}", inject):
                # Larger than one chunk, and than one piece with a digest of its own.
                upload = asyncio.create_task(uploads.one(f"at-{point}", seeded(2_500_000, point)))
                ended = asyncio.create_task(asyncio.to_thread(process.wait_end, LIMIT_S))
                await asyncio.wait([upload, ended], return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    killed += 1
                else:
                    bank.kill9()
                    survived += 1
                await ended
            figures = await asyncio.to_thread(uploads.check, bank.folder)
            assert (figures["lost"], figures["corrupt"]) == (0, 0), (point, figures)
            begun = time.monotonic()
            await asyncio.to_thread(bank.start)
            await asyncio.wait_for(upload, LIMIT_S)
            again_s.append(time.monotonic() - begun)
            bank.kill9()
            figures = await asyncio.to_thread(uploads.check, bank.folder)
            assert (figures["lost"], figures["corrupt"]) == (0, 0), (point, figures)
            assert figures["stored"] == figures["acknowledged"]
            if survived == 2:
                break
    print(
        f"FD2: {killed} kill points of {'all' if calls == CHANGES else calls} / lost 0, corrupt 0 "
        f"/ upload done at most {max(again_s):.1f} s after the restart"
    )
    assert killed > 0
