"""Addresses: ``tcp://host:port``, as they are bound, connected to and advertised.

Three readers for three trusts. :func:`parse_bind` and :func:`parse_connect` read what a user wrote;
:func:`check_endpoint` reads what another machine claims, and is the strictest. All raise
:class:`~labmesh.errors.ProtocolError` with what is wrong and an example of what is right.

Nothing is looked up. A host whose last label is a number (``2852039166``, ``0x7f.1``, ``127.1``)
is refused unless it is a whole dotted IPv4 address: resolvers read such names as addresses, which
would get past every rule about addresses. IPv6 hosts are kept without brackets in their shortest
form, IPv4-mapped ones as the IPv4 address that they mean, names in lower case, so that two
spellings of one place are equal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from labmesh.errors import ProtocolError
from labmesh.protocol.ids import shown

MAX_ADDRESS_LENGTH = 255

#: Stands for the broker's host in an address to connect to.
BROKER = "BROKER"

_BIND_EXAMPLE = "tcp://*:5750"
_CONNECT_EXAMPLE = "tcp://192.168.1.10:5750"

_SPACE_OR_CONTROL = re.compile(r"[\s\x00-\x1f\x7f]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_BROADCAST = IPv4Address("255.255.255.255")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


@dataclass(frozen=True, slots=True)
class Address:
    """A place to bind or to connect to. Host ``*``: every interface; port 0: any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp://{self._bracketed}:{self.port}"

    @property
    def zmq_bind(self) -> str:
        """What ZeroMQ's ``bind`` takes; ``tcp://*:*`` for any free port everywhere."""
        return f"tcp://{self._bracketed}:{self.port or '*'}"

    @property
    def is_wildcard(self) -> bool:
        """Bound on every interface: the host says nothing about where others find it."""
        ip = _ip(self.host)
        return self.host == "*" or (ip is not None and ip.is_unspecified)

    @property
    def is_ipv6(self) -> bool:
        """The socket needs ZeroMQ's IPV6 option for this host."""
        return ":" in self.host

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if self.is_ipv6 else self.host


def parse_bind(text: object) -> Address:
    """Read an address to bind: ``*``, a name or an IP; port ``*`` or ``0`` is any free port.

    It also reads what ZeroMQ reports as the endpoint that was bound.

    :raises ProtocolError: not such an address.
    """
    host, port = _take_apart(text, _BIND_EXAMPLE)
    if host == BROKER:
        raise _refusal(text, f"{BROKER} stands for a host to connect to", _BIND_EXAMPLE)
    if host != "*":
        host = _host(text, host, _BIND_EXAMPLE)
    return Address(host, 0 if port in ("*", "0") else _port(text, port, _BIND_EXAMPLE))


def parse_connect(text: object, broker_address: str | None = None) -> Address:
    """Read an address to connect to; the host ``BROKER`` is replaced by ``broker_address``.

    :raises ProtocolError: not such an address, or ``BROKER`` without a ``broker_address``.
    """
    host, port = _take_apart(text, _CONNECT_EXAMPLE)
    number = _port(text, port, _CONNECT_EXAMPLE)
    if host != BROKER:
        return Address(_destination(text, host, _CONNECT_EXAMPLE), number)
    if not broker_address:
        raise ProtocolError(
            f"address {_shown(text)} needs the broker's host: "
            f"set broker_address (in the file: [broker] address), or write {_CONNECT_EXAMPLE}"
        )
    return Address(check_host(broker_address, "broker_address"), number)


def check_host(text: object, what: str = "host") -> str:
    """Return the host that others can use to reach a node; IPv6 with or without brackets.

    :raises ProtocolError: a whole address, a wildcard, or neither a name nor an IP.
    """
    written = _unbracketed(text) if isinstance(text, str) else ""
    host = _canonical_host(written)
    wrong = _no_one_host(host or written)
    if host is None or wrong:
        wrong = wrong or "it is neither a host name nor an IP address"
        raise ProtocolError(
            f"{what} {_shown(text)}: {wrong}; write a host alone, like 192.168.1.10 or lab-pc"
        )
    return host


def check_endpoint(text: object) -> Address:
    """Read an endpoint that another node advertises; its text is not to be trusted.

    Only ``tcp://host:port`` of one host: no wildcard, no ``BROKER``, no multicast or broadcast, and
    no link-local address (169.254.0.0/16, fe80::/10: it means another machine on each network, and
    on rented machines the service that hands out credentials).

    :raises ProtocolError: anything else.
    """
    host, port = _take_apart(text, _CONNECT_EXAMPLE)
    if host == BROKER:
        raise _refusal(text, f"{BROKER} is no host", _CONNECT_EXAMPLE)
    address = Address(
        _destination(text, host, _CONNECT_EXAMPLE), _port(text, port, _CONNECT_EXAMPLE)
    )
    ip = _ip(address.host)
    if ip is not None and ip.is_link_local:
        raise _refusal(text, "a link-local address is not advertised", _CONNECT_EXAMPLE)
    return address


