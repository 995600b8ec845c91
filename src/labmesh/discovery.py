"""Where the broker is: argument, then ``LMH_BROKER``, then ``labmesh.toml``, then the network that
this machine has joined, then this machine; and where its spare is, which goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

from labmesh.access.broker_place import BROKER_FILE, broker_place
from labmesh.config import BrokerTable, ClientTable, Config, find_config, load_config
from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.addresses import Address, parse_connect
from labmesh.protocol.spare import spare_rpc
from labmesh.transport.keys import keys_folder, network_name

__all__ = [
    "BROKER_VARIABLE",
    "DEFAULT_PORT",
    "SPARE_VARIABLE",
    "BrokerCandidate",
    "broker_candidate",
    "broker_in",
]

#: The environment variable that names the broker, and the one that names its spare.
BROKER_VARIABLE, SPARE_VARIABLE = "LMH_BROKER", "LMH_SPARE"
DEFAULT_PORT = 5750


class BrokerCandidate(NamedTuple):
    """A broker's addresses, and who said so."""

    #: ``tcp://host:port`` of its requests
    rpc: str
    #: ``tcp://host:port`` of its events; None: the broker tells its port
    xpub: str | None
    #: for error texts: ``--broker``, ``LMH_BROKER``, the file's path, ``the default``
    source: str
    #: ``tcp://host:port`` of the requests of its spare; empty: it has none
    spare: str = ""


def broker_candidate(
    argument: str | None,
    environ: Mapping[str, str],
    config_path: str | PathLike[str] | None = None,
) -> BrokerCandidate:
    """The broker to connect to. Nothing is looked up or connected.

    Whoever is more explicit wins: ``argument``; then ``config_path``, a file that was named; then
    ``LMH_BROKER`` in ``environ``; then the ``labmesh.toml`` of the current folder, if it says where
    the broker is; then what this machine was told when it joined a network (``labmesh keys
    join``); then ``localhost:5750``.

    The spare is that of ``[broker] spare`` where the broker is that of the file, else the one of
    ``LMH_SPARE``. A broker that ``argument`` names has none: that variable speaks of another one.

    :param argument: ``host``, ``host:port`` or ``tcp://host:port``; None or empty: not given.
    :raises ConfigError: one line; it names who gave what cannot be used.
    """
    if argument is not None and not isinstance(argument, str):
        raise TypeError(
            f"the broker's address is text such as 'lab-pc:5750', not {type(argument).__name__}"
        )
    if argument:
        return BrokerCandidate(_endpoint(argument, "the broker's address"), None, "the argument")
    variable = environ.get(BROKER_VARIABLE, "")
    if config_path is None and variable:
        rpc = _endpoint(variable, BROKER_VARIABLE)
        return BrokerCandidate(rpc, None, BROKER_VARIABLE, _spare_in(environ, rpc))
    path = config_path if config_path is not None else find_config()
    config = load_config(path)
    found = broker_in(config)
    if path is None:
        found = BrokerCandidate(str(Address("localhost", DEFAULT_PORT)), None, found.source)
    if config_path is not None:
        return found
    if not _says_where(config):
        found = _joined(config, environ) or found
    return found if found.spare else found._replace(spare=_spare_in(environ, found.rpc))


def _says_where(config: Config) -> bool:
    """Whether a file says more about the broker's place than the defaults."""
    host, rpc = config.broker.address, config.client.broker_rpc
    return (host, rpc) != (BrokerTable().address, ClientTable().broker_rpc)


def _joined(config: Config, environ: Mapping[str, str]) -> BrokerCandidate | None:
    """The broker of the network that this machine has joined; None: it has not."""
    table = config.security
    if (environ.get("LMH_SECURITY") or table.mode) not in ("auto", "keys"):
        return None
    folder = keys_folder(network_name(table.network, environ), table.keys_dir, environ)
    place = broker_place(folder)
    return None if place is None else BrokerCandidate(str(place), None, str(folder / BROKER_FILE))


def broker_in(config: Config) -> BrokerCandidate:
    """The broker that the ``[client]`` and ``[broker]`` tables of a file name."""
    client, host = config.client, config.broker.address
    rpc = str(parse_connect(client.broker_rpc, host))
    source = str(config.path or "the default")
    try:
        spare = spare_rpc(config.broker.spare, rpc)
    except ProtocolError as exc:
        raise ConfigError(f"{source}: [broker] spare: {exc}") from exc
    return BrokerCandidate(rpc, str(parse_connect(client.broker_xpub, host)), source, spare)


def _spare_in(environ: Mapping[str, str], rpc: str) -> str:
    try:
        return spare_rpc(environ.get(SPARE_VARIABLE, ""), rpc)
    except ProtocolError as exc:
        raise ConfigError(f"{SPARE_VARIABLE}: {exc}") from exc


def _endpoint(text: str, what: str) -> str:
    """``tcp://host:port`` of any of the three forms."""
    place = text.strip().removeprefix("tcp://")
    if _is_bare_ipv6(place):
        place = f"[{place}]"
    if place.endswith("]") or ":" not in place:
        place = f"{place}:{DEFAULT_PORT}"
    try:
        return str(parse_connect(place if "://" in place else f"tcp://{place}"))
    except ProtocolError as exc:
        raise ConfigError(f"{what}: {exc}, like lab-pc:{DEFAULT_PORT}, or like lab-pc") from exc


def _is_bare_ipv6(place: str) -> bool:
    return place.count(":") > 1 and not place.startswith("[")
