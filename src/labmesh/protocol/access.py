"""Who may do what in mode *keys*: roles, the limits of each key, and what was revoked.

============================== ====== ======== ===== ===== ==== ======
action                         viewer operator admin relay bank broker
============================== ====== ======== ===== ===== ==== ======
look: list, listen, download   yes    yes      yes   yes   yes  yes
read: methods that only read   yes    yes      yes   no    no   no
write: all other methods       no     yes      yes   no    no   no
lease: take and keep one       no     yes      yes   no    no   no
break: somebody else's lease   no     no       yes   no    no   no
upload                         no     yes      yes   yes   yes  no
annotate: a dataset's record   no     yes      yes   no    no   no
delete: and restore, purge     no     no       yes   no    no   no
register: under the own id     no     no       no    yes   yes  no
publish: under the own id      no     no       no    yes   yes  no
============================== ====== ======== ===== ===== ==== ======
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Literal, get_args

from labmesh.errors import ConfigError, Forbidden
from labmesh.protocol.ids import shown
from labmesh.protocol.messages import Grant, Role, fingerprint
from labmesh.protocol.topics import FAMILIES_OF, matches

__all__ = [
    "ACTIONS",
    "DOORS",
    "Action",
    "AllowList",
    "Door",
    "Grant",
    "Role",
    "fingerprint",
    "may_publish",
    "parse_network",
]

Action = Literal[
    "look", "read", "write", "lease", "break", "upload", "annotate", "delete", "register", "publish"
]
#: The sockets of a network, as ZAP domains name them.
Door = Literal["directory", "xsub", "xpub", "relay", "ingest", "retrieve"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_VIEWER: frozenset[Action] = frozenset({"look", "read"})
_OPERATOR: frozenset[Action] = _VIEWER | {"write", "lease", "upload", "annotate"}
_NODE: frozenset[Action] = frozenset({"look", "upload", "register", "publish"})

#: What each role may do.
ACTIONS: dict[Role, frozenset[Action]] = {
    "viewer": _VIEWER,
    "operator": _OPERATOR,
    "admin": _OPERATOR | {"break", "delete"},
    "relay": _NODE,
    "bank": _NODE,
    "broker": frozenset({"look"}),
}

_CLIENTS: tuple[Role, ...] = ("viewer", "operator", "admin")
_MEMBERS: tuple[Role, ...] = (*_CLIENTS, "relay", "bank")

#: Who is let in where. A viewer who uploads is let in, so that the refusal can say why; the broker
#: itself connects to relays and banks to see whether they live.
DOORS: dict[Door, frozenset[Role]] = {
    "directory": frozenset(_MEMBERS),
    "xsub": frozenset({"relay", "bank"}),
    "xpub": frozenset(_MEMBERS),
    "relay": frozenset(get_args(Role)),
    "ingest": frozenset(get_args(Role)),
    "retrieve": frozenset(get_args(Role)),
}

_WORDS: dict[Action, str] = {
    "look": "look at the mesh",
    "read": "call methods",
    "write": "call methods that change something",
    "lease": "take a lease",
    "break": "break a lease",
    "upload": "upload datasets",
    "annotate": "annotate datasets",
    "delete": "delete, restore or purge datasets",
    "register": "register a node",
    "publish": "publish events",
}


class AllowList:
    """A snapshot of who is admitted; it never changes.

    :param grants: one for each key.
    :param revoked: keys that are refused, whatever ``grants`` says of them.
    :param version: tells this list from others.
    :raises ConfigError: a key that stands under two names, or a network that is none.
    """

    def __init__(
        self, grants: Iterable[Grant], revoked: Iterable[str] = (), version: str = ""
    ) -> None:
        self.version = version
        self.revoked = frozenset(revoked)
        self._by_key: dict[str, Grant] = {}
        self._networks: dict[str, list[_Network]] = {}
        for grant in grants:
            known = self._by_key.setdefault(grant.key, grant)
            if known is not grant:
                raise ConfigError(
                    f"the same key stands for {_who(known)} and for {_who(grant)}; "
                    "each needs a key of its own: 'labmesh keys new' makes one"
                )
            self._networks[grant.key] = [parse_network(each) for each in grant.addresses]
        self._by_user = {
            grant.user: grant for key, grant in self._by_key.items() if key not in self.revoked
        }
        self._revoked_marks = frozenset(map(fingerprint, self.revoked))

    @property
    def grants(self) -> tuple[Grant, ...]:
        """Those that were given, also of keys that are revoked."""
        return tuple(self._by_key.values())

    def admit(self, key: str, door: str, address: str, now: float) -> Grant:
        """Whether who has proved to hold ``key`` may come in at a socket.

        :param address: the peer's, as ZAP tells it.
        :param now: POSIX seconds.
        :raises Forbidden: the text says why; it is for the log of the node that refuses.
        """
        grant = self._by_key.get(key)
        if key in self.revoked:
            raise Forbidden(f"the key {fingerprint(key)} was revoked")
        if grant is None:
            raise Forbidden(
                f"the key {fingerprint(key)} is not on the allow-list; 'labmesh keys invite' on "
                "the broker's machine admits its owner"
            )
        _check_time(grant, now)
        if grant.role not in DOORS.get(door, ()):  # type: ignore[call-overload]
            raise Forbidden(f"{_who(grant)} has no business at the socket {shown(door)}")
        networks = self._networks[key]
        if networks and not _is_within(address, networks):
            raise Forbidden(
                f"the key of {_who(grant)} is good from {', '.join(grant.addresses)} only, and it "
                f"came from {shown(address)}"
            )
        return grant

    def grant_of(self, user: str) -> Grant | None:
        """The grant behind a proved user id; None: revoked, replaced, or never there."""
        return self._by_user.get(user)

    def check(
        self,
        user: str,
        action: Action,
        *,
        now: float,
        relay: str = "",
        method: str = "",
        node_id: str = "",
        kind: str = "",
    ) -> None:
        """Whether a user may do something now.

        :param relay: the relay that is used, where one is.
        :param method: the method that is called, where one is.
        :param node_id: with *register*: the id that is claimed.
        :param kind: with *register*: ``relay`` or ``bank``.
        :raises Forbidden: the text says what is missing and who can help.
        """
        grant = self._by_user.get(user)
        if grant is None:
            raise self._unknown(user)
        _check_time(grant, now)
        if action not in ACTIONS[grant.role]:
            raise Forbidden(
                f"{_who(grant)} may not {_WORDS[action]}: that is for "
                f"{_listed(each for each in ACTIONS if action in ACTIONS[each])}; "
                "ask the network's admin for another role"
            )
        if relay and grant.relays and not any(matches(each, relay) for each in grant.relays):
            raise Forbidden(
                f"{_who(grant)} may use the relays {', '.join(grant.relays)} only; "
                "ask the network's admin for more"
            )
        if method and grant.methods_deny and _denies(grant, method):
            raise Forbidden(
                f"{_who(grant)} may not call {shown(method)}; ask the network's admin for that"
            )
        if action == "register" and (kind, node_id) != (grant.role, grant.name):
            raise Forbidden(
                f"{_who(grant)} may register as that alone, not as {shown(f'{kind} {node_id}')}; "
                f"'labmesh keys new {kind or 'relay'} ID' makes a key for another node"
            )

    def _unknown(self, user: str) -> Forbidden:
        if user.rpartition("#")[2] in self._revoked_marks:
            return Forbidden("this key was revoked; ask the network's admin for a new one")
        return Forbidden(
            "this key is not, or no longer, on the network's allow-list; ask the network's admin"
        )


def may_publish(grant: Grant, topic: bytes) -> bool:
    """Whether a topic is of this node's own: its families, its id."""
    family, _, node_id = topic.partition(b".")
    return (
        family.decode("latin-1") in FAMILIES_OF.get(grant.role, ())
        and node_id == grant.name.encode()
    )


