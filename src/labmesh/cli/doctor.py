"""``labmesh doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from labmesh.cli import checkup
from labmesh.cli.checkup import FAIL, OK, WARN, Finding
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE, FAILED, outcome_of
from labmesh.cli.output import Output, age
from labmesh.cli.running import connected, run
from labmesh.client import DirectorClientAgent
from labmesh.config import Config
from labmesh.errors import ConfigError, LabmeshError, LinkLost
from labmesh.events.reading import Reading
from labmesh.protocol.addresses import is_loopback, parse_connect
from labmesh.protocol.messages import NodeRecord, Ping, Pong, Status

__all__ = ["doctor"]

_OPTIONS = ClientOptions()
_PING_S = 2.0
_CLOCKS_S = 2.5
_CLOCK_DIFFERENCE_S = 2.0
_STYLES = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def doctor(*, options: ClientOptions = _OPTIONS) -> int:
    """Check this installation, its configuration and the mesh; say what to do about each trouble.

    Each line is ok, warn or FAIL. The exit code is 0 when nothing is FAIL, else 1. With --json one
    finding a line.

    For example:

        labmesh doctor
        labmesh doctor --broker lab-pc --json
    """
    findings = run(_examine(options))
    worst = [each.level for each in findings]
    if FAIL in worst:
        options.out.say(f"{worst.count(FAIL)} of {len(findings)} checks failed.")
        return FAILED
    options.out.say(f"{len(findings)} checks, {worst.count(WARN)} warnings, no failure.")
    return DONE


async def _examine(options: ClientOptions) -> list[Finding]:
    findings = []
    async for finding in _all(options):
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


async def _all(options: ClientOptions) -> AsyncIterator[Finding]:
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
    yield checkup.protection(security)
    async for finding in _ports(config, options):
        yield finding
    async for finding in _mesh(options):
        yield finding


async def _ports(config: Config, options: ClientOptions) -> AsyncIterator[Finding]:
    """Is each port of the file free, or held by labmesh?"""
    held = checkup.ports_held(config)
    if not held:
        yield Finding(OK, "ports", "every port of the configuration is free on this computer")
        return
    ours = await checkup.labmesh_ports(options.security, held)
    for each in held:
        if each.port in ours:
            yield Finding(OK, f"port {each.port}", f"{each.key}: {ours[each.port]} holds it")
            continue
        yield Finding(
            FAIL if config.path else WARN,
            f"port {each.port}",
            f"{each.key}: a program holds it that does not answer: it is not labmesh, stands "
            "still, or has another password",
            "stop that program, or write another port, or *, into the file",
        )


async def _mesh(options: ClientOptions) -> AsyncIterator[Finding]:
    """Is there a broker, is everybody reachable, do the clocks agree?"""
    try:
        async with connected(options) as client:
            yield await _broker(client)
            for finding in await _other_broker(client):
                yield finding
            nodes = await client.list_nodes()
            if not nodes:
                advice = "start one: labmesh relay module:Class, labmesh bank, or labmesh up"
                yield Finding(WARN, "nodes", "nobody is registered with the broker", advice)
                return
            for finding in await asyncio.gather(*(_node(client, each) for each in nodes)):
                yield finding
            for finding in _unreachable_elsewhere(nodes, client.broker_rpc):
                yield finding
            yield await _clocks(client)
    except LabmeshError as exc:
        yield Finding(FAIL, "broker", str(exc), _what_to_try(exc))


def _what_to_try(exc: LabmeshError) -> str:
    if isinstance(exc, LinkLost):
        return "start one (labmesh up, labmesh broker), or name another one (--broker, LMH_BROKER)"
    return outcome_of(exc).advice


async def _broker(client: DirectorClientAgent) -> Finding:
    began = time.perf_counter()
    status: Status = await client.broker_status()
    seconds = time.perf_counter() - began
    facts = status.facts
    return Finding(
        OK,
        "broker",
        f"{client.health().endpoint} answers in {age(seconds)}, up for {age(status.uptime_s)}: "
        f"{facts.get('relays')} relays, {facts.get('banks')} banks, security "
        f"{facts.get('security')}",
    )


async def _other_broker(client: DirectorClientAgent) -> list[Finding]:
    """Where there are two brokers: does the one answer that is not followed?"""
    brokers = client.brokers
    if len(brokers) == 1:
        return []
    followed = client.health().endpoint
    (other,) = (each for each in brokers if each.endpoint != followed)
    name = "spare broker" if other.endpoint == client.spare_rpc else "first broker"
    try:
        await client.wait_for_broker(other.endpoint, _PING_S)
    except LabmeshError as exc:
        advice = (
            "start it (labmesh broker --spare)"
            if name == "spare broker"
            else "start it again (labmesh broker); the clients stay with the spare meanwhile"
        )
        text = f"{other.endpoint} does not answer, {followed} is followed: {exc}"
        return [Finding(WARN, name, text, advice)]
    return [Finding(OK, name, f"{other.endpoint} answers; {followed} is followed")]


async def _node(client: DirectorClientAgent, record: NodeRecord) -> Finding:
    """Does a listed node answer at each place that it advertises?"""
    check = f"{record.kind} {record.node_id}"
    try:
        began = time.perf_counter()
        for endpoint in record.endpoints:
            await client.request(
                record.node_id, Ping(id="-"), Pong, timeout=_PING_S, endpoint=endpoint
            )
        seconds = (time.perf_counter() - began) / len(record.endpoints)
    except LabmeshError as exc:
        advice = (
            f"is it running on {record.host} (pid {record.pid})? Does a firewall between here and "
            "there let its port through? Is its [relay] or [bank] default_address right?"
        )
        return Finding(FAIL, check, f"is listed, but not reached: {exc}", advice)
    text = f"answers in {age(seconds)} at {', '.join(record.endpoints.values())}"
    if record.state != "live":
        return Finding(WARN, check, f"{text}, but its heartbeats are late", "look at its log")
    return Finding(OK, check, text)


def _unreachable_elsewhere(nodes: list[NodeRecord], broker: str) -> Iterator[Finding]:
    """A node that advertises a loopback address while the broker serves a whole network."""
    if is_loopback(parse_connect(broker).host):
        return
    for record in nodes:
        hosts = {parse_connect(each).host for each in record.endpoints.values()}
        if any(is_loopback(each) for each in hosts):
            table = "[relay]" if record.kind == "relay" else "[bank]"
            yield Finding(
                WARN,
                f"{record.kind} {record.node_id}",
                f"advertises {', '.join(sorted(hosts))}: only programs on {record.host} reach it",
                f"write the address of {record.host} into {table} default_address there",
            )


async def _clocks(client: DirectorClientAgent) -> Finding:
    """Compare this clock with that of each relay, by states that were sent just now."""
    first: dict[str, int] = {}
    differences: dict[str, float] = {}
    heard = asyncio.Event()

    def take(reading: Reading) -> None:
        known = first.setdefault(reading.relay_id, reading.sequence)
        if reading.sequence != known:  # the first one may have been kept by the broker for long
            differences.setdefault(reading.relay_id, time.time() - reading.time)
            if len(differences) == len(first):
                heard.set()

    subscription = client.on_reading(take)
    # Silent relays are no trouble of the clocks: those that were heard are compared.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOCKS_S):
            await heard.wait()
    subscription.cancel()
    return _compared(differences)


def _compared(differences: dict[str, float]) -> Finding:
    if not differences:
        text = "no relay publishes states quickly enough to compare clocks"
        return Finding(OK, "clocks", text)
    worst = max(differences, key=lambda each: abs(differences[each]))
    seconds = abs(differences[worst])
    if seconds <= _CLOCK_DIFFERENCE_S:
        text = f"those of {len(differences)} relays agree with this one within {age(seconds)}"
        return Finding(OK, "clocks", text)
    direction = "behind" if differences[worst] > 0 else "ahead of"
    return Finding(
        WARN,
        "clocks",
        f"the clock of {worst} is {age(seconds)} {direction} this one",
        "switch on time synchronisation (NTP) on both computers; ages and times are wrong until",
    )
