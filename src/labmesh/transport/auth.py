"""Who may connect: the ZAP handler (RFC 27), in a thread of its own.

The handler must not share a loop with anything that can block: a handshake waits for it. It is
bound before any other socket, and every server socket names a ZAP domain and enforces it, so that
without a working handler nobody gets in.
"""

from __future__ import annotations

import ipaddress
import logging
import threading

import zmq
from zmq.utils import z85

from labmesh.transport.keys import Security

__all__ = ["Authenticator", "admits"]

log = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"
_MAX_REMEMBERED = 1024


def is_local(address: str) -> bool:
    """Is this peer address a loopback address (also as an IPv4 address inside IPv6)?"""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def admits(
    security: Security, mechanism: bytes, address: str, credentials: list[bytes]
) -> tuple[bool, str]:
    """Decide about one connection; the text says why not."""
    if security.keys is not None:
        if mechanism != b"CURVE":
            return False, "this network has a password"
        if len(credentials) != 1 or z85.encode(credentials[0]) != security.keys.client.public:
            return False, "wrong network password"
        return True, "member"
    if mechanism != b"NULL":
        return False, "this node runs without a password"
    if security.insecure or is_local(address):
        return True, "local" if is_local(address) else "anonymous"
    return False, "protected mode: only this machine is admitted"


class Authenticator:
    """Answers ZAP requests of one context until closed."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], security: Security, name: str):
        self._security = security
        self._name = name
        self._remembered: set[str] = set()
        self.refused = 0
        self._requests = context.socket(zmq.REP)
        self._requests.linger = 0
        self._requests.bind(_ENDPOINT)
        control = f"inproc://labmesh.authenticator.{id(self)}"
        self._stop = context.socket(zmq.PAIR)
        self._stopped = context.socket(zmq.PAIR)
        self._stop.bind(control)
        self._stopped.connect(control)
        self._thread = threading.Thread(target=self._run, name=f"{name}-zap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and close its sockets."""
        if self._thread.is_alive():
            self._stop.send(b"")
            self._thread.join()
        for socket in (self._stop, self._stopped, self._requests):
            socket.close(0)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._requests, zmq.POLLIN)
        poller.register(self._stopped, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stopped in ready:
                return
            self._requests.send_multipart(self._answer(self._requests.recv_multipart()))

    def _answer(self, frames: list[bytes]) -> list[bytes]:
        if len(frames) < 6 or frames[0] != b"1.0":
            return _refusal(frames, b"500", "bad request")
        _, request_id, domain, address, _, mechanism, *credentials = frames
        where = address.decode("ascii", "replace")
        try:
            admitted, text = admits(self._security, mechanism, where, credentials)
        except Exception:
            # Without this thread nobody gets in any more: it outlives a fault of our own.
            log.exception("%s: the decision about %s failed", self._name, where)
            return _refusal(frames, b"500", "internal error")
        if admitted:
            return [b"1.0", request_id, b"200", b"OK", text.encode(), b""]
        self.refused += 1
        self._report(where, domain.decode("utf-8", "replace"), text)
        return _refusal(frames, b"400", text)

    def _report(self, address: str, domain: str, why: str) -> None:
        """One log line an address: a refused peer tries again for ever."""
        if address in self._remembered or len(self._remembered) >= _MAX_REMEMBERED:
            return
        self._remembered.add(address)
        log.warning("%s refused %s on %s: %s", self._name, address, domain, why)


def _refusal(frames: list[bytes], status: bytes, text: str) -> list[bytes]:
    request_id = frames[1] if len(frames) > 1 else b""
    return [b"1.0", request_id, status, text.encode(), b"", b""]
