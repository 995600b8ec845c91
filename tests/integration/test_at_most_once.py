"""Calls over a cable that is cut and a relay that is restarted: never twice, never forgotten."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support import records
from tests.support.cable import Cable
from tests.support.peers import open_sockets, until
from tests.support.places import Places
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S

from labmesh import DirectorClientAgent, RelayAgent, RelayClient, expose
from labmesh.errors import LabmeshError, LinkLost, NotSent, OutcomeUnknown
from labmesh.protocol.messages import Call, Hello, Welcome
from labmesh.transport.link import Link

LIMIT_S = 10.0
#: Of 100 ms that are promised; a busy machine gets more.


class Counter:
    """Counts how often its methods run."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.voltage = 0.0

    def move(self, name: str) -> str:
        self.runs.append(name)
        return f"{name} done"

    def slow(self, name: str) -> str:
        self.runs.append(name)
        self.begun.set()
        self.go_on.wait(LIMIT_S)
        return f"{name} done"

    def fail(self, name: str) -> None:
        self.runs.append(name)
        raise ValueError(f"{name} is out of range")

    @expose(idempotent=True)
    def set_voltage(self, value: float) -> float:
        self.runs.append(f"set {value}")
        self.begun.set()
        self.go_on.wait(LIMIT_S)
        self.voltage = value
        return value


