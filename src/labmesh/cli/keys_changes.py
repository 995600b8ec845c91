"""The commands ``keys`` that change who is admitted to a network with keys."""

from __future__ import annotations

import getpass
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from labmesh.access.allowed_keys import BROKER
from labmesh.access.certificates import checked_grant, key_of_certificate, parse_until
from labmesh.access.changes import (
    NEXT_BROKER,
    Rotated,
    finish_broker_rotation,
    found_network,
    rotate_key,
)
from labmesh.access.keyring import KeyFolder
from labmesh.cli.audit import note
from labmesh.cli.keys import facts_of, folder_of
from labmesh.cli.options import MeshOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output
from labmesh.errors import ConfigError, Conflict, ProtocolError
from labmesh.protocol.access import Grant, Role, fingerprint
from labmesh.protocol.ids import check_id

__all__ = ["init", "new", "revoke", "rotate"]

#: Stands where a key is yet to be made.
_NO_KEY = "0" * 40
_NO_ID = re.compile(r"[^A-Za-z0-9._-]+")

_OPTIONS = MeshOptions()

_Kind = Literal["relay", "bank", "client", "viewer", "operator", "admin"]
_ClientRole = Literal["viewer", "operator", "admin"]
_Name = Annotated[str, Parameter(help="Id of the relay or bank, or name of the person.")]


