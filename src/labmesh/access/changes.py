"""Changes to a folder of keys that take several steps; each can be run again after it broke off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from labmesh.access.allowed_keys import BROKER, KINDS
from labmesh.access.certificates import write_certificate
from labmesh.access.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    changing,
    create_file,
    make_folders,
    remove_file,
    replace_file,
)
from labmesh.access.keyring import Identity, KeyFolder
from labmesh.errors import Conflict, NotFound
from labmesh.protocol.access import fingerprint
from labmesh.transport.key_pairs import KeyPair, new_key_pair

__all__ = ["NEXT_BROKER", "Rotated", "finish_broker_rotation", "found_network", "rotate_key"]

#: The broker's coming key, until all machines trust it.
NEXT_BROKER = f"{BROKER}-next"


def found_network(folder: KeyFolder, admin: str) -> tuple[Identity, Identity]:
    """Make a network: the broker's key, and an admin's for the user of this machine.

    What is there already stays, so that it can be finished when it broke off.

    :returns: the broker and the admin.
    :raises Conflict: the network is there already, with an admin.
    """
    make_folders(folder.path, folder.authorized, *(folder.authorized / kind for kind in KINDS))
    names = folder.names()
    if BROKER in names and admin in names and folder.grant_of("client", admin) is not None:
        raise Conflict(
            f"{folder.path} has the keys of a network already, with {admin!r} as its admin; "
            "'labmesh keys list' shows them. For another network set LMH_NETWORK"
        )
    if BROKER not in names:
        folder.create(BROKER, "broker")
    broker = folder.identity(BROKER)
    if broker.pair.public not in folder.broker_keys():
        folder.pin_broker(broker.pair.public)
    if admin not in names:
        folder.create(admin, "admin")
    owner = folder.identity(admin)
    folder.authorize(owner.grant)
    if not folder.default_identity:
        folder.choose_identity(admin)
    return broker, owner


@dataclass(frozen=True)
class Rotated:
    """A key that took the place of another one."""

    identity: Identity
    former: KeyPair
    #: the new key is on the allow-list of this folder, and the former one revoked
    is_authorized: bool


def rotate_key(folder: KeyFolder, name: str) -> Rotated:
    """Replace one of this machine's own keys; the former secret stays in ``self/old``.

    Where this folder makes the allow-list the new key takes the place of the former one, with its
    limits. For the broker the new key is only prepared: see :func:`finish_broker_rotation`.

    :raises NotFound: there is no such key here.
    :raises Conflict: a new key of the broker is prepared already.
    """
    with changing(folder.path):
        return _rotated(folder, name)


def _rotated(folder: KeyFolder, name: str) -> Rotated:
    former = folder.identity(name)
    if former.role == "broker":
        pair = _next_of_broker(folder)
        folder.pin_broker(pair.public, NEXT_BROKER)
        return Rotated(Identity(NEXT_BROKER, "broker", pair), former.pair, is_authorized=False)
    fresh = Identity(name, former.role, new_key_pair())
    known = folder.grant_of(fresh.grant.kind, name)
    _replace_own(folder, former, fresh)
    # Or the one before it: of a replacement that broke off before the list knew of it.
    is_authorized = known is not None and _kept(folder, name, known.key).exists()
    if known is not None and is_authorized:
        folder.authorize(msgspec.structs.replace(known, key=fresh.grant.key))
    return Rotated(fresh, former.pair, is_authorized)


def finish_broker_rotation(folder: KeyFolder) -> Rotated:
    """The key that was prepared becomes the broker's; the former one is trusted no longer.

    :raises NotFound: none was prepared.
    """
    with changing(folder.path):
        return _finished(folder)


def _next_of_broker(folder: KeyFolder) -> KeyPair:
    if NEXT_BROKER in folder.names():
        # Of a replacement that broke off before it was trusted; else it is there already.
        made = folder.secret_of(NEXT_BROKER)
        if made.public not in folder.broker_keys():
            return made
    return folder.create(NEXT_BROKER, "broker")


def _finished(folder: KeyFolder) -> Rotated:
    if NEXT_BROKER not in folder.names():
        raise NotFound(
            f"there is no new key of the broker in {folder.own}; 'labmesh keys rotate broker' "
            "makes one"
        )
    former, coming = folder.identity(BROKER), folder.identity(NEXT_BROKER)
    fresh = Identity(BROKER, "broker", coming.pair)
    _replace_own(folder, former, fresh)
    folder.pin_broker(fresh.pair.public)
    folder.distrust_broker(NEXT_BROKER)
    for path in (folder.secret_path(NEXT_BROKER), folder.public_path(NEXT_BROKER)):
        remove_file(path)
    return Rotated(fresh, former.pair, is_authorized=False)


def _replace_own(folder: KeyFolder, former: Identity, fresh: Identity) -> None:
    """Swap the secret: the former one is kept first, so that no moment is without any."""
    kept = _kept(folder, former.name, former.grant.key)
    make_folders(kept.parent)
    if not kept.exists():
        content = write_certificate(former.grant, former.pair.secret.decode())
        create_file(kept, content, SECRET_MODE)
    # The public half first goes away: two halves of different keys would be refused.
    remove_file(folder.public_path(former.name))
    secret = fresh.pair.secret.decode()
    path = folder.secret_path(former.name)
    replace_file(path, write_certificate(fresh.grant, secret), SECRET_MODE)
    replace_file(folder.public_path(former.name), write_certificate(fresh.grant), PUBLIC_MODE)


def _kept(folder: KeyFolder, name: str, key: str) -> Path:
    """Where the secret of a former key of this machine's is."""
    return folder.own / "old" / f"{name}-{fingerprint(key)}.secret"
