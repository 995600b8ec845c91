"""The folder of a network's keys on one machine.

::

    network.toml                             which network, since when, its broker's fingerprints
    self/psu-1.secret   self/psu-1.pub       this machine's own keys
    trusted/broker.pub                       keys of brokers that are trusted
    authorized/{relay,bank,client}/NAME.pub  who is admitted (where the broker runs)
    revoked/NAME.pub                         who is not, whatever else is said of the key
    known_relays.toml                        keys of relays and banks that the broker named
    cache/allow-list.json                    the broker's list, for when it is away

All of it may be made and changed by hand: a ``.pub`` file that is copied into ``authorized`` takes
effect within a second, and so does its removal.
"""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, cast, get_args

import msgspec

from labmesh.access.certificates import (
    checked_grant,
    grant_of_certificate,
    key_of_certificate,
    pair_of_certificate,
    read_certificate,
    without_twins,
    write_certificate,
)
from labmesh.access.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    Seen,
    changing,
    create_file,
    files_in,
    lacks_descriptors,
    look_at,
    looks_the_same,
    make_folders,
    read_text,
    remove_file,
    replace_file,
)
from labmesh.errors import ConfigError, Conflict, NotFound, ProtocolError
from labmesh.protocol.access import AllowList, Grant, Role, fingerprint
from labmesh.protocol.ids import check_id, did_you_mean
from labmesh.protocol.messages import MAX_GRANTS
from labmesh.transport.key_pairs import KeyPair, new_key_pair

__all__ = ["BROKER", "KINDS", "Identity", "KeyFolder"]

#: The name of the broker's key in ``self``.
BROKER = "broker"
#: The folders of ``authorized``.
KINDS = ("relay", "bank", "client")
#: Broker keys that may be trusted at a time: of the first and a spare one, each with its next.
_MAX_TRUSTED = 4


@dataclass(frozen=True)
class Identity:
    """One of this machine's own keys."""

    name: str
    role: Role
    pair: KeyPair

    @property
    def grant(self) -> Grant:
        """The line of an allow-list that admits it without limits."""
        return Grant(name=self.name, role=self.role, key=self.pair.public.decode())


