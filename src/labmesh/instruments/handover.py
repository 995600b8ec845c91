"""How a driver hands datasets and events over to the relay that runs it, without knowing either.

The worker says in each of its threads where they go, before the driver runs there.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

__all__ = [
    "Publish",
    "Upload",
    "node_here",
    "publish",
    "publisher",
    "set_node",
    "set_publisher",
    "set_uploader",
    "upload",
    "uploader",
]


class Upload(Protocol):
    """Stores a dataset and returns its id; in any thread but that of the relay's loop."""

    def __call__(self, content: Any, **details: Any) -> str: ...


class Publish(Protocol):
    """Publishes an event of the driver's; in any thread but that of the relay's loop.

    False: the broker is away, and nobody hears it.
    """

    def __call__(self, event: str, value: Any = None, /) -> bool: ...


class _Here(threading.local):
    upload: Upload | None = None
    publish: Publish | None = None
    node_id: str | None = None


_here = _Here()


def set_uploader(upload: Upload | None) -> None:
    """From here on, where :func:`upload` goes in this thread."""
    _here.upload = upload


def set_publisher(publish: Publish | None) -> None:
    """From here on, where :func:`publish` goes in this thread."""
    _here.publish = publish


def set_node(node_id: str | None) -> None:
    """From here on, the node that this thread works for."""
    _here.node_id = node_id


def node_here() -> str | None:
    """The node whose driver runs in this thread; None: none."""
    return _here.node_id


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


def publisher() -> Publish:
    """:func:`publish` for a thread that the driver starts itself: ask for it in a method of the
    driver, use it in that thread.

    :raises RuntimeError: this is not the thread of a driver that a relay runs.
    """
    found = _here.publish
    if found is None:
        raise RuntimeError(
            "no relay runs this thread: labmesh.publish() is for the methods of a driver (in a "
            "thread of the driver's own, use what labmesh.publisher() gave in a method); elsewhere "
            "use relay.publish()"
        )
    return found


def publish(event: str, value: Any = None) -> bool:
    """Tell everybody who listens that something happened to this instrument. ::

        def cool_down(self) -> None:
            for step in range(100):
                labmesh.publish("progress", step / 100)
                ...
            labmesh.publish("message", "cold")

    By custom ``alarm`` and ``message`` carry a text, and ``progress`` a number from 0 to 1; any
    other name and value is yours. It returns when the event is on its way, in the order of the
    calls, and before the method's own result.

    :returns: False: the broker is away, and nobody hears it (they see a gap).
    :raises ValueError: no name for an event.
    :raises ProtocolError, TooLarge: a value that cannot be sent, or one over 256 KiB.
    :raises RuntimeError: this is not the thread of a driver that a relay runs.
    """
    return publisher()(event, value)
