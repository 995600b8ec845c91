"""labmesh's broker between plain sockets: what the broker itself carries, whoever its clients are.

``…-password`` has a network password: everything is encrypted, and the broker looks up who
publishes, with each event. ``…-keys`` has a key for each node, and the broker lets through what is
new and of the publisher's own; there, and where ``…-open`` and ``…-password`` are to do the same
work, each event has a number.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable

from eventing import NODE, answer_events, serve_publisher
from measuring import announce, stdin_closed
from plain_events import TOPIC, audience, publisher

import labmesh
from labmesh.access.keyring import KeyFolder
from labmesh.protocol.codec import encode_event
from labmesh.protocol.event_frame import joined
from labmesh.protocol.messages import Event
from labmesh.transport.key_pairs import KeyPair
from labmesh.transport.keys import Security

_ROLE, _, _KIND = sys.argv[1].partition("-")
_ANYWHERE = "tcp://127.0.0.1:*"
_EPOCH = "0123456789abcdef"


#: From here on all numbers take the same room, so that the payload has its place.
_FIRST = 2**16


def _head(sequence: int = _FIRST) -> bytes:
    event = Event(publisher=NODE, epoch=_EPOCH, sequence=sequence, time=1.7e9, kind="sample")
    return joined(TOPIC, encode_event(event), b"")


def _heads() -> bytes | Callable[[], bytes]:
    if not _KIND:
        return _head()
    numbers = itertools.count(_FIRST)
    return lambda: _head(next(numbers))


def _security() -> Security:
    if _KIND == "keys":
        return Security.resolve()
    mode = "password" if _KIND == "password" else "open"
    return Security.resolve(mode=mode, environ={"LMH_NETWORK_PASSWORD": "of a benchmark"})


def _client_keys(security: Security) -> tuple[bytes, KeyPair] | None:
    """The broker's public key, and the pair of those who connect; None: nothing is encrypted."""
    if security.keys is not None:
        return security.keys.server.public, security.keys.client
    if security.folder is not None and _KIND == "keys":
        folder = KeyFolder(security.folder)
        return folder.broker_keys()[0], folder.identity(NODE).pair
    return None


async def _serve() -> None:
    security = _security()
    broker = labmesh.DirectoryBroker(_ANYWHERE, _ANYWHERE, _ANYWHERE, security=security)
    async with broker:
        await broker.ready
        words = [str(broker.xsub), str(broker.xpub)]
        if (keys := _client_keys(security)) is not None:
            server_key, pair = keys
            words += [each.decode() for each in (server_key, pair.public, pair.secret)]
        announce(" ".join(words))
        await stdin_closed()


if __name__ == "__main__":
    match _ROLE:
        case "broker":
            asyncio.run(_serve())
        case "publish":
            asyncio.run(serve_publisher(publisher(_heads())))
        case _:
            answer_events(audience(len(_head())), "pyzmq", "msgspec")
