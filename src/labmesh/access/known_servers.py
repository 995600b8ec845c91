"""Which keys relays and banks had: by address, for those that are given one, and by name.

The broker names the key of each relay and bank. It is remembered, so that an address alone is
enough to know whom to expect there, and so that a change is noticed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from labmesh.access.files import SECRET_MODE, make_folders, read_text, replace_file
from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.addresses import check_endpoint

__all__ = ["KnownServers"]

_MAX_ENTRIES = 4096
_HEAD = (
    "# Keys of relays and banks, as the broker named them. Remove a line to forget a key.\n"
    "# A line under [pinned] stays: another key for that name is refused.\n"
)


class KnownServers:
    """The file ``known_relays.toml``; it is written where something changes.

    :raises ConfigError: the file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        #: ``tcp://host:port`` → key
        self.endpoints: dict[str, str] = {}
        #: ``relay:psu-1`` → key
        self.names: dict[str, str] = {}
        #: the same, written by hand: these keys and no others
        self.pinned: dict[str, str] = {}
        if path.is_file():
            self._read()

    def learn(self, name: str, key: str, endpoints: tuple[str, ...]) -> str:
        """Remember a server; the key that this name had before, if it was another one.

        Endpoints that are none are left out: another machine claims them.
        """
        former = self.names.get(name, key)
        valid = [each for each in endpoints if _is_endpoint(each)]
        if self.names.get(name) != key or any(self.endpoints.get(each) != key for each in valid):
            _put(self.names, name, key)
            for each in valid:
                _put(self.endpoints, each, key)
            self._write()
        return former if former != key else ""

    def _read(self) -> None:
        try:
            tables = tomllib.loads(read_text(self._path))
            for name, known in (
                ("endpoints", self.endpoints),
                ("names", self.names),
                ("pinned", self.pinned),
            ):
                known.update({str(each): str(key) for each, key in tables.get(name, {}).items()})
        except (ValueError, AttributeError) as exc:
            if isinstance(exc, ConfigError):
                raise
            raise ConfigError(
                f"{self._path} cannot be read ({exc}); remove it: the broker names all keys again",
                file=str(self._path),
            ) from exc

    def _write(self) -> None:
        make_folders(self._path.parent)
        tables = {"endpoints": self.endpoints, "names": self.names, "pinned": self.pinned}
        parts = [
            "\n".join([f"[{name}]", *(f'"{each}" = "{key}"' for each, key in known.items()), ""])
            for name, known in tables.items()
            if known
        ]
        replace_file(self._path, "\n".join([_HEAD, *parts]), SECRET_MODE)


def _put(known: dict[str, str], name: str, key: str) -> None:
    known.pop(name, None)
    known[name] = key
    while len(known) > _MAX_ENTRIES:
        del known[next(iter(known))]


def _is_endpoint(text: str) -> bool:
    try:
        check_endpoint(text)
    except ProtocolError:
        return False
    return True
