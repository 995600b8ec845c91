"""Key files in the format of czmq and pyzmq, which ``zmq.auth.load_certificate`` reads.

::

    metadata
        name = "ana"
        role = "operator"
        relays = "psu-* Inst-1"
    curve
        public-key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
        secret-key = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs"

A secret file has all of it, a public one no secret key. Lists are separated by blanks; ``until`` is
a date, the last day on which the key is good (UTC), or a moment such as 2027-01-01T12:00:00.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast, get_args

import msgspec

from labmesh.access.files import read_text
from labmesh.errors import ConfigError, ProtocolError
from labmesh.protocol.access import Grant, Role, fingerprint, parse_network
from labmesh.protocol.ids import check_id, did_you_mean, shown
from labmesh.protocol.messages import KEY_PATTERN
from labmesh.transport.key_pairs import KeyPair, is_pair

__all__ = [
    "Certificate",
    "checked_grant",
    "grant_of_certificate",
    "key_of_certificate",
    "pair_of_certificate",
    "parse_until",
    "read_certificate",
    "until_words",
    "without_twins",
    "write_certificate",
]

_LINE = re.compile(r"([A-Za-z-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"']*))\s*(?:#.*)?")
_KEY = re.compile(KEY_PATTERN)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_KNOWN = {"name", "role", "relays", "methods-deny", "addresses", "until"}
_HEAD = {
    False: "# labmesh: public key. It may be shown to anybody.\n",
    True: "# labmesh: SECRET key. It stays on this computer, and is nobody's but its owner's.\n",
}


@dataclass(frozen=True)
class Certificate:
    """What a file of a key says, as it stands there."""

    path: Path
    metadata: dict[str, str]
    public: str
    secret: str = field(default="", repr=False)


def read_certificate(path: Path, *, secret: bool = False) -> Certificate:
    """Read a file of a key.

    :param secret: it has to have a secret key, and to be readable for its owner alone.
    :raises ConfigError: the file cannot be used; the text names it and what is wrong.
    """
    section = ""
    found: dict[str, dict[str, str]] = {"metadata": {}, "curve": {}}
    for number, line in enumerate(read_text(path, secret=secret).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text in found:
            section = text
            continue
        parts = _LINE.fullmatch(text)
        if parts is None or not section:
            raise _wrong(path, f"line {number} is no line of a key file")
        if parts[1] in found[section]:
            raise _wrong(path, f"line {number} says {shown(parts[1])} a second time")
        found[section][parts[1]] = parts[2] or parts[3] or parts[4] or ""
    keys = {name: found["curve"].get(f"{name}-key", "") for name in ("public", "secret")}
    for name, key in keys.items():
        needed = name == "public" or secret
        if (key or needed) and not _KEY.match(key):
            what = "has no" if not key else "has a damaged"
            raise _wrong(path, f"it {what} {name} key (40 characters of Z85)")
    if keys["secret"] and not secret:
        raise ConfigError(
            f"{path} has a secret key in it, and only public ones belong there; take the file "
            "that ends in .pub, and rotate that key: labmesh keys rotate",
            file=str(path),
        )
    return Certificate(path, found["metadata"], keys["public"], keys["secret"])


def pair_of_certificate(certificate: Certificate) -> KeyPair:
    """The key pair of a secret file.

    :raises ConfigError: its two halves are of different keys.
    """
    pair = KeyPair(certificate.public.encode(), certificate.secret.encode())
    if not is_pair(pair):
        raise _wrong(certificate.path, "its secret key is not the other half of its public key")
    return pair


def key_of_certificate(path: Path) -> str:
    """The public key of a public file, Z85.

    :raises ConfigError: as of :func:`read_certificate`.
    """
    return read_certificate(path).public


def grant_of_certificate(certificate: Certificate, kind: str) -> Grant:
    """A line of the allow-list, by a file in ``authorized/<kind>/``.

    The file's name is the name that counts. A client whose file names no role is a viewer.

    :raises ConfigError: the file cannot be used.
    """
    path, facts = certificate.path, certificate.metadata
    try:
        name = check_id(path.stem, "the name of the file")
    except ProtocolError as exc:
        raise ConfigError(f"{path}: {exc}", file=str(path)) from exc
    for fact in facts:
        if fact not in _KNOWN:
            raise _wrong(path, f"{shown(fact)} is unknown; {did_you_mean(fact, _KNOWN)}")
    role = facts.get("role", kind if kind != "client" else "viewer")
    grant = Grant(
        name=name,
        role=cast(Role, role),
        key=certificate.public,
        relays=tuple(facts.get("relays", "").split()),
        methods_deny=tuple(facts.get("methods-deny", "").split()),
        addresses=tuple(facts.get("addresses", "").split()),
        not_after=_until(path, facts),
    )
    if role not in get_args(Role) or grant.kind != kind:
        roles = "viewer, operator or admin" if kind == "client" else kind
        raise _wrong(path, f"role {shown(role)} is none of authorized/{kind}; use {roles}")
    return checked_grant(grant, str(path))


def _until(path: Path, facts: dict[str, str]) -> float | None:
    try:
        return parse_until(facts["until"]) if facts.get("until") else None
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}", file=str(path)) from exc


def checked_grant(grant: Grant, where: str) -> Grant:
    """The same grant, when all of it is within its limits.

    :raises ConfigError: it is not; the text begins with ``where``.
    """
    try:
        check_id(grant.name, "the name")
        for each in grant.addresses:
            parse_network(each)
        return msgspec.convert(msgspec.to_builtins(grant), Grant)
    except (msgspec.ValidationError, ConfigError, ProtocolError) as exc:
        raise ConfigError(f"{where}: {exc}", file=where) from exc


def without_twins(grants: list[Grant], fault: Callable[[ConfigError], None]) -> list[Grant]:
    """Of a key that stands under two names nobody knows whose it is: neither is admitted."""
    owners: dict[str, list[Grant]] = {}
    for each in grants:
        owners.setdefault(each.key, []).append(each)
    for key, several in owners.items():
        if len(several) > 1:
            names = " and ".join(f"authorized/{each.kind}/{each.name}.pub" for each in several)
            fault(
                ConfigError(
                    f"the same key ({fingerprint(key)}) stands in {names}; each needs a key of its "
                    "own: remove one of them"
                )
            )
    return [each for each in grants if len(owners[each.key]) == 1]


def write_certificate(grant: Grant, secret: str = "") -> str:
    """The text of a file: of a public key, or with ``secret`` of the pair."""
    facts = {
        "name": grant.name,
        "role": grant.role,
        "relays": " ".join(grant.relays),
        "methods-deny": " ".join(grant.methods_deny),
        "addresses": " ".join(grant.addresses),
        "until": "" if grant.not_after is None else until_words(grant.not_after),
    }
    lines = [f'    {name} = "{value}"' for name, value in facts.items() if value]
    keys = {"public-key": grant.key, "secret-key": secret}
    curve = [f'    {name} = "{key}"' for name, key in keys.items() if key]
    return _HEAD[bool(secret)] + "\n".join(["metadata", *lines, "curve", *curve, ""])


def parse_until(text: str) -> float:
    """The moment after which a key is no longer good, POSIX seconds: a date is good all its day.

    :raises ConfigError: neither a date nor a moment.
    """
    try:
        moment = datetime.fromisoformat(text)
        if _DAY.fullmatch(text):
            moment += timedelta(days=1)
    except (ValueError, OverflowError) as exc:
        raise ConfigError(
            f"{shown(text)} is no date; write the last day on which the key is good, such as "
            "2027-01-31"
        ) from exc
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def until_words(posix_s: float) -> str:
    """A moment as files have it; :func:`parse_until` reads it."""
    return datetime.fromtimestamp(posix_s, UTC).isoformat(timespec="seconds")


def _wrong(path: Path, text: str) -> ConfigError:
    return ConfigError(
        f"{path}: {text}; copy it again from where it was made, or make a new one with "
        "'labmesh keys new'",
        file=str(path),
    )
