"""Commands about instruments: ``ls``, ``show``, ``call``, ``watch``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from msgspec.structs import asdict

from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, age, one_line, shown_state, shown_value, size
from labmesh.cli.running import connected, run
from labmesh.cli.values import call_values
from labmesh.client import DirectorClientAgent
from labmesh.errors import ConfigError, NotFound
from labmesh.feed import Reading
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import Description, NodeRecord, Status

__all__ = ["call", "ls", "show", "watch"]

_OPTIONS = ClientOptions()
#: A node that was just restarted is back by then.
_FIND_S = 1.0
_OLD_S = 5.0
_LOOK_AGAIN_S = 0.2
_STATE_S = 1.5
_WAITING_LINES = 100


def ls(*, options: ClientOptions = _OPTIONS) -> int:
    """List who is on the mesh: relays with their instruments, and banks.

    For example:

        labmesh ls
        labmesh ls --broker lab-pc --json
    """
    return run(_ls(options))


async def _ls(options: ClientOptions) -> int:
    async with connected(options) as client:
        nodes = await client.list_nodes()
        place = client.broker_rpc
    if options.json:
        relays = [_listed(each) for each in nodes if each.kind == "relay"]
        banks = [_listed(each) for each in nodes if each.kind == "bank"]
        options.out.record({"broker": place, "relays": relays, "banks": banks})
    if not nodes:
        options.out.say(f"The broker at {place} answers, and nobody is registered with it.")
        options.out.say("Start a relay: labmesh relay module:Class, or a whole mesh: labmesh up")
        return DONE
    rows = [
        (
            each.kind,
            each.node_id,
            each.title,
            each.state,
            each.endpoints.get("rpc") or each.endpoints["ingest"],
            f"{each.host} ({each.pid})",
        )
        for each in nodes
    ]
    options.out.table(("KIND", "ID", "WHAT", "STATE", "ADDRESS", "HOST"), rows)
    return DONE


def _listed(record: NodeRecord) -> dict[str, Any]:
    """A line of the directory, with its id under the name that the rest of the interface uses."""
    content = asdict(record)
    return {f"{record.kind}_id": content.pop("node_id"), **content}


def show(
    node: Annotated[str, Parameter(help="The id of a relay or bank.")],
    /,
    *,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Show a relay (methods, state, status, with ages) or a bank (what it holds).

    For example:

        labmesh show Inst-0
        labmesh show bank-0 --json
    """
    return run(_show(node, options))


async def _show(node_id: str, options: ClientOptions) -> int:
    async with connected(options) as client:
        record = await _find(client, node_id)
        if record.kind == "bank":
            bank = await client.get_databank_agent(node_id)
            _show_bank(record, await bank.status(), options.out)
            return DONE
        relay = await client.get_relay_agent(node_id)
        description, status = await asyncio.gather(relay.describe(), relay.status())
        reading = await _last_reading(client, node_id) if description.state_interval_s else None
    _show_relay(record, description, status, reading, options.out)
    return DONE


async def _find(client: DirectorClientAgent, node_id: str) -> NodeRecord:
    """The record of a relay or bank; one that was just restarted may take a moment."""
    deadline = time.monotonic() + _FIND_S
    while True:
        nodes = await client.list_nodes()
        for each in nodes:
            if each.node_id == node_id:
                return each
        if time.monotonic() > deadline:
            known = [each.node_id for each in nodes]
            near = did_you_mean(node_id, known)
            raise NotFound(
                f"no relay or bank {node_id!r} is on the mesh{near and f' ({near})'}; the broker "
                f"is fine, and lists {', '.join(known) or 'nobody'}",
                known=known,
            )
        await asyncio.sleep(_LOOK_AGAIN_S)


async def _last_reading(client: DirectorClientAgent, relay_id: str) -> Reading | None:
    found: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()

    def take(reading: Reading) -> None:
        if reading.relay_id == relay_id and not found.done():
            found.set_result(reading)

    subscription = client.on_reading(take)
    try:
        async with asyncio.timeout(_STATE_S):
            return await found
    except TimeoutError:
        return None
    finally:
        subscription.cancel()


def _show_relay(
    record: NodeRecord,
    description: Description,
    status: Status,
    reading: Reading | None,
    out: Output,
) -> None:
    state = None if reading is None else {"value": reading.value, "age_s": reading.age_s}
    if out.json:
        methods = [asdict(each) for each in description.methods]
        out.record(
            {
                **_listed(record),
                "driver": description.driver,
                "doc": description.doc,
                "methods": methods,
                "state_interval_s": description.state_interval_s,
                "last_state": state,
                "uptime_s": status.uptime_s,
                "status": status.facts,
            }
        )
        return
    facts = status.facts
    out.line(f"{record.node_id}: {one_line(description.driver)}", "bold")
    _print_doc(description.doc, out, "  ")
    out.line(f"  at {record.endpoints['rpc']} on {record.host}, pid {record.pid}")
    out.line(f"  up for {age(status.uptime_s)}, {record.state}; {_heartbeat(facts)}")
    out.line(f"  driver {_busy(facts)}")
    if reading is not None:
        out.line(f"  state, {age(reading.age_s)} old: {shown_state(reading.value)}")
    elif not description.state_interval_s:
        out.line("  no state: the driver has no poll()")
    if facts.get("state_error"):
        out.line(f"  poll() fails: {facts['state_error']}", "red")
    out.line()
    out.line("Methods", "bold")
    for method in description.methods:
        out.line(f"  {method.name}{one_line(method.signature)}", "cyan")
        _print_doc(method.doc, out, "      ")
    out.line()
    out.line(f"Call one: labmesh call {record.node_id} METHOD [VALUE ...] [name=VALUE ...]")