class Lab:
    """A client, a relay, and the cable between them."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.driver = Counter()
        self._ports = free_ports(2)

    @asynccontextmanager
    async def relay(self, driver: Counter | None = None) -> AsyncIterator[RelayAgent]:
        """The relay, at its port; it knows no broker, which would tell where it really is."""
        async with self.places.relay(
            driver=self.driver if driver is None else driver,
            rpc_bind=f"tcp://127.0.0.1:{self._ports[0]}",
            broker_rpc=f"tcp://127.0.0.1:{self._ports[1]}",
        ) as relay:
            yield relay

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[tuple[RelayClient, Cable]]:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.places.broker())
            cable = await stack.enter_async_context(Cable(self._ports[0]))
            self.client = await stack.enter_async_context(self.places.client())
            await self._list(cable.endpoint)
            yield await self.client.get_relay_agent("Inst-0"), cable

    async def _list(self, endpoint: str) -> None:
        with open_sockets() as sockets:
            link = Link(sockets, self.places.rpc, where="the broker")
            try:
                node = records.relay(endpoint=endpoint)
                await link.request(Hello(id="-", node=node), Welcome, timeout=LIMIT_S)
            finally:
                link.close()

    def is_up(self) -> bool:
        return self.client.health("Inst-0").up

    async def relinked(self) -> None:
        await until(self.is_up, LIMIT_S)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(Places(tmp_path))


async def begun(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, LIMIT_S)


def starting(work: Awaitable[Any]) -> asyncio.Future[Any]:
    return asyncio.ensure_future(work)


# ── the reply is lost ───────────────────────────────────────────────────────────────────────────


async def test_a_reply_that_is_lost_with_its_link_is_sent_again_and_nothing_runs_twice(
    lab: Lab,
) -> None:
    rounds = 5
    async with lab() as (relay, cable), lab.relay():
        await relay.move("first")
        for number in range(rounds):
            cable.hold("down")
            calling = starting(relay.call("move", f"r{number}", timeout=LIMIT_S))
            await until(lambda number=number: f"r{number}" in lab.driver.runs)
            cable.cut()
            cable.release()
            assert await calling == f"r{number} done"
    executions = [lab.driver.runs.count(f"r{number}") for number in range(rounds)]
    print(f"{rounds} replies lost, {rounds} kept ones returned, executions {max(executions)}")
    assert executions == [1] * rounds


async def test_an_error_whose_reply_is_lost_arrives_too(lab: Lab) -> None:
    async with lab() as (relay, cable), lab.relay():
        await relay.move("first")
        cable.hold("down")
        calling = starting(relay.call("fail", "x", timeout=LIMIT_S))
        await until(lambda: "x" in lab.driver.runs)
        cable.cut()
        cable.release()
        with pytest.raises(ValueError, match="x is out of range"):
            await calling
    assert lab.driver.runs.count("x") == 1


async def test_a_link_that_is_cut_in_the_middle_of_a_call_and_mended_brings_its_result(
    lab: Lab,
) -> None:
    async with lab() as (relay, cable), lab.relay():
        calling = starting(relay.call("slow", "x", timeout=LIMIT_S))
        await begun(lab.driver.begun)
        for _ in range(3):
            cable.cut()
            await until(lambda: not lab.is_up())
            await lab.relinked()
        lab.driver.go_on.set()
        assert await calling == "x done"
    assert lab.driver.runs == ["x"]


async def test_100_calls_under_way_survive_a_cut_each_run_once(lab: Lab) -> None:
    async with lab() as (relay, cable), lab.relay():
        held = starting(relay.call("slow", "held", timeout=LIMIT_S))
        await begun(lab.driver.begun)
        calls = [
            starting(relay.call("move", f"c{number}", timeout=LIMIT_S)) for number in range(100)
        ]
        await asyncio.sleep(0)
        cable.cut()
        lab.driver.go_on.set()
        ends = await asyncio.gather(held, *calls)
    assert ends == ["held done", *(f"c{number} done" for number in range(100))]
    assert sorted(lab.driver.runs) == sorted({*lab.driver.runs})


# ── nobody knows ────────────────────────────────────────────────────────────────────────────────


async def unknown_of(calling: Awaitable[Any]) -> OutcomeUnknown:
    with pytest.raises(OutcomeUnknown) as caught:
        await calling
    return caught.value


async def test_the_status_of_a_call_settles_what_became_of_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.protocol.caller.RESUME_S", 0.2)
    monkeypatch.setattr("labmesh.asking.calling._DESCRIBE_UNTIL_S", 0.4)
    async with lab() as (relay, cable), lab.relay():
        await relay.move("first")
        cable.hold("down")
        calling = starting(relay.call("move", "x", timeout=LIMIT_S))
        await until(lambda: "x" in lab.driver.runs)
        cable.cut()
        error = await unknown_of(calling)
        assert "may have run" in str(error)
        cable.release()
        status = await relay.call_status(error)
        assert (status.state, status.executed, status.value) == ("returned", True, "x done")
        assert status.kept
        assert status.method == "move"
        assert "returned 'x done'" in repr(status)
        assert await relay.call_status(error.detail["call"]) is not None

        # From another client, which knows no more than what is written in the error.
        async with lab.places.client() as other:
            proxy = RelayClient(other, "Inst-0")
            detail = error.detail
            again = await proxy.call_status(detail["call"], session=detail["session"])
            assert again.value == "x done"


async def test_a_call_that_never_arrived_is_told_so_and_will_not_run(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.protocol.caller.RESUME_S", 0.2)
    monkeypatch.setattr("labmesh.asking.calling._DESCRIBE_UNTIL_S", 0.4)
    async with lab() as (relay, cable), lab.relay():
        await relay.move("first")
        cable.hold("up")
        calling = starting(relay.call("move", "x", timeout=LIMIT_S))
        link = lab.client.link_to("Inst-0")
        assert link is not None
        await until(lambda: any(each.sent for each in link._caller._open.values()))
        cable.hold()
        cable.cut()
        error = await unknown_of(calling)
        cable.release()
        status = await relay.call_status(error)
        assert (status.state, status.executed) == ("not_run", False)
        assert "did not run and will not" in repr(status)
    assert lab.driver.runs == ["first"]


async def test_an_error_without_a_call_cannot_be_settled(lab: Lab) -> None:
    async with lab() as (relay, _):
        with pytest.raises(ValueError, match="belongs to no call"):
            await relay.call_status(OutcomeUnknown("of something else"))


# ── the relay is restarted ──────────────────────────────────────────────────────────────────────


async def restarted_during(
    lab: Lab, begin: Callable[[RelayClient], Awaitable[Any]], then: Counter
) -> tuple[Any, LabmeshError | None]:
    """What a call returns, or raises, whose relay is restarted while it runs."""
    async with lab() as (relay, cable):
        async with lab.relay():
            await relay.move("first")
            cable.hold("down")
            calling = starting(begin(relay))
            await begun(lab.driver.begun)
            cable.cut()
            lab.driver.go_on.set()
        async with lab.relay(then):
            cable.release()
            try:
                return await calling, None
            except LabmeshError as exc:
                return None, exc


async def test_a_call_is_not_sent_to_a_relay_that_was_restarted_meanwhile(lab: Lab) -> None:
    then = Counter()
    value, error = await restarted_during(
        lab, lambda relay: relay.call("slow", "x", timeout=LIMIT_S), then
    )
    print(f"restarted: {error}")
    assert value is None
    assert isinstance(error, OutcomeUnknown)
    assert lab.driver.runs.count("x") == 1
    assert then.runs == []


async def test_an_idempotent_call_is_sent_to_a_relay_that_was_restarted_meanwhile(
    lab: Lab,
) -> None:
    then = Counter()
    then.go_on.set()
    value, error = await restarted_during(
        lab, lambda relay: relay.call("set_voltage", 2.5, timeout=LIMIT_S), then
    )
    assert error is None
    assert value == 2.5
    assert then.runs == ["set 2.5"]
    assert then.voltage == 2.5


async def test_an_idempotent_call_is_tried_until_its_deadline_and_not_longer(lab: Lab) -> None:
    async with lab() as (relay, _):
        async with lab.relay():
            await relay.describe()
            lab.driver.go_on.set()
            assert await relay.set_voltage(1.0) == 1.0
        await until(lambda: not lab.is_up())
        began = time.monotonic()
        with pytest.raises(NotSent):
            await relay.call("set_voltage", 2.0, timeout=1.0)
        assert 0.8 < time.monotonic() - began < 1.0 + SLACK_S
        calling = starting(relay.call("set_voltage", 3.0, timeout=LIMIT_S))
        async with lab.relay():
            assert await calling == 3.0
    assert lab.driver.runs == ["set 1.0", "set 3.0"]


async def test_an_idempotent_call_ends_with_its_client(lab: Lab) -> None:
    async with lab() as (relay, _):
        async with lab.relay():
            await relay.describe()
        await until(lambda: not lab.is_up())
        calling = starting(relay.call("set_voltage", 2.0, timeout=60.0))
        await asyncio.sleep(0)
        began = time.monotonic()
        await lab.client.close()
        with pytest.raises(LinkLost):
            await calling
        assert time.monotonic() - began < SLACK_S
    assert lab.driver.runs == []


# ── the client ──────────────────────────────────────────────────────────────────────────────────


async def test_each_client_has_a_session_of_its_own(lab: Lab) -> None:
    one, other = DirectorClientAgent(), DirectorClientAgent()
    assert one.session.token != other.session.token
    assert len(one.session.token) == 32
    assert one.link_to("Inst-0") is None
    with pytest.raises(LinkLost, match="not connected"):
        await RelayClient(one, "Inst-0").move()
    with pytest.raises(LinkLost, match="not connected"):
        await anext(RelayClient(one, "Inst-0").stream("scan"))
    with pytest.raises(LinkLost, match="not connected"):
        await one.settle_call("Inst-0", Call(id="1", method="move"), deadline=1.0)
