"""The end of a pairing that comes with a code; :mod:`~labmesh.transport.pairing` is the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket as stdlib_socket
import time
from typing import Self, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from labmesh.errors import (
    AuthenticationError,
    InternalError,
    LabmeshError,
    LinkLost,
    NoAnswer,
    NotSent,
    OutcomeUnknown,
    ProtocolError,
    error_from_wire,
)
from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Codec
from labmesh.protocol.messages import Done, Failure, Reply, Request
from labmesh.protocol.pairing import (
    PAIRING_REPLIES,
    Admitted,
    AskInvitation,
    ConfirmJoin,
    EndJoin,
    Invited,
    PairingCode,
    Terms,
)
from labmesh.transport.greeting import mechanism_at
from labmesh.transport.pairing import HANDSHAKE_MS, keys_of

__all__ = ["Joining"]

Socket = zmq.Socket[bytes]
R = TypeVar("R", bound=Reply)

#: A person is told within 2 s why it does not work; deriving the keys takes the rest.
_PATIENCE_S = 1.2
#: What is confirmed was written to a disk, and that may be a slow one.
_CONFIRM_S = 10.0
_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
)


class Joining:
    """A connection to an open invitation; a context manager.

    :param host: where the invitation is open; empty: where the code says.
    :param patience_s: seconds until somebody who does not answer is given up.
    :raises ProtocolError: neither the code nor ``host`` says where.
    """

    def __init__(
        self, code: PairingCode, host: str = "", *, patience_s: float = _PATIENCE_S
    ) -> None:
        if not (host or code.host):
            raise ProtocolError(
                "this code does not say on which host the invitation is open: give it with "
                "--broker HOST"
            )
        self._address = Address(host or code.host, code.port)
        self._endpoint = str(self._address)
        self._patience_s = patience_s
        self._is_connected = self._is_up = False
        self._codec = Codec(PAIRING_REPLIES)
        self._context: zmq.Context[Socket] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._events = self._socket.get_monitor_socket(_EVENTS)
        keys = keys_of(code)
        self._socket.immediate = True
        # One attempt: libzmq's own would be counted as so many wrong codes.
        self._socket.reconnect_ivl = -1
        self._socket.handshake_ivl = HANDSHAKE_MS
        self._socket.curve_serverkey = keys.server.public
        self._socket.curve_publickey = keys.client.public
        self._socket.curve_secretkey = keys.client.secret

    @property
    def host(self) -> str:
        """Where the invitation is open."""
        return self._address.host

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; twice is fine."""
        if not self._context.closed:
            self._socket.disable_monitor()
            self._context.destroy(linger=0)

    def ask(self) -> Terms:
        """Connect, prove the code, and learn what one is invited to.

        :raises AuthenticationError: the invitation that is open there has another code.
        :raises LinkLost: nobody is there, or no invitation.
        :raises Forbidden: it is over.
        """
        place = _resolved(self._address)
        self._socket.ipv6 = place.is_ipv6
        self._socket.connect(str(place))
        return self._request(AskInvitation(id="ask"), Invited).terms

    def confirm(self, key: str) -> None:
        """The secret of this public key is stored durably; have it admitted.

        :raises OutcomeUnknown: no answer came: it may be on the allow-list, or not.
        :raises NotSent: the invitation was closed before.
        :raises LabmeshError: it was refused, and is not.
        """
        try:
            request = ConfirmJoin(id="confirm", key=key)
            self._request(request, Admitted, max(self._patience_s, _CONFIRM_S))
        except NotSent:
            raise
        except (LinkLost, NoAnswer) as exc:
            raise OutcomeUnknown(
                "the connection broke before the other side confirmed: it may have admitted this "
                "machine, or not. Join again with the same code while the invitation is open; if "
                "it is not, 'labmesh ls' tells whether it worked"
            ) from exc

    def end(self, key: str) -> None:
        """Everything is here: the other side need not wait any more. It may have gone, too."""
        with contextlib.suppress(LinkLost, NoAnswer):
            self._request(EndJoin(id="end", key=key), Done)

    def _request(self, request: Request, expected: type[R], patience_s: float | None = None) -> R:
        deadline = time.monotonic() + (patience_s or self._patience_s)
        try:
            self._send(request, deadline)
        except LinkLost as exc:
            raise NotSent(str(exc)) from exc
        reply = self._receive(deadline)
        if isinstance(reply, Failure):
            raise error_from_wire(reply.name, reply.text, reply.detail)
        if not isinstance(reply, expected):
            raise InternalError(f"the invitation answered with {type(reply).__name__}")
        return reply

    def _send(self, request: Request, deadline: float) -> None:
        while not self._is_up:
            if not self._events.poll(_left_ms(deadline)):
                raise self._silence()
            self._take_event()
        while self._events.poll(0):
            self._take_event()
        try:
            self._socket.send_multipart(self._codec.encode(request), zmq.NOBLOCK)
        except zmq.Again as exc:
            raise self._closed() from exc

    def _receive(self, deadline: float) -> object:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._events, zmq.POLLIN)
        while True:
            ready = dict(poller.poll(_left_ms(deadline)))
            if self._socket in ready:
                return self._codec.decode(self._socket.recv_multipart()).message
            if self._events in ready:
                self._take_event()
            elif time.monotonic() >= deadline:
                raise NoAnswer(f"the invitation at {self._endpoint} does not answer any more")

    def _take_event(self) -> None:
        event = int(parse_monitor_message(self._events.recv_multipart())["event"])
        if event == zmq.EVENT_CONNECTED:
            self._is_connected = True
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._is_up = True
        elif event == zmq.EVENT_CLOSED:
            raise LinkLost(
                f"no invitation is open at {self._endpoint}: a code works once, and for some "
                "minutes; ask for a new one ('labmesh keys invite' on the broker's machine)"
            )
        elif self._is_up:
            self._is_up = False
            raise self._closed()
        else:
            raise self._broken()

    def _closed(self) -> LabmeshError:
        return LinkLost(f"the invitation at {self._endpoint} was closed")

    def _broken(self) -> LabmeshError:
        """Why the handshake failed: the greeting tells who is there."""
        mechanism = asyncio.run(mechanism_at(self._endpoint))
        if mechanism == "CURVE":
            return AuthenticationError(
                f"the invitation at {self._endpoint} has another code: type it as 'labmesh keys "
                "invite' printed it there last, or ask for a new one"
            )
        if mechanism:
            return self._other_program()
        # Not even a greeting: an invitation ends at the last wrong code that it bears.
        return LinkLost(
            f"something at {self._endpoint} hung up: an invitation that has just ended (ask for a "
            "new code), or another program that uses this port"
        )

    def _other_program(self) -> LabmeshError:
        return LinkLost(
            f"something answers at {self._endpoint}, but it is no invitation: is another program "
            "using this port? 'labmesh keys invite --port' takes another one"
        )

    def _silence(self) -> LabmeshError:
        if self._is_connected:
            return self._other_program()
        return LinkLost(
            f"{self._endpoint} does not answer: is that machine on, in the same network, and does "
            "its firewall let this port through? --broker HOST tries another address of it"
        )


def _resolved(address: Address) -> Address:
    """The same with an IP address; an IPv4 one where there are both, as nodes bind those."""
    try:
        found = stdlib_socket.getaddrinfo(
            address.host, address.port, type=stdlib_socket.SOCK_STREAM
        )
    except OSError as exc:
        raise LinkLost(
            f"no machine called {address.host} is known here ({exc.strerror or exc}): try its IP "
            "address"
        ) from exc
    preferred = [each for each in found if each[0] == stdlib_socket.AF_INET] or found
    return Address(str(preferred[0][4][0]), address.port)


def _left_ms(deadline: float) -> int:
    return max(0, round((deadline - time.monotonic()) * 1000))
