"""The end of a pairing that is open for one code; :mod:`~labmesh.transport.joining` is the other.

Both ends derive the same keys from the code, as a network does from its password; so both prove it
in the handshake, everything is encrypted, and the code itself never crosses the wire. Both wait in
the caller's thread: these are commands of a person, not parts of a node.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Self

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from labmesh.errors import LabmeshError, TooLarge
from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Grant, Reply, Request
from labmesh.protocol.pairing import (
    MAX_MESSAGE_BYTES,
    PAIRING_REQUESTS,
    Authorize,
    Ending,
    Invitation,
    PairingCode,
)
from labmesh.transport.answering import failure
from labmesh.transport.binding import bind_error
from labmesh.transport.channel import Frames, receive_rest, skip
from labmesh.transport.key_pairs import NetworkKeys

__all__ = ["HANDSHAKE_MS", "OpenInvitation", "keys_of"]

log = logging.getLogger(__name__)

Socket = zmq.Socket[bytes]

#: Stands where a password's keys have the network's name; no network can be called so.
_PURPOSE = "pairing/1"
_DOMAIN = b"labmesh/pairing"
_ZAP = "inproc://zeromq.zap.01"
_ENFORCE_ZAP_DOMAIN = 93
HANDSHAKE_MS = 2000
_GOODBYE_MS = 500
#: The clock is looked at so often.
_LOOK_MS = 100
#: What a server's socket tells of somebody who speaks CURVE with other keys. What merely knocks (a
#: scan of ports, a browser) breaks the handshake in other ways, and is no attempt.
_WRONG_KEY = 0x11000001
_DOOR_EVENTS = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


def keys_of(code: PairingCode) -> NetworkKeys:
    """What both sides derive from a code."""
    return NetworkKeys.from_password(code.text, _PURPOSE)


class OpenInvitation:
    """A socket that those reach who have the code; a context manager.

    :param bind: where it listens; the code's port.
    :raises Conflict: the port is taken.
    :raises ConfigError: there is no such interface on this machine.
    """

    def __init__(self, code: PairingCode, bind: Address) -> None:
        self._client_key = keys_of(code).client.public
        self._codec = Codec(PAIRING_REQUESTS)
        self._context: zmq.Context[Socket] = zmq.Context()
        # Bound before the socket of the invitation: without it nobody would be let in.
        self._admissions = self._context.socket(zmq.REP)
        self._admissions.bind(_ZAP)
        self._socket = self._context.socket(zmq.ROUTER)
        self._events = self._socket.get_monitor_socket(_DOOR_EVENTS)
        try:
            self._open(keys_of(code), bind)
        except BaseException:
            self.close()
            raise

    def _open(self, keys: NetworkKeys, bind: Address) -> None:
        socket = self._socket
        socket.router_mandatory = True
        socket.maxmsgsize = MAX_MESSAGE_BYTES
        socket.handshake_ivl = HANDSHAKE_MS
        socket.zap_domain = _DOMAIN
        socket.set(_ENFORCE_ZAP_DOMAIN, 1)
        socket.curve_server = True
        socket.curve_publickey = keys.server.public
        socket.curve_secretkey = keys.server.secret
        socket.ipv6 = bind.is_ipv6
        try:
            socket.bind(bind.zmq_bind)
        except zmq.ZMQError as exc:
            raise bind_error(exc, bind, "the invitation") from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; the answers that are on their way still leave. Twice is fine."""
        if not self._context.closed:
            self._socket.disable_monitor()
            self._context.destroy(linger=_GOODBYE_MS)

    def wait(
        self,
        invitation: Invitation,
        authorize: Callable[[Grant, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> Ending:
        """Answer who comes, until the invitation has ended; how it did.

        :param authorize: put this on the allow-list, durably; called with the address of who joins.
            What it raises as a :class:`LabmeshError` is told to them, and the code stays good.
        """
        poller = zmq.Poller()
        for socket in (self._admissions, self._events, self._socket):
            poller.register(socket, zmq.POLLIN)
        while (ending := invitation.ending(clock())) is None:
            left_ms = max(0, round((invitation.ends_at - clock()) * 1000))
            ready = dict(poller.poll(min(_LOOK_MS, left_ms)))
            if self._admissions in ready:
                self._admit(invitation)
            if self._events in ready:
                self._look(invitation)
            if self._socket in ready:
                self._answer(invitation, authorize, clock())
        return ending

    def _admit(self, invitation: Invitation) -> None:
        """Answer one question of ZAP (RFC 27): may this client key come in?"""
        frames = self._admissions.recv_multipart()
        request_id = frames[1] if len(frames) > 1 else b""
        admitted = (
            len(frames) == 7
            and frames[0] == b"1.0"
            and frames[5] == b"CURVE"
            and z85.encode(frames[6]) == self._client_key
        )
        if not admitted:
            invitation.wrong_code()
        status = [b"200", b"OK", b"guest"] if admitted else [b"400", b"wrong code", b""]
        self._admissions.send_multipart([b"1.0", request_id, *status, b""])

    def _look(self, invitation: Invitation) -> None:
        event = parse_monitor_message(self._events.recv_multipart())
        if int(event["value"]) == _WRONG_KEY:
            invitation.wrong_code()
            log.warning("somebody came with a wrong code (%d so far)", invitation.wrong_codes)

    def _answer(
        self, invitation: Invitation, authorize: Callable[[Grant, str], None], now: float
    ) -> None:
        routing_id = self._socket.recv(zmq.NOBLOCK, copy=False)
        frames: Frames = []
        try:
            if routing_id.more:
                receive_rest(self._socket, frames)
            reply = self._reply(invitation, authorize, frames, now, _address_of(routing_id))
        except TooLarge as exc:
            skip(self._socket)
            reply = failure("", exc)
        # Who has gone meanwhile asks again.
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart([routing_id.bytes, *self._codec.encode(reply)], zmq.NOBLOCK)

    def _reply(
        self,
        invitation: Invitation,
        authorize: Callable[[Grant, str], None],
        frames: Frames,
        now: float,
        address: str,
    ) -> Reply:
        request_id = ""
        try:
            request = self._codec.decode(frames).message
            assert isinstance(request, Request)
            request_id = request.id
            step = invitation.take(request, now)
            if isinstance(step, Authorize):
                authorize(step.grant, address)
                return invitation.authorized(step)
            return step
        except LabmeshError as exc:
            log.warning("somebody at %s who has the code was refused: %s", address, exc)
            return failure(request_id or str(exc.detail.get("id", "")), exc)


def _address_of(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "?"
