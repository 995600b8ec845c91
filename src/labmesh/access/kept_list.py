"""The allow-list that a node was told, kept on its disk, with what each broker has revoked."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
from msgspec.structs import replace

from labmesh.access.files import SECRET_MODE, make_folders, read_text, replace_file
from labmesh.errors import ConfigError
from labmesh.protocol.access import AllowList
from labmesh.protocol.messages import AccessList

__all__ = ["KeptList"]

log = logging.getLogger(__name__)


class _Kept(msgspec.Struct):
    told: AccessList
    revoked: dict[str, tuple[str, ...]]


class KeptList:
    """What the brokers of a network have told, the last list of which holds.

    A key that one broker has revoked stays revoked while another is followed that has not heard of
    it: a spare has a folder of its own. It is good again when the one that revoked it says so.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_saved = True
        self._kept = _Kept(AccessList(id="", version=""), {})
        if path.is_file():
            try:
                kept = msgspec.json.decode(read_text(path, secret=True), type=_Kept)
                AllowList(kept.told.grants, kept.told.revoked)
                self._kept = kept
            except (ConfigError, msgspec.DecodeError) as exc:
                log.warning("%s is not used, the broker will send its list: %s", path, exc)

    @property
    def in_force(self) -> AccessList:
        """The list that was told last, and what any broker has revoked."""
        revoked = {key for keys in self._kept.revoked.values() for key in keys}
        return replace(self._kept.told, revoked=tuple(sorted(revoked)))

    def take(self, told: AccessList, broker: str) -> bool:
        """A broker's list; False: all of it is known, and on the disk."""
        kept = self._kept
        is_known = told.version == kept.told.version and kept.revoked.get(broker) == told.revoked
        if is_known and self._is_saved:
            return False
        kept.told, kept.revoked[broker] = told, told.revoked
        self._is_saved = False
        return True

    def save(self) -> None:
        """Have it on the disk.

        :raises ConfigError: it is not there; the next :meth:`take` says that it is to be saved.
        """
        make_folders(self._path.parent)
        replace_file(self._path, msgspec.json.encode(self._kept).decode(), SECRET_MODE)
        self._is_saved = True
