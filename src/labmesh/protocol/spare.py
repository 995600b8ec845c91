"""Where the spare broker of a network is."""

from __future__ import annotations

from labmesh.errors import ProtocolError
from labmesh.protocol.addresses import Address, parse_connect

__all__ = ["check_spare", "shifted", "spare_rpc"]

_ANY_PORT = "tcp://127.0.0.1:1"


def spare_rpc(spare: str, first_rpc: str) -> str:
    """The request address of the spare broker; empty: there is none.

    :param spare: ``host``, ``host:port``, ``[v6]:port`` or ``tcp://host:port``; without a port it
        is that of the first broker.
    :param first_rpc: the request address of the first broker.
    :raises ProtocolError: no such address, or that of the first broker.
    """
    place = spare.strip().removeprefix("tcp://")
    if not place:
        return ""
    first = parse_connect(first_rpc)
    if place.count(":") > 1 and not place.startswith("["):
        place = f"[{place}]"
    if place.endswith("]") or ":" not in place:
        place = f"{place}:{first.port}"
    try:
        address = parse_connect(f"tcp://{place}")
    except ProtocolError as exc:
        raise ProtocolError(f"the spare broker: {exc}, like lab-pc2, or lab-pc2:5750") from exc
    if address == first:
        raise ProtocolError(
            f"the spare broker is at {address}, and so is the first: name another host or port"
        )
    return str(address)


def check_spare(spare: str) -> None:
    """:raises ProtocolError: not what :func:`spare_rpc` takes."""
    spare_rpc(spare, _ANY_PORT)


def shifted(bind: Address, by: int) -> Address:
    """The same place, with a port that is so many further on (0, any port, stays).

    :raises ProtocolError: there is no such port.
    """
    port = bind.port and bind.port + by
    if not 0 <= port < 2**16 or (bind.port and not port):
        raise ProtocolError(f"{bind} moved by {by} ports is no place: name another spare port")
    return Address(bind.host, port)
