"""Where a server can listen on this machine, and why it cannot."""

from __future__ import annotations

import errno
import ipaddress
import socket

import zmq

from labmesh.errors import ConfigError, Conflict, Forbidden, LabmeshError
from labmesh.protocol.addresses import Address

__all__ = ["bind_error", "has_ipv6", "is_ip", "resolve"]


def is_ip(host: str) -> bool:
    """Whether this is an address in digits, no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def has_ipv6() -> bool:
    """Whether this machine can listen on IPv6."""
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def resolve(host: str, owner: str) -> str:
    """The address of this machine that a name stands for; IPv4 where it has one.

    :raises ConfigError: there is none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConfigError(
            f"{owner} cannot bind to host {host!r}: {exc.strerror or exc}; use '*' for every "
            "interface, or an address of this machine"
        ) from exc
    preferred = [each for each in found if each[0] == socket.AF_INET] or found
    return str(preferred[0][4][0])


def bind_error(exc: zmq.ZMQError, address: Address, owner: str) -> LabmeshError:
    """Why nobody can listen there, and what to try."""
    if exc.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {address.port} ({address}) is already in use on this machine, and {owner} asked "
            "for it: stop the other program, give another port, or give port '*' to take a free "
            "one",
            port=address.port,
        )
    if exc.errno == errno.EACCES:
        return Forbidden(f"{owner} may not bind {address}: use a port above 1023")
    return ConfigError(
        f"{owner} cannot bind {address}: {exc.strerror}; use '*' for every interface, or an "
        "address of this machine"
    )