def init(
    *,
    admin: Annotated[
        str | None, Parameter(help="Name of the first admin. Without it: this user's.")
    ] = None,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Make a network with keys, on the broker's machine: the broker's key, and an admin's for you.

    For example:

        labmesh keys init
    """
    out, folder = options.out, folder_of(options)
    broker, owner = found_network(folder, admin or _user_name())
    note(options, folder, "init", owner.grant, broker=broker.pair.fingerprint)
    out.line(f"network {folder.network}: keys in {folder.path}")
    out.line(f"broker  fingerprint {broker.pair.fingerprint}")
    out.line(f"{owner.name}  fingerprint {owner.pair.fingerprint}  (admin)")
    if out.json:
        out.record(
            {
                "network": folder.network,
                "folder": str(folder.path),
                "broker": {"fingerprint": broker.pair.fingerprint},
                "admin": {"name": owner.name, "fingerprint": owner.pair.fingerprint},
            }
        )
    out.say("now start the broker here: labmesh broker")
    out.say("for each relay or bank on this machine: labmesh keys new relay ID")
    out.say("for each other machine or person, here: labmesh keys invite NAME --role ROLE")
    out.say("  (viewer, operator, admin, relay or bank), and there: labmesh keys join CODE")
    return DONE


def new(
    role: Annotated[_Kind, Parameter(help="What the key is for; a client has a --role.")],
    name: _Name,
    /,
    *,
    client_role: Annotated[
        _ClientRole | None, Parameter(name="--role", help="What a client may do.")
    ] = None,
    relays: Annotated[
        list[str] | None,
        Parameter(help="Relays that it may use, such as 'psu-*,Inst-0'. Without it: all."),
    ] = None,
    deny: Annotated[
        list[str] | None, Parameter(help="Patterns of methods that it may not call.")
    ] = None,
    address: Annotated[
        list[str] | None,
        Parameter(help="Networks (CIDR) that it may come from. Without it: any."),
    ] = None,
    until: Annotated[
        str | None, Parameter(help="The last day on which it is admitted, such as 2027-01-31.")
    ] = None,
    key: Annotated[
        Path | None,
        Parameter(help="Somebody's .pub file: admit that key, instead of making a pair here."),
    ] = None,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Make a key for a node or a person, and admit it where the broker runs.

    On another machine it only makes the key; its .pub file is then copied into the folder
    'authorized' of the broker's machine. 'labmesh keys invite' and 'join' do all that by a code.

    For example:

        labmesh keys new relay psu-1
        labmesh keys new viewer ana --relays 'psu-*' --until 2027-01-31
    """
    folder = folder_of(options)
    granted = _role(role, client_role)
    grant = checked_grant(
        Grant(
            name=name,
            role=granted,
            key=_NO_KEY,
            relays=_parts(relays),
            methods_deny=_parts(deny),
            addresses=_parts(address),
            not_after=None if until is None else parse_until(until),
        ),
        f"{granted} {name}",
    )
    decides = folder.keeps_list
    if not decides and (key is not None or grant != Grant(name=name, role=granted, key=_NO_KEY)):
        raise ConfigError(
            "who is admitted, and with which limits, is settled on the broker's machine: run this "
            "there, or leave --relays, --deny, --address, --until and --key out"
        )
    if folder.grant_of(grant.kind, name) is not None:
        raise Conflict(
            f"{grant.kind} {name} is admitted already: 'labmesh keys show {name}'; revoke or "
            "rotate its key first, or choose another name"
        )
    public = key_of_certificate(key) if key else folder.create(name, granted).public.decode()
    made = msgspec.structs.replace(grant, key=public)
    path = folder.authorize(made) if decides else None
    note(options, folder, "new", made)
    _tell_of_new(options.out, folder, made, path, is_own=key is None)
    return DONE


def _tell_of_new(
    out: Output, folder: KeyFolder, made: Grant, path: Path | None, *, is_own: bool
) -> None:
    secret, public = folder.secret_path(made.name), folder.public_path(made.name)
    out.line(f"{made.role} {made.name}  fingerprint {fingerprint(made.key)}")
    if out.json:
        files = {"secret": str(secret), "public": str(public)} if is_own else {}
        out.record(facts_of(made) | files | {"authorized": None if path is None else str(path)})
    if path is None:
        out.say(f"now have it admitted: copy {public}")
        out.say(f"  into authorized/{made.kind}/ of the folder of keys on the broker's machine")
        if not folder.broker_keys():
            out.say(f"and copy trusted/broker.pub of that machine into {folder.trusted}")
        return
    out.say("it is admitted from now on, within a second")
    if is_own:
        out.say(f"for use on another machine move {secret}")
        out.say(f"  into self/ of the folder of keys there (mode 600), and copy {folder.trusted}")
        out.say("  beside it; or, without moving secrets: labmesh keys invite and join")


def revoke(name: _Name, /, *, options: MeshOptions = _OPTIONS) -> int:
    """Refuse a key from now on, on the broker's machine. It ends connections that are open.

    For example:

        labmesh keys revoke ana
    """
    out, folder = options.out, folder_of(options)
    for each in folder.revoke(name):
        note(options, folder, "revoke", each)
        out.line(f"{each.role} {each.name}  fingerprint {fingerprint(each.key)}  revoked")
        if out.json:
            out.record(facts_of(each) | {"state": "revoked"})
    out.say("it holds within a second, also for who is connected now")
    out.say(f"the files are in {folder.revoked}: as long as they are there the key is refused")
    if options.settings.broker.spare:
        out.say(f"the spare broker ({options.settings.broker.spare}) still admits it: run this")
        out.say("  there as well, or a node that goes over to it admits the key again")
    return DONE


def rotate(
    name: _Name,
    /,
    *,
    finish: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Of the broker: use the new key, now that all machines trust it.",
        ),
    ] = False,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Replace one of this machine's own keys by a new one.

    The broker's key is replaced in two steps: 'rotate broker' makes the new one, which is copied to
    every machine; 'rotate broker --finish' uses it.

    For example:

        labmesh keys rotate psu-1
    """
    out, folder = options.out, folder_of(options)
    if finish and name != BROKER:
        raise ConfigError("--finish is for the broker's key: labmesh keys rotate broker --finish")
    done = finish_broker_rotation(folder) if finish else rotate_key(folder, name)
    fresh = done.identity
    note(options, folder, "rotate", fresh.grant, former=done.former.fingerprint)
    out.line(f"{fresh.role} {fresh.name}  fingerprint {fresh.pair.fingerprint}")
    out.line(f"{'':>{len(fresh.role)}} before  {done.former.fingerprint}")
    if out.json:
        facts = facts_of(fresh.grant)
        out.record(facts | {"before": done.former.fingerprint, "authorized": done.is_authorized})
    for line in _next_steps(folder, done):
        out.say(line)
    return DONE


def _next_steps(folder: KeyFolder, done: Rotated) -> list[str]:
    fresh = done.identity
    if fresh.name == NEXT_BROKER:
        return [
            f"now copy {folder.trusted / f'{NEXT_BROKER}.pub'}",
            "  into trusted/ of the folder of keys on every other machine; then run here:",
            "  labmesh keys rotate broker --finish",
        ]
    if fresh.role == "broker":
        return ["now restart the broker; machines that do not trust this key are refused by it"]
    if done.is_authorized:
        return [f"the former key is revoked; now restart {fresh.name}, and what else uses it"]
    return [
        f"now copy {folder.public_path(fresh.name)}",
        f"  over authorized/{fresh.grant.kind}/{fresh.name}.pub of the folder of keys on the "
        "broker's machine,",
        "  and restart what uses the key. Whoever has the former one is refused from then on",
    ]


def _parts(texts: list[str] | None) -> tuple[str, ...]:
    """Several options, or one with commas."""
    pieces = (piece.strip() for text in texts or () for piece in text.split(","))
    return tuple(piece for piece in pieces if piece)


def _role(kind: _Kind, client_role: _ClientRole | None) -> Role:
    if kind == "client":
        return client_role or "viewer"
    if client_role is not None:
        raise ConfigError(f"--role is for a client; {kind} says it already")
    return kind


def _user_name() -> str:
    """This user's name as an id; ``admin`` where it is none."""
    try:
        name = _NO_ID.sub("-", getpass.getuser()).strip("-._")[:64]
        return check_id(name)
    except (OSError, KeyError, ImportError, ProtocolError):  # the system knows no name
        return "admin"
