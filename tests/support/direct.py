"""The sockets over which threads call, made and connected beforehand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from tests.support.served import eventually

from labmesh.mesh import Mesh
from labmesh.protocol.messages import Call
from labmesh.transport.blocking import CallSockets
from labmesh.transport.call_session import CallSession
from labmesh.transport.connection import Standing
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

__all__ = ["DirectClient", "connected_sockets"]

LIMIT_S = 15.0
UP = Standing(True, "double", "e1", 0.0)


@dataclass
class Known:
    """What a link knows, as a test says it."""

    endpoint: str
    where: str = "relay double"
    standing: Standing = UP


class DirectClient:
    """Makes calls to one server in the calling thread."""

    def __init__(self, sockets: Sockets, endpoint: str) -> None:
        self.session = CallSession()
        self.sockets = CallSockets(sockets, self.session)
        self.known = Known(endpoint)

    @property
    def idle(self) -> list[Any]:
        """The sockets that wait for the next call."""
        return self.sockets._idle.setdefault("double", [])

    def call(self, *args: Any, timeout: float = LIMIT_S, method: str = "move") -> Any:
        """One call; the reply."""
        request = Call(
            id=self.session.next_id(),
            target="double",
            epoch="e1",
            session=self.session.token,
            method=method,
            args=list(args),
        )
        link = cast(Link, self.known)
        deadline = time.monotonic() + timeout
        return self.sockets.ask(request, link, self.known.standing, deadline)

    def connected(self) -> None:
        """Wait until a call can be sent."""
        self.sockets.warm(cast(Link, self.known), self.known.standing)
        (socket,) = self.idle
        eventually(lambda: socket.is_open, "it is connected")

    def close(self) -> None:
        """Close what is idle; nothing more is sent."""
        self.sockets.closed = True
        self.sockets._keep_none_once_closed()


def connected_sockets(mesh: Mesh, relay_id: str, count: int) -> None:
    """Have so many calls at a time to a relay find a connection of their own.

    That is otherwise made by the calls themselves, which go another way meanwhile.
    """
    client = mesh._session.client
    mesh._session.learn(relay_id)
    link = client.link_to(relay_id)
    assert link is not None
    idle = client.direct._idle.setdefault(relay_id, [])
    made: list[Any] = []
    while len(made) < count:
        client.direct.warm(link, link.standing)
        made.append(idle.pop())
    idle.extend(made)
    for each in made:
        eventually(partial(_is_connected, each), "a socket is connected")
        each.blocked_at = 0.0


def _is_connected(call_socket: Any) -> bool:
    return bool(call_socket.is_open)
