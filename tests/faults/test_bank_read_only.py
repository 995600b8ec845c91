"""A disk that turns read-only while a bank writes, as file systems do when they find themselves
damaged: the bank says so, goes on serving, and has everything afterwards (FD9).
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from tests.support.bank_process import BankProcess, Uploads, read_folder, seeded
from tests.support.disks import LosesPower
from tests.support.peers import open_sockets

from labmesh.errors import NoSpace, StorageError
from labmesh.protocol.messages import (
    ChunkStored,
    Committed,
    Fetch,
    Fetched,
    UploadChunk,
    UploadCommit,
    UploadGranted,
    UploadStart,
)
from labmesh.transport.link import Link

LIMIT_S = 30.0
MB = 1_000_000


async def test_a_disk_turns_read_only_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    with LosesPower(tmp_path, "ext4", "errors=remount-ro") as disk:
        trigger = _trigger(disk.root)
        with BankProcess(disk.root / "bank", cwd=tmp_path) as bank:
            process = await asyncio.to_thread(bank.start)
            uploads = Uploads(bank.ingest)
            for number in range(3):
                await uploads.one(f"before-{number}", seeded(MB, number))
            refusals = await _cut_short(bank, trigger)
            assert isinstance(refusals[0], StorageError), refusals
            assert not isinstance(refusals[0], NoSpace)
            for number in range(3):
                with pytest.raises(StorageError, match="takes nothing"):
                    await uploads.one(f"after-{number}", b"content", retries=0)
            await _fetch(bank, "before-1", seeded(MB, 1))
            assert process.exit_code is None, process.tail()
            read_only = (await bank.status())["read_only"]
            bank.kill9()
        with disk.after(disk.cut()) as root:
            # Its journal is replayed, as by whoever mends the disk.
            found = read_folder(root / "bank")
    lost = sum(each not in found for each in uploads.acknowledged)
    corrupt = sum(uploads.sent.get(each) != sha256 for each, sha256 in found.items())
    print(
        f"FD9: a disk turns read-only / 4 refused, lost {lost}, corrupt {corrupt} / "
        f"{len(uploads.acknowledged)} acknowledged, deaths 0, the bank says {read_only!r}"
    )
    assert read_only
    assert (lost, corrupt, len(found)) == (0, 0, 3)


async def _cut_short(bank: BankProcess, trigger: Path) -> list[object]:
    """An upload of two chunks; between them the disk fails. How the rest of it ends."""
    key = {"id": "-", "dataset_id": "cut", "session": "0123456789abcdef"}
    content = seeded(2 * MB, 9)
    with open_sockets() as sockets:
        link = Link(sockets, bank.ingest, where="the bank")
        try:
            await link.wait_up(LIMIT_S)
            start = UploadStart(**key, size=2 * MB)
            await link.request(start, UploadGranted, timeout=LIMIT_S)
            chunk = UploadChunk(**key, offset=0)
            await link.request(chunk, ChunkStored, timeout=LIMIT_S, body=content[:MB])
            await asyncio.to_thread(trigger.write_text, "1")
            chunk = UploadChunk(**key, offset=MB)
            commit = UploadCommit(**key, size=2 * MB, sha256=Uploads.digest(content))
            return await asyncio.gather(
                _rest(link, chunk, content[MB:], commit), return_exceptions=True
            )
        finally:
            link.close()


async def _rest(link: Link, chunk: UploadChunk, piece: bytes, commit: UploadCommit) -> object:
    await link.request(chunk, ChunkStored, timeout=LIMIT_S, body=piece)
    return await link.request(commit, Committed, timeout=LIMIT_S)


async def _fetch(bank: BankProcess, dataset_id: str, content: bytes) -> None:
    with open_sockets() as sockets:
        link = Link(sockets, bank.retrieve, where="the bank")
        try:
            await link.wait_up(LIMIT_S)
            fetch = Fetch(id="-", dataset_id=dataset_id, offset=0, size=len(content))
            _, body = await link.request_body(fetch, Fetched, timeout=LIMIT_S)
            assert body == content
        finally:
            link.close()


def _trigger(mounted: Path) -> Path:
    """What makes ext4 find an error in itself: it turns read-only, as it was mounted to."""
    found = subprocess.run(
        ["findmnt", "-no", "SOURCE", str(mounted)], capture_output=True, text=True, check=True
    )
    trigger = Path("/sys/fs/ext4", Path(found.stdout.strip()).name, "trigger_fs_error")
    if not trigger.exists():
        pytest.skip("this system's ext4 does not fail on demand (trigger_fs_error)")
    return trigger
