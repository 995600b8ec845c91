"""A bank in a process of its own, to be killed, traced and started again at its addresses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from tests.support.peers import open_sockets
from tests.support.processes import Process, free_ports, program

from labmesh.errors import StorageError
from labmesh.protocol.messages import DatasetRecord, GetStatus, Status
from labmesh.relay import upload_dataset
from labmesh.storage.base import BlobStore
from labmesh.storage.filesystem import open_folder
from labmesh.transport.link import Link

__all__ = ["BankProcess", "Tracer", "Uploads", "read_folder", "seeded", "skip_without_strace"]

_START_S = 20.0
_ATTACH_S = 10.0


class BankProcess:
    """A bank and its folder; a context manager that ends the process.

    :param folder: where it keeps datasets.
    :param options: more keywords of the bank.
    :param prefix: what to put before the command, such as ``unshare -m``.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any] | None = None,
        *,
        prefix: Sequence[str] = (),
        cwd: Path | None = None,
    ) -> None:
        self.folder = folder
        self._cwd = cwd or folder.parent
        self._prefix = list(prefix)
        ingest, retrieve = free_ports(2)
        self.ingest = f"tcp://127.0.0.1:{ingest}"
        self.retrieve = f"tcp://127.0.0.1:{retrieve}"
        self.options = {
            "data_dir": str(folder),
            "ingest_bind": self.ingest,
            "retrieve_bind": self.retrieve,
            **(options or {}),
        }
        self._stack = ExitStack()
        self.starts_s: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> Process:
        """Start it (again); returns when it serves."""
        begun = time.monotonic()
        process = Process(self.command(), cwd=self._cwd)
        process._command = [*self._prefix, *process._command]
        self.process = self._stack.enter_context(process)
        self.process.wait_for("^serving ", _START_S)
        self.starts_s.append(time.monotonic() - begun)
        return self.process

    def command(self) -> list[str | Path]:
        """What follows the interpreter on the command line."""
        return [program("bank_alone.py"), json.dumps(self.options)]

    def kill9(self) -> None:
        """Kill it, if it lives."""
        self.process.kill9()

    async def status(self) -> dict[str, Any]:
        """What it says of itself."""
        with open_sockets() as sockets:
            link = Link(sockets, self.retrieve, where="the bank")
            try:
                await link.wait_up(_START_S)
                answer = await link.request(GetStatus(id="-"), Status, timeout=_START_S)
            finally:
                link.close()
        return dict(answer.facts)


class Tracer:
    """strace at a process that runs; a context manager that lets go of it.

    :param pid: the process.
    :param out: where the trace goes.
    :param expressions: values of ``-e``.
    """

    def __init__(self, pid: int, out: Path, *expressions: str) -> None:
        self.out = out
        options = [option for each in expressions for option in ("-e", each)]
        self._command = ["strace", "-f", "-y", "-tt", *options, "-o", str(out), "-p", str(pid)]

    def __enter__(self) -> Self:
        self._popen = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        assert self._popen.stderr is not None
        # That it has attached, or that the process has ended in the middle of that.
        watchdog = threading.Timer(_ATTACH_S, self._popen.kill)
        watchdog.start()
        self.said = self._popen.stderr.readline().strip()
        watchdog.cancel()
        watchdog.join()
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            # It lets the process go on by itself.
            self._popen.terminate()
        self._popen.wait()
        assert self._popen.stderr is not None
        self._popen.stderr.close()

    def lines(self) -> list[str]:
        """The trace."""
        return self.out.read_text(errors="replace").splitlines()


def skip_without_strace(out: Path = Path(os.devnull)) -> None:
    """Skip where there is none, or it may not trace."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    with subprocess.Popen(["sleep", "60"]) as asleep:
        try:
            with Tracer(asleep.pid, out, "trace=none") as tracer:
                said = tracer.said
        finally:
            asleep.kill()
    if "attached" not in said:
        pytest.skip(f"strace cannot trace a process here: {said}")


def seeded(size: int, seed: int) -> bytes:
    """Bytes that can be made again."""
    return random.Random(seed).randbytes(size)


class Uploads:
    """What was sent, and what of it the bank has acknowledged.

    :param ingest: the bank's address.
    """

    def __init__(self, ingest: str) -> None:
        self.ingest = ingest
        self.sent: dict[str, str] = {}
        self.acknowledged: list[str] = []

    @staticmethod
    def digest(content: bytes) -> str:
        """The SHA-256 by which content is compared."""
        return hashlib.sha256(content).hexdigest()

    async def one(self, dataset_id: str, content: bytes, **options: Any) -> None:
        """Upload, through every break, and remember that it was acknowledged."""
        sent = self.digest(content)
        self.sent[dataset_id] = sent
        settings = {"timeout": 5.0, "retries": 1000, **options}
        await upload_dataset(self.ingest, content, dataset_id=dataset_id, **settings)
        self.acknowledged.append(dataset_id)

    def check(self, folder: Path) -> dict[str, int]:
        """Open the folder of the bank, which is not running, and compare.

        The figures: ``acknowledged`` of which ``lost``, ``stored`` of which ``corrupt``.
        """
        found = read_folder(folder)
        return {
            "acknowledged": len(self.acknowledged),
            "lost": sum(each not in found for each in self.acknowledged),
            "stored": len(found),
            "corrupt": sum(self.sent.get(each) != sha for each, sha in found.items()),
        }


def read_folder(folder: Path) -> dict[str, str]:
    """Dataset id → SHA-256 of its bytes as they are read, or "damaged"."""
    blobs, catalog = open_folder(folder)
    try:
        found: dict[str, str] = {}
        after, more = 0, True
        while more:
            page = catalog.page(after, 1000)
            found |= {each.dataset_id: _digest(blobs, each) for each in page.records}
            after, more = catalog.last_sequence(), page.more
            if page.records:
                after = page.records[-1].sequence
        return found
    finally:
        catalog.close()
        blobs.close()


def _digest(blobs: BlobStore, record: DatasetRecord) -> str:
    digest = hashlib.sha256()
    try:
        for offset in range(0, record.size, 2**20):
            digest.update(blobs.read(record.sha256, offset, min(2**20, record.size - offset)))
    except StorageError:
        return "damaged"
    return digest.hexdigest()
