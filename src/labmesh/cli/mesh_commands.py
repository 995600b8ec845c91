"""Commands about the whole mesh: ``ls`` and ``watch``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from msgspec.structs import asdict

from labmesh.cli.news import gap_sentence, sentence
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import age, one_line, shown_state, size
from labmesh.cli.running import connected, run
from labmesh.client import DirectorClientAgent
from labmesh.errors import ConfigError, LabmeshError, LinkLost
from labmesh.events.healing import Gap
from labmesh.events.reading import Reading
from labmesh.protocol.messages import NodeRecord

__all__ = ["listed", "ls", "watch"]

log = logging.getLogger(__name__)

_OPTIONS = ClientOptions()
#: The last states are waited for so long.
_STATES_S = 2.0
_OTHER_BROKER_S = 0.5
_OLD_S = 5.0
_LOOK_S = 0.25
_WAITING_LINES = 100


def ls(
    *,
    watch: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Go on, until Ctrl-C: a line for each that joins, falls silent, comes back, "
            "leaves.",
        ),
    ] = False,
    options: ClientOptions = _OPTIONS,
) -> int:
    """List who is on the mesh: relays with their instruments, and banks.

    A last state is STALE when three states were due since, and none came.

    For example:

        labmesh ls
        labmesh ls --watch
        labmesh ls --broker lab-pc --json
    """
    return run(_ls(options, watch=watch))


async def _ls(options: ClientOptions, *, watch: bool) -> int:
    changes: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING_LINES)
    async with connected(options) as client:
        if watch:
            client.on_presence(changes.put)
        nodes = await client.list_nodes()
        readings = await _last_readings(client, nodes)
        brokers = await _brokers(options, client)
        _print_nodes(options, nodes, readings, brokers)
        while watch:
            _print_change(options, await changes.get())
    return DONE


async def _brokers(options: ClientOptions, client: DirectorClientAgent) -> list[dict[str, Any]]:
    """The broker that is followed, then the other one; where that is silent, it is said."""
    followed = client.health().endpoint
    brokers = [{"address": followed, "up": True}]
    for each in client.brokers:
        if each.endpoint == followed:
            continue
        is_up = True
        try:
            await client.wait_for_broker(each.endpoint, _OTHER_BROKER_S)
        except LabmeshError as exc:
            is_up = False
            which = "spare broker" if each.endpoint == client.spare_rpc else "first broker"
            options.out.say(f"The {which} does not answer; this is from {followed}. ({exc})")
        brokers.append({"address": each.endpoint, "up": is_up})
    return brokers


def _print_change(options: ClientOptions, change: dict[str, Any]) -> None:
    if options.json:
        options.out.record({"event": "presence", "time": time.time(), **change})
        return
    why = f" ({change['reason']})" if change["reason"] else ""
    title = f"  {one_line(change['title'])}" if change["title"] else ""
    options.out.line(
        f"{_clock(time.time())}  {change['kind']} {change['node_id']}  {change['change']}{why}"
        f"{title}  {one_line(change['host'])} ({change['pid']})"
    )


def _print_nodes(
    options: ClientOptions,
    nodes: Sequence[NodeRecord],
    readings: dict[str, Reading],
    brokers: Sequence[dict[str, Any]],
) -> None:
    place = brokers[0]["address"]
    if options.json:
        relays = [
            {**listed(each), "last_state": _freshness(readings.get(each.node_id))}
            for each in nodes
            if each.kind == "relay"
        ]
        banks = [listed(each) for each in nodes if each.kind == "bank"]
        both = {"brokers": brokers} if len(brokers) > 1 else {}
        options.out.record({"broker": place, **both, "relays": relays, "banks": banks})
    if not nodes:
        options.out.say(f"The broker at {place} answers, and nobody is registered with it.")
        options.out.say("Start a relay: labmesh relay module:Class, or a whole mesh: labmesh up")
        return
    rows = [
        (
            each.kind,
            each.node_id,
            each.title,
            each.state,
            _last_state(readings.get(each.node_id)),
            each.endpoints.get("rpc") or each.endpoints["ingest"],
            f"{each.host} ({each.pid})",
        )
        for each in nodes
    ]
    columns = ("KIND", "ID", "WHAT", "STATE", "LAST STATE", "ADDRESS", "HOST")
    options.out.table(columns, rows)


async def _last_readings(
    client: DirectorClientAgent, nodes: Sequence[NodeRecord]
) -> dict[str, Reading]:
    """The last state of each relay that has given one."""
    relays = [each.node_id for each in nodes if each.kind == "relay"]
    if relays:
        try:
            async with asyncio.timeout(_STATES_S):
                await client.follow_states()
        except (TimeoutError, LinkLost) as exc:
            # Who is there is worth telling, also without how they are.
            log.warning("the broker tells no states: %s", exc or "no answer")
    found = {each: client.last_reading(each) for each in relays}
    return {relay_id: reading for relay_id, reading in found.items() if reading is not None}


def _last_state(reading: Reading | None) -> str:
    if reading is None:
        return "-"
    return f"{age(reading.age_s)} ago{', STALE' if reading.stale else ''}"


def _freshness(reading: Reading | None) -> dict[str, Any] | None:
    if reading is None:
        return None
    return {"age_s": reading.age_s, "interval_s": reading.interval_s, "stale": reading.stale}


def listed(record: NodeRecord) -> dict[str, Any]:
    """A line of the directory, with its id under the name that the rest of the interface uses."""
    content = asdict(record)
    return {f"{record.kind}_id": content.pop("node_id"), **content}


def watch(
    *patterns: Annotated[
        str, Parameter(help="Ids of relays or banks, with * and ?. Without one: all.")
    ],
    only: Annotated[
        Literal["states", "datasets"] | None, Parameter(help="Print only these.")
    ] = None,
    count: Annotated[int | None, Parameter(help="End after so many lines.")] = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Print states and new datasets as they come, until Ctrl-C. The last known states come first.

    Joining and leaving nodes, leases, what drivers publish themselves (alarms, messages, progress),
    drivers that are stuck, states that are stale or could not be read, and events that were lost,
    are told on stderr.

    For example:

        labmesh watch
        labmesh watch 'Inst-*' --only states --count 3 --json
    """
    if count is not None and count < 1:
        raise ConfigError("--count takes a whole number, 1 or more")
    return run(_Watch(patterns, only, options).until(count))


