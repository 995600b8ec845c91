"""What a pairing changes in the key folders of both sides, so that a failure leaves nothing half
done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Protocol

from labmesh.access.allowed_keys import BROKER
from labmesh.access.broker_place import BROKER_FILE, broker_place, remember_broker
from labmesh.access.files import make_folders, remove_file
from labmesh.access.keyring import KeyFolder
from labmesh.errors import ConfigError, LabmeshError, NotFound, OutcomeUnknown
from labmesh.protocol.access import fingerprint
from labmesh.protocol.addresses import Address
from labmesh.protocol.pairing import GuestRole, Terms
from labmesh.transport.key_pairs import KeyPair

__all__ = ["Confirming", "enter", "terms_for"]


class Confirming(Protocol):
    """The connection to the invitation: :class:`~labmesh.transport.joining.Joining`."""

    def confirm(self, key: str) -> None:
        """As of ``Joining``."""

    def end(self, key: str) -> None:
        """As of ``Joining``."""


def terms_for(
    folder: KeyFolder, name: str, role: GuestRole, *, broker_port: int, relays: Iterable[str] = ()
) -> Terms:
    """What the broker of this folder offers to ``name``.

    :raises ConfigError: this machine has no broker's key; a name that cannot be.
    """
    try:
        own = folder.identity(BROKER).pair.public
    except NotFound as exc:
        raise ConfigError(
            f"there is no broker's key in {folder.own}: invite on the machine and as the user of "
            "the broker; 'labmesh keys init' makes it"
        ) from exc
    folder.check_network()
    if name.startswith(BROKER):
        raise ConfigError(f"names that begin with {BROKER!r} are the broker's; choose another one")
    keys = dict.fromkeys([own, *folder.broker_keys()])
    return Terms(
        network=folder.network,
        name=name,
        role=role,
        broker_keys=tuple(each.decode() for each in keys),
        broker_port=broker_port,
        relays=tuple(relays),
    )


def enter(folder: KeyFolder, terms: Terms, place: Address, joining: Confirming) -> KeyPair:
    """Make a key, trust the broker, and have the key admitted; the key.

    All of it is on the disk before the other side is asked to admit the key. If it refuses, what
    was made is removed again. If its answer is lost, everything stays: the key may be admitted, and
    who joins again has the same one.

    :param place: where the broker takes requests.
    :raises ConfigError: the folder has something else under this name, or trusts another broker.
    :raises OutcomeUnknown: as of ``Joining.confirm``.
    :raises LabmeshError: it was refused.
    """
    folder.check_network()
    make_folders(folder.path, folder.own, folder.trusted)
    with ExitStack() as made:
        network_file = folder.path / "network.toml"
        if not network_file.exists():
            made.callback(remove_file, network_file)
        pair = _own_key(folder, terms, made)
        _trust(folder, terms, made)
        _remember(folder, place, made)
        undo = made.pop_all()
    key = pair.public.decode()
    try:
        joining.confirm(key)
    except OutcomeUnknown:
        raise
    except LabmeshError:
        undo.close()
        raise
    joining.end(key)
    return pair


def _own_key(folder: KeyFolder, terms: Terms, made: ExitStack) -> KeyPair:
    name, role = terms.name, terms.role
    if name not in folder.names():
        made.callback(remove_file, folder.public_path(name))
        made.callback(remove_file, folder.secret_path(name))
        return folder.create(name, role)
    # Of an attempt that was interrupted, or of an invitation to another role.
    known = folder.identity(name)
    if known.role != role:
        raise ConfigError(
            f"{folder.secret_path(name)} is the key of a {known.role}, and this invitation is for "
            f"a {role}: have {name} invited under another name, or move that file away"
        )
    return known.pair


def _trust(folder: KeyFolder, terms: Terms, made: ExitStack) -> None:
    known = set(folder.broker_keys())
    offered = [each.encode() for each in terms.broker_keys]
    if known and known.isdisjoint(offered):
        raise ConfigError(
            f"this computer trusts another broker of network {folder.network!r} than the one that "
            f"invites (its key is {fingerprint(terms.broker_keys[0])}): if the broker got a new "
            f"key, remove {folder.trusted} and join again; if it is another network, its broker "
            "needs another LMH_NETWORK"
        )
    taken = {each.stem for each in folder.trusted.glob("*.pub")}
    names = (
        each for each in (BROKER, *(f"{BROKER}-{n}" for n in range(2, 9))) if each not in taken
    )
    for key in offered:
        if key not in known:
            name = next(names)
            made.callback(folder.distrust_broker, name)
            folder.pin_broker(key, name)


def _remember(folder: KeyFolder, place: Address, made: ExitStack) -> None:
    former = None
    with contextlib.suppress(ConfigError):
        former = broker_place(folder.path)
    if former is None:
        made.callback(remove_file, folder.path / BROKER_FILE)
    else:
        made.callback(remember_broker, folder.path, former)
    remember_broker(folder.path, place)
