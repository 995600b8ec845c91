"""Events as plain sockets send and hear them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from labmesh.protocol.codec import Buffer
from labmesh.protocol.event_frame import joined, parted, sealed, unsealed
from labmesh.transport import forwarding

__all__ = ["heard", "lose", "published", "stamped"]


def published(parts: Sequence[bytes]) -> list[bytes]:
    """What a publisher sends, of topic, header and payload; more parts are frames behind it, and
    fewer are sent as they are.
    """
    return list(parts) if len(parts) < 3 else [joined(*parts[:3]), *parts[3:]]


def stamped(parts: Sequence[bytes], stamp: bytes = b"stamp") -> list[bytes]:
    """What a broker sends of them."""
    first, *more = published(parts)
    return [first + sealed(stamp), *more] if len(parts) >= 3 else [first, *more]


def heard(message: Sequence[Buffer]) -> list[bytes]:
    """Topic, header, payload and stamp of what a broker sent."""
    event, stamp = unsealed(message)
    return [bytes(each) for each in (*parted(event), stamp)]


def lose(monkeypatch: pytest.MonkeyPatch, loses: Callable[[bytes], bool]) -> None:
    """Have brokers lose small events on their way out: those of whose topic ``loses`` says so."""
    send = forwarding._send

    def perhaps(target: Any, event: bytes, *options: Any) -> None:
        if not loses(event.partition(b"\0")[0]):
            send(target, event, *options)

    monkeypatch.setattr(forwarding, "_send", perhaps)
