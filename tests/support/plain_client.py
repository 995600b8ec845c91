"""A client of plain ZeroMQ, which takes nothing back and sends again what it likes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Alive, Call, Failure, Message, Result

__all__ = ["PlainClient", "plain_clients"]


class PlainClient:
    """One session, some connections, ids that the caller chooses."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, peers: int) -> None:
        self.session = secrets.token_hex(16)
        self.peers = [context.socket(zmq.DEALER) for _ in range(peers)]
        self._codec = Codec((Result, Failure, Alive))
        for each in self.peers:
            each.linger = 0
            each.sndhwm = each.rcvhwm = 0
            each.connect(endpoint)

    def tag(self, call_id: int) -> str:
        """What a call of this client is about."""
        return f"{self.session[:4]}-{call_id}"

    def send(
        self, call_id: int, peer: int = 0, *, epoch: str = "", deadline: float | None = None
    ) -> None:
        """A call of ``move``; the same bytes, whenever it is done.

        :param deadline: in the relay's clock.
        """
        call = Call(
            id=str(call_id),
            session=self.session,
            epoch=epoch,
            deadline=deadline,
            method="move",
            args=[self.tag(call_id)],
        )
        self.peers[peer].send_multipart(self._codec.encode(call))

    def received(self, timeout_ms: int = 0) -> list[Message]:
        """The replies that are there now, on all connections; waits for a first one."""
        poller = zmq.Poller()
        for each in self.peers:
            poller.register(each, zmq.POLLIN)
        replies: list[Message] = []
        while ready := poller.poll(0 if replies else timeout_ms):
            for socket, _ in ready:
                replies.append(self._codec.decode(socket.recv_multipart()).message)
        return [each for each in replies if not isinstance(each, Alive)]

    def close(self) -> None:
        """Close its connections."""
        for each in self.peers:
            each.close()


@contextmanager
def plain_clients(endpoint: str, count: int, peers: int = 1) -> Iterator[list[PlainClient]]:
    """So many clients, with so many connections each."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = [PlainClient(context, endpoint, peers) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            each.close()
        context.term()
