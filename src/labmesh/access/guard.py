"""The guard of a node in mode *keys*: whom it admits, by its folder or by the broker's list."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

from labmesh.access.allowed_keys import BROKER
from labmesh.access.kept_list import KeptList
from labmesh.access.keyring import Identity, KeyFolder
from labmesh.access.known_servers import KnownServers
from labmesh.errors import AuthenticationError, ConfigError, NotFound
from labmesh.protocol.access import Action, AllowList, Grant, fingerprint
from labmesh.protocol.messages import AccessList
from labmesh.transport.key_pairs import KeyPair
from labmesh.transport.keys import Security

__all__ = ["REFRESH_S", "FolderGuard", "guard_of", "identity_of"]

log = logging.getLogger(__name__)

#: Changes of the folder are looked for so often, seconds.
REFRESH_S = 0.25

_NOBODY = AccessList(id="", version="unreadable")
_CLIENT_ROLES = ("viewer", "operator", "admin")


def guard_of(
    security: Security,
    kind: str,
    node_id: str,
    environ: Mapping[str, str] = os.environ,
) -> FolderGuard | None:
    """The guard of a node, by the folder that ``security`` names; None: mode *auto*, and no key.

    :raises ConfigError: the node's key cannot be used; or the mode is *keys*, and there is none.
    """
    assert security.folder is not None
    folder = KeyFolder(security.folder, security.network)
    try:
        if kind != "client" or folder.exists or environ.get("LMH_IDENTITY"):
            identity = identity_of(folder, kind, node_id, environ)
        else:
            raise NotFound(f"there are no keys in {folder.path}")
    except NotFound as exc:
        if security.mode != "keys":
            if folder.exists:
                log.warning(
                    "this computer has keys of network %s, but %s has none of them: %s; it runs "
                    "in mode %s",
                    *(security.network, f"{kind} {node_id}", exc, security.mode),
                )
            return None
        raise ConfigError(
            f"{kind} {node_id} has no key, and security mode is 'keys': {exc}. Run 'labmesh keys "
            "join CODE' with a code of the broker's machine, or 'labmesh keys init' on that machine"
        ) from exc
    folder.check_network()
    return FolderGuard(folder, identity, kind)


def identity_of(
    folder: KeyFolder, kind: str, node_id: str, environ: Mapping[str, str] = os.environ
) -> Identity:
    """Which of this machine's keys a node has.

    The broker has ``broker``, a relay or bank the one of its id. A client has the one that
    ``LMH_IDENTITY`` names, else the one that was chosen when the network was made here, else the
    only one of a person, else the only one of a relay or bank.

    :raises NotFound: there is none.
    :raises ConfigError: there are several; or it cannot be used.
    """
    if kind in ("relay", "bank", "broker"):
        identity = folder.identity(BROKER if kind == "broker" else node_id)
        if identity.role != kind:
            raise ConfigError(
                f"the key {folder.secret_path(identity.name)} is that of a {identity.role}, and "
                f"{node_id} is a {kind}: give it another id, or make a key for it with 'labmesh "
                f"keys new {kind} ID'"
            )
        return identity
    named = environ.get("LMH_IDENTITY") or folder.default_identity
    if named:
        return folder.identity(named)
    known = [each for each in folder.identities() if each.role != "broker"]
    people = [each for each in known if each.role in _CLIENT_ROLES]
    candidates = people or known
    if not candidates:
        raise NotFound(f"there is no key for a person in {folder.own}")
    if len(candidates) > 1:
        raise ConfigError(
            f"this computer has the keys of {', '.join(each.name for each in candidates)}; say "
            f"whose to use: LMH_IDENTITY={candidates[0].name}"
        )
    return candidates[0]


class FolderGuard:
    """A :class:`~labmesh.transport.keys.Guard` by a folder of keys.

    Where there is an ``authorized`` folder (the broker's machine, or a node that decides by
    itself) it is followed: call :meth:`refresh` four times a second. Elsewhere :meth:`take` brings
    the broker's list, which is kept on the disk; before there is any, only the broker is let in.

    :raises ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: KeyFolder, identity: Identity, kind: str) -> None:
        self._folder = folder
        self._identity = identity
        self._kind = kind
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self._faults: set[str] = set()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._trusted_seen = folder.look_at_trusted()
        self._trusted = self._read_trusted()
        if not self._trusted:
            raise ConfigError(
                f"{folder.trusted} has no key of the broker, so that nobody could be trusted; "
                "run 'labmesh keys join CODE' with a code of the broker's machine, or copy "
                "trusted/broker.pub from there"
            )
        self._servers = KnownServers(folder.path / "known_relays.toml")
        #: the list is made in this folder, not at the broker
        self.decides = kind == "broker" or folder.keeps_list
        self._kept = KeptList(folder.path / "cache" / "allow-list.json")
        self._told = self._read() if self.decides else self._kept.in_force
        self._list = self._with_brokers(self._told)

    def open(self) -> None:
        """Follow the folder from now on, in a thread, where this node decides by it."""
        if self.decides:
            name = f"{self._identity.name}-keys"
            self._closing.clear()
            self._thread = threading.Thread(target=self._follow, name=name, daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; twice is fine."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _follow(self) -> None:
        while not self._closing.wait(REFRESH_S):
            try:
                self.refresh()
            except Exception:
                # Whatever fault of our own it is: who was revoked meanwhile is not known.
                log.exception("%s: the folder of keys could not be followed", self._identity.name)
                self._put(_NOBODY)

    # ── who this is ─────────────────────────────────────────────────────────────────────────────

    @property
    def identity(self) -> KeyPair:
        """This node's own key."""
        return self._identity.pair

    @property
    def user(self) -> str:
        """This node as others see it."""
        return self._identity.grant.user

    # ── who is admitted ─────────────────────────────────────────────────────────────────────────

    @property
    def version(self) -> str:
        """Another one after each change of the list."""
        return self._list.version

    @property
    def access_list(self) -> AllowList:
        """The list that is in force."""
        return self._list

    def admit(self, key: bytes, door: str, address: str) -> str:
        """The user id of who holds ``key``; raises :class:`Forbidden`."""
        return self._list.admit(key.decode("ascii"), door, address, time.time()).user

    def grant_of(self, user: str) -> Grant | None:
        """None: revoked, replaced, or never there."""
        return self._list.grant_of(user)

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
        """As of :meth:`labmesh.protocol.access.AllowList.check`, now."""
        self._list.check(
            user,
            action,
            now=time.time(),
            relay=relay,
            method=method,
            node_id=node_id,
            kind=kind,
        )

    def on_change(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called after each change of the list, in the thread that noticed it."""
        self._listeners.append(tell)

    def refresh(self) -> bool:
        """Follow the folder; True: the list has changed. It may read files: not in a loop.

        A fault of a file is logged once, and its key is not admitted. A folder that cannot be read
        at all admits nobody but the broker: it is not known who was revoked.
        """
        self._follow_trusted()
        try:
            is_known = self._told is not _NOBODY and not self._folder.changed()
            if is_known or not self.decides:
                return False
            fresh = self._read()
        except ConfigError as exc:
            self._fault(exc)
            fresh = _NOBODY
        return self._put(fresh)

    def take(self, told: AccessList, broker: str = "") -> bool:
        """A broker's list; True: it is another one. Where this node decides, it is not used."""
        if self.decides or not self._kept.take(told, broker):
            return False
        changed = self._put(self._kept.in_force)
        self._kept.save()
        return changed

    def told(self, request_id: str) -> AccessList:
        """The list for others, as an answer to ``request_id``."""
        allowed = self._list
        grants = tuple(each for each in allowed.grants if each.role != "broker")
        return AccessList(
            id=request_id,
            version=allowed.version,
            grants=grants,
            revoked=tuple(sorted(allowed.revoked)),
        )

    def _read(self) -> AccessList:
        allowed = self._folder.allow_list(strict=False, on_fault=self._fault)
        revoked = tuple(allowed.revoked)
        return AccessList(id="", version=allowed.version, grants=allowed.grants, revoked=revoked)

    def _with_brokers(self, told: AccessList) -> AllowList:
        """The list, and the brokers that this machine trusts: they come to see who lives."""
        trusted = [each.decode() for each in self._trusted]
        brokers = [
            Grant(name=BROKER if not number else f"{BROKER}-{number}", role="broker", key=key)
            for number, key in enumerate(trusted)
        ]
        others = [each for each in told.grants if each.key not in trusted and each.kind != "broker"]
        return AllowList([*brokers, *others], told.revoked, told.version)

    def _put(self, told: AccessList) -> bool:
        """Have a list in force; of two at the same time the later one."""
        with self._lock:
            fresh = self._with_brokers(told)
            if fresh.version == self._list.version:
                return False
            self._told, self._list = told, fresh
        log.info(
            "%s: the allow-list has %d keys now, %d are revoked",
            *(self._identity.name, len(told.grants), len(told.revoked)),
        )
        for tell in self._listeners:
            try:
                tell()
            except Exception:
                # One listener's fault must not keep the others from what was revoked.
                log.exception("%s: a change of the allow-list was not told", self._identity.name)
        return True

    def _read_trusted(self) -> tuple[bytes, ...]:
        own = (self._identity.pair.public,) if self._kind == "broker" else ()
        return tuple(dict.fromkeys((*own, *self._folder.broker_keys())))

    def _follow_trusted(self) -> None:
        """A key of a broker may be added or taken back while nodes run."""
        try:
            seen = self._folder.look_at_trusted()
            if seen is not None and seen == self._trusted_seen:
                return
            self._trusted_seen = seen
            trusted = self._read_trusted()
        except ConfigError as exc:
            self._fault(exc)
            return
        if trusted and trusted != self._trusted:
            with self._lock:
                self._trusted = trusted
                self._list = self._with_brokers(self._told)

    def _fault(self, exc: ConfigError) -> None:
        if str(exc) not in self._faults:
            self._faults.add(str(exc))
            log.error("a file of keys is not used: %s", exc)

    # ── which servers are trusted ───────────────────────────────────────────────────────────────

    def server_keys(self, endpoint: str) -> tuple[bytes, ...]:
        """What the broker named for this address, then the keys of brokers."""
        self._follow_trusted()
        known = self._servers.endpoints.get(endpoint)
        if known is None:
            return self._trusted
        first = known.encode()
        return (first, *(each for each in self._trusted if each != first))

    def broker_keys(self) -> tuple[bytes, ...]:
        """Those that this machine trusts: no word of the directory adds one."""
        self._follow_trusted()
        return self._trusted

    def bank_keys(self, endpoint: str) -> tuple[bytes, ...]:
        """The key that the broker named for a bank at this address, else those of all banks."""
        allowed = self._list
        listed = [each.key for each in allowed.grants if each.role == "bank"]
        named = [key for name, key in self._servers.names.items() if name.startswith("bank:")]
        known = self._servers.endpoints.get(endpoint)
        # A relay may have claimed the address of a bank that was away.
        if known is not None and known in (*listed, *named):
            return (known.encode(),)
        keys = [each for each in dict.fromkeys([*listed, *named]) if each not in allowed.revoked]
        if not keys:
            raise AuthenticationError(
                f"no key of a bank is known on this computer, so that nobody at {endpoint} could "
                "be trusted: 'labmesh ls' asks the broker for them"
            )
        return tuple(each.encode() for each in keys)

    def learn_server(self, kind: str, node_id: str, key: str, endpoints: tuple[str, ...]) -> None:
        """The directory said which key a node proved; raises when another one is pinned."""
        name = f"{kind}:{node_id}"
        pinned = self._servers.pinned.get(name, key)
        if pinned != key:
            raise AuthenticationError(
                f"the broker names the key {fingerprint(key)} for {kind} {node_id}, and "
                f"{fingerprint(pinned)} is pinned for it in {self._folder.path}/known_relays.toml: "
                "if it has a new key, remove that line; if not, somebody stands in for it"
            )
        with self._lock:
            former = self._servers.learn(name, key, endpoints)
        if former:
            log.warning(
                "%s %s has another key now: %s, before %s",
                *(kind, node_id, fingerprint(key), fingerprint(former)),
            )
