"""What the programs that move datasets have in common: the interface, and the stopwatch.

Every candidate reads the same file, and has to have done the whole work when ``upload`` returns:
the bytes are on the server's disk, synced and verified (one that does less says so in
docs/benchmarks.md). Only the standard library is used here.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from measuring import answer_orders

__all__ = ["CHUNK_BYTES", "Mover", "answer_moves", "by_workers", "data_folder", "sync_folder"]

#: Of one message, where a candidate lets one choose.
CHUNK_BYTES = 1_000_000
#: Pieces by which content is read where the system does not choose.
_READ_BYTES = 2**20
#: Beside its content a dataset needs memory for what is under way.
_SPARE_BYTES = 128 * 2**20


class Mover(Protocol):
    """A connected client."""

    def upload(self, path: Path, name: str) -> None:
        """Store a file as ``name``; it is durable and verified on the return."""
        ...

    def download(self, name: str, path: Path) -> None:
        """Fetch it into a new file, verified and synced on the return."""
        ...

    def upload_small(self, contents: Sequence[tuple[str, bytes]], width: int) -> None:
        """Store each content under its name, ``width`` at the same time."""
        ...


@contextmanager
def data_folder() -> Iterator[Path]:
    """A folder for the files of one process, gone at the end.

    Where ``TMPDIR`` is; a folder in memory would make every sync free.
    """
    with tempfile.TemporaryDirectory(prefix="labmesh-transfer-") as folder:
        yield Path(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def by_workers(
    store: Callable[[str, bytes], object], contents: Sequence[tuple[str, bytes]], width: int
) -> None:
    """Store each content from one of ``width`` threads."""
    with ThreadPoolExecutor(width) as workers:
        for done in [workers.submit(store, *each) for each in contents]:
            done.result()


def answer_moves(
    opened: Callable[[str], AbstractContextManager[Mover]], *distributions: str
) -> None:
    """Measure as stdin says; ``distributions`` are named with their versions."""
    with data_folder() as folder:
        stopwatch = _Stopwatch(folder)
        answer_orders(opened, stopwatch.measure, *distributions)


class _Stopwatch:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._sources: dict[int, tuple[Path, str]] = {}
        #: by size: what was uploaded last
        self._stored: dict[int, str] = {}

    def measure(self, mover: Mover, order: dict[str, Any]) -> dict[str, float]:
        match order["measure"]:
            case "upload":
                return self._upload(mover, order["bytes"])
            case "download":
                return self._download(mover, order["bytes"])
            case "small":
                return self._small(mover, order)
            case other:
                raise ValueError(f"unknown measurement {other!r}")

    def _upload(self, mover: Mover, size: int) -> dict[str, float]:
        name = self._name()
        path = self._new_source(size, name)
        disk = self._disk(size)
        started = perf_counter()
        mover.upload(path, name)
        elapsed = perf_counter() - started
        self._stored[size] = name
        return {"mb_per_s": size / 1e6 / elapsed, **disk}

    def _download(self, mover: Mover, size: int) -> dict[str, float]:
        if size not in self._stored:
            self._upload(mover, size)
        path = self._folder / "downloaded"
        disk = self._disk(size)
        started = perf_counter()
        mover.download(self._stored[size], path)
        elapsed = perf_counter() - started
        if _sha256_of(path) != self._sources[size][1]:
            raise ValueError("other bytes came back than were stored")
        path.unlink()
        return {"mb_per_s": size / 1e6 / elapsed, **disk}

    def _small(self, mover: Mover, order: dict[str, Any]) -> dict[str, float]:
        contents = [(self._name(), os.urandom(order["bytes"])) for _ in range(order["count"])]
        syncs_per_s = self._syncs(contents)
        started = perf_counter()
        mover.upload_small(contents, order["width"])
        elapsed = perf_counter() - started
        return {"per_s": len(contents) / elapsed, "syncs_per_s": syncs_per_s}

    def _disk(self, size: int) -> dict[str, float]:
        """What this machine writes and syncs in MB/s at this moment, nothing else done.

        It also makes the rounds alike. A virtual machine gets memory from its host when a page is
        touched for the first time, and may give it back while it is free: a file in such pages
        takes several times as long as on the disk. So the first one is not timed, and each leaves
        as much memory as the measurement needs.
        """
        self._written(size + _SPARE_BYTES)
        started = perf_counter()
        sync_s = self._written(size)
        return {"disk_mb_per_s": size / 1e6 / (perf_counter() - started), "sync_ms": 1e3 * sync_s}

    def _written(self, size: int) -> float:
        """Write and sync a file, and remove it; seconds that the sync took."""
        path = self._folder / "written"
        piece = os.urandom(_READ_BYTES)
        with path.open("wb", buffering=0) as file:
            for offset in range(0, size, _READ_BYTES):
                file.write(piece[: size - offset])
            written = perf_counter()
            os.fsync(file.fileno())
        synced_s = perf_counter() - written
        path.unlink()
        # What a removal leaves the disk to do is not to be done beside the measurement.
        sync_folder(self._folder)
        return synced_s

    def _syncs(self, contents: Sequence[tuple[str, bytes]]) -> float:
        """How many files of such contents this machine writes and syncs, one after the other."""
        path = self._folder / "synced"
        started = perf_counter()
        for _, content in contents[:50]:
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        elapsed = perf_counter() - started
        path.unlink()
        return len(contents[:50]) / elapsed

    def _new_source(self, size: int, name: str) -> Path:
        """A file that begins with ``name``, so that no upload stores what was stored before."""
        path = self._folder / f"source-{size}"
        if size not in self._sources:
            with path.open("wb") as file:
                for offset in range(0, size, _READ_BYTES):
                    file.write(os.urandom(min(_READ_BYTES, size - offset)))
        with path.open("r+b") as file:
            file.write(name.encode())
            file.flush()
            # What is left to sync would be synced beside the upload.
            os.fsync(file.fileno())
        self._sources[size] = (path, _sha256_of(path))
        return path

    def _name(self) -> str:
        self._count += 1
        return f"scan-{os.getpid()}-{self._count}"


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