class _Watch:
    """Puts what comes into a queue, and prints it from there, so that a closed pipe is noticed."""

    def __init__(self, patterns: tuple[str, ...], only: str | None, options: ClientOptions) -> None:
        self._patterns = patterns
        self._only = only
        self._options = options
        self._lines: asyncio.Queue[Callable[[], None]] = asyncio.Queue(_WAITING_LINES)
        self._last: dict[str, Reading] = {}
        self._told_stale: set[str] = set()

    async def until(self, count: int | None) -> int:
        """Print so many lines; None: go on until interrupted."""
        async with connected(self._options) as client:
            if self._only != "datasets":
                client.on_reading(self._reading, self._patterns or None)
            if self._only != "states":
                client.on_dataset(self._dataset)
            client.on_presence(self._presence)
            client.on_event(self._event, self._patterns or None)
            client.on_gap(self._gap)
            await self._tell_who_matches(client)
            looking = asyncio.ensure_future(self._look_for_stale())
            try:
                printed = 0
                while count is None or printed < count:
                    (await self._lines.get())()
                    printed += 1
            finally:
                looking.cancel()
        return DONE

    async def _look_for_stale(self) -> None:
        """Tell of relays whose states do not come any more: of them nothing else is printed."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for relay_id, reading in self._last.items():
                if reading.stale and relay_id not in self._told_stale:
                    self._told_stale.add(relay_id)
                    self._options.out.say(
                        f"{relay_id}: STALE, its last state is {age(reading.age_s)} old, and one "
                        f"is due each {age(reading.interval_s)}"
                    )

    async def _tell_who_matches(self, client: DirectorClientAgent) -> None:
        known = [each.node_id for each in await client.list_nodes()]
        if not any(self._matches(each) for each in known):
            asked = " or ".join(self._patterns) or "one"
            self._options.out.say(
                f"waiting: nobody is called {asked} yet; there are: {', '.join(known) or 'none'}"
            )

    def _matches(self, *ids: str) -> bool:
        return not self._patterns or any(
            fnmatchcase(each, pattern) for each in ids for pattern in self._patterns
        )

    async def _reading(self, reading: Reading) -> None:
        if self._matches(reading.relay_id):
            self._last[reading.relay_id] = reading
            self._told_stale.discard(reading.relay_id)
            await self._lines.put(lambda: self._print_reading(reading))

    async def _dataset(self, record: dict[str, Any]) -> None:
        if self._matches(record["relay_id"], record["bank_id"]):
            await self._lines.put(lambda: self._print_dataset(record))

    def _presence(self, change: dict[str, Any]) -> None:
        if self._matches(change["node_id"]):
            if change["change"] == "left":
                self._last.pop(change["node_id"], None)
            why = f" ({change['reason']})" if change["reason"] else ""
            self._options.out.say(f"{change['kind']} {change['node_id']}: {change['change']}{why}")

    def _event(self, node_id: str, kind: str, value: Any) -> None:
        text = sentence(node_id, kind, value) if self._matches(node_id) else ""
        if text:
            self._options.out.say(text)

    def _gap(self, gap: Gap) -> None:
        if self._matches(gap.node_id):
            self._options.out.say(gap_sentence(gap))

    def _print_reading(self, reading: Reading) -> None:
        out = self._options.out
        if out.json:
            out.record(
                {
                    "event": "state",
                    "relay_id": reading.relay_id,
                    "value": reading.value,
                    "time": reading.time,
                    "age_s": reading.age_s,
                    "stale": reading.stale,
                    "sequence": reading.sequence,
                    "missed": reading.missed,
                }
            )
            return
        missed = f"  ({reading.missed} missed)" if reading.missed else ""
        # The last known state comes first, and its relay may be gone.
        is_old = reading.stale or reading.age_s > _OLD_S
        stale = ", STALE" if reading.stale else ""
        old = f"  ({age(reading.age_s)} old{stale})" if is_old else ""
        out.line(
            f"{_clock(reading.time)}  {reading.relay_id}  {shown_state(reading.value)}{old}{missed}"
        )

    def _print_dataset(self, record: dict[str, Any]) -> None:
        out = self._options.out
        if out.json:
            out.record({"event": "dataset", **record})
            return
        name = f"  {one_line(record['name'])}" if record["name"] else ""
        origin = f" of {record['relay_id']}" if record["relay_id"] else ""
        out.line(
            f"{_clock(record['created'])}  {record['bank_id']}  dataset {record['dataset_id']}"
            f"{origin}, {size(record['size'])}{name}"
        )


def _clock(seconds: float) -> str:
    """A POSIX time as the time of day here."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")[:-3]