def advertised(bound: Address, local_address: str) -> str:
    """The endpoint to tell others: the bound host, or ``local_address`` when bound everywhere.

    :raises ProtocolError: the port is not known yet, or others would refuse the endpoint.
    """
    if bound.port == 0:
        raise ProtocolError(f"{bound} has no port yet: bind first, then advertise")
    host = check_host(local_address, "local_address") if bound.is_wildcard else bound.host
    return str(check_endpoint(str(Address(host, bound.port))))


def is_loopback(host: str) -> bool:
    """Whether a host name or IP means this machine alone. What cannot be read does not."""
    if host.lower() == "localhost":
        return True
    ip = _ip(_unbracketed(host))
    return ip is not None and ip.is_loopback


def _take_apart(text: object, example: str) -> tuple[str, str]:
    """Host and port as they are written, the host without the brackets of IPv6."""
    if not isinstance(text, str):
        raise _refusal(text, "it is not text", example)
    wrong = _wrong_shape(text)
    if wrong:
        raise _refusal(text, wrong, example)
    place = text.removeprefix("tcp://")
    host, colon, port = place.rpartition(":")
    if not colon or place.endswith("]"):
        raise _refusal(text, "the port is missing", example)
    if not host:
        raise _refusal(text, "the host is missing", example)
    bare = _unbracketed(host)
    if ":" in bare and bare == host:
        raise _refusal(text, "an IPv6 host needs brackets", "tcp://[::1]:5750")
    return bare, port


def _unbracketed(host: str) -> str:
    """``::1`` of ``[::1]``; anything else as it is, for brackets belong to IPv6 alone."""
    inside = host[1:-1]
    return inside if f"[{inside}]" == host and ":" in inside else host


def _wrong_shape(text: str) -> str:
    if len(text) > MAX_ADDRESS_LENGTH:
        return f"it has {len(text)} characters, at most {MAX_ADDRESS_LENGTH} are allowed"
    if not text.isascii():
        return "it has characters outside ASCII"
    if _SPACE_OR_CONTROL.search(text):
        return "it has a space, line break or control character in it"
    if "@" in text:
        return "a user name or password does not belong in an address"
    transport, mark, place = text.partition("://")
    if not mark:
        return "the transport tcp:// is missing"
    if transport != "tcp":
        return f"transport {shown(transport)} is not supported, only tcp"
    if any(sign in place for sign in "/?#\\"):
        return "nothing may follow the port"
    return ""


def _port(text: object, written: str, example: str) -> int:
    if written in ("*", "0"):
        raise _refusal(text, "a port to connect to must be a definite one", example)
    if not _PORT.fullmatch(written) or int(written) > 65535:
        raise _refusal(text, f"port {shown(written)} is not a number from 1 to 65535", example)
    return int(written)


def _destination(text: object, written: str, example: str) -> str:
    wrong = _no_one_host(written)
    if wrong:
        raise _refusal(text, wrong, example)
    return _host(text, written, example)


def _host(text: object, written: str, example: str) -> str:
    host = _canonical_host(written)
    if host is None:
        wrong = f"host {shown(written)} is neither a host name nor an IP address"
        raise _refusal(text, wrong, example)
    return host


def _canonical_host(written: str) -> str | None:
    ip = _ip(written)
    if ip is not None:
        return str(ip)
    is_name = len(written) <= 253 and _NAME.fullmatch(written)
    if not is_name or _NUMBER.fullmatch(written.rpartition(".")[2]):
        return None
    return written.lower()


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    # A zone (fe80::1%eth0) means something on one machine only.
    if "%" in host:
        return None
    try:
        ip = ip_address(host)
    except ValueError:
        return None
    return (isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip


def _no_one_host(host: str) -> str:
    """Why this address is no single host; empty when it is one."""
    ip = _ip(host)
    if host == "*" or (ip is not None and ip.is_unspecified):
        return f"{host} means every interface, not one host"
    if ip is not None and (ip.is_multicast or ip == _BROADCAST):
        return f"{host} is the address of a group, not of one host"
    return ""


def _refusal(text: object, wrong: str, example: str) -> ProtocolError:
    return ProtocolError(f"address {_shown(text)}: {wrong}; write it like {example}")


def _shown(text: object) -> str:
    if not isinstance(text, str):
        return f"of type {type(text).__name__}"
    # A password that someone put before the host must not reach a log.
    return shown(text if "@" not in text else f"...@{text.rpartition('@')[2]}", 80)
