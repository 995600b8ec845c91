"""A node whose links break while nobody looks: monitored.py closed | unread.

Prints ``works``, with the number of unread events, if the node still makes connections. Where it
does not, this program stands still and cannot be interrupted: hence a process of its own.
"""

from __future__ import annotations

import asyncio
import socket
import sys

import zmq

from labmesh.protocol.addresses import parse_bind
from labmesh.transport.keys import Security
from labmesh.transport.monitor import EVENTS, Health, Monitor, News
from labmesh.transport.sockets import Socket, Sockets

CONNECTIONS = 800
_HERE = ("127.0.0.1", 0)


def router(sockets: Sockets) -> tuple[Socket, str]:
    """A server, and its endpoint."""
    anywhere = parse_bind("tcp://127.0.0.1:*")
    bound, address = sockets.bind(zmq.ROUTER, anywhere, role="relay", owner="test")
    return bound, f"tcp://127.0.0.1:{address.port}"


async def connect(sockets: Sockets, endpoint: str) -> tuple[Socket, Monitor]:
    """A socket that is connected, and who watches it."""
    up = asyncio.Event()

    def hear(news: News | None) -> None:
        if news == "up":
            up.set()

    dealer, events = sockets.connect(zmq.DEALER, endpoint, EVENTS)
    monitor = Monitor(events, endpoint, Health("a router"), hear)
    await up.wait()
    return dealer, monitor


async def new_connection(sockets: Sockets) -> None:
    """Does the node still work?"""
    _, endpoint = router(sockets)
    dealer, monitor = await connect(sockets, endpoint)
    monitor.close()
    sockets.close(dealer)


async def closed(sockets: Sockets, other_node: Sockets) -> int:
    """A connection breaks while its link is taken down."""
    server, endpoint = router(other_node)
    dealer, monitor = await connect(sockets, endpoint)
    monitor.close()
    other_node.close(server)
    await new_connection(sockets)
    sockets.close(dealer)
    return 0


async def unread(sockets: Sockets, _other_node: Sockets) -> int:
    """Connections break again and again, and the loop that would hear of it is blocked."""
    with socket.create_server(_HERE, backlog=1024) as server:
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        # Of all kinds this one makes a connection each time.
        connecting, events = sockets.connect(zmq.ROUTER, endpoint, EVENTS)
        for _ in range(CONNECTIONS - 1):
            connecting.connect(endpoint)
        for _ in range(3 * CONNECTIONS):
            connection, _ = server.accept()
            connection.close()
        await new_connection(sockets)
        waiting = 0
        while events.poll(0):
            events.recv_multipart()
            waiting += 1
        sockets.close(connecting)
    return waiting


async def main(scenario: str) -> None:
    """Run one of them."""
    node, other_node = (Sockets(Security("open"), name) for name in ("node", "other"))
    events = await {"closed": closed, "unread": unread}[scenario](node, other_node)
    node.close_all()
    other_node.close_all()
    print(f"works {events}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
