"""How sockets of libzmq find out that the other end of a connection is gone."""

from __future__ import annotations

import zmq

__all__ = ["ask_peers", "leave_asking_to_peers"]

# A half-open link is noticed within 4 s; without these it was not noticed at all.
_HEARTBEAT_MS, _HEARTBEAT_TIMEOUT_MS, _HEARTBEAT_TTL_MS = 1000, 3000, 4000
_HANDSHAKE_MS = 5000
#: A peer whose system does not answer so often, so many seconds apart, is gone.
_KEEPALIVE_S, _KEEPALIVES = 5, 3


def ask_peers(socket: zmq.Socket[bytes]) -> None:
    """Ask once a second, and say with it how long a silence means our end."""
    socket.heartbeat_ivl = _HEARTBEAT_MS
    socket.heartbeat_timeout = _HEARTBEAT_TIMEOUT_MS
    socket.heartbeat_ttl = _HEARTBEAT_TTL_MS
    socket.handshake_ivl = _HANDSHAKE_MS


def leave_asking_to_peers(server: zmq.Socket[bytes]) -> None:
    """Peers ask whether a server is there, and say with it how long a silence means their end.

    A server that asks would be ended by libzmq (4.3.5, ``Assertion failed: !_io_error``) when it is
    to ask a peer that has hung up while more of its messages wait than may. Peers that never ask
    are found gone by the system.
    """
    server.heartbeat_ivl = 0
    server.tcp_keepalive = 1
    server.tcp_keepalive_idle = _KEEPALIVE_S
    server.tcp_keepalive_intvl = _KEEPALIVE_S
    server.tcp_keepalive_cnt = _KEEPALIVES
