"""Disks that can lose power: a file system in a file, of which a copy is taken at one instant.

The bank's file system is on a loop device. Its backing file lies on XFS, in another file, where
``cp --reflink`` clones it at one instant while writers run: the clone holds what had reached the
disk. Mounting it replays its journal, as after a power cut. Needs root, Linux and xfsprogs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

__all__ = ["LosesPower"]

_LIMIT_S = 60.0
_HOST_BYTES = 2 * 2**30
_DISK_BYTES = 600 * 2**20


class LosesPower:
    """A mounted file system whose power is cut as often as one likes; a context manager.

    :param folder: for the images and mount points.
    :param kind: ``ext4`` or ``xfs``.
    :param options: how it is mounted, such as ``data=writeback``.
    """

    def __init__(self, folder: Path, kind: str = "ext4", options: str = "") -> None:
        self._folder, self._kind, self._options = folder, kind, options
        #: where writers write
        self.root = folder / "disk"
        self.cuts = 0

    def __enter__(self) -> Self:
        _skip_without_disks(self._kind)
        with ExitStack() as stack:
            host, image = self._folder / "host", self._folder / "host" / "disk.img"
            try:
                _sparse(self._folder / "host.img", _HOST_BYTES)
                _run("mkfs.xfs", "-q", "-m", "reflink=1", str(self._folder / "host.img"))
                stack.enter_context(_mounted(self._folder / "host.img", host))
                _sparse(image, _DISK_BYTES)
                force = "-F" if self._kind == "ext4" else "-f"
                _run(f"mkfs.{self._kind}", "-q", force, str(image))
                stack.enter_context(_mounted(image, self.root, self._options))
            except RuntimeError as error:
                pytest.skip(f"file systems on loop devices cannot be made here: {error}")
            self._image = image
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cut(self) -> Path:
        """The image of the disk as it is at an instant within this call."""
        self.cuts += 1
        clone = self._image.with_name(f"cut-{self.cuts}.img")
        _run("cp", "--reflink=always", str(self._image), str(clone))
        return clone

    @contextmanager
    def after(self, clone: Path) -> Iterator[Path]:
        """That image, mounted; it is gone afterwards."""
        options = "nouuid" if self._kind == "xfs" else ""
        try:
            with _mounted(clone, self._folder / "after", options):
                yield self._folder / "after"
        finally:
            clone.unlink()


def _skip_without_disks(kind: str) -> None:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("power cuts need root on Linux: file systems on loop devices")
    for tool in ("mkfs.xfs", f"mkfs.{kind}", "mount"):
        if shutil.which(tool) is None:
            pytest.skip(f"power cuts need {tool}")


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


@contextmanager
def _mounted(image: Path, place: Path, options: str = "") -> Iterator[None]:
    place.mkdir(exist_ok=True)
    _run("mount", "-o", ",".join(filter(None, ["loop", options])), str(image), str(place))
    try:
        yield
    finally:
        # Lazily: a process that somebody else forked meanwhile has this one's files open until it
        # has become another program, and desktop services look into what is mounted. The name is
        # free at once; the file system goes with the last of those, and the loop device with it.
        _run("umount", "--lazy", str(place))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
