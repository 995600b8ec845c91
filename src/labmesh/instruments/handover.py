"""How a driver hands datasets over to the relay that runs it, without knowing either.

The worker says in each of its threads where uploads go, before the driver runs there.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

__all__ = ["Upload", "set_uploader", "upload", "uploader"]


class Upload(Protocol):
    """Stores a dataset and returns its id; in any thread but that of the relay's loop."""

    def __call__(self, content: Any, **details: Any) -> str: ...


class _Here(threading.local):
    upload: Upload | None = None


_here = _Here()


def set_uploader(upload: Upload | None) -> None:
    """From here on, where :func:`upload` goes in this thread."""
    _here.upload = upload


def uploader() -> Upload:
    """:func:`upload` for a thread that the driver starts itself: ask for it in a method of the
    driver, use it in that thread.

    :raises RuntimeError: this is not the thread of a driver that a relay runs.
    """
    found = _here.upload
    if found is None:
        raise RuntimeError(
            "no relay runs this thread: labmesh.upload() is for the methods of a driver (in a "
            "thread of the driver's own, use what labmesh.uploader() gave in a method); elsewhere "
            "use relay.upload(), or a bank's put()"
        )
    return found


def upload(content: Any, **details: Any) -> str:
    """Have the relay that runs this driver store a dataset; returns its id. ::

        def scan(self) -> str:
            return labmesh.upload(self._traces(), name="scan", meta={"points": 1000})

    With a spool (``spool_dir``) it returns when the dataset is on the relay's disk, whether a bank
    is there or not; without one, when a bank has it, durably and verified. An iterator of bytes is
    stored as it comes.

    :param content: bytes, a path, a binary file, an array or table, a dict, or an iterator of
        bytes.
    :param details: ``name``, ``meta``, ``tags``, ``parents``, ``kind``, ``bank``, ``dataset_id``,
        ``wait``: as of :meth:`RelayAgent.upload`.
    :raises NoSpace: the spool is full; the text says what to do.
    :raises RuntimeError: this is not the thread of a driver that a relay runs.
    """
    return uploader()(content, **details)
