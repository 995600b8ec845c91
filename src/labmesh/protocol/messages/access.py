"""The allow-list of a network in mode *keys*, and how a node follows it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Literal

from msgspec import Meta, Struct

from labmesh.protocol.messages.base import ID, Reply, Request

__all__ = [
    "KEY_PATTERN",
    "MAX_GRANTS",
    "AccessList",
    "Grant",
    "Role",
    "WatchAccess",
    "fingerprint",
]

Role = Literal["viewer", "operator", "admin", "relay", "bank", "broker"]

#: A public CURVE key, as text in Z85.
KEY_PATTERN = r"^[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z"
#: Lines of an allow-list, and keys that were revoked.
MAX_GRANTS = 4096

_FINGERPRINT_BYTES = 8
_KEY = Meta(pattern=KEY_PATTERN, max_length=40)
_PATTERN = Meta(min_length=1, max_length=128)
_CIDR = Meta(min_length=1, max_length=64)
_VERSION = Meta(max_length=64)


def fingerprint(key: str) -> str:
    """What people compare instead of a key: 16 hex digits of the BLAKE2b of its Z85 text."""
    return blake2b(key.encode(), digest_size=_FINGERPRINT_BYTES).hexdigest()


class Grant(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the allow-list: a key, whose it is, and what it may do."""

    name: Annotated[str, ID]
    role: Role
    key: Annotated[str, _KEY]
    #: patterns of the relay ids that it may use; none: all
    relays: Annotated[tuple[Annotated[str, _PATTERN], ...], Meta(max_length=64)] = ()
    #: patterns of the methods that it may not call
    methods_deny: Annotated[tuple[Annotated[str, _PATTERN], ...], Meta(max_length=64)] = ()
    #: networks (CIDR) that it may connect from; none: from anywhere
    addresses: Annotated[tuple[Annotated[str, _CIDR], ...], Meta(max_length=64)] = ()
    #: POSIX seconds (UTC) after which it is no longer admitted
    not_after: float | None = None

    @property
    def kind(self) -> str:
        """``relay``, ``bank``, ``broker`` or ``client``."""
        return self.role if self.role in ("relay", "bank", "broker") else "client"

    @property
    def user(self) -> str:
        """Who this is wherever it counts, such as ``relay:psu-1#1f3a56bc90de1278``.

        The fingerprint belongs to it: who holds a key that was replaced is another user.
        """
        return f"{self.kind}:{self.name}#{fingerprint(self.key)}"


class WatchAccess(Request, frozen=True, kw_only=True, omit_defaults=True, tag="watch_access"):
    """The allow-list → AccessList, at once when its version is not ``known_version``.

    Otherwise the answer waits until the list changes, for at most 20 s.
    """

    known_version: Annotated[str, _VERSION] = ""


class AccessList(Reply, frozen=True, kw_only=True, omit_defaults=True, tag="access_list"):
    """The whole allow-list."""

    version: Annotated[str, _VERSION]
    grants: Annotated[tuple[Grant, ...], Meta(max_length=MAX_GRANTS)] = ()
    #: keys that are refused, whatever else is said of them
    revoked: Annotated[tuple[Annotated[str, _KEY], ...], Meta(max_length=MAX_GRANTS)] = ()
