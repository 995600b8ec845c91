"""``labmesh show``: all that is known of one node."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter
from msgspec.structs import asdict

from labmesh.asking.remote import RelayClient
from labmesh.blocking.limits import method_doc, method_marks, value_marks
from labmesh.blocking.status import InstrumentStatus
from labmesh.cli.instrument_commands import described
from labmesh.cli.mesh_commands import listed
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, age, one_line, shown_state, size
from labmesh.cli.running import connected, run
from labmesh.client import DirectorClientAgent
from labmesh.errors import LabmeshError, NotFound
from labmesh.events.reading import Reading
from labmesh.protocol.ids import did_you_mean
from labmesh.protocol.messages import Description, NodeRecord, Status

__all__ = ["show"]

_OPTIONS = ClientOptions()
#: A node that was just restarted is back by then.
_FIND_S = 1.0
_LOOK_AGAIN_S = 0.2
_STATE_S = 1.5
_BAD = ("DOWN", "STUCK", "STALE", "FAILED", "NOT REG", "NOT SENT", "REFUSED", "DAMAGED")
#: The last state of a relay that does not answer is there at once, or never.
_OLD_STATE_S = 0.5


def show(
    node: Annotated[str, Parameter(help="The id of a relay or bank.")],
    /,
    *,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Show a relay (status with ages, state, values, methods) or a bank (what it holds).

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
        seen = await _look(client, record, options)
    if seen.trouble is not None and options.json:
        raise seen.trouble
    _show_relay(seen, options.out)
    if seen.trouble is not None:
        raise seen.trouble
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


class _Seen(NamedTuple):
    """What could be learnt of a relay; ``trouble``: why not all of it."""

    record: NodeRecord
    description: Description | None
    told: Status | None
    status: InstrumentStatus
    reading: Reading | None
    trouble: LabmeshError | None


async def _look(client: DirectorClientAgent, record: NodeRecord, options: ClientOptions) -> _Seen:
    relay_id = record.node_id
    description, told, trouble = None, None, None
    try:
        description = await described(client, relay_id, options)
        told = await RelayClient(client, relay_id).status()
    except LabmeshError as exc:
        trouble = exc
    status = InstrumentStatus.of(relay_id, client.health(relay_id), told, trouble)
    reading = None
    if description is None or description.state_interval_s:
        reading = await _last_reading(client, relay_id, _STATE_S if description else _OLD_STATE_S)
    return _Seen(record, description, told, status, reading, trouble)


async def _last_reading(
    client: DirectorClientAgent, relay_id: str, timeout: float
) -> Reading | None:
    found: asyncio.Future[Reading] = asyncio.get_running_loop().create_future()

    def take(reading: Reading) -> None:
        if reading.relay_id == relay_id and not found.done():
            found.set_result(reading)

    subscription = client.on_reading(take)
    try:
        async with asyncio.timeout(timeout):
            return await found
    except TimeoutError:
        return None
    finally:
        subscription.cancel()


def _show_relay(seen: _Seen, out: Output) -> None:
    description, told = seen.description, seen.told
    if out.json and description is not None and told is not None:
        out.record(_relay_record(seen, description, told))
        return
    record, status = seen.record, seen.status
    name = record.title if description is None else description.driver
    out.line(f"{record.node_id}: {one_line(name)}", "bold")
    if description is not None:
        _print_doc(description.doc, out, "  ")
    rpc = record.endpoints["rpc"]
    out.line(f"  at {rpc} on {record.host}, pid {record.pid}, {record.state}")
    for line in status.lines():
        is_bad = any(word in line for word in _BAD)
        out.line(f"  {line}", "red" if is_bad else None)
    if seen.reading is not None:
        stale = " (STALE)" if seen.reading.stale else ""
        state = shown_state(seen.reading.value)
        out.line(f"  state, {age(seen.reading.age_s)} old{stale}: {state}")
    if description is not None:
        _print_description(description, out)


def _relay_record(seen: _Seen, description: Description, told: Status) -> dict[str, Any]:
    reading = seen.reading
    state = None
    if reading is not None:
        state = {"value": reading.value, "age_s": reading.age_s, "stale": reading.stale}
    return {
        **listed(seen.record),
        "driver": description.driver,
        "doc": description.doc,
        "methods": [asdict(each) for each in description.methods],
        "values": [asdict(each) for each in description.values],
        "state_interval_s": description.state_interval_s,
        "last_state": state,
        "uptime_s": told.uptime_s,
        "status": told.facts,
    }


def _print_description(description: Description, out: Output) -> None:
    relay_id = description.node_id
    if description.values:
        out.line()
        out.line("Values", "bold")
    for value in description.values:
        written = f": {one_line(value.type)}" if value.type else ""
        out.line(f"  {value.name}{written}  [{', '.join(value_marks(value))}]", "cyan")
        _print_doc(value.doc, out, "      ")
    out.line()
    out.line("Methods", "bold")
    for method in description.methods:
        marks = method_marks(method)
        shown = f"  [{', '.join(marks)}]" if marks else ""
        out.line(f"  {method.name}{one_line(method.signature)}{shown}", "cyan")
        _print_doc(method_doc(method), out, "      ")
    out.line()
    if description.values:
        out.line(f"Read one:  labmesh get {relay_id} VALUE")
        out.line(f"Write one: labmesh set {relay_id} VALUE TO")
    out.line(f"Call one:  labmesh call {relay_id} METHOD [VALUE ...] [name=VALUE ...]")


def _print_doc(doc: str, out: Output, indent: str) -> None:
    for line in doc.strip().splitlines():
        out.line(f"{indent}{line.rstrip()}" if line.strip() else "")


def _show_bank(record: NodeRecord, status: Status, out: Output) -> None:
    facts = status.facts
    if out.json:
        out.record({**listed(record), "uptime_s": status.uptime_s, "status": facts})
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


def _heartbeat(facts: dict[str, Any]) -> str:
    if not facts.get("registered"):
        return "it is not registered with its broker"
    return f"last heartbeat {age(facts.get('heartbeat_age_s'))} ago"