def _print_doc(doc: str, out: Output, indent: str) -> None:
    for line in doc.strip().splitlines():
        out.line(f"{indent}{line.strip()}" if line.strip() else "")


def _heartbeat(facts: dict[str, Any]) -> str:
    if not facts.get("registered"):
        return "it is not registered with its broker"
    return f"last heartbeat {age(facts.get('heartbeat_age_s'))} ago"


def _busy(facts: dict[str, Any]) -> str:
    method = facts.get("busy_with")
    queued = facts.get("queued", 0)
    waiting = f", {queued} waiting" if queued else ""
    if method:
        return f"busy with {method} for {age(facts.get('busy_s'))}{waiting}"
    return f"idle{waiting}"


def _show_bank(record: NodeRecord, status: Status, out: Output) -> None:
    facts = status.facts
    if out.json:
        out.record({**_listed(record), "uptime_s": status.uptime_s, "status": facts})
        return
    out.line(f"{record.node_id}: bank in {facts.get('folder', record.title)}", "bold")
    out.line(f"  uploads at {record.endpoints['ingest']}")
    out.line(f"  downloads at {record.endpoints['retrieve']} on {record.host}, pid {record.pid}")
    out.line(f"  up for {age(status.uptime_s)}, {record.state}; {_heartbeat(facts)}")
    out.line(
        f"  {facts.get('datasets', '?')} datasets, {facts.get('uploads_open', '?')} uploads "
        f"under way, {size(facts.get('free_bytes'))} free"
    )
    out.line()
    out.line(f"See them: labmesh data ls --bank {record.node_id}")


def call(
    relay: Annotated[str, Parameter(help="The relay's id.")],
    method: Annotated[str, Parameter(help="The method of its driver.")],
    /,
    *arguments: Annotated[
        str, Parameter(help="Values, and name=VALUE. Read as JSON, else as text.")
    ],
    options: ClientOptions = _OPTIONS,
) -> int:
    """Call a method of an instrument, and print what it returns.

    A value is read as JSON where it is JSON (2.5, true, null, [1, 2], "text"), else it is text.
    A text that looks like name=value is written as JSON: '"CH1=on"'. Without --timeout the call
    lasts as long as the relay shows that it runs. Ctrl-C takes a call back that still waits.

    For example:

        labmesh call Inst-0 set_voltage value=2.5
        labmesh call Inst-0 set_output true
        labmesh call Scope-0 acquire 1 points=100 --timeout 5 --json
    """
    args, kwargs = call_values(arguments)
    return run(_call(relay, method, args, kwargs, options))


async def _call(
    relay_id: str, method: str, args: list[Any], kwargs: dict[str, Any], options: ClientOptions
) -> int:
    async with connected(options) as client:
        relay = await client.get_relay_agent(relay_id, wait=_FIND_S)
        began = time.perf_counter()
        value = await relay.invoke(method, args, kwargs, timeout=options.timeout)
        seconds = time.perf_counter() - began
    if options.json:
        options.out.record(
            {"relay_id": relay_id, "method": method, "value": value, "seconds": seconds}
        )
    elif value is not None:
        options.out.line(shown_value(value))
    options.out.say(f"{relay_id}.{method}: {age(seconds)}")
    return DONE


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

    Joining and leaving nodes, and states that could not be read, are told on stderr.

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

    async def until(self, count: int | None) -> int:
        """Print so many lines; None: go on until interrupted."""
        async with connected(self._options) as client:
            if self._only != "datasets":
                client.on_reading(self._reading)
            if self._only != "states":
                client.on_dataset(self._dataset)
            client.on_presence(self._presence)
            client.on_event(self._event)
            await self._tell_who_matches(client)
            printed = 0
            while count is None or printed < count:
                (await self._lines.get())()
                printed += 1
        return DONE

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
            await self._lines.put(lambda: self._print_reading(reading))

    async def _dataset(self, record: dict[str, Any]) -> None:
        if self._matches(record["relay_id"], record["bank_id"]):
            await self._lines.put(lambda: self._print_dataset(record))

    def _presence(self, change: dict[str, Any]) -> None:
        if self._matches(change["node_id"]):
            why = f" ({change['reason']})" if change["reason"] else ""
            self._options.out.say(f"{change['kind']} {change['node_id']}: {change['change']}{why}")

    def _event(self, node_id: str, kind: str, value: Any) -> None:
        if kind == "state_error" and self._matches(node_id) and isinstance(value, dict):
            text = f"{value.get('error')}: {value.get('text')}"
            self._options.out.say(f"{node_id}: its poll() failed: {text}")

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
                    "sequence": reading.sequence,
                    "missed": reading.missed,
                }
            )
            return
        missed = f"  ({reading.missed} missed)" if reading.missed else ""
        # The last known state comes first, and its relay may be gone.
        old = f"  ({age(reading.age_s)} old)" if reading.age_s > _OLD_S else ""
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
