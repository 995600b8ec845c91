"""Opens a node's sockets with fewer and fewer files allowed: ``open`` or ``refused``, each time."""

from __future__ import annotations

import os
import resource

import zmq

from labmesh.errors import LinkLost
from labmesh.transport.keys import Security
from labmesh.transport.sockets import Sockets

_SPARE = range(30, -1, -1)


def attempt() -> str:
    """Make a first socket and a connecting one."""
    try:
        sockets = Sockets(Security("open"), "node")
    except LinkLost:
        return "refused"
    try:
        sockets.connect(zmq.DEALER, "tcp://127.0.0.1:9", zmq.EVENT_CONNECTED)
    except LinkLost:
        return "refused"
    finally:
        sockets.close_all()
    return "open"


if __name__ == "__main__":
    lowest_free = os.dup(0)
    os.close(lowest_free)
    for spare in _SPARE:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, lowest_free + spare))
        print(attempt())
