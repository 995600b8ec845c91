"""Where the broker is: argument, then ``LMH_BROKER``, then ``labmesh.toml``, then this machine."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

from labmesh.config import Config, find_config, load_config
from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.addresses import Address, parse_connect

__all__ = ["BROKER_VARIABLE", "DEFAULT_PORT", "BrokerCandidate", "broker_candidate", "broker_in"]

#: The environment variable that names the broker.
BROKER_VARIABLE = "LMH_BROKER"
DEFAULT_PORT = 5750


class BrokerCandidate(NamedTuple):
    """A broker's addresses, and who said so."""

    #: ``tcp://host:port`` of its requests
    rpc: str
    #: ``tcp://host:port`` of its events; None: the broker tells its port
    xpub: str | None
    #: for error texts: ``--broker``, ``LMH_BROKER``, the file's path, ``the default``
    source: str


def broker_candidate(
    argument: str | None,
    environ: Mapping[str, str],
    config_path: str | PathLike[str] | None = None,
) -> BrokerCandidate:
    """The broker to connect to. Nothing is looked up or connected.

    Whoever is more explicit wins: ``argument``; then ``config_path``, a file that was named; then
    ``LMH_BROKER`` in ``environ``; then the ``labmesh.toml`` of the current folder; then
    ``localhost:5750``.

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
        return BrokerCandidate(_endpoint(variable, BROKER_VARIABLE), None, BROKER_VARIABLE)
    path = config_path if config_path is not None else find_config()
    if path is None:
        return BrokerCandidate(str(Address("localhost", DEFAULT_PORT)), None, "the default")
    return broker_in(load_config(path))


def broker_in(config: Config) -> BrokerCandidate:
    """The broker that the ``[client]`` and ``[broker]`` tables of a file name."""
    client, host = config.client, config.broker.address
    return BrokerCandidate(
        str(parse_connect(client.broker_rpc, host)),
        str(parse_connect(client.broker_xpub, host)),
        str(config.path or "the default"),
    )


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