class KeyFolder:
    """Keys of one network. Reading never writes; each change is durable and whole.

    :param path: the folder; it need not be there yet.
    :param network: whose keys these are.
    """

    def __init__(self, path: Path, network: str = "labmesh") -> None:
        self.path = path
        self.network = network
        self._seen: Seen = None

    @property
    def own(self) -> Path:
        """This machine's secrets."""
        return self.path / "self"

    @property
    def trusted(self) -> Path:
        """The public keys of brokers."""
        return self.path / "trusted"

    @property
    def authorized(self) -> Path:
        """Who is admitted, in a folder for each kind."""
        return self.path / "authorized"

    @property
    def revoked(self) -> Path:
        """Whose key is refused."""
        return self.path / "revoked"

    @property
    def exists(self) -> bool:
        """There are keys of this machine's own."""
        return any(files_in(self.own, ".secret"))

    @property
    def keeps_list(self) -> bool:
        """The allow-list is made here: there is a folder of who is authorized."""
        return self.authorized.is_dir()

    # ── this machine's own keys ─────────────────────────────────────────────────────────────────

    def create(self, name: str, role: Role) -> KeyPair:
        """Make a key of this machine's own.

        :raises ConfigError: there is one of that name already; a name that is no id.
        """
        _check_name(name, role)
        make_folders(self.path, self.own)
        self._write_network_file()
        identity = Identity(name, role, new_key_pair())
        secret = identity.pair.secret.decode()
        create_file(self.secret_path(name), write_certificate(identity.grant, secret), SECRET_MODE)
        replace_file(self.public_path(name), write_certificate(identity.grant), PUBLIC_MODE)
        return identity.pair

    def secret_path(self, name: str) -> Path:
        """Where the secret of this name is."""
        return self.own / f"{name}.secret"

    def public_path(self, name: str) -> Path:
        """Where its public half is, for others."""
        return self.own / f"{name}.pub"

    def identity(self, name: str) -> Identity:
        """One of the own keys.

        :raises NotFound: there is none of this name.
        :raises ConfigError: its file cannot be used, or others may read it.
        """
        path = self.secret_path(name)
        if not path.is_file():
            near = did_you_mean(name, self.names())
            raise NotFound(f"there is no key {name!r} in {self.own}; {near or self._advice(name)}")
        certificate = read_certificate(path, secret=True)
        role = certificate.metadata.get("role", "")
        if role not in get_args(Role):
            raise ConfigError(
                f'{path} does not say whose it is: write role = "relay" (or bank, viewer, '
                "operator, admin, broker) under 'metadata'",
                file=str(path),
            )
        pair = pair_of_certificate(certificate)
        self._check_half(name, pair)
        return Identity(name, cast(Role, role), pair)

    def secret_of(self, name: str) -> KeyPair:
        """The key pair of one of the own keys; raises as :meth:`identity`."""
        return self.identity(name).pair

    def names(self) -> list[str]:
        """The names of the own keys."""
        return [each.stem for each in files_in(self.own, ".secret")]

    def identities(self) -> list[Identity]:
        """All own keys; raises as :meth:`identity`."""
        return [self.identity(name) for name in self.names()]

    def _check_half(self, name: str, pair: KeyPair) -> None:
        path = self.public_path(name)
        if path.is_file() and key_of_certificate(path).encode() != pair.public:
            raise ConfigError(
                f"{path} is not the public half of {self.secret_path(name)}; remove the one that "
                "is not this machine's, and run 'labmesh keys check'",
                file=str(path),
            )

    def _advice(self, name: str) -> str:
        known = ", ".join(self.names()) or "none at all"
        return f"there is {known}; 'labmesh keys new' makes one"

    # ── brokers that are trusted ────────────────────────────────────────────────────────────────

    def broker_keys(self) -> tuple[bytes, ...]:
        """The keys of which a broker has to prove one (Z85), ``broker.pub`` first.

        :raises ConfigError: a file cannot be used, or there are too many.
        """
        files = sorted(files_in(self.trusted, ".pub"), key=lambda each: each.stem != BROKER)
        self._check_trusted(len(files))
        # One key may lie there twice: a broker's next one, and the same once it is in use.
        return tuple(dict.fromkeys(key_of_certificate(each).encode() for each in files))

    def _check_trusted(self, count: int) -> None:
        if count > _MAX_TRUSTED:
            raise ConfigError(
                f"{self.trusted} has {count} keys of brokers, and {_MAX_TRUSTED} at most are "
                "trusted; remove those of brokers that are gone"
            )

    def pin_broker(self, key: bytes, name: str = BROKER) -> None:
        """Trust this key as the broker's; under ``name`` it replaces the one that was."""
        grant = checked_grant(Grant(name=name, role="broker", key=key.decode()), "the broker's key")
        self._check_trusted(len({*(each.stem for each in files_in(self.trusted, ".pub")), name}))
        make_folders(self.path, self.trusted)
        replace_file(self.trusted / f"{name}.pub", write_certificate(grant), PUBLIC_MODE)
        self._write_network_file()

    def distrust_broker(self, name: str) -> None:
        """Take a broker's key back."""
        remove_file(self.trusted / f"{name}.pub")
        self._write_network_file()

    # ── who is admitted ─────────────────────────────────────────────────────────────────────────

    def authorize(self, grant: Grant) -> Path:
        """Admit a key; in place of the one that its name had, which is revoked.

        :raises Conflict: the key was revoked, or stands under another name.
        :raises ConfigError: something in ``grant`` is over its limit.
        """
        checked_grant(grant, f"{grant.role} {grant.name}")
        _check_name(grant.name, grant.role)
        grants, revoked = self._read_list()
        if grant.key in revoked:
            raise Conflict(
                f"the key {fingerprint(grant.key)} was revoked; make a new one, or remove its "
                f"file from {self.revoked}"
            )
        for each in grants:
            if each.key == grant.key and (each.kind, each.name) != (grant.kind, grant.name):
                raise Conflict(
                    f"the key {fingerprint(grant.key)} stands for {each.role} {each.name} already; "
                    "each needs a key of its own"
                )
        if len(grants) >= MAX_GRANTS:
            raise ConfigError(f"an allow-list has {MAX_GRANTS} lines at most; revoke old ones")
        path = self.authorized / grant.kind / f"{grant.name}.pub"
        for each in grants:
            if (each.kind, each.name) == (grant.kind, grant.name) and each.key != grant.key:
                self._write_revoked(each)
        make_folders(self.path, self.authorized, *(self.authorized / kind for kind in KINDS))
        replace_file(path, write_certificate(grant), PUBLIC_MODE)
        return path

    def revoke(self, name: str) -> list[Grant]:
        """Refuse all keys that this name has, from now on.

        :returns: whom it meant; each is in ``revoked``, and no longer in ``authorized``.
        :raises NotFound: nobody of this name is authorized.
        """
        with changing(self.path):
            # Also a key that stands under two names, which is on no list for that reason.
            grants, _ = self._read_files(lambda _: None)
            meant = [each for each in grants if each.name == name]
            for each in meant:
                # In this order: at no moment is the key on no list.
                self._write_revoked(each)
                remove_file(self.authorized / each.kind / f"{each.name}.pub")
        if not meant:
            near = did_you_mean(name, {each.name for each in grants})
            raise NotFound(f"nobody called {name!r} is authorized in {self.authorized}; {near}")
        return meant

    def revoked_names(self) -> dict[str, str]:
        """The keys that are refused, with the names of their files."""
        return {key_of_certificate(each): each.stem for each in files_in(self.revoked, ".pub")}

    def grant_of(self, kind: str, name: str) -> Grant | None:
        """The line of the list under this name."""
        grants, _ = self._read_list(strict=False)
        return next((each for each in grants if (each.kind, each.name) == (kind, name)), None)

    def allow_list(
        self, *, strict: bool = True, on_fault: Callable[[ConfigError], None] | None = None
    ) -> AllowList:
        """What the files say now. Its version tells it from any other content.

        :param strict: raise for a file that cannot be used. Without it the key in that file is not
            admitted, and ``on_fault`` hears of it.
        :raises ConfigError: a file cannot be used, or one key stands under two names.
        """
        seen = self._look()
        lacking = False

        def fault(exc: ConfigError) -> None:
            nonlocal lacking
            lacking = lacking or lacks_descriptors(exc)
            if on_fault is not None:
                on_fault(exc)

        grants, revoked = self._read_list(strict=strict, on_fault=fault)
        content = msgspec.json.encode([grants, sorted(revoked)])
        allowed = AllowList(grants, revoked, sha256(content).hexdigest()[:32])
        # What could not be read for want of a descriptor alone is read again.
        self._seen = None if lacking else seen
        return allowed

    def changed(self) -> bool:
        """Whether files were changed since :meth:`allow_list` read them, or may have been."""
        try:
            return self._seen is None or self._look() != self._seen
        except ConfigError as exc:
            # Strangers who connect without end are not to shut the members out.
            if not lacks_descriptors(exc):
                raise
            return not looks_the_same(self._listed, self._seen)

    def look_at_trusted(self) -> Seen:
        """Tells one state of the brokers' keys from another; None: it may be changing."""
        return look_at((self.trusted,))

    def _read_list(
        self, *, strict: bool = True, on_fault: Callable[[ConfigError], None] | None = None
    ) -> tuple[list[Grant], set[str]]:
        def fault(exc: ConfigError) -> None:
            if strict:
                raise exc
            if on_fault is not None:
                on_fault(exc)

        grants, revoked = self._read_files(fault)
        return without_twins(grants, fault), revoked

    def _read_files(self, fault: Callable[[ConfigError], None]) -> tuple[list[Grant], set[str]]:
        grants: list[Grant] = []
        revoked: set[str] = set()
        refused_names: set[str] = set()
        for path in files_in(self.revoked, ".pub"):
            try:
                revoked.add(key_of_certificate(path))
            except ConfigError as exc:
                # Somebody is meant by it: better one too many than one too few.
                refused_names.add(path.stem)
                fault(exc)
        for kind in KINDS:
            for path in files_in(self.authorized / kind, ".pub"):
                try:
                    grant = grant_of_certificate(read_certificate(path), kind)
                except ConfigError as exc:
                    fault(exc)
                else:
                    if grant.name not in refused_names:
                        grants.append(grant)
        return grants, revoked

    def _write_revoked(self, grant: Grant) -> None:
        make_folders(self.path, self.revoked)
        path = self.revoked / f"{grant.name}.pub"
        if path.exists():
            with contextlib.suppress(ConfigError):
                if key_of_certificate(path) == grant.key:
                    return
            path = self.revoked / f"{grant.name}-{fingerprint(grant.key)}.pub"
        replace_file(path, write_certificate(grant), PUBLIC_MODE)

    def _look(self) -> Seen:
        return look_at(self._listed)

    @property
    def _listed(self) -> tuple[Path, ...]:
        return (self.revoked, *(self.authorized / kind for kind in KINDS))

    # ── the network ─────────────────────────────────────────────────────────────────────────────

    def check_network(self) -> None:
        """:raises ConfigError: these keys are another network's."""
        name = self._network_facts().get("name", self.network)
        if name != self.network:
            raise ConfigError(
                f"the keys in {self.path} are those of network {name!r}, and this node is of "
                f"{self.network!r}: set LMH_NETWORK={name}, or LMH_KEYS_DIR to the other folder"
            )

    @property
    def default_identity(self) -> str:
        """Whose key a script has that does not say so; empty: nobody was chosen."""
        return str(self._network_facts().get("identity", ""))

    def choose_identity(self, name: str) -> None:
        """Let scripts that do not say whose key they have use this one."""
        self._write_network_file(identity=name)

    def _network_facts(self) -> dict[str, Any]:
        path = self.path / "network.toml"
        if not path.is_file():
            return {}
        try:
            return tomllib.loads(read_text(path))
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(
                f"{path} cannot be read ({exc}); remove it, and run 'labmesh keys check'",
                file=str(path),
            ) from exc

    def _write_network_file(self, **changes: str) -> None:
        """Write what is known, where it is not there yet or not the same."""
        former = self._network_facts()
        created = datetime.now(UTC).isoformat(timespec="seconds")
        facts: dict[str, Any] = {
            "name": self.network,
            "created": created,
            "identity": "",
            **former,
            **changes,
        }
        facts["broker_fingerprints"] = [fingerprint(each.decode()) for each in self.broker_keys()]
        if facts != former:
            text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in facts.items())
            replace_file(self.path / "network.toml", text, PUBLIC_MODE)


def _check_name(name: str, role: Role) -> None:
    try:
        check_id(name, "the name of a key")
    except ProtocolError as exc:
        raise ConfigError(str(exc)) from exc
    if (name.startswith(BROKER)) != (role == "broker"):
        raise ConfigError(
            f"the name {name!r} cannot be that of a {role}: names that begin with {BROKER!r} are "
            "the broker's"
        )
