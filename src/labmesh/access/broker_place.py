"""Where the broker of a network is, as this machine was told when it joined.

::

    broker.toml      address = "tcp://192.168.1.10:5750"

One line in the folder of the network's keys. It may be changed by hand, when the broker moves.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from labmesh.access.files import PUBLIC_MODE, make_folders, read_text, replace_file
from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.addresses import Address, parse_connect

__all__ = ["BROKER_FILE", "broker_place", "remember_broker"]

#: The file's name, in the folder of a network's keys.
BROKER_FILE = "broker.toml"


def remember_broker(folder: Path, place: Address) -> None:
    """Write where the broker takes requests, durably, in place of what was there."""
    make_folders(folder)
    text = (
        "# Where commands and programs look for the broker, unless they are told otherwise.\n"
        f'address = "{place}"\n'
    )
    replace_file(folder / BROKER_FILE, text, PUBLIC_MODE)


def broker_place(folder: Path) -> Address | None:
    """Where the broker takes requests; None: this machine was not told.

    :raises ConfigError: the file is there and cannot be used.
    """
    path = folder / BROKER_FILE
    if not path.is_file():
        return None
    try:
        return parse_connect(tomllib.loads(read_text(path)).get("address"))
    except (ValueError, ProtocolError) as exc:
        raise ConfigError(
            f'{path}: {exc}; write one line such as address = "tcp://192.168.1.10:5750", or remove '
            "the file",
            file=str(path),
        ) from exc
