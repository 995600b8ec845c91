"""What ``labmesh doctor`` finds out about this computer. Each check gives findings; none raises."""

from __future__ import annotations

import asyncio
import errno
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import labmesh
from labmesh.cli import assembly
from labmesh.cli.output import size
from labmesh.config import Config
from labmesh.errors import LabmeshError
from labmesh.protocol.addresses import Address, parse_bind
from labmesh.protocol.messages import GetStatus, Status
from labmesh.transport.greeting import Greeting
from labmesh.transport.keys import Security
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets, curve_available, versions

__all__ = [
    "FAIL",
    "OK",
    "WARN",
    "Finding",
    "HeldPort",
    "descriptors",
    "file_is_valid",
    "folder",
    "held_by_another",
    "installation",
    "labmesh_ports",
    "ports_held",
    "wiring",
]

Level = Literal["ok", "warn", "FAIL"]
OK: Level = "ok"
WARN: Level = "warn"
FAIL: Level = "FAIL"

_LITTLE_ROOM, _NO_ROOM = 1_000_000_000, 50_000_000
_FEW_DESCRIPTORS = 1024
_ASK_S = 1.0


class Finding(NamedTuple):
    """One line of the doctor: what was found, and what to do about it."""

    level: Level
    check: str
    text: str
    advice: str = ""


class HeldPort(NamedTuple):
    """A port of the configuration that some program listens on."""

    key: str
    host: str
    port: int


def installation() -> Iterator[Finding]:
    """Versions, and what libzmq was built with."""
    python = f"{platform.python_version()} at {sys.executable}"
    yield Finding(OK, "python", python)
    zmq = versions()
    parts = f"pyzmq {zmq['pyzmq']}, libzmq {zmq['libzmq']}, msgspec {version('msgspec')}"
    yield Finding(OK, "labmesh", f"{labmesh.__version__} with {parts}")
    if curve_available():
        yield Finding(OK, "encryption", "libzmq has CURVE")
    else:
        advice = "install pyzmq from its wheels: pip install --force-reinstall pyzmq"
        text = "libzmq was built without CURVE: neither keys nor a network password are possible"
        yield Finding(WARN, "encryption", text, advice)


def file_is_valid(config: Config) -> Finding:
    """The file was read, or there is none."""
    if config.path is None:
        return Finding(OK, "configuration", "no labmesh.toml here: every key has its default")
    count = len(config.relays)
    return Finding(OK, "configuration", f"{config.path} is valid, with {count} [[relays]]")


def wiring(config: Config) -> Iterator[Finding]:
    """Do the nodes of the file look for the broker where it listens?"""
    for text in assembly.mismatches(config):
        yield Finding(WARN, "configuration", text, "correct the one that is wrong")


def folder(config: Config) -> Finding:
    """Can a bank keep datasets where the file says?"""
    place = Path(config.bank.default_data_dir).absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    key = "[bank] default_data_dir"
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as exc:
        level = FAIL if config.path else WARN
        text = f"{place} ({key}) cannot be written: {exc.strerror}"
        return Finding(level, "data folder", text, "change its rights, or name another folder")
    if free < _LITTLE_ROOM:
        level = FAIL if free < _NO_ROOM else WARN
        text = f"{place} ({key}) has {size(free)} left"
        return Finding(level, "data folder", text, "make room, or name a folder on another disk")
    return Finding(OK, "data folder", f"{place} can be written, {size(free)} free")


def descriptors() -> Finding:
    """How many connections may a process hold?"""
    try:
        import resource
    except ImportError:  # Windows: it has no such limit
        return Finding(OK, "open files", "this system has no limit")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _FEW_DESCRIPTORS:
        advice = f"raise it: ulimit -Hn {4 * _FEW_DESCRIPTORS} (or LimitNOFILE= of the service)"
        return Finding(WARN, "open files", f"at most {hard}: few connections", advice)
    limit = "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}"
    return Finding(OK, "open files", limit)


# ── ports ───────────────────────────────────────────────────────────────────────────────────────


def ports_held(config: Config) -> list[HeldPort]:
    """The ports of the configuration that are not free."""
    places = [(key, parse_bind(bind)) for key, bind in assembly.binds(config).items()]
    return [
        HeldPort(key, "127.0.0.1" if place.is_wildcard else place.host, place.port)
        for key, place in places
        if place.port and _is_held(place)
    ]


def _is_held(place: Address) -> bool:
    family = socket.AF_INET6 if place.is_ipv6 else socket.AF_INET
    host = "" if place.is_wildcard else place.host
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":  # there it would take a port that is held
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, place.port))
        except OSError as exc:
            return exc.errno == errno.EADDRINUSE
    return False


def held_by_another(held: HeldPort, met: Greeting, *, is_in_file: bool) -> Finding:
    """Somebody holds a port of the configuration who did not answer as a node of this mesh."""
    if met.found == "ZeroMQ":
        return Finding(
            WARN,
            f"port {held.port}",
            f"{held.key}: a node holds it that does not let commands here in, or a broker's events",
            "if it is not meant so, stop it, or write another port, or *, into the file",
        )
    said = f" (it says {met.said!r})" if met.found == "other" else ""
    return Finding(
        FAIL if is_in_file else WARN,
        f"port {held.port}",
        f"{held.key}: a program holds it that is not labmesh, or stands still{said}",
        "stop that program, or write another port, or *, into the file",
    )


async def labmesh_ports(security: Security, held: Sequence[HeldPort]) -> dict[int, str]:
    """Who of the mesh holds which port, as far as they answer."""
    sockets = Sockets(security, "doctor")
    try:
        answers = await asyncio.gather(*(_asked(sockets, each) for each in held))
    finally:
        sockets.close_all()
    return {port: name for answer in answers for port, name in answer.items()}


async def _asked(sockets: Sockets, held: HeldPort) -> dict[int, str]:
    link = Link(sockets, str(Address(held.host, held.port)), where="whoever listens")
    try:
        await link.wait_up(_ASK_S)
        status = await link.request(GetStatus(id="-"), Status, timeout=_ASK_S)
    except LabmeshError:
        # Not a node of this mesh, which is the answer to the question.
        return {}
    finally:
        link.close()
    name = status.kind if status.kind == "broker" else f"{status.kind} {status.node_id}"
    others = (status.facts.get("xsub_port"), status.facts.get("xpub_port"))
    return {held.port: name, **{each: name for each in others if isinstance(each, int)}}
