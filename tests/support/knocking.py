"""Handshakes by plain pyzmq that are tried once, and what became of them."""

from __future__ import annotations

import zmq

from labmesh.transport.key_pairs import KeyPair

__all__ = ["ADMITTED", "BROKEN", "REFUSED", "Knock"]

#: ``refused``: somebody looked at the key, and said no. ``broken``: it did not come to that.
ADMITTED, REFUSED, BROKEN = "admitted", "refused", "broken"

_SEEN = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)


class Knock:
    """A connection that is tried once.

    :param door: the socket at the other end, such as ``directory``.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, door: str = ""
    ) -> None:
        self._endpoint = endpoint
        self.socket = context.socket({"xsub": zmq.PUB, "xpub": zmq.SUB}.get(door, zmq.DEALER))
        self.socket.linger = 0
        self._events = self.socket.get_monitor_socket(_SEEN)
        self.became = ""

    def knock(self, own: KeyPair | None, server_key: bytes = b"") -> None:
        """Connect with these keys; None: with none."""
        if own is not None:
            self.socket.curve_serverkey = server_key
            self.socket.curve_publickey, self.socket.curve_secretkey = own.public, own.secret
        self.socket.connect(self._endpoint)

    def look(self, wait_ms: int = 0) -> str:
        """What became of it, as soon as that is known; empty until then."""
        if not self.became and self._events.poll(wait_ms):
            event = int.from_bytes(self._events.recv_multipart()[0][:2], "little")
            known = {
                zmq.EVENT_HANDSHAKE_SUCCEEDED: ADMITTED,
                zmq.EVENT_HANDSHAKE_FAILED_AUTH: REFUSED,
            }
            self.became = known.get(event, BROKEN)
        return self.became

    def close(self) -> None:
        """End it."""
        self.socket.disable_monitor()
        self._events.close(0)
        self.socket.close(0)
