"""The one factory of ZeroMQ sockets.

Each node owns one :class:`Sockets`: its own context (ZAP has one handler a context), its
authenticator, and every socket with the options that measurements asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from typing import Any, Literal

import zmq

from labmesh.errors import ConfigError, LinkLost
from labmesh.protocol.addresses import Address, parse_bind, parse_connect
from labmesh.protocol.messages import NodeRecord
from labmesh.transport.auth import Authenticator
from labmesh.transport.binding import bind_error, has_ipv6, is_ip, resolve
from labmesh.transport.breaker import Intake
from labmesh.transport.key_pairs import KeyPair
from labmesh.transport.keys import Guard, Security
from labmesh.transport.lines import DealerLine, Line
from labmesh.transport.liveness import ask_peers, leave_asking_to_peers
from labmesh.transport.plain_line import PlainLine
from labmesh.transport.plain_socket import has_plain_sockets
from labmesh.transport.witness import Witness

__all__ = ["Sockets"]

log = logging.getLogger(__name__)

Socket = zmq.Socket[bytes]

#: Largest frame that each server socket accepts, bytes; a larger one disconnects its sender.
MAX_FRAME_BYTES = {
    "directory": 256 * 2**10,
    "xsub": 2**20,
    "xpub": 64 * 2**10,
    "relay": 16 * 2**20,
    "ingest": 8 * 2**20 + 64 * 2**10,
    "retrieve": 64 * 2**10,
}

#: Messages that may wait for one slow peer before the next is dropped. Not to be changed while
#: there are connections: libzmq then takes empty queues for full ones, or breaks down.
SEND_LIMIT = {"retrieve": 16, "xpub": 20_000}

#: Messages that may wait to be read, of one peer. Before it hands out the first subscription,
#: ZeroMQ takes all that are there into its own tree: that is to be one. (The name that the
#: handshake gave the peer counts as another, for ever.)
RECEIVE_LIMIT = {"xpub": 2}
#: And bytes that the system keeps of it beside; -1: as many as it likes. They are read even after
#: their connection was ended.
RECEIVE_BYTES = {"xpub": 64 * 2**10}

_CONNECT_TIMEOUT_MS = 2000
_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 2000
_ENFORCE_ZAP_DOMAIN = 93
_FILES_OF_A_CONTEXT = 16


class Sockets:
    """The ZeroMQ context of one node, and the only maker of its sockets.

    :param name: the node's id, for threads and logs.
    :raises LinkLost: this process has almost as many files open as it may.
    """

    def __init__(self, security: Security, name: str) -> None:
        if security.mode == "keys" and security.guard is None:
            raise ConfigError(f"{name} has no key: make one with 'labmesh keys', or join with one")
        _raise_file_limit()
        _check_room_for_files(name)
        self.security = security
        self.name = name
        self._context: zmq.Context[Socket] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 65_000)
        #: told of what is asked and who is turned away, for a record; None: nobody keeps one
        self.witness: Witness | None = None
        self._authenticator: Authenticator | None = None
        self._sockets: list[Socket] = []
        self._monitors: dict[Socket, Socket] = {}
        self._intakes: dict[Socket, Intake] = {}
        self._pairs = itertools.count()
        #: endpoint → how many of the keys that its server may have were tried in vain
        self._tried: dict[str, int] = {}
        #: addresses at which a bank is to be, and a broker
        self._banks: set[str] = set()
        self._brokers: set[str] = set()
        self._has_warned = False

    @property
    def is_server(self) -> bool:
        """Others connect to this node."""
        return self._authenticator is not None

    @property
    def admits(self) -> bool:
        """New peers can get in; always, where nothing is bound."""
        return self._authenticator is None or self._authenticator.is_alive

    @property
    def refused(self) -> int:
        """Connections that were turned away so far; not those that hung up before they were."""
        return self._authenticator.refused if self._authenticator else 0

    @property
    def cut(self) -> int:
        """Connections that were ended so far because of messages without an end."""
        return self._authenticator.cut if self._authenticator else 0

    def intake(self, socket: Socket) -> Intake:
        """What the reader of a server socket tells of the messages that it takes."""
        return self._intakes[socket]

    def bind(self, kind: int, address: Address, *, role: str, owner: str) -> tuple[Socket, Address]:
        """A server socket, and the address with the port that it got.

        :param role: ``directory``, ``xsub``, ``xpub``, ``relay``, ``ingest`` or ``retrieve``.
        :param owner: who asks, for the error text ("relay Inst-0").
        :raises Conflict: the port is taken.
        :raises ConfigError: there is no such interface on this machine; or the password is too
            short for others to reach this address.
        """
        warning = self.security.check_bind(address, owner)
        if warning and not self._has_warned:
            self._has_warned = True
            log.warning(warning)
        if self._authenticator is None:
            self._authenticator = Authenticator(self._context, self.security, self.name)
            self._authenticator.witness = self.witness
        socket = self._new(kind)
        socket.maxmsgsize = MAX_FRAME_BYTES[role]
        socket.sndhwm = SEND_LIMIT.get(role, 1000)
        socket.rcvhwm = RECEIVE_LIMIT.get(role, 1000)
        socket.rcvbuf = RECEIVE_BYTES.get(role, -1)
        leave_asking_to_peers(socket)
        domain = f"labmesh/{self.security.network}/{role}"
        socket.zap_domain = domain.encode()
        socket.set(_ENFORCE_ZAP_DOMAIN, 1)
        self._intakes[socket] = self._authenticator.watch(socket, domain)
        own = self._own_keys("server")
        if own is not None:
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = own.public, own.secret
        if kind == zmq.ROUTER:
            socket.router_mandatory = True
        host = address.host
        if host != "*" and not is_ip(host):
            host = resolve(host, owner)
        socket.ipv6 = ":" in host or (host == "*" and has_ipv6())
        try:
            socket.bind(Address(host, address.port).zmq_bind)
        except zmq.ZMQError as exc:
            self.close(socket)
            raise bind_error(exc, address, owner) from exc
        bound = parse_bind(socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
        return socket, Address(address.host, bound.port)

    def connect(self, kind: int, endpoint: str, events: int) -> tuple[Socket, Socket]:
        """A connecting socket, and the one that tells of its connections; they are closed together.

        It queues nothing while there is no connection: without ``IMMEDIATE`` a request that was
        made during an outage is delivered after it, and a command would run late. The size limit
        stays off here: on a connecting socket one oversized message would end the connection for
        ever, silently.

        :raises LinkLost: this process has as many files open as it may.
        :raises AuthenticationError: there is no key that the server could be asked to prove.
        """
        if kind != zmq.DEALER:  # events: only a broker has such ports
            self.expect_broker(endpoint)
        socket = self._connecting(kind, endpoint)
        self._sockets.append(socket)
        # Before connecting: a handshake on one machine is over before one can look.
        try:
            monitor = socket.get_monitor_socket(events)
        except zmq.ZMQError as exc:
            self.close(socket)
            raise _no_socket(self.name, exc) from exc
        monitor.linger = 0
        # When it is full, libzmq waits for its reader, who may just be waiting for libzmq.
        monitor.rcvhwm = 0
        self._monitors[socket] = monitor
        socket.connect(endpoint)
        return socket, monitor

    def lend(self, endpoint: str) -> Line:
        """A connection for threads that wait; in any thread.

        Whoever has it closes it. :meth:`close_all` waits until that is done where it is libzmq's.

        :raises LinkLost: as of :meth:`connect`.
        """
        address = self.plain_address(endpoint)
        if address is not None:
            try:
                return PlainLine(address)
            except OSError as exc:
                raise _no_socket(self.name, exc) from exc
        socket = self._connecting(zmq.DEALER, endpoint)
        socket.connect(endpoint)
        return DealerLine(socket)

    def plain_address(self, endpoint: str) -> Address | None:
        """Where ZeroMQ's protocol can be spoken over a plain socket; None: not there."""
        address = parse_connect(endpoint)
        is_plain = not self.security.is_encrypted and is_ip(address.host) and has_plain_sockets()
        return address if is_plain else None

    def _connecting(self, kind: int, endpoint: str) -> Socket:
        address = parse_connect(endpoint)
        expected = self._expected_key(endpoint)
        socket = self._made(kind)
        # Not a SUB, which sends nothing: with it, libzmq throws away what came in before a break,
        # and aborts the process when that happens in the middle of a message that is being read.
        socket.immediate = kind != zmq.SUB
        socket.connect_timeout = _CONNECT_TIMEOUT_MS
        socket.reconnect_ivl = _RECONNECT_MS
        socket.reconnect_ivl_max = _RECONNECT_MAX_MS
        if kind == zmq.SUB:
            # With a limit, subscriptions beyond it are silently never made.
            socket.sndhwm = 0
            socket.rcvhwm = 100_000
        own = self._own_keys("client")
        if own is not None:
            socket.curve_serverkey = expected
            socket.curve_publickey, socket.curve_secretkey = own.public, own.secret
        # "localhost" is ::1 first on many machines, where an IPv4 server would not be found.
        named = address.host != "localhost" and not is_ip(address.host)
        socket.ipv6 = address.is_ipv6 or named
        return socket

    def give_up(self, socket: Socket, endpoint: str, *, is_other_key: bool = False) -> None:
        """Have a connecting socket that was refused not try again: libzmq would, 10 times a second.

        Its owner tries again later, with a new one.

        :param is_other_key: the server did not prove the key that was expected: the new one expects
            the next of those that it may have.
        """
        if is_other_key:
            self._tried[endpoint] = self._tried.get(endpoint, 0) + 1
        socket.disconnect(endpoint)

    def learn(self, record: NodeRecord) -> None:
        """What the directory says of a node's key is expected of its sockets from now on.

        It may write a file: not in a loop.

        :raises AuthenticationError: another key is pinned for this node.
        """
        guard = self.security.guard
        if guard is not None and record.server_key:
            endpoints = tuple(record.endpoints.values())
            try:
                guard.learn_server(record.kind, record.node_id, record.server_key, endpoints)
            except ConfigError as exc:
                # It holds for now all the same.
                log.warning("the key of %s cannot be remembered: %s", record.node_id, exc)

    def expect_bank(self, endpoint: str) -> None:
        """A bank is to be there, the directory was not asked which one."""
        self._banks.add(endpoint)

    def expect_broker(self, endpoint: str) -> str:
        """A broker is to be there, whoever claims that address in the directory; the address."""
        self._brokers.add(endpoint)
        return endpoint

    def _server_keys(self, guard: Guard, endpoint: str) -> tuple[bytes, ...]:
        if endpoint in self._brokers:
            return guard.broker_keys()
        return guard.bank_keys(endpoint) if endpoint in self._banks else guard.server_keys(endpoint)

    def has_more_keys(self, endpoint: str) -> bool:
        """Another key of the server there is known than the one that is tried now."""
        guard = self.security.guard
        keys = 1 if guard is None else len(self._server_keys(guard, endpoint))
        return (self._tried.get(endpoint, 0) + 1) % keys != 0

    def _own_keys(self, side: Literal["server", "client"]) -> KeyPair | None:
        """What this node proves that it has; None: nothing is proved here."""
        security = self.security
        if security.guard is not None:
            return security.guard.identity
        if security.keys is None:
            return None
        return security.keys.server if side == "server" else security.keys.client

    def _expected_key(self, endpoint: str) -> bytes:
        """What the server there has to prove; empty: nothing.

        :raises AuthenticationError: no key is known of which it has to prove one.
        """
        security = self.security
        if security.guard is not None:
            keys = self._server_keys(security.guard, endpoint)
            return keys[self._tried.get(endpoint, 0) % len(keys)]
        return b"" if security.keys is None else security.keys.server.public

    def pair(self) -> tuple[Socket, Socket]:
        """Two ends of a channel between two threads of this node."""
        near, far = self._new(zmq.PAIR), self._new(zmq.PAIR)
        endpoint = f"inproc://labmesh.pair.{next(self._pairs)}"
        near.bind(endpoint)
        far.connect(endpoint)
        return near, far

    def close(self, socket: Socket, linger_ms: int = 0) -> None:
        """Close one socket, and what tells of it; ``linger_ms`` lets its last messages leave."""
        if socket in self._sockets:
            self._sockets.remove(socket)
        self._intakes.pop(socket, None)
        if not socket.closed:
            # In this order: libzmq waits for ever, and with it all connections of this node, when
            # it has something to tell and the other end is gone.
            socket.disable_monitor()
            if (monitor := self._monitors.pop(socket, None)) is not None:
                monitor.close(0)
            socket.close(linger_ms)

    def close_all(self) -> None:
        """Close what is left, and the context. Call it after the node's threads have ended."""
        for socket in list(self._sockets):
            self.close(socket)
        if self._authenticator is not None:
            self._authenticator.close()
        self._context.term()

    def _new(self, kind: int) -> Socket:
        socket = self._made(kind)
        self._sockets.append(socket)
        return socket

    def _made(self, kind: int) -> Socket:
        try:
            socket = self._context.socket(kind)
        except zmq.ZMQError as exc:
            raise _no_socket(self.name, exc) from exc
        socket.linger = 0
        if kind != zmq.PAIR:
            ask_peers(socket)
        return socket


def _check_room_for_files(name: str) -> None:
    """libzmq ends the whole process when it finds none for a context's first socket."""
    with contextlib.ExitStack() as opened:
        for _ in range(_FILES_OF_A_CONTEXT):
            try:
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            except OSError as exc:
                raise _no_socket(name, exc) from exc


def _no_socket(name: str, exc: OSError | zmq.ZMQError) -> LinkLost:
    return LinkLost(
        f"{name} cannot open another socket ({exc.strerror}): close connections that are not "
        "needed, or allow more open files (ulimit -n)"
    )


def _raise_file_limit() -> None:
    """Each connection is a file descriptor: allow as many as the system lets us have."""
    try:
        import resource
    except ImportError:  # Windows: it has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Some systems name a hard limit that they do not grant.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def curve_available() -> bool:
    """Does the installed libzmq have CURVE?"""
    return bool(zmq.has("curve"))


def versions() -> dict[str, Any]:
    """The versions of pyzmq and libzmq."""
    return {"pyzmq": zmq.__version__, "libzmq": zmq.zmq_version()}
