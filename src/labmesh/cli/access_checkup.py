"""What ``labmesh doctor`` finds out about keys and passwords. Each check gives findings; none
raises.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from labmesh.access.folder_check import check_folder
from labmesh.access.guard import identity_of
from labmesh.access.keyring import KeyFolder
from labmesh.cli import assembly
from labmesh.cli.checkup import FAIL, OK, WARN, Finding
from labmesh.config import Config
from labmesh.errors import ConfigError, LabmeshError, NotFound
from labmesh.protocol.addresses import parse_bind
from labmesh.transport.key_pairs import NetworkKeys
from labmesh.transport.keys import MIN_PASSWORD, Security
from labmesh.transport.link import Link
from labmesh.transport.reasons import bearer
from labmesh.transport.sockets import Sockets

__all__ = ["binds", "keys", "near_password", "protection"]

_DEFAULT_NETWORK = "labmesh"
_TRY_S = 1.0


def protection(security: Security) -> Finding:
    """Who may connect to nodes that are started here?

    :param security: of a client on this computer.
    """
    if security.guard is not None:
        text = f"keys: commands here have that of {bearer(security.guard.user)}"
        return Finding(OK, "security", f"{text}, network {security.network!r}")
    if security.mode == "password":
        if security.short_password:
            text = f"the network password has fewer than {MIN_PASSWORD} characters"
            advice = "whoever records the network can guess it: 'labmesh password new' makes one"
            return Finding(WARN, "security", text, advice)
        text = f"password set: everything is encrypted, network {security.network!r}"
        return Finding(OK, "security", text)
    if security.insecure:
        text = "open and insecure: every computer of this network may use every instrument"
        return Finding(WARN, "security", text, "set LMH_NETWORK_PASSWORD on every node instead")
    text = "no password: only programs on this computer are let in"
    return Finding(OK, "security", text)


def binds(security: Security, config: Config) -> Iterator[Finding]:
    """Would a node of the file refuse to listen where it is to, for a password that is short?"""
    for key, bind in assembly.binds(config).items():
        try:
            security.check_bind(parse_bind(bind), key)
        except ConfigError as exc:
            yield Finding(FAIL, "security", str(exc), "run 'labmesh password new'")


def keys(security: Security, config: Config) -> Iterator[Finding]:
    """Is the folder of keys as it has to be, and has each relay of the file a key?"""
    if security.folder is None:
        return
    folder = KeyFolder(security.folder, security.network)
    if security.mode != "keys" and not folder.exists:
        return
    for fault in check_folder(folder):
        if fault.level == "wrong":
            yield Finding(FAIL, "keys", fault.text, "mend it, and look again: labmesh keys check")
        else:
            advice = (
                "if it is not meant so: 'labmesh keys list' shows them all, 'labmesh keys invite "
                "NAME' on the broker's machine brings in a new one"
            )
            yield Finding(WARN, "keys", fault.text, advice)
    if not folder.exists:
        return
    for entry in config.relays:
        try:
            identity_of(folder, "relay", entry.id)
        except NotFound as exc:
            advice = f"make one: labmesh keys new relay {entry.id}"
            yield Finding(FAIL, "keys", f"relay {entry.id} of the file has no key: {exc}", advice)
        except ConfigError as exc:
            yield Finding(FAIL, "keys", str(exc), "give the relay a key of its own")


# ── passwords that nearly fit ───────────────────────────────────────────────────────────────────


async def near_password(security: Security, endpoint: str) -> Finding | None:
    """What to change about this computer's password so that it fits there; None: not known."""
    word = os.environ.get("LMH_NETWORK_PASSWORD", "")
    tries = [
        asyncio.ensure_future(_fitting(security, each, endpoint))
        for each in _variants(word, security.network)
    ]
    try:
        for tried in asyncio.as_completed(tries):
            near = await tried
            if near is not None:  # those that do not fit take a second each to say so
                return near.finding
        return None
    finally:
        for each in tries:
            each.cancel()
        await asyncio.gather(*tries, return_exceptions=True)


class _Near(NamedTuple):
    word: str
    network: str
    text: str
    advice: str

    @property
    def finding(self) -> Finding:
        return Finding(FAIL, "password", self.text, self.advice)


def _variants(word: str, network: str) -> list[_Near]:
    """Words that may have been meant, each with its network and what to say of it."""
    capitals = "the password differs from the network's in capital letters alone"
    blanks = "the password differs from the network's in blanks alone"
    found = [
        _Near(word.swapcase(), network, capitals, "is Caps Lock on? Type it again"),
        _Near(word.lower(), network, capitals, "type it in small letters"),
        _Near(word.capitalize(), network, capitals, "begin it with a capital letter"),
        _Near(" ".join(word.split()), network, blanks, "type one blank between two words"),
        _Near("".join(word.split()), network, blanks, "type it without blanks"),
        _Near(
            word.strip().strip("'\""),
            network,
            "the password has quotation marks around it that the network's has not",
            "remove them: a file of variables takes them for part of the word",
        ),
        _Near(
            word,
            _DEFAULT_NETWORK,
            f"the password fits, the name of the network does not: it is {_DEFAULT_NETWORK!r} "
            f"there, and {network!r} here",
            f"set LMH_NETWORK={_DEFAULT_NETWORK}",
        ),
    ]
    fresh: dict[tuple[str, str], _Near] = {}
    for each in found:
        fresh.setdefault((each.word.strip(), each.network), each)
    fresh.pop((word.strip(), network), None)
    return list(fresh.values())


async def _fitting(security: Security, near: _Near, endpoint: str) -> _Near | None:
    """This word, when it opens the network there."""
    derived = await asyncio.to_thread(NetworkKeys.from_password, near.word, near.network)
    sockets = Sockets(replace(security, keys=derived, network=near.network), "doctor")
    link = Link(sockets, endpoint, where="the broker")
    try:
        await link.wait_up(_TRY_S)
    except LabmeshError:
        return None  # not this word either: the answer to the question
    finally:
        link.close()
        sockets.close_all()
    return near
