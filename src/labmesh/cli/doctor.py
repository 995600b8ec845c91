"""``labmesh doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from labmesh.cli import access_checkup, checkup, mesh_checkup
from labmesh.cli.checkup import FAIL, OK, WARN, Finding
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE, FAILED, outcome_of
from labmesh.cli.output import Output
from labmesh.cli.running import connected, run
from labmesh.config import Config
from labmesh.errors import AuthenticationError, ConfigError, LabmeshError, LinkLost
from labmesh.node import security_of_node
from labmesh.protocol.addresses import Address
from labmesh.transport.greeting import greeting_at
from labmesh.transport.keys import Security

__all__ = ["doctor", "examine"]

_OPTIONS = ClientOptions()
_CLOCKS_S = 2.5
_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def doctor(*, options: ClientOptions = _OPTIONS) -> int:
    """Check this installation, its configuration and the mesh; say what to do about each trouble.

    Each line is ok, warn or FAIL. The exit code is 0 when nothing is FAIL, else 1. With --json one
    finding a line.

    For example:

        labmesh doctor
        labmesh doctor --broker lab-pc --json
    """
    findings = run(_printed(options))
    worst = [each.level for each in findings]
    if FAIL in worst:
        options.out.say(f"{worst.count(FAIL)} of {len(findings)} checks failed.")
        return FAILED
    options.out.say(f"{len(findings)} checks, {worst.count(WARN)} warnings, no failure.")
    return DONE


async def _printed(options: ClientOptions) -> list[Finding]:
    findings = []
    async for finding in examine(options):
        findings.append(finding)
        _print(finding, options.out)
    return findings


def _print(finding: Finding, out: Output) -> None:
    if out.json:
        out.record(finding._asdict())
        return
    out.line(f"{finding.level:<4}  {finding.check:<14} {finding.text}", _STYLES[finding.level])
    if finding.advice:
        out.line(f"      {'':<14} {finding.advice}")


async def examine(options: ClientOptions) -> AsyncIterator[Finding]:
    """All findings, one after the other; what stands in the way of the rest ends it."""
    for finding in checkup.installation():
        yield finding
    try:
        config = options.settings
        yield checkup.file_is_valid(config)
    except ConfigError as exc:
        yield Finding(FAIL, "configuration", str(exc), "correct it; 'labmesh init' shows each key")
        return
    for finding in checkup.wiring(config):
        yield finding
    yield checkup.folder(config)
    yield checkup.descriptors()
    try:
        security = options.security
    except ConfigError as exc:
        yield Finding(FAIL, "security", str(exc), "correct the variable, or [security] of the file")
        return
    for finding in access_checkup.keys(security, config):
        yield finding
    try:
        own = security_of_node(security, "client", "doctor")
    except ConfigError as exc:
        yield Finding(FAIL, "security", str(exc), "then run 'labmesh keys check'")
        return
    yield access_checkup.protection(own)
    for finding in access_checkup.binds(security, config):
        yield finding
    async for finding in _ports(config, own):
        yield finding
    async for finding in _mesh(options, own):
        yield finding


async def _ports(config: Config, security: Security) -> AsyncIterator[Finding]:
    """Is each port of the file free, or held by labmesh?"""
    held = checkup.ports_held(config)
    if not held:
        yield Finding(OK, "ports", "every port of the configuration is free on this computer")
        return
    ours = await checkup.labmesh_ports(security, held)
    for each in held:
        if each.port in ours:
            yield Finding(OK, f"port {each.port}", f"{each.key}: {ours[each.port]} holds it")
            continue
        met = await greeting_at(str(Address(each.host, each.port)))
        yield checkup.held_by_another(each, met, is_in_file=config.path is not None)


async def _mesh(options: ClientOptions, security: Security) -> AsyncIterator[Finding]:
    """Is there a broker, is everybody reachable, do the clocks agree?"""
    try:
        async with connected(options) as client:
            found = await mesh_checkup.broker(client)
            yield found
            if found.level == FAIL:
                return
            for finding in await mesh_checkup.other_broker(client):
                yield finding
            nodes = await client.list_nodes()
            if not nodes:
                advice = "start one: labmesh relay module:Class, labmesh bank, or labmesh up"
                yield Finding(WARN, "nodes", "nobody is registered with the broker", advice)
                return
            for finding in await asyncio.gather(*(mesh_checkup.node(client, n) for n in nodes)):
                yield finding
            for finding in mesh_checkup.unreachable_elsewhere(nodes, client.broker_rpc):
                yield finding
            yield await mesh_checkup.clocks(client, _CLOCKS_S)
    except LabmeshError as exc:
        yield _no_broker(exc)
        for finding in await _closer_look(exc, options, security):
            yield finding


def _no_broker(exc: LabmeshError) -> Finding:
    if isinstance(exc, LinkLost):
        advice = "start one (labmesh up, labmesh broker), or name another (--broker, LMH_BROKER)"
    elif isinstance(exc, AuthenticationError):
        advice = "all nodes and scripts of a network have the same mode: see docs/security.md"
    else:
        advice = outcome_of(exc).advice
    return Finding(FAIL, "broker", str(exc), advice)


async def _closer_look(
    exc: LabmeshError, options: ClientOptions, security: Security
) -> list[Finding]:
    """What can be found out beyond why the broker did not let this client in."""
    endpoint = options.candidate.rpc
    is_refused = isinstance(exc, AuthenticationError)
    looks = []
    if is_refused or exc.detail.get("met") == "ZeroMQ":
        looks.append(mesh_checkup.wrong_door(security, endpoint))
    if is_refused and security.mode == "password":
        looks.append(access_checkup.near_password(security, endpoint))
    return [each for each in await asyncio.gather(*looks) if each is not None]
