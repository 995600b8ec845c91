"""Who is admitted to a network and whose key is refused: the files that the broker reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec

from labmesh.access.certificates import (
    checked_grant,
    grant_of_certificate,
    key_of_certificate,
    read_certificate,
    without_twins,
    write_certificate,
)
from labmesh.access.files import (
    PUBLIC_MODE,
    Seen,
    changing,
    files_in,
    lacks_descriptors,
    look_at,
    looks_the_same,
    make_folders,
    remove_file,
    replace_file,
)
from labmesh.errors import ConfigError, Conflict, NotFound, ProtocolError
from labmesh.protocol.access import AllowList, Grant, Role, fingerprint
from labmesh.protocol.ids import check_id, did_you_mean
from labmesh.protocol.messages import MAX_GRANTS

__all__ = ["BROKER", "KINDS", "AllowedKeys", "check_key_name"]

#: The name of the broker's key among a machine's own.
BROKER = "broker"
#: The folders of ``authorized``.
KINDS = ("relay", "bank", "client")


class AllowedKeys:
    """Who is admitted to a network, and whose key is refused, as files on the broker's machine.

    Reading never writes; each change is durable and whole.

    :param path: the folder that has ``authorized`` and ``revoked``; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: Seen = None

    @property
    def authorized(self) -> Path:
        """Who is admitted, in a folder for each kind."""
        return self.path / "authorized"

    @property
    def revoked(self) -> Path:
        """Whose key is refused."""
        return self.path / "revoked"

    @property
    def keeps_list(self) -> bool:
        """The allow-list is made here: there is a folder of who is authorized."""
        return self.authorized.is_dir()

    def authorize(self, grant: Grant) -> Path:
        """Admit a key; in place of the one that its name had, which is revoked.

        :raises Conflict: the key was revoked, or stands under another name.
        :raises ConfigError: something in ``grant`` is over its limit.
        """
        checked_grant(grant, f"{grant.role} {grant.name}")
        check_key_name(grant.name, grant.role)
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


def check_key_name(name: str, role: Role) -> None:
    """:raises ConfigError: no key for this role may be called so."""
    try:
        check_id(name, "the name of a key")
    except ProtocolError as exc:
        raise ConfigError(str(exc)) from exc
    if (name.startswith(BROKER)) != (role == "broker"):
        raise ConfigError(
            f"the name {name!r} cannot be that of a {role}: names that begin with {BROKER!r} are "
            "the broker's"
        )
