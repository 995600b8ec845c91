"""A bank whose disk fails, is full, or slow: it says so, keeps what it has, goes on by itself.

The figures (FD6 to FD9, FD19), some minutes::

    python -m pytest -m soak -s --timeout 3600 tests/faults/test_bank_bad_disks.py
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.bank_process import (
    BankProcess,
    Tracer,
    Uploads,
    read_folder,
    seeded,
    skip_without_strace,
)
from tests.support.promptness import SLACK_S

from labmesh.errors import LabmeshError, NoSpace, StorageError

LIMIT_S = 30.0
MB = 1_000_000
_SYNC = re.compile(r"^\d+ [\d:.]+ (?:fsync|fdatasync)\((\d+)<([^>]*)>\)\s*= (-?\d+)")


# ── a sync that fails ───────────────────────────────────────────────────────────────────────────


async def test_a_sync_fails(tmp_path: Path) -> None:
    skip_without_strace()
    await _syncs_fail(tmp_path, [2])


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_every_sync_fails(tmp_path: Path) -> None:
    skip_without_strace()
    await _syncs_fail(tmp_path, list(range(1, 15)))


async def _syncs_fail(folder: Path, numbers: list[int]) -> None:
    """FD6: the nth sync of each thread of a bank, SQLite's included, reports EIO."""
    failed, refused, again, wrong = 0, 0, 0, 0
    back_s: list[float] = []
    for number in numbers:
        with BankProcess(folder / f"bank-{number}") as bank:
            process = await asyncio.to_thread(bank.start)
            uploads = Uploads(bank.ingest)
            trace = folder / f"trace-{number}"
            calls = "fsync,fdatasync"
            inject = f"inject={calls}:error=EIO:when={number}"
            with Tracer(process.pid, trace, f"trace={calls}", inject) as tracer:
                for count in range(6):
                    begun = time.monotonic()
                    try:
                        await uploads.one(f"{count}", seeded(1_500_000, count), retries=0)
                    except StorageError:
                        refused += 1
                        await _until_stored(uploads, f"{count}-again", seeded(50_000, count))
                        back_s.append(time.monotonic() - begun)
                assert process.exit_code is None, process.tail()
                lines = tracer.lines()
            bank.kill9()
            figures = await asyncio.to_thread(uploads.check, bank.folder)
            wrong += figures["lost"] + figures["corrupt"]
            failed += sum("(INJECTED)" in each for each in lines)
            again += _synced_again(lines)
    print(
        f"FD6: {failed} syncs failed / acknowledged and lost {wrong}, synced again {again}, deaths "
        f"0 / {refused} refused, takes writes again after at most {max(back_s, default=0.0):.1f} s"
    )
    assert failed
    assert (wrong, again) == (0, 0)
    assert max(back_s, default=0.0) < 10.0


def _synced_again(lines: Sequence[str]) -> int:
    """How often a file was synced after a sync of it had failed (by its name, and open still)."""
    bad: Counter[str] = Counter()
    again = 0
    for line in lines:
        found = _SYNC.match(line)
        if found is None:
            continue
        path, result = found[2], found[3]
        if "catalog.sqlite" in path or os.path.isdir(path):
            continue  # SQLite's is derived, and built anew; a folder has no bytes to lose
        again += bad[path]
        bad[path] += result != "0"
    return again


async def _until_stored(uploads: Uploads, dataset_id: str, content: bytes) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await uploads.one(dataset_id, content, retries=0)
                return
            except StorageError:
                await asyncio.sleep(0.1)  # it is the bank that tries its disk; nobody tells when


# ── a disk that is full ─────────────────────────────────────────────────────────────────────────


def _small_disk(folder: Path, options: str) -> list[str]:
    """The words before a command that has a small disk of its own at ``folder``."""
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        pytest.skip("a small disk needs unshare, on Linux")
    mount = f'mount -t tmpfs -o {options} tmpfs "{folder}" && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    return prefix


async def test_a_disk_is_full_and_has_room_again(tmp_path: Path) -> None:
    """FD7."""
    await _full(tmp_path, "FD7", "size=20m", uploads=50, size=MB, filler=(1, 12 * MB))


async def test_a_disk_has_no_names_left_and_then_some(tmp_path: Path) -> None:
    """FD9."""
    await _full(tmp_path, "FD9", "size=60m,nr_inodes=90", uploads=40, size=3_000, filler=(30, 1))


