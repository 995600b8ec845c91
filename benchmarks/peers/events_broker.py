"""labmesh's broker between plain sockets: what the broker itself carries, whoever its clients are.

``…-password`` has a network password: everything is encrypted, and the broker looks up who
publishes, with each event.
"""

from __future__ import annotations

import asyncio
import sys

from eventing import NODE, answer_events, serve_publisher
from measuring import announce, stdin_closed
from plain_events import audience, publisher

import labmesh
from labmesh.protocol.codec import encode_event
from labmesh.protocol.messages import Event
from labmesh.transport.keys import Security

_ROLE, _, _KIND = sys.argv[1].partition("-")
_ANYWHERE = "tcp://127.0.0.1:*"
_HEADER = encode_event(
    Event(publisher=NODE, epoch="0123456789abcdef", sequence=1, time=1.7e9, kind="sample")
)


async def _serve() -> None:
    mode = "password" if _KIND == "password" else "open"
    security = Security.resolve(mode=mode, environ={"LMH_NETWORK_PASSWORD": "of a benchmark"})
    broker = labmesh.DirectoryBroker(_ANYWHERE, _ANYWHERE, _ANYWHERE, security=security)
    async with broker:
        await broker.ready
        words = [str(broker.xsub), str(broker.xpub)]
        if (keys := security.keys) is not None:
            pair = keys.client
            words += [each.decode() for each in (keys.server.public, pair.public, pair.secret)]
        announce(" ".join(words))
        await stdin_closed()


if __name__ == "__main__":
    match _ROLE:
        case "broker":
            asyncio.run(_serve())
        case "publish":
            asyncio.run(serve_publisher(publisher([_HEADER])))
        case _:
            answer_events(audience(4), "pyzmq", "msgspec")
