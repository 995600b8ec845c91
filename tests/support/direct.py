"""The sockets over which threads call, made and connected beforehand."""

from __future__ import annotations

from functools import partial
from typing import Any

import zmq
from tests.support.served import eventually

from labmesh.mesh import Mesh

__all__ = ["connected_sockets"]


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
    return bool(call_socket._socket.getsockopt(zmq.EVENTS) & zmq.POLLOUT)