def parse_network(text: str) -> _Network:
    """A network as CIDR (``192.168.1.0/24``), or one address.

    :raises ConfigError: it is none.
    """
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as exc:
        raise ConfigError(
            f"{shown(text)} is no network; write an address such as 192.168.1.10, or a network "
            "such as 192.168.1.0/24"
        ) from exc


def _is_within(address: str, networks: list[_Network]) -> bool:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    # An IPv6 socket shows IPv4 peers as addresses of its own kind.
    peer = getattr(parsed, "ipv4_mapped", None) or parsed
    return any(peer in each for each in networks)


def _denies(grant: Grant, method: str) -> bool:
    """A method of a channel, ``ch01.ramp``, is denied by the name that it has there, too."""
    names = (method, method.rpartition(".")[2])
    return any(matches(each, name) for each in grant.methods_deny for name in names)


def _check_time(grant: Grant, now: float) -> None:
    if grant.not_after is not None and now > grant.not_after:
        raise Forbidden(
            f"the time of the key of {_who(grant)} is over; ask the network's admin to extend it"
        )


def _who(grant: Grant) -> str:
    return f"{grant.role} {grant.name}"


def _listed(roles: Iterable[str]) -> str:
    *most, last = roles
    return f"{', '.join(most)} and {last}" if most else last
