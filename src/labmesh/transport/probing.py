"""Whether the owner of an id lives: a ping of its address, or nobody there any more."""

from __future__ import annotations

import asyncio
import logging
import time

import zmq

from labmesh.errors import LabmeshError
from labmesh.protocol.addresses import parse_connect
from labmesh.protocol.messages import NodeRecord
from labmesh.transport.link import Link
from labmesh.transport.monitor import read_event
from labmesh.transport.sockets import Sockets

__all__ = ["event_door_at", "is_alive"]

log = logging.getLogger(__name__)


async def is_alive(sockets: Sockets, record: NodeRecord, timeout: float) -> bool:
    """Whether a node answers a ping as this incarnation; a port that another one took says no.

    An address at which nobody listens any more is told at once, not after ``timeout``.
    """
    endpoint = record.endpoints.get("rpc") or record.endpoints["retrieve"]
    where = f"{record.kind} {record.node_id}"
    try:
        await asyncio.to_thread(sockets.learn, record)
        link = Link(sockets, endpoint, where=where, target=record.node_id)
    except LabmeshError as exc:
        # Nobody could be asked: then nobody loses what is his.
        log.warning("cannot probe %s: %s", where, exc)
        return True
    nobody = asyncio.get_running_loop().create_task(_is_refused(endpoint), name=f"knock: {where}")
    ping = asyncio.get_running_loop().create_task(link.wait_up(timeout), name=f"ping: {where}")
    try:
        await asyncio.wait({nobody, ping}, return_when=asyncio.FIRST_COMPLETED)
        if not ping.done() and nobody.result():
            log.info("%s is gone: nobody listens at %s", record.node_id, endpoint)
            return False
        await ping
        return link.epoch == record.epoch
    except LabmeshError as exc:
        log.info("%s does not answer a probe: %s", record.node_id, exc)
        return False
    finally:
        nobody.cancel()
        ping.cancel()
        await asyncio.gather(nobody, ping, return_exceptions=True)
        link.close()


async def _is_refused(endpoint: str) -> bool:
    """Whether the host says that nothing listens there; any other outcome says nothing."""
    address = parse_connect(endpoint)
    try:
        _, writer = await asyncio.open_connection(address.host, address.port)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    writer.transport.abort()
    return False


async def event_door_at(sockets: Sockets, endpoint: str, timeout: float) -> str | None:
    """``sends`` or ``takes``: what the broker's event port at ``endpoint`` does; None: it is none.

    :raises AuthenticationError: no key is known of who is there.
    """
    return await asyncio.to_thread(_event_door_at, sockets, endpoint, timeout)


def _event_door_at(sockets: Sockets, endpoint: str, timeout: float) -> str | None:
    for kind, door in ((zmq.SUB, "sends"), (zmq.XPUB, "takes")):
        socket, monitor = sockets.connect(kind, endpoint, int(zmq.EVENT_HANDSHAKE_SUCCEEDED))
        try:
            if _is_let_in(monitor, timeout / 2):
                return door
        finally:
            sockets.close(socket)
    return None


def _is_let_in(monitor: zmq.Socket[bytes], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while (left_s := deadline - time.monotonic()) > 0:
        if monitor.poll(int(1000 * left_s)):
            return read_event(list(monitor.recv_multipart()))[0] == zmq.EVENT_HANDSHAKE_SUCCEEDED
    return False
