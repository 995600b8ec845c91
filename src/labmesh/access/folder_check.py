"""What is wrong with a folder of keys, and what mends it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from labmesh.access.files import private
from labmesh.access.keyring import Identity, KeyFolder
from labmesh.errors import LabmeshError
from labmesh.protocol.access import Grant

__all__ = ["Fault", "check_folder"]


class Fault(NamedTuple):
    """``wrong``: something does not work or is not safe. ``note``: it may be meant so."""

    level: Literal["wrong", "note"]
    text: str


def check_folder(folder: KeyFolder, now: float | None = None) -> list[Fault]:
    """Look at every file of a folder; nothing is changed.

    :param now: POSIX seconds.
    """
    if not folder.path.is_dir():
        return [
            Fault(
                "wrong",
                f"there is no folder {folder.path}; 'labmesh keys init' makes it on the broker's "
                "machine, 'labmesh keys join CODE' on others",
            )
        ]
    faults = [*_of_rights(folder), *_of_own(folder), *_of_trusted(folder)]
    if folder.keeps_list:
        faults += _of_list(folder, time.time() if now is None else now)
    return faults


def _of_rights(folder: KeyFolder) -> Iterator[Fault]:
    if os.name == "nt":  # rights of another kind
        return
    places = (folder.path, folder.own, folder.trusted, folder.authorized, folder.revoked)
    for place in (*places, *(folder.authorized / kind for kind in ("relay", "bank", "client"))):
        if not place.is_dir():
            continue
        mode = stat.S_IMODE(place.stat().st_mode)
        if mode & 0o002:
            yield Fault("wrong", f"every user may write to {place}: chmod 700 '{place}'")
        elif mode & 0o020:
            yield Fault("note", f"a group may write to {place}, and so admit itself: chmod 700")
    for path in _found(folder.own, "*.secret"):
        if not private(path.stat().st_mode):
            yield Fault(
                "wrong",
                f"others may read {path}: chmod 600 '{path}', and rotate the key if somebody may "
                "have read it",
            )


def _of_own(folder: KeyFolder) -> Iterator[Fault]:
    yield from _raised(folder.check_network)
    names = folder.names()
    for name in names:
        # Others may read it: said above.
        if private(folder.secret_path(name).stat().st_mode):
            yield from _raised(lambda name=name: folder.identity(name))  # type: ignore[misc]
        if not folder.public_path(name).is_file():
            yield Fault("note", f"{folder.public_path(name)}, the public half, is missing")
    for path in _found(folder.own, "*.pub"):
        if path.stem not in names:
            yield Fault("wrong", f"{path} has no secret beside it: half a pair is of no use there")
    if not names:
        yield Fault("note", f"there is no key in {folder.own}: no node here has one")


def _of_trusted(folder: KeyFolder) -> Iterator[Fault]:
    try:
        keys = folder.broker_keys()
    except LabmeshError as exc:
        yield Fault("wrong", str(exc))
        return
    if not keys:
        yield Fault(
            "wrong",
            f"no broker is trusted: {folder.trusted / 'broker.pub'} is missing; copy it from the "
            "broker's machine, or join with a code",
        )
    if "broker" in folder.names():
        for fault in _raised(lambda: folder.identity("broker")):
            yield fault
            return
        if folder.identity("broker").pair.public not in keys:
            yield Fault(
                "wrong",
                "the broker's own key is not among those in "
                f"{folder.trusted}: nodes of this machine would refuse it",
            )


def _of_list(folder: KeyFolder, now: float) -> Iterator[Fault]:
    found: list[Fault] = []
    allowed = folder.allow_list(strict=False, on_fault=lambda exc: _note(found, str(exc)))
    yield from found
    names: dict[str, list[Grant]] = {}
    for grant in allowed.grants:
        names.setdefault(grant.name, []).append(grant)
        where = f"authorized/{grant.kind}/{grant.name}.pub"
        if grant.key in allowed.revoked:
            yield Fault("note", f"the key in {where} is revoked, and that wins")
        elif grant.not_after is not None and grant.not_after < now:
            yield Fault("note", f"the time of the key in {where} is over")
    for name, several in names.items():
        if len(several) > 1:
            kinds = " and ".join(each.kind for each in several)
            yield Fault("note", f"{name} is the name of {kinds}: 'revoke {name}' means them all")
    for identity in _readable(folder):
        if identity.grant.key in allowed.revoked:
            secret = folder.secret_path(identity.name)
            yield Fault("note", f"{secret} was revoked, and is of no use: remove it")
        elif identity.role != "broker" and allowed.grant_of(identity.grant.user) is None:
            yield Fault(
                "wrong",
                f"the key {identity.name} of this machine is not on the list: copy "
                f"{folder.public_path(identity.name)} into {folder.authorized}/"
                f"{identity.grant.kind}/",
            )


def _readable(folder: KeyFolder) -> Iterator[Identity]:
    for name in folder.names():
        try:
            yield folder.identity(name)
        except LabmeshError:
            continue  # said above


def _note(found: list[Fault], text: str) -> None:
    found.append(Fault("wrong", text))


def _raised(look: Callable[[], object]) -> Iterator[Fault]:
    try:
        look()
    except LabmeshError as exc:
        yield Fault("wrong", str(exc))


def _found(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []
