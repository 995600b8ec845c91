"""What anybody does by hand on one machine: ``cp``, ``sha256sum`` and a sync."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from moving import answer_moves, by_workers, data_folder, sync_folder


class _Copies:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sums: dict[str, str] = {}

    def upload(self, path: Path, name: str) -> None:
        target = self._folder / name
        subprocess.run(["cp", path, target], check=True)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(self._folder)
        self._sums[name] = _sha256sum(target)

    def download(self, name: str, path: Path) -> None:
        subprocess.run(["cp", self._folder / name, path], check=True)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(path.parent)
        if _sha256sum(path) != self._sums[name]:
            raise ValueError("the copy differs")

    def upload_small(self, contents: Sequence[tuple[str, bytes]], width: int) -> None:
        by_workers(self._store, contents, width)

    def _store(self, name: str, content: bytes) -> None:
        """Without starting programs, which would take longer than the work."""
        path = self._folder / name
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._folder)
        self._sums[name] = hashlib.sha256(content).hexdigest()


def _sha256sum(path: Path) -> str:
    done = subprocess.run(["sha256sum", path], check=True, capture_output=True, text=True)
    return done.stdout.split()[0]


@contextmanager
def _opened(_address: str) -> Iterator[_Copies]:
    with data_folder() as folder:
        yield _Copies(folder)


if __name__ == "__main__":
    answer_moves(_opened)