async def _full(
    folder: Path, name: str, options: str, *, uploads: int, size: int, filler: tuple[int, int]
) -> None:
    disk = folder / "disk"
    disk.mkdir()
    prefix = _small_disk(disk, options)
    with BankProcess(disk / "bank", prefix=prefix, cwd=folder) as bank:
        process = await asyncio.to_thread(bank.start)
        inside = Path(f"/proc/{process.pid}/root{disk}")
        for number in range(filler[0]):
            (inside / f"filler-{number}").write_bytes(bytes(filler[1]))
        sent = Uploads(bank.ingest)
        errors = await _upload_all(sent, range(uploads), size)
        first = len(sent.acknowledged)
        for number in range(filler[0]):
            (inside / f"filler-{number}").unlink()
        errors_later = await _upload_all(sent, range(uploads, uploads + 3), size)
        copy = shutil.copytree(inside / "bank", folder / "copy")
        assert process.exit_code is None, process.tail()
    figures = sent.check(copy)
    print(
        f"{name}: {uploads} uploads / {errors['NoSpace']} refused for want of room, lost "
        f"{figures['lost']}, corrupt {figures['corrupt']} / {first} stored before and "
        f"{len(sent.acknowledged) - first} of 3 after there was room, no restart"
    )
    assert set(errors) == {"NoSpace"}, errors
    assert first > 0
    assert not errors_later, errors_later
    assert (figures["lost"], figures["corrupt"]) == (0, 0)
    assert figures["stored"] == figures["acknowledged"]


async def _upload_all(sent: Uploads, numbers: range, size: int) -> Counter[str]:
    errors: Counter[str] = Counter()
    for number in numbers:
        try:
            await sent.one(f"upload-{number}", seeded(size, number), retries=0)
        except LabmeshError as error:
            errors[type(error).__name__] += 1
    return errors


async def test_files_may_not_grow_beyond_a_limit(tmp_path: Path) -> None:
    """FD8: RLIMIT_FSIZE makes a write short, and then fail."""
    with BankProcess(tmp_path / "bank", {"file_bytes": 2 * MB + 700}) as bank:
        process = await asyncio.to_thread(bank.start)
        sent = Uploads(bank.ingest)
        for number, size in enumerate((5_000, 3 * MB, MB, 9 * MB, 2 * MB + 700, 2 * MB + 701)):
            try:
                await sent.one(f"upload-{number}", seeded(size, number), retries=0)
            except NoSpace:
                assert size > 2 * MB + 700
            else:
                assert size <= 2 * MB + 700
        assert process.exit_code is None, process.tail()
        bank.kill9()
    figures = sent.check(tmp_path / "bank")
    print(f"FD8: 6 uploads / truncated 0 / {figures['stored']} stored, 3 refused")
    assert figures == {"acknowledged": 3, "lost": 0, "stored": 3, "corrupt": 0}


# ── a disk that is slow ─────────────────────────────────────────────────────────────────────────


async def test_syncs_take_long(tmp_path: Path) -> None:
    skip_without_strace()
    await _slow(tmp_path, delay_s=0.25)


@pytest.mark.soak
async def test_syncs_take_2_seconds(tmp_path: Path) -> None:
    skip_without_strace()
    await _slow(tmp_path, delay_s=2.0)


async def _slow(folder: Path, delay_s: float) -> None:
    """FD19: every sync takes long; the bank answers, and all uploads go on beside each other."""
    with BankProcess(folder / "bank") as bank:
        process = await asyncio.to_thread(bank.start)
        uploads = Uploads(bank.ingest)
        await uploads.one("before", seeded(MB, 1))
        slow = f"inject=fsync,fdatasync:delay_exit={int(delay_s * 1e6)}"
        with Tracer(process.pid, folder / "trace", "trace=fsync,fdatasync", slow):
            begun = time.monotonic()
            tasks = [
                asyncio.create_task(uploads.one(f"slow-{each}", seeded(3 * MB, each), timeout=30))
                for each in range(6)
            ]
            worst_s = 0.0
            while not all(each.done() for each in tasks):
                worst_s = max(worst_s, await _answer_s(bank))
                await asyncio.sleep(0.05)  # so often the bank is asked how it is
            await asyncio.gather(*tasks)
            took_s = time.monotonic() - begun
        bank.kill9()
    found = read_folder(folder / "bank")
    print(
        f"FD19: each sync {delay_s:g} s longer / answers later than 1 s: {int(worst_s > 1.0)} / 6 "
        f"uploads at once in {took_s:.1f} s, an answer took at most {worst_s * 1e3:.0f} ms"
    )
    assert len(found) == 7
    assert worst_s < SLACK_S
    # One after the other they would take about six syncs each.
    assert took_s < 6 * 5 * delay_s


async def _answer_s(bank: BankProcess) -> float:
    begun = time.monotonic()
    await bank.status()
    return time.monotonic() - begun
