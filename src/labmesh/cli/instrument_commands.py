"""Commands about an instrument: ``call``, ``get``, ``set``."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from labmesh.asking.remote import RelayClient
from labmesh.asking.streaming import AsyncStream
from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, age, one_line, shown_value
from labmesh.cli.running import connected, run
from labmesh.cli.values import call_values, read_value
from labmesh.client import DirectorClientAgent
from labmesh.errors import NoAnswer, NotSent, UnknownMethod
from labmesh.protocol.messages import Description, ValueInfo

__all__ = ["call", "described", "get", "set_value"]

_OPTIONS = ClientOptions()
#: A relay that was just restarted is back by then.
_FIND_S = 1.0
_LOOK_AGAIN_S = 0.2
#: A relay whose connections were refused for so long is not just being restarted.
_REFUSED_S = 1.0
#: Items that are made ahead of what is printed.
_CREDIT = 16


async def described(
    client: DirectorClientAgent, relay_id: str, options: ClientOptions
) -> Description:
    """What a relay says of its driver: the first question, so that one that is dead is told soon.

    :raises NotSent: nobody listens there any more.
    :raises NoAnswer: it did not answer within ``--timeout``.
    """
    began = time.monotonic()
    timeout = math.inf if options.timeout is None else options.timeout
    asking = asyncio.ensure_future(RelayClient(client, relay_id).describe())
    try:
        while not asking.done():
            await asyncio.wait([asking], timeout=min(_LOOK_AGAIN_S, timeout))
            waited_s = time.monotonic() - began
            health = client.health(relay_id)
            is_dead = health.trouble is not None and not health.up and waited_s > _REFUSED_S
            if is_dead and not asking.done():
                raise NotSent(f"{health.trouble} (Nothing was run.)")
            if waited_s >= timeout and not asking.done():
                raise NoAnswer(f"{relay_id} does not answer; nothing but this was asked of it")
        return asking.result()
    finally:
        asking.cancel()


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
    A text that looks like name=value is written as JSON: '"CH1=on"'. Of a method that yields each
    item is printed, a line each, as it comes. Without --timeout the call lasts as long as the relay
    shows that it runs. Ctrl-C takes a call back that still waits, and ends one that yields.

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
    out = options.out
    async with connected(options) as client:
        relay = await client.get_relay_agent(relay_id, wait=_FIND_S)
        description = await described(client, relay_id, options)
        _refuse_value(description, method)
        began = time.perf_counter()
        if any(each.name == method and each.yields for each in description.methods):
            timeout = math.inf if options.timeout is None else options.timeout
            begin = partial(
                client.open_stream, relay_id, method, args, kwargs, timeout=timeout, credit=_CREDIT
            )
            stream = AsyncStream(begin, client.at_home, f"{relay_id}.{method}")
            await _print_items(relay_id, method, stream, options.out)
            return DONE
        value = await relay.invoke(method, args, kwargs, timeout=options.timeout)
        seconds = time.perf_counter() - began
    if options.json:
        out.record({"relay_id": relay_id, "method": method, "value": value, "seconds": seconds})
    elif value is not None:
        out.line(shown_value(value))
    out.say(f"{relay_id}.{method}: {age(seconds)}")
    return DONE


def _refuse_value(description: Description, name: str) -> None:
    value, relay_id = _value(description, name), description.node_id
    if value is not None:
        write = f", 'labmesh set {relay_id} {name} ...' writes it" if value.settable else ""
        raise UnknownMethod(
            f"{name} of {relay_id} is a value, not a method: 'labmesh get {relay_id} {name}' "
            f"reads it{write}"
        )


async def _print_items(relay_id: str, method: str, stream: AsyncStream, out: Output) -> None:
    count, began = 0, time.perf_counter()
    about = {"relay_id": relay_id, "method": method}
    async with stream:
        async for item in stream:
            out.line(shown_value(item))
            if out.json:
                out.record({**about, "index": count, "item": item})
            count += 1
    seconds = time.perf_counter() - began
    if out.json:
        out.record({**about, "items": count, "value": stream.result, "seconds": seconds})
    returned = "" if stream.result is None else f", and it returned {shown_value(stream.result)}"
    out.say(f"{relay_id}.{method}: {count} items in {age(seconds)}{returned}")


def get(
    relay: Annotated[str, Parameter(help="The relay's id.")],
    value: Annotated[str, Parameter(help="The value of its driver.")],
    /,
    *,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Read a value of an instrument (a property or parameter of its driver), and print it.

    'labmesh show' lists them, with unit and limits.

    For example:

        labmesh get Inst-0 voltage
        labmesh get Inst-0 voltage --json
    """
    return run(_get(relay, value, options))


async def _get(relay_id: str, name: str, options: ClientOptions) -> int:
    async with connected(options) as client:
        relay = await client.get_relay_agent(relay_id, wait=_FIND_S)
        facts = _value(await described(client, relay_id, options), name)
        began = time.perf_counter()
        value = await relay.get(name, timeout=options.timeout)
        seconds = time.perf_counter() - began
    if options.json:
        options.out.record({"relay_id": relay_id, "name": name, "value": value, "seconds": seconds})
    else:
        options.out.line(shown_value(value))
    unit = f" in {facts.limits.unit}" if facts is not None and facts.limits.unit else ""
    options.out.say(f"{relay_id}.{name}{unit}: {age(seconds)}")
    return DONE


def _value(description: Description, name: str) -> ValueInfo | None:
    """A value as it is described; where it is not, its relay says what is wrong."""
    return next((each for each in description.values if each.name == name), None)


def set_value(
    relay: Annotated[str, Parameter(help="The relay's id.")],
    value: Annotated[str, Parameter(help="The value of its driver.")],
    to: Annotated[str, Parameter(help="What to write. Read as JSON, else as text.")],
    /,
    *,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Write a value of an instrument (a property or parameter of its driver).

    For example:

        labmesh set Inst-0 voltage 2.5
        labmesh set Inst-0 mode fast
    """
    return run(_set(relay, value, read_value(to), options))


async def _set(relay_id: str, name: str, to: Any, options: ClientOptions) -> int:
    async with connected(options) as client:
        relay = await client.get_relay_agent(relay_id, wait=_FIND_S)
        await described(client, relay_id, options)
        began = time.perf_counter()
        await relay.set(name, to, timeout=options.timeout)
        seconds = time.perf_counter() - began
    if options.json:
        options.out.record({"relay_id": relay_id, "name": name, "set": to, "seconds": seconds})
    options.out.say(f"{relay_id}.{name} = {one_line(shown_value(to))}: {age(seconds)}")
    return DONE
