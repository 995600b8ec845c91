"""Two commands that bring a machine into a network: ``keys invite`` here, ``keys join`` there."""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
import time
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from typing import Annotated

from cyclopts import Parameter

from labmesh.access.guard import guard_of
from labmesh.access.keyring import KeyFolder
from labmesh.access.pairing import enter, terms_for
from labmesh.cli.audit import note, note_invited
from labmesh.cli.keys import folder_of
from labmesh.cli.options import MeshOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.running import run
from labmesh.client import DirectorClientAgent
from labmesh.errors import (
    AuthenticationError,
    ConfigError,
    Forbidden,
    LinkLost,
    NoAnswer,
)
from labmesh.protocol.addresses import Address, check_host, is_loopback, parse_bind
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import Grant, fingerprint
from labmesh.protocol.pairing import (
    DEFAULT_PORT,
    MAX_WRONG_CODES,
    SECRET_BYTES,
    GuestRole,
    Invitation,
    PairingCode,
    Terms,
    parse_code,
)
from labmesh.transport.joining import Joining
from labmesh.transport.keys import Security, keys_folder, network_name
from labmesh.transport.pairing import OpenInvitation

__all__ = ["invite", "join"]

_OPTIONS = MeshOptions()
_MAX_MINUTES = 60.0
#: A broker reads the allow-list again within a second.
_CHECK_S, _LOOK_S = 3.0, 0.2
#: Never routed (RFC 5737); nothing is sent.
_SOMEWHERE_ELSE = ("192.0.2.1", 9)

_MAY = {
    "viewer": "look at the mesh, download datasets and call methods that only read",
    "operator": "use instruments, take leases and store datasets",
    "admin": "use instruments, store and delete datasets, and break leases",
    "relay": "offer an instrument under this id",
    "bank": "keep datasets under this id",
}


# ── invite ──────────────────────────────────────────────────────────────────────────────────────


