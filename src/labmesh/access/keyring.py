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

import json
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast, get_args

from labmesh.access.allowed_keys import BROKER, AllowedKeys, check_key_name
from labmesh.access.certificates import (
    checked_grant,
    key_of_certificate,
    pair_of_certificate,
    read_certificate,
    write_certificate,
)
from labmesh.access.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    Seen,
    create_file,
    files_in,
    look_at,
    make_folders,
    read_text,
    remove_file,
    replace_file,
)
from labmesh.errors import ConfigError, NotFound
from labmesh.protocol.access import Grant, Role, fingerprint
from labmesh.protocol.ids import did_you_mean
from labmesh.transport.key_pairs import KeyPair, new_key_pair

__all__ = ["Identity", "KeyFolder"]

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


class KeyFolder(AllowedKeys):
    """Keys of one network: who is admitted, this machine's own, and the brokers'.

    Reading never writes; each change is durable and whole.

    :param path: the folder; it need not be there yet.
    :param network: whose keys these are.
    """

    def __init__(self, path: Path, network: str = "labmesh") -> None:
        super().__init__(path)
        self.network = network

    @property
    def own(self) -> Path:
        """This machine's secrets."""
        return self.path / "self"

    @property
    def trusted(self) -> Path:
        """The public keys of brokers."""
        return self.path / "trusted"

    @property
    def exists(self) -> bool:
        """There are keys of this machine's own."""
        return any(files_in(self.own, ".secret"))

    # ── this machine's own keys ─────────────────────────────────────────────────────────────────

    def create(self, name: str, role: Role) -> KeyPair:
        """Make a key of this machine's own.

        :raises ConfigError: there is one of that name already; a name that is no id.
        """
        check_key_name(name, role)
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

    def look_at_trusted(self) -> Seen:
        """Tells one state of the brokers' keys from another; None: it may be changing."""
        return look_at((self.trusted,))

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
