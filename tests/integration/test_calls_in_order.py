"""Calls that one client makes at once reach a relay in the order in which they were made."""

from __future__ import annotations

import asyncio

import pytest

from labmesh.testing import LocalMesh

RELAY = "Inst-0"


class Recorder:
    """Remembers what it was given, in order."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def put(self, number: int) -> None:
        self.given.append(number)


@pytest.mark.parametrize("first", ["no link yet", "a link that broke"])
async def test_calls_made_while_there_is_no_link_are_not_overtaken(first: str) -> None:
    """Neither by each other, nor by those that come when it is just up."""
    recorder = Recorder()
    async with LocalMesh({RELAY: recorder}, banks=0) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent(RELAY)
        if first != "no link yet":
            await relay.put(-1)
            link = client.link_to(RELAY)
            assert link is not None
            link._distrust()
        calls = [asyncio.create_task(relay.put(number)) for number in range(100)]
        while not any(each.done() for each in calls):
            calls.append(asyncio.create_task(relay.put(len(calls))))
            await asyncio.sleep(0)
        await asyncio.gather(*calls)
        assert recorder.given[-len(calls) :] == list(range(len(calls)))
        assert client.link_to(RELAY) is not None, "later calls go at once"
