"""Relays that die, stop, come back, or claim what another relay has; each in its own process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.networks import Network, time_of
from tests.support.processes import Process, Start, free_ports
from tests.support.promptness import SLACK_S

from labmesh import DirectorClientAgent

TTL_S, HEARTBEAT_S = 3.0, 0.5
TAKEOVER_S = 1.5 + SLACK_S
END_S = 5.0 + SLACK_S
LIMIT_S = 15.0


@pytest.fixture
def network(start: Start, tmp_path: Path) -> Network:
    """A network whose dead nodes would stay for 30 s, with its broker running."""
    network = Network(start, tmp_path, heartbeat_s=HEARTBEAT_S)
    network.broker()
    return network


class Presence:
    """What a client hears of the directory."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], float] = {}
        self._heard = asyncio.Condition()

    async def hear(self, change: dict[str, Any]) -> None:
        """The client's callback."""
        async with self._heard:
            self._times[change["node_id"], change["change"]] = time.monotonic()
            self._heard.notify_all()

    async def time_of(self, node_id: str, change: str) -> float:
        """When this was heard (monotonic seconds); waits for it."""
        async with asyncio.timeout(LIMIT_S), self._heard:
            await self._heard.wait_for(lambda: (node_id, change) in self._times)
        return self._times[node_id, change]


@asynccontextmanager
async def watching(network: Network) -> AsyncIterator[tuple[DirectorClientAgent, Presence]]:
    """A client that listens to what the directory says."""
    presence = Presence()
    async with network.client() as client:
        client.on_presence(presence.hear)
        yield client, presence


async def relay_ids(client: DirectorClientAgent) -> list[str]:
    """The relays that the directory lists."""
    return [each["relay_id"] for each in await client.list_relay_ids()]


async def test_a_killed_relay_leaves_at_its_ttl(start: Start, tmp_path: Path) -> None:
    network = Network(start, tmp_path, ttl_s=TTL_S, heartbeat_s=HEARTBEAT_S)
    network.broker()
    relay = network.ready_nodes(network.relay("Inst-0"))
    async with watching(network) as (client, presence):
        relay.kill9()
        killed_at = time.monotonic()
        suspect_s = await presence.time_of("Inst-0", "suspect") - killed_at
        assert await relay_ids(client) == ["Inst-0"]
        left_s = await presence.time_of("Inst-0", "left") - killed_at
        assert await relay_ids(client) == []
    print(
        f"killed -9: suspect after {suspect_s:.2f} s, left after {left_s:.2f} s (ttl {TTL_S:g} s)"
    )
    # The ttl counts from its last heartbeat, which a busy machine sends later than it should.
    assert TTL_S / 3 <= left_s <= TTL_S + SLACK_S


async def test_a_relay_that_stops_leaves_at_once(network: Network) -> None:
    relay = network.ready_nodes(network.relay("Inst-0"))
    async with watching(network) as (client, presence):
        stopped_at = time.monotonic()
        relay.terminate()
        left_s = await presence.time_of("Inst-0", "left") - stopped_at
        assert await relay_ids(client) == []
    assert relay.wait_end(END_S) == 0
    print(f"stopped: left after {left_s:.2f} s")
    assert left_s <= SLACK_S


@pytest.mark.parametrize("port", ["the same port", "another port"])
def test_a_killed_relay_that_is_started_again_has_its_id_back(network: Network, port: str) -> None:
    """Long before its ttl: the broker asks the address of the dead one, and nobody answers."""
    bind = f"tcp://127.0.0.1:{free_ports(1)[0] if port == 'the same port' else '*'}"
    network.ready_nodes(network.relay("Inst-0", rpc_bind=bind)).kill9()
    again = network.ready_nodes(network.relay("Inst-0", rpc_bind=bind))
    began = time_of(again, "^relay Inst-0: calls at", LIMIT_S)
    took_s = time_of(again, "^ready Inst-0", LIMIT_S) - began
    print(f"taken over after {took_s:.2f} s at {port}")
    assert took_s <= TAKEOVER_S


async def test_a_second_relay_with_a_living_ones_id_is_refused(network: Network) -> None:
    first = network.ready_nodes(network.relay("Inst-0"))
    async with network.client() as client:
        relay = await client.get_relay_agent("Inst-0")
        second = network.nodes(network.relay("Inst-0"))
        assert second.wait_end(LIMIT_S) != 0
        refused_in_one_line(second, "Inst-0")
        assert await relay.call("square", 12) == 144
        assert (await client.list_relay_ids())[0]["pid"] == first.pid
    assert first.exit_code is None


async def test_a_second_relay_at_a_living_ones_port_is_refused(network: Network) -> None:
    port = free_ports(1)[0]
    bind = f"tcp://127.0.0.1:{port}"
    first = network.ready_nodes(network.relay("Inst-0", rpc_bind=bind))
    async with network.client() as client:
        relay = await client.get_relay_agent("Inst-0")
        second = network.nodes(network.relay("Inst-1", rpc_bind=bind))
        assert second.wait_end(LIMIT_S) != 0
        refused_in_one_line(second, str(port), "Inst-1")
        assert await relay.call("square", 12) == 144
        assert await relay_ids(client) == ["Inst-0"]
    assert first.exit_code is None


def refused_in_one_line(process: Process, *named: str) -> None:
    """The last words of the process: a Conflict that names these."""
    last = process.errors.splitlines()[-1]
    print(last)
    assert last.startswith("labmesh.errors.Conflict: ")
    for each in named:
        assert each in last