def invite(
    name: Annotated[str, Parameter(help="Who is invited; of a relay or bank, its id.")],
    /,
    *,
    role: Annotated[
        GuestRole,
        Parameter(
            help="viewer: looks and downloads; operator: also uses instruments and stores "
            "datasets; admin: also deletes and breaks leases; relay, bank: is that node."
        ),
    ],
    relays: Annotated[
        str,
        Parameter(
            show_default=False,
            help="The relays that it may use, such as 'psu-*,Inst-0'. Without it: all.",
        ),
    ] = "",
    minutes: Annotated[float, Parameter(help="The code is good for so long.")] = 10.0,
    host: Annotated[
        str | None,
        Parameter(help="Where the other machine reaches this one. Without it: found out."),
    ] = None,
    port: Annotated[int, Parameter(help="The port where the invitation is open.")] = DEFAULT_PORT,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Invite a machine into this network: prints one short code, and waits until it was used.

    Run it on the machine, and as the user, of the broker. The code is good once. Whoever has it is
    admitted in place of whom you meant: tell it to nobody else.

    For example:

        labmesh keys invite ana --role operator
        labmesh keys invite psu-1 --role relay --minutes 30
    """
    _check_invitation(name, minutes, port)
    folder = folder_of(options)
    listening = parse_bind(options.settings.broker.rpc_bind)
    if not listening.port:
        raise ConfigError(
            "[broker] rpc_bind has no definite port, so that nobody could be told where the broker "
            "is; give it one, such as tcp://*:5750"
        )
    terms = terms_for(
        *(folder, name, role),
        broker_port=listening.port,
        relays=[each for each in (part.strip() for part in relays.split(",")) if each],
    )
    place = _reachable(host, options)
    code = PairingCode(_ipv4(place), port, secrets.token_bytes(SECRET_BYTES))
    with OpenInvitation(code, Address(_bind_host(place), port)) as opened:
        note_invited(options, folder, terms.name, role=terms.role, minutes=minutes)
        _tell(code, place, terms, minutes, options)
        _warn(folder, terms, place, listening, options)
        invitation = Invitation(terms, ends_at=time.monotonic() + minutes * 60)
        return _wait(opened, invitation, folder, minutes, options)


def _check_invitation(name: str, minutes: float, port: int) -> None:
    check_id(name, "the name")
    if not 0 < minutes <= _MAX_MINUTES:
        raise ConfigError(f"--minutes takes minutes, more than 0 and at most {_MAX_MINUTES:g}")
    if not 0 < port < 65_536:
        raise ConfigError("--port takes a number from 1 to 65535")


def _wait(
    opened: OpenInvitation,
    invitation: Invitation,
    folder: KeyFolder,
    minutes: float,
    options: MeshOptions,
) -> int:
    name, out = invitation.terms.name, options.out

    def authorize(grant: Grant, address: str) -> None:
        folder.authorize(grant)
        note(options, folder, "join", grant, address=address)
        mark = fingerprint(grant.key)
        out.say(f"{grant.role} {name} has joined from {address}; its key is {mark}")
        out.say(f"If that was somebody else: labmesh keys revoke {name}")
        if out.json:
            facts = {"name": name, "role": grant.role, "address": address, "fingerprint": mark}
            out.record({"event": "joined", **facts})

    ending = opened.wait(invitation, authorize)
    if invitation.admitted is not None:
        if ending != "joined":
            out.say(f"{name} did not say that it has everything: have it try 'labmesh ls'")
        return DONE
    if ending == "expired":
        raise NoAnswer(
            f"{name} did not join within {minutes:g} min; the code is void: invite again"
        )
    raise Forbidden(
        f"{MAX_WRONG_CODES} connections came with a wrong code, so the invitation is over and "
        "nobody was admitted; see who that was, and invite again on another --port"
    )


def _tell(
    code: PairingCode, place: str, terms: Terms, minutes: float, options: MeshOptions
) -> None:
    out = options.out
    named = [] if code.host else ["--broker", place]
    until = datetime.now() + timedelta(minutes=minutes)
    out.say(f"On the other machine, until {until:%H:%M:%S}:")
    out.say(f"    {' '.join(['labmesh keys join', code.text, *named])}")
    out.say(f"It becomes {terms.role} {terms.name}. Ctrl-C ends the invitation. The code:")
    out.line(code.text)
    if out.json:
        facts = {"name": terms.name, "role": terms.role, "host": place, "port": code.port}
        out.record({"event": "invited", "code": code.text, **facts, "minutes": minutes})


def _warn(
    folder: KeyFolder, terms: Terms, place: str, listening: Address, options: MeshOptions
) -> None:
    if is_loopback(place):
        options.out.trouble(
            f"warning: {place} is this machine alone, so that no other can join; give --host an "
            "address of it that others reach"
        )
    elif is_loopback(listening.host):
        options.out.trouble(
            f"warning: the broker listens at {listening.host} alone, where no other machine "
            "reaches it; see [broker] rpc_bind"
        )
    kind = terms.role if terms.role in ("relay", "bank") else "client"
    if folder.grant_of(kind, terms.name) is not None:
        options.out.trouble(
            f"warning: {terms.name} has a key already; another one that joins replaces it, and it "
            "is revoked"
        )


def _reachable(host: str | None, options: MeshOptions) -> str:
    """Where others reach this machine: what was said, else the interface that leads elsewhere."""
    if host is not None:
        return check_host(host, "--host")
    named = options.settings.broker.address
    if not is_loopback(named):
        return named
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(_SOMEWHERE_ELSE)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _ipv4(host: str) -> str:
    """The host where a code can have it; else empty."""
    try:
        return str(IPv4Address(host))
    except ValueError:
        return ""


def _bind_host(host: str) -> str:
    if is_loopback(host):
        return host if ":" in host else "127.0.0.1"
    return "::" if ":" in host else "0.0.0.0"


# ── join ────────────────────────────────────────────────────────────────────────────────────────


def join(
    code: Annotated[
        str | None, Parameter(help="What 'labmesh keys invite' printed. Without it: asked for.")
    ] = None,
    /,
    *,
    broker: Annotated[
        str | None,
        Parameter(help="The machine that invites, where it is not the address in the code."),
    ] = None,
    name: Annotated[
        str | None, Parameter(help="Join as this one only: refuse an invitation of another name.")
    ] = None,
    options: MeshOptions = _OPTIONS,
) -> int:
    """Join a network with a code: makes a key here, trusts the broker, and is admitted.

    For example:

        labmesh keys join 1R2M-022G-PF7Z-ZZZZ-ZZZZ-ZZZZ-ZZWC
        labmesh keys join --broker lab-pc
    """
    parsed = parse_code(_asked() if code is None else code)
    with Joining(parsed, "" if broker is None else check_host(broker, "--broker")) as joining:
        terms = joining.ask()
        if name is not None and name != terms.name:
            raise ConfigError(
                f"this invitation is for {terms.name}, not for {name}: nothing was changed"
            )
        _check_network(terms, options)
        folder = KeyFolder(
            keys_folder(terms.network, options.settings.security.keys_dir), terms.network
        )
        place = Address(joining.host, terms.broker_port)
        pair = enter(folder, terms, place, joining)
    mark = fingerprint(pair.public.decode())
    out = options.out
    out.line(f"You are {terms.role} {terms.name} of network {terms.network} now; key {mark}.")
    out.say(f"May: {_MAY[terms.role]}.")
    if terms.relays:
        out.say(f"Only with: {', '.join(terms.relays)}.")
    out.say(f"The broker is at {place}, its key is {fingerprint(terms.broker_keys[0])}.")
    trouble = run(_trouble(folder, terms, place))
    if trouble:
        out.trouble(f"not checked yet: {trouble}")
    else:
        out.say("The broker has let this key in.")
    _next_steps(terms, options)
    if out.json:
        facts = {"name": terms.name, "role": terms.role, "network": terms.network}
        found = {"broker": str(place), "fingerprint": mark, "folder": str(folder.path)}
        out.record({"event": "joined", **facts, **found, "checked": not trouble})
    return DONE


def _asked() -> str:
    """The code from the keyboard, or from whoever is piped in."""
    if sys.stdin is None or sys.stdin.closed:
        raise ConfigError("no code was given: labmesh keys join CODE")
    if sys.stdin.isatty():
        print("The code: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


def _check_network(terms: Terms, options: MeshOptions) -> None:
    """The invitation must not be for another network than this machine is set up for."""
    check_id(terms.network, "the network's name")
    here = network_name(options.settings.security.network)
    if here not in ("labmesh", terms.network):
        raise ConfigError(
            f"this is an invitation to network {terms.network}, and this machine is set up for "
            f"{here}: unset LMH_NETWORK (or [security] network), or set it to {terms.network}"
        )


async def _trouble(folder: KeyFolder, terms: Terms, place: Address) -> str:
    """Connect to the broker with the new key; why that failed, or nothing."""
    own = {"LMH_IDENTITY": terms.name}
    security = Security("keys", folder.network, folder=folder.path).for_node(
        "client", terms.name, lambda keys, kind, node_id: guard_of(keys, kind, node_id, own)
    )
    deadline = time.monotonic() + _CHECK_S
    while True:
        client = DirectorClientAgent(broker_rpc=str(place), security=security)
        try:
            await client.connect(timeout=1.0)
        except AuthenticationError as exc:
            if time.monotonic() > deadline:
                return str(exc)
            # A broker reads its allow-list a few times a second.
            await asyncio.sleep(_LOOK_S)
        except LinkLost:
            return f"no broker answers at {place} yet; 'labmesh broker' starts it there"
        else:
            return ""
        finally:
            await client.close()


def _next_steps(terms: Terms, options: MeshOptions) -> None:
    named = "" if terms.network == "labmesh" else f"LMH_NETWORK={terms.network} "
    step = {
        "relay": f"labmesh relay module:Class --id {terms.name}",
        "bank": f"labmesh bank --id {terms.name}",
    }.get(terms.role, "labmesh ls")
    options.out.say(f"Next: {named}{step}")
