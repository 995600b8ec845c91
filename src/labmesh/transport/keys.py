"""How a node is secured: the mode, its keys, and whom it admits.

In mode *keys* each node has a key pair of its own, and a :class:`Guard` knows who may come in and
which key a server has to prove.

In mode *password* all nodes have the two key pairs that one secret word makes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

import platformdirs

from labmesh.errors import ConfigError, Forbidden, ProtocolError
from labmesh.protocol.access import ACTIONS, Action, Grant, Role
from labmesh.protocol.addresses import Address, is_loopback
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import AccessList
from labmesh.transport.key_pairs import KeyPair, NetworkKeys, canonical, check_curve

__all__ = [
    "MIN_PASSWORD",
    "Guard",
    "Mode",
    "OneRole",
    "Permissions",
    "Security",
    "keys_folder",
    "network_name",
]

Mode = Literal["keys", "password", "open"]
MODES = ("auto", *get_args(Mode))

#: A password that has fewer characters is guessed too soon by who recorded a handshake.
MIN_PASSWORD = 12

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


class Permissions(Protocol):
    """Who may do what; of one node. In any thread."""

    def check(
        self,
        user: str,
        action: Action,
        *,
        relay: str = "",
        method: str = "",
        node_id: str = "",
        kind: str = "",
    ) -> None:
        """As of :meth:`labmesh.protocol.access.AllowList.check`.

        :raises Forbidden: no; the text says why, and who can help.
        """


class Guard(Permissions, Protocol):
    """Whom one node of mode *keys* admits, and what it expects of servers. In any thread."""

    @property
    def identity(self) -> KeyPair:
        """This node's own key: as a server, and where it connects."""

    @property
    def user(self) -> str:
        """This node as others see it, such as ``relay:psu-1#1f3a56bc90de1278``."""

    @property
    def version(self) -> str:
        """Another one after each change of the list; what was decided before may no longer hold."""

    def admit(self, key: bytes, door: str, address: str) -> str:
        """The user id of who holds ``key`` (Z85).

        :raises Forbidden: not admitted; the text is for this node's log.
        """

    def grant_of(self, user: str) -> Grant | None:
        """None: revoked, replaced, or never there."""

    def server_keys(self, endpoint: str) -> tuple[bytes, ...]:
        """The keys (Z85) of which the server there has to prove one, the likeliest first.

        :raises AuthenticationError: none is known, so nobody there could be trusted.
        """

    def broker_keys(self) -> tuple[bytes, ...]:
        """The keys of which a broker has to prove one."""

    def bank_keys(self, endpoint: str) -> tuple[bytes, ...]:
        """The same for an address of which only this is known, that a bank is to be there.

        :raises AuthenticationError: as of :meth:`server_keys`.
        """

    def learn_server(self, kind: str, node_id: str, key: str, endpoints: tuple[str, ...]) -> None:
        """The directory said which key a node proved, and where it listens; it is remembered.

        :raises AuthenticationError: another key is pinned for this node.
        """

    def on_change(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called after each change of the list, in the thread that noticed it."""

    def take(self, told: AccessList, broker: str = "") -> bool:
        """A broker's list; True: it is another one. Where this node decides, it is not used."""

    def told(self, request_id: str) -> AccessList:
        """The list for others, as an answer to a request."""

    def open(self) -> None:
        """Follow the folder of keys from now on."""

    def close(self) -> None:
        """End what :meth:`open` began."""


#: Makes the guard of a node (``kind``, ``node_id``); None: there is no key for it.
GuardFinder = Callable[["Security", str, str], Guard | None]


@dataclass(frozen=True)
class OneRole:
    """What all members of a network with a password may do: they trust each other as nodes."""

    role: Role

    def check(
        self,
        user: str,
        action: Action,
        *,
        relay: str = "",
        method: str = "",
        node_id: str = "",
        kind: str = "",
    ) -> None:
        """As of :meth:`Permissions.check`."""
        if action not in ACTIONS[self.role] and action not in ACTIONS["relay"]:
            raise Forbidden(
                f"members of this network may not {action} here: they have the role {self.role}; "
                'set password_role = "admin" in the [security] table of this node, or use keys'
            )


@dataclass(frozen=True)
class Security:
    """What a node's sockets use. Make one with :meth:`resolve`.

    ``mode`` is ``keys`` (CURVE, a key of each node's own), ``password`` (CURVE with derived keys)
    or ``open`` (no encryption: only peers on this machine are admitted, unless ``insecure``). A
    node calls :meth:`for_node` before it uses it; not before has mode *keys* a guard.
    """

    mode: Mode
    network: str = "labmesh"
    insecure: bool = False
    keys: NetworkKeys | None = field(default=None, repr=False)
    #: where the keys of this network are on this machine; None: nobody looks for any
    folder: Path | None = None
    #: in mode *keys*: of the node that it is for
    guard: Guard | None = field(default=None, repr=False)
    #: what members may do in mode *password*
    password_role: Role = "operator"
    #: the password has fewer than ``MIN_PASSWORD`` characters
    short_password: bool = False
    #: where journals of who did what are; empty: in the usual place, in mode *keys*; or ``off``
    audit_dir: str = ""

    @classmethod
    def resolve(
        cls,
        *,
        mode: str | None = None,
        network: str | None = None,
        insecure: bool | None = None,
        keys_dir: str | None = None,
        password_role: Role = "operator",
        audit_dir: str | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> Security:
        """Settle the mode: environment, then argument (a file's table), then default.

        ``LMH_SECURITY`` (auto, keys, password, open), ``LMH_NETWORK`` (the network's name),
        ``LMH_KEYS_DIR``, ``LMH_AUDIT_DIR``, ``LMH_INSECURE``, ``LMH_NETWORK_PASSWORD``. ``auto``
        means *keys* for a node that has one in the folder (that shows in :meth:`for_node`), else
        *password* when there is one, else *open*.

        :raises ConfigError: an unknown mode, mode *password* without a password, or a name of the
            network that is none.
        """
        password = environ.get("LMH_NETWORK_PASSWORD", "")
        wanted = environ.get("LMH_SECURITY") or mode or "auto"
        name = network_name(network, environ)
        if wanted not in MODES:
            raise ConfigError(
                f"security mode {wanted!r} is not known; use 'auto', 'keys', 'password' or 'open' "
                "(LMH_SECURITY, or [security] mode)"
            )
        audit = environ.get("LMH_AUDIT_DIR") or audit_dir or ""
        folder = None
        if wanted in ("auto", "keys"):
            folder = keys_folder(name, keys_dir, environ)
        if wanted == "keys":
            return cls("keys", name, folder=folder, audit_dir=audit)
        if wanted == "password" or (wanted == "auto" and password):
            keys = NetworkKeys.from_password(_checked(password), name)
            short = len(canonical(password)) < MIN_PASSWORD
            return cls(
                "password",
                name,
                keys=keys,
                folder=folder,
                password_role=password_role,
                short_password=short,
                audit_dir=audit,
            )
        insecure = _insecure(insecure, environ)
        return cls("open", name, insecure, folder=folder, audit_dir=audit)

    def for_node(self, kind: str, node_id: str, find: GuardFinder) -> Security:
        """The same for one node: with its own key, where the mode is *keys* or comes to it.

        :param kind: ``broker``, ``relay``, ``bank`` or ``client``.
        :raises ConfigError: mode *keys*, and this node has no key or one that cannot be used.
        """
        if self.guard is not None or self.folder is None:
            return self
        guard = find(self, kind, node_id)
        if guard is None:
            return self
        check_curve("keys")
        return replace(self, mode="keys", keys=None, insecure=False, guard=guard)

    def without_keys(self) -> Security:
        """The same for nodes of a mesh of its own, for which this machine's keys are not meant."""
        return self if self.mode == "keys" else replace(self, folder=None)

    @property
    def permissions(self) -> Permissions | None:
        """Whom to ask before something is done for somebody; None: everybody may do everything."""
        if self.mode == "password" and self.password_role != "admin":
            return OneRole(self.password_role)
        return self.guard

    @property
    def is_encrypted(self) -> bool:
        """Whether sockets use CURVE."""
        return self.mode != "open"

    def check_bind(self, address: Address, owner: str) -> str | None:
        """Whether a server may listen there; a text is a warning.

        :raises ConfigError: an address that others reach, and a password that is guessed too soon.
        """
        if not self.short_password or is_loopback(address.host):
            return None
        text = (
            f"the network password has fewer than {MIN_PASSWORD} characters, and {owner} can be "
            f"reached from other computers at {address}: who records a handshake can guess it; "
            "'labmesh password new' makes one of six words"
        )
        if not address.is_wildcard:
            raise ConfigError(f"{text}, or bind 127.0.0.1")
        return text


def keys_folder(
    network: str, keys_dir: str | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Where the keys of a network are on this machine: ``LMH_KEYS_DIR``, the argument, or the
    folder of this user's configuration.
    """
    named = environ.get("LMH_KEYS_DIR") or keys_dir
    if named:
        return Path(named).expanduser().absolute()
    return platformdirs.user_config_path("labmesh", appauthor=False) / "keys" / network


def _checked(password: str) -> str:
    check_curve("password")
    if not password:
        raise ConfigError(
            "security mode is 'password', but LMH_NETWORK_PASSWORD is not set; set it to "
            "the network's password, on every node"
        )
    if not password.strip():
        raise ConfigError(
            "LMH_NETWORK_PASSWORD holds nothing but white space; set it to the network's "
            "password, or unset it to run without one"
        )
    return password


def network_name(name: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The network's name: ``LMH_NETWORK``, the argument, or ``labmesh``.

    :raises ConfigError: it is no id.
    """
    name = environ.get("LMH_NETWORK") or name or "labmesh"
    try:
        return check_id(name, "the network's name (LMH_NETWORK)")
    except ProtocolError as exc:
        raise ConfigError(str(exc)) from exc


def _insecure(argument: bool | None, environ: Mapping[str, str]) -> bool:
    text = environ.get("LMH_INSECURE")
    if text is None:
        return bool(argument)
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise ConfigError(f"LMH_INSECURE is {text!r}; use 1 (admit every host) or 0")
