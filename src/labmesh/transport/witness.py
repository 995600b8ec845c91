"""Who is told what is asked of a node's sockets, for a record of who did what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import zmq

from labmesh.errors import LabmeshError
from labmesh.protocol.messages import Request
from labmesh.protocol.publishing import Refused

if TYPE_CHECKING:
    from labmesh.transport.answering import Answer, Later, Origin

__all__ = ["Witness", "address_of", "tell_refused"]


class Witness(Protocol):
    """Told of requests, refusals, and who was turned away. In any thread."""

    def watched(
        self,
        request: Request,
        origin: Origin,
        answer: Answer | Later,
        since: float,
    ) -> Answer | Later:
        """A request was taken at ``since`` (monotonic); its answer, which may be yet to come.

        Whoever calls it goes on with what it returns.
        """

    def refused(
        self, request: Request, origin: Origin, error: LabmeshError, since: float | None = None
    ) -> None:
        """A request was answered with an error."""

    def turned_away(self, address: str, door: str, why: str) -> None:
        """A connection was refused in its handshake."""

    def unheard(self, user: str, address: str, topic: str, why: str, text: str) -> None:
        """An event was not forwarded, because of who published it."""


def address_of(frame: zmq.Frame) -> str:
    """Where a message came from; empty: nobody knows."""
    try:
        # An IPv6 socket shows IPv4 peers as addresses of its own kind.
        return str(frame.get("Peer-Address")).removeprefix("::ffff:")
    except zmq.ZMQError:
        return ""


def tell_refused(witness: Witness, event: zmq.Frame, refused: Refused) -> None:
    """An event is not forwarded."""
    name = bytes(event.buffer[:128]).partition(b"\0")[0].decode("utf-8", "replace")
    user = str(event.get("User-Id"))
    witness.unheard(user, address_of(event), name, refused.why, str(refused))
