"""What ``labmesh doctor`` finds out about the mesh. Each check gives findings; none raises but
where it says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

from labmesh.cli.checkup import FAIL, OK, WARN, Finding
from labmesh.cli.output import age
from labmesh.client import DirectorClientAgent
from labmesh.errors import AuthenticationError, LabmeshError
from labmesh.events.reading import Reading
from labmesh.protocol.addresses import is_loopback, parse_connect
from labmesh.protocol.messages import NodeRecord, Ping, Pong, Status
from labmesh.transport.keys import Security
from labmesh.transport.probing import event_door_at
from labmesh.transport.sockets import Sockets

__all__ = ["broker", "clocks", "node", "other_broker", "unreachable_elsewhere", "wrong_door"]

_PING_S = 2.0
_DOOR_S = 1.0
_CLOCK_DIFFERENCE_S = 2.0


async def wrong_door(security: Security, endpoint: str) -> Finding | None:
    """The port of a broker's events, given for that of its requests; None: it is none."""
    sockets = Sockets(security, "doctor")
    try:
        door = await event_door_at(sockets, endpoint, _DOOR_S)
    except AuthenticationError:
        door = None
    finally:
        sockets.close_all()
    if door is None:
        return None
    return Finding(
        FAIL,
        "broker port",
        f"{endpoint} is where a broker {door} events, not where it answers requests",
        "name its request port (--broker, LMH_BROKER): 5750, unless its file says otherwise",
    )


async def broker(client: DirectorClientAgent) -> Finding:
    began = time.perf_counter()
    status: Status = await client.broker_status()
    seconds = time.perf_counter() - began
    facts = status.facts
    if status.kind != "broker":
        return Finding(
            FAIL,
            "broker",
            f"{status.kind} {status.node_id} answers at {client.health().endpoint}, not a broker",
            "name the broker's request port (--broker, LMH_BROKER): 5750, unless its file says "
            "otherwise",
        )
    return Finding(
        OK,
        "broker",
        f"{client.health().endpoint} answers in {age(seconds)}, up for {age(status.uptime_s)}: "
        f"{facts.get('relays')} relays, {facts.get('banks')} banks, security "
        f"{facts.get('security')}",
    )


async def other_broker(client: DirectorClientAgent) -> list[Finding]:
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


async def node(client: DirectorClientAgent, record: NodeRecord) -> Finding:
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


def unreachable_elsewhere(nodes: list[NodeRecord], broker: str) -> Iterator[Finding]:
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


async def clocks(client: DirectorClientAgent, wait_s: float) -> Finding:
    """Compare this clock with that of each relay, by states that were sent just now.

    :param wait_s: seconds to wait for them.
    """
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
        async with asyncio.timeout(wait_s):
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
