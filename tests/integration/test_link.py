"""A link: it heals by itself, and every request ends by its deadline with the right error."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support import doubles
from tests.support.cable import Cable
from tests.support.doubles import RouterDouble
from tests.support.peers import LOOPBACK, endpoint_of, open_sockets, until
from tests.support.processes import Process, free_ports, program
from tests.support.promptness import SLACK_S

import labmesh.transport.connection as connection_module
from labmesh.errors import (
    LabmeshError,
    LinkLost,
    NoAnswer,
    NotFound,
    NotSent,
    OutcomeUnknown,
    ProtocolError,
    StaleEpoch,
)
from labmesh.protocol.addresses import Address
from labmesh.protocol.messages import (
    RELAY_REQUESTS,
    Alive,
    Call,
    Cancel,
    Describe,
    Description,
    Done,
    Failure,
    GetStatus,
    Item,
    More,
    Pong,
    Request,
    Result,
    Status,
)
from labmesh.transport.connection import Standing
from labmesh.transport.inflow import ItemStream
from labmesh.transport.link import Link
from labmesh.transport.service import Answer, Origin, Service
from labmesh.transport.sockets import Sockets

LIMIT_S = 15.0
#: libzmq tries again after at most 2 s, and a ping goes there and back.
RECOVERY_S = 2.0 + SLACK_S


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with open_sockets(name="client") as opened:
        yield opened


@asynccontextmanager
async def linked(sockets: Sockets, endpoint: str, **options: Any) -> AsyncIterator[Link]:
    """A link, closed at the end."""
    link = Link(sockets, endpoint, where=options.pop("where", "the node"), **options)
    try:
        yield link
    finally:
        link.close()


def square(request: Request, _body: memoryview | None, _origin: Origin) -> Answer:
    """A service that computes; ``hold`` is never answered."""
    if isinstance(request, Call):
        return (
            None if request.method == "hold" else Result(id=request.id, value=request.args[0] ** 2)
        )
    return None if isinstance(request, Describe) else Done(id=request.id)


@asynccontextmanager
async def serving(
    handle: Callable[..., Any] = square,
    *,
    port: int | None = None,
    node_id: str = "Inst-0",
    epoch: str = "e1",
) -> AsyncIterator[Service]:
    """A relay's request socket."""
    with open_sockets(name="server") as sockets:
        service = Service(
            sockets,
            LOOPBACK if port is None else Address("127.0.0.1", port),
            role="relay",
            requests=RELAY_REQUESTS,
            node_id=node_id,
            kind="relay",
            epoch=epoch,
            handle=handle,
        )
        try:
            yield service
        finally:
            await service.close()


def call(method: str = "square", *arguments: Any) -> Call:
    return Call(id="-", method=method, args=list(arguments))


async def ask(link: Link, timeout: float = LIMIT_S) -> Done:
    """A question that :func:`square` answers at once."""
    return await link.request(GetStatus(id="-"), Done, timeout=timeout)


# ── up, down, up again ──────────────────────────────────────────────────────────────────────────


async def test_a_link_is_up_when_the_node_behind_it_has_answered(sockets: Sockets) -> None:
    changes: list[bool] = []
    async with serving() as service:
        link = Link(
            sockets,
            endpoint_of(service.address),
            where="the node",
            on_change=lambda: changes.append(link.up),
        )
        assert not link.up
        assert link.trouble is None
        await link.wait_up(LIMIT_S)
        assert (link.node_id, link.epoch, link.trouble) == ("Inst-0", "e1", None)
        assert link.heard_at is not None
        assert changes[-1] is True
        link.close()


async def test_a_link_survives_a_restart_of_its_node_and_knows_its_new_epoch(
    sockets: Sockets,
) -> None:
    [port] = free_ports(1)
    recovered: list[float] = []
    async with linked(sockets, f"tcp://127.0.0.1:{port}") as link:
        for number in range(4):
            async with serving(port=port, epoch=f"e{number}"):
                began = time.monotonic()
                await link.wait_up(LIMIT_S)
                recovered.append(time.monotonic() - began)
                assert link.epoch == f"e{number}"
                await ask(link)
            await until(lambda: not link.up)
    print(f"up again after {', '.join(f'{each:.2f}' for each in recovered)} s")
    assert max(recovered) < RECOVERY_S


async def test_a_question_ends_when_the_link_breaks_and_what_was_not_sent_goes_on(
    sockets: Sockets,
) -> None:
    [port] = free_ports(1)
    async with linked(sockets, f"tcp://127.0.0.1:{port}", where="relay Inst-0") as link:
        async with serving(port=port) as service:
            await link.wait_up(LIMIT_S)
            question = asyncio.create_task(
                link.request(Describe(id="-"), Description, timeout=LIMIT_S)
            )
            await until(lambda: all_sent(link, 1))
            await service.close()
            with pytest.raises(LinkLost, match=r"relay Inst-0 at tcp.* broke before"):
                await question

        began = time.monotonic()
        with pytest.raises(NotSent, match="nobody answers at relay Inst-0"):
            await link.request(call("square", 3), Result, timeout=0.5)
        assert 0.5 <= time.monotonic() - began < 0.5 + SLACK_S

        patient = asyncio.create_task(link.request(call("square", 3), Result, timeout=LIMIT_S))
        async with serving(port=port, epoch="e2"):
            assert (await patient).value == 9


def all_sent(link: Link, count: int) -> bool:
    return sum(each.sent for each in link._caller._open.values()) == count


async def test_a_node_that_connects_but_does_not_answer_is_tried_anew(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_PING_AGAIN_S", 0.05)
    with RouterDouble(pings=0) as double:
        async with linked(sockets, double.endpoint) as link:
            first = link._socket
            with pytest.raises(NotSent, match="does not answer"):
                await link.wait_up(0.1)
            await until(lambda: link._socket is not first)
            double._pings = None
            await link.wait_up(LIMIT_S)


async def test_another_node_at_the_address_is_found_out_and_the_right_one_found_later(
    sockets: Sockets,
) -> None:
    [port] = free_ports(1)
    async with linked(sockets, f"tcp://127.0.0.1:{port}", target="Inst-1") as link:
        async with serving(port=port, node_id="Inst-0"):
            began = time.monotonic()
            with pytest.raises(NotFound, match=r"Inst-0 answers at tcp.*, not Inst-1"):
                await link.wait_up(LIMIT_S)
            with pytest.raises(NotFound):
                await link.request(call(), Result, timeout=LIMIT_S)
            assert time.monotonic() - began < SLACK_S, "it is known at once"
            assert not link.up
            assert isinstance(link.trouble, NotFound)
        async with serving(port=port, node_id="Inst-1"):
            await until(lambda: link.up)
            assert link.trouble is None
            assert (await link.request(call("square", 2), Result, timeout=LIMIT_S)).value == 4


# ── deadlines ───────────────────────────────────────────────────────────────────────────────────

PEERS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], type[LabmeshError], str]] = {
    "nothing listening": (doubles.nothing_listening, NotSent, "nobody answers"),
    "black hole": (doubles.black_hole, NotSent, "does not answer"),
    "accepted by nobody": (doubles.accepted_by_nobody, NotSent, "does not answer"),
    "accepts, silent": (doubles.silent, NotSent, "does not answer"),
    "accepts, closes": (doubles.closing, NotSent, "breaks every handshake off"),
    "web server": (doubles.http, NotSent, "breaks every handshake off|does not speak labmesh"),
}


async def test_no_deadline_is_overrun_whatever_is_behind_an_address(sockets: Sockets) -> None:
    """All kinds at a time: each waits for its deadline, and for nothing else."""
    found = await asyncio.gather(*(_wrong_about(sockets, each) for each in PEERS))
    assert [wrong for each in found for wrong in each] == []


async def _wrong_about(sockets: Sockets, peer: str) -> list[str]:
    """What is not as promised of questions to a peer of this kind."""
    make, kind, says = PEERS[peer]
    timeout = 1.5
    with make() as endpoint:
        async with linked(sockets, endpoint) as link:
            began = time.monotonic()

            async def outcome(work: Any) -> tuple[float, object]:
                try:
                    ended: object = await work
                except LabmeshError as exc:
                    ended = exc
                return time.monotonic() - began - timeout, ended

            outcomes = await asyncio.gather(
                outcome(link.wait_up(timeout)),
                outcome(link.request(GetStatus(id="-"), Status, timeout=timeout)),
                outcome(link.request(call("square", 1), Result, timeout=timeout)),
            )
    overruns = [overrun for overrun, _ in outcomes]
    print(f"{peer}: overrun {1000 * max(overruns):.1f} ms: {outcomes[2][1]}")
    wrong = [
        f"{peer}: {each!r}"
        for _, each in outcomes
        if not isinstance(each, kind) or each.executed is not False
    ]
    if not 0 <= min(overruns) < max(overruns) < SLACK_S:
        wrong.append(f"{peer}: overruns {overruns}")
    if not re.search(says, str(outcomes[0][1])):
        wrong.append(f"{peer}: says {outcomes[0][1]}, not {says!r}")
    return wrong


def stands_still(pid: int) -> bool:
    """Each of its threads has stopped; the signal tells them one by one."""
    states = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(each.rpartition(")")[2].split()[0] == "T" for each in states)


async def test_no_deadline_is_overrun_when_the_node_stands_still(
    sockets: Sockets, tmp_path: Path
) -> None:
    port, nobody = free_ports(2)
    relay = {
        "kind": "relay",
        "relay_id": "Inst-0",
        "broker_rpc": f"tcp://127.0.0.1:{nobody}",
        "state_pub": f"tcp://127.0.0.1:{nobody}",
        "rpc_bind": f"tcp://127.0.0.1:{port}",
    }
    with Process([program("nodes.py"), json.dumps([relay])], cwd=tmp_path) as process:
        async with linked(sockets, f"tcp://127.0.0.1:{port}", target="Inst-0") as link:
            await link.wait_up(LIMIT_S)
            process.stop()
            await until(lambda: stands_still(process.pid))
            began = time.monotonic()
            question = asyncio.create_task(link.request(GetStatus(id="-"), Status, timeout=1.0))
            running = asyncio.create_task(link.request(call("square", 3), Result, timeout=1.5))
            with pytest.raises(NoAnswer) as unanswered:
                await question
            overrun = [time.monotonic() - began - 1.0]
            with pytest.raises(OutcomeUnknown, match="was on its way at its deadline"):
                await running
            overrun.append(time.monotonic() - began - 1.5)
            assert type(unanswered.value) is NoAnswer

            await until(lambda: not link.up, timeout_s=LIMIT_S)
            noticed_s = time.monotonic() - began
            assert (link.trouble is None) or type(link.trouble) is LinkLost
            process.cont()
            began = time.monotonic()
            await link.wait_up(LIMIT_S)
            print(
                f"stopped node: overrun {1000 * max(overrun):.1f} ms, noticed after "
                f"{noticed_s:.2f} s, up again after {time.monotonic() - began:.2f} s"
            )
            assert 0 <= min(overrun) < max(overrun) < SLACK_S
            assert noticed_s < 4.0 + SLACK_S
            answer = await link.request(call("square", 5), Result, timeout=LIMIT_S)
            assert answer.value == 25, "nothing of before comes up"


async def test_a_timeout_may_be_infinite_zero_or_negative_but_not_nan(sockets: Sockets) -> None:
    async with serving() as service, linked(sockets, endpoint_of(service.address)) as link:
        assert (await link.request(call("square", 3), Result, timeout=math.inf)).value == 9
        for timeout in (0.0, -1.0):
            with pytest.raises(LabmeshError) as caught:
                await link.request(call("square", 3), Result, timeout=timeout)
            assert caught.value.executed is False
        with pytest.raises(ValueError, match="NaN"):
            await link.request(call("square", 3), Result, timeout=math.nan)


async def test_a_call_of_which_nothing_is_heard_is_given_up_and_taken_back(
    sockets: Sockets,
) -> None:
    def queue(request: Request) -> doubles.Answers:
        if isinstance(request, Call):
            yield Alive(id=request.id, state="queued")

    with RouterDouble(queue) as double:
        async with linked(sockets, double.endpoint) as link:
            link._caller._silence_s = 0.3
            with pytest.raises(OutcomeUnknown, match="fell silent while square was waiting"):
                await link.request(call("square", 1), Result, timeout=600.0)
            await until(lambda: len(double.requests) == 2)
            called, cancelled = double.requests
            assert isinstance(cancelled, Cancel)
            assert cancelled.call == called.id


# ── replies ─────────────────────────────────────────────────────────────────────────────────────


async def test_replies_to_nobody_are_ignored(sockets: Sockets) -> None:
    """Unknown, twice, late."""
    held: list[str] = []

    def answer(request: Request) -> doubles.Answers:
        if isinstance(request, GetStatus):
            held.append(request.id)
            return
        assert isinstance(request, Call)
        yield Result(id="nobody's", value="wrong")
        yield from (Result(id=each, value="late") for each in held)
        yield Alive(id="nobody's", state="running")
        yield Pong(id="nobody's", node_id="double", epoch="e9", clock=1e9)
        yield Result(id=request.id, value=request.args[0])
        yield Result(id=request.id, value="again")

    with RouterDouble(answer) as double:
        async with linked(sockets, double.endpoint) as link:
            with pytest.raises(NoAnswer):
                await link.request(GetStatus(id="-"), Status, timeout=0.2)
            for number in range(5):
                got = await link.request(call("echo", number), Result, timeout=LIMIT_S)
                assert got.value == number
            assert link.epoch == "e1"
            assert len(link._caller) == 0
            assert link._outbox == {}


@pytest.mark.parametrize(
    ("request_", "reply", "kind"),
    [
        (GetStatus(id="-"), Status, ProtocolError),
        (call("ramp"), Result, OutcomeUnknown),
    ],
)
async def test_an_answer_that_says_nothing_is_an_error_that_claims_no_more_than_is_known(
    sockets: Sockets, request_: Request, reply: Any, kind: type[LabmeshError]
) -> None:
    answers: dict[str, Callable[[bytes], Any]] = {
        "of another type": lambda each: Done(id=each.decode()),
        "of another shape": lambda each: [b'{"type":"node_list","id":"%b","nodes":5}' % each],
        "of a later version": lambda each: [b'{"type":"novel","id":"%b"}' % each],
        "of too many frames": lambda each: [b'{"type":"done","id":"%b"}' % each] + 64 * [b"x"],
    }
    which = iter(answers.values())
    with RouterDouble(lambda request: [next(which)(request.id.encode())]) as double:
        async with linked(sockets, double.endpoint) as link:
            for what in answers:
                with pytest.raises(kind, match=r"no answer to this|cannot be read") as caught:
                    await link.request(request_, reply, timeout=LIMIT_S)
                assert type(caught.value) is kind, what


async def test_an_answer_of_which_not_even_the_id_can_be_read_is_no_answer(
    sockets: Sockets,
) -> None:
    with RouterDouble(lambda _: [[b"\x93junk"], [b""], [b"{"]]) as double:
        async with linked(sockets, double.endpoint) as link:
            with pytest.raises(NoAnswer):
                await link.request(GetStatus(id="-"), Status, timeout=0.3)
            assert link.up


async def test_a_failure_becomes_the_error_that_it_names(sockets: Sockets) -> None:
    failures = iter(
        [
            Failure(id="", code=409, name="conflict", text="taken", detail={"offset": 7}),
            Failure(id="", code=999, name="of a later version", text="new"),
            Failure(id="", code=0, name="driver", detail={"exception_type": "SystemExit"}),
            Failure(id="", code=0, name="", text="", detail={"self": 1, "text": 2, "a b": 3}),
        ]
    )

    def fail(request: Request) -> doubles.Answers:
        told = next(failures)
        yield Failure(
            id=request.id, code=told.code, name=told.name, text=told.text, detail=told.detail
        )

    seen = []
    with RouterDouble(fail) as double:
        async with linked(sockets, double.endpoint) as link:
            for _ in range(4):
                with pytest.raises(LabmeshError) as caught:
                    await link.request(GetStatus(id="-"), Status, timeout=LIMIT_S)
                seen.append(caught.value)
    assert [each.name for each in seen] == ["conflict", "error", "driver", "error"]
    assert seen[0].detail == {"offset": 7}
    assert not isinstance(seen[2], SystemExit)


# ── breaks ──────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def cabled(sockets: Sockets, double: RouterDouble) -> AsyncIterator[tuple[Link, Cable]]:
    """A link over a cable, up."""
    async with Cable(double.port) as cable, linked(sockets, cable.endpoint) as link:
        await link.wait_up(LIMIT_S)
        yield link, cable


async def test_a_call_whose_link_breaks_is_sent_again_under_its_id(sockets: Sockets) -> None:
    """And what comes twice counts once."""

    def answer_the_second(request: Request) -> doubles.Answers:
        if len(double.requests) == 2:
            yield Result(id=request.id, value="at last")
            yield Result(id=request.id, value="again")

    with RouterDouble(answer_the_second) as double:
        async with cabled(sockets, double) as (link, cable):
            calling = asyncio.create_task(link.call("ramp", [1.0], {}, timeout=LIMIT_S))
            await until(lambda: double.requests)
            cable.cut()
            assert await calling == "at last"
            first, second = double.requests
            assert isinstance(first, Call)
            assert first == second
            assert (first.target, first.epoch) == ("double", "e1")
            assert len(first.session) >= 16
            assert first.deadline is not None
            assert len(link._caller) == 0


async def test_a_call_is_not_sent_again_to_a_relay_that_was_restarted(sockets: Sockets) -> None:
    with RouterDouble() as double:
        async with cabled(sockets, double) as (link, cable):
            calling = asyncio.create_task(link.call("ramp", [], {}, timeout=LIMIT_S))
            await until(lambda: double.requests)
            double._epoch = "e2"
            cable.cut()
            with pytest.raises(OutcomeUnknown, match="was restarted while ramp") as caught:
                await calling
            assert len(double.requests) == 1
            assert caught.value.detail["call"] == double.requests[0].id
            assert caught.value.detail["session"] == double.requests[0].session  # type: ignore[attr-defined]


async def test_a_call_whose_link_stays_broken_ends_after_a_while(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labmesh.protocol.caller.RESUME_S", 0.3)
    with RouterDouble() as double:
        async with cabled(sockets, double) as (link, cable):
            calling = asyncio.create_task(link.call("ramp", [], {}, timeout=60.0))
            await until(lambda: double.requests)
            cable.hold()
            cable.cut()
            await until(lambda: not link.up)
            began = time.monotonic()
            with pytest.raises(OutcomeUnknown, match="was not up again within") as caught:
                await calling
            assert 0.2 < time.monotonic() - began < 0.3 + SLACK_S
            call_id = caught.value.detail["call"]
            assert f'call_status("{call_id}")' in str(caught.value)
            assert link._session.age_s(call_id) < LIMIT_S
            cable.release()


@pytest.mark.parametrize("times", [1, 4])
async def test_a_call_that_is_refused_for_its_epoch_is_sent_to_the_new_one(
    sockets: Sockets, times: int
) -> None:
    """The relay was restarted unnoticed. One that goes on refusing is believed in the end."""

    def refuse(request: Request) -> doubles.Answers:
        if len(double.requests) <= times:
            double._epoch = f"e{len(double.requests) + 1}"
            yield Failure(id=request.id, code=410, name="stale_epoch", text="restarted")
        else:
            yield Result(id=request.id, value="done")

    with RouterDouble(refuse) as double:
        async with linked(sockets, double.endpoint) as link:
            await link.wait_up(LIMIT_S)
            calling = asyncio.create_task(link.call("ramp", [], {}, timeout=LIMIT_S))
            if times == 1:
                assert await calling == "done"
                assert [each.epoch for each in double.requests] == ["e1", "e2"]
            else:
                with pytest.raises(StaleEpoch, match="restarted") as caught:
                    await calling
                assert caught.value.executed is False
                assert len(double.requests) == 4


async def test_a_call_that_another_socket_has_sent_is_settled(sockets: Sockets) -> None:
    def answer(request: Request) -> doubles.Answers:
        if isinstance(request, Call):
            yield Result(id=request.id, value="kept")

    with RouterDouble(answer) as double:
        async with cabled(sockets, double) as (link, cable):
            sent = Call(
                id=link._session.next_id(),
                session=link._session.token,
                target="double",
                epoch="e1",
                method="ramp",
                deadline=2000.0,
            )
            deadline = time.monotonic() + LIMIT_S
            assert (await link.settle(sent, Result, deadline=deadline)).value == "kept"
            assert double.requests == [sent]

            cable.cut()
            await until(lambda: not link.up)
            assert (await link.settle(sent, Result, deadline=deadline)).value == "kept"
            assert link.up

            stale = msgspec.structs.replace(sent, epoch="e0")
            with pytest.raises(OutcomeUnknown, match="was restarted while ramp was on its way"):
                await link.settle(stale, Result, deadline=deadline, sent_at=0.0)
            assert link._session.age_s(stale.id) > time.monotonic() - LIMIT_S
            with pytest.raises(OutcomeUnknown, match="while ramp was running") as caught:
                await link.settle(stale, Result, deadline=deadline, state="running")
            assert caught.value.detail["state"] == "running"
            assert len(double.requests) == 2
            assert link.standing == Standing(True, "double", "e1", link._clock.ahead_s)
        with pytest.raises(OutcomeUnknown):
            await link.settle(sent, Result, deadline=deadline)
        assert not link.standing.up


async def test_a_relay_that_says_that_nobody_knows_is_quoted(sockets: Sockets) -> None:
    def abandon(request: Request) -> doubles.Answers:
        yield Failure(
            id=request.id,
            code=408,
            name="outcome_unknown",
            text="stopped",
            detail={"state": "returned"},
        )

    with RouterDouble(abandon) as double:
        async with linked(sockets, double.endpoint, target="double") as link:
            with pytest.raises(OutcomeUnknown, match="stopped") as caught:
                await link.request(call("ramp"), Result, timeout=LIMIT_S)
            assert caught.value.detail == {
                "call": double.requests[0].id,
                "session": link._session.token,
                "relay": "double",
                "state": "returned",
            }


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


def yielding(count: int, *, then: Any = "end") -> Callable[[Any], doubles.Answers]:
    """Yields 0, 1, ... within its credit."""
    left = {"credit": 0, "next": 0}
    stream: list[str] = []

    def answer(request: Request) -> doubles.Answers:
        if isinstance(request, Call):
            stream.append(request.id)
            left["credit"] += request.credit
        elif isinstance(request, More):
            left["credit"] += request.credit
        while left["credit"] and left["next"] < count:
            yield Item(id=stream[0], index=left["next"], value=left["next"])
            left["credit"] -= 1
            left["next"] += 1
            if left["next"] == count:
                yield Result(id=stream[0], value=then)

    return answer


async def items_of(stream: ItemStream) -> list[Any]:
    items = []
    with contextlib.suppress(StopAsyncIteration):
        while True:
            items.append(await stream.next())
    return items


async def test_a_stream_brings_every_item_and_then_the_result(sockets: Sockets) -> None:
    with RouterDouble(yielding(100)) as double:
        async with linked(sockets, double.endpoint) as link:
            await link.wait_up(LIMIT_S)
            stream = link.stream("scan", [], {}, timeout=LIMIT_S, credit=8)
            assert await items_of(stream) == list(range(100))
            assert stream.result == "end"
            assert len(link._caller) == 0
            asked = [each.credit for each in double.requests if isinstance(each, More)]
            assert set(asked) == {4}
            stream.close()
            with pytest.raises(StopAsyncIteration):
                await stream.next()


async def test_a_slow_consumer_holds_no_more_than_its_credit(sockets: Sockets) -> None:
    with RouterDouble(yielding(100)) as double:
        async with linked(sockets, double.endpoint) as link:
            await link.wait_up(LIMIT_S)
            stream = link.stream("scan", [], {}, timeout=LIMIT_S, credit=8)
            await until(lambda: len(stream) == 8)
            for index in range(4):
                assert await stream.next() == index
            await until(lambda: len(stream) == 8)
            stream.close()
            stream.close()
            await until(lambda: isinstance(double.requests[-1], Cancel))
            assert len(double.requests) == 3


@pytest.mark.parametrize("wrong", [[0, 2], [0, 0], [1], [0, 1, 2]])
async def test_a_stream_with_a_gap_a_repeat_or_too_much_is_ended(
    sockets: Sockets, wrong: list[int]
) -> None:
    def answer(request: Request) -> doubles.Answers:
        if isinstance(request, Call):
            yield from (Item(id=request.id, index=index, value=index) for index in wrong)

    with RouterDouble(answer) as double:
        async with linked(sockets, double.endpoint) as link:
            await link.wait_up(LIMIT_S)
            stream = link.stream("scan", [], {}, timeout=LIMIT_S, credit=2)
            await until(lambda: double.requests[1:])
            assert isinstance(double.requests[1], Cancel)
            good = [await stream.next() for _ in range(len(stream))]
            assert good == wrong[: len(good)]
            with pytest.raises(ProtocolError, match="of a stream came"):
                await stream.next()


async def test_a_broken_link_ends_a_stream_behind_what_has_arrived(sockets: Sockets) -> None:
    def answer(request: Request) -> doubles.Answers:
        yield Item(id=request.id, index=0, value="first")

    with RouterDouble(answer) as double:
        async with cabled(sockets, double) as (link, cable):
            stream = link.stream("scan", [], {}, timeout=LIMIT_S, credit=2)
            await until(lambda: len(stream))
            cable.cut()
            await until(lambda: not link.up)
            assert await stream.next() == "first"
            with pytest.raises(LinkLost, match="in the middle of scan"):
                await stream.next()
            await link.wait_up(LIMIT_S)
            assert len(double.requests) == 1, "it is not sent again"


async def test_a_stream_ends_with_its_method_in_silence_and_when_its_reader_is_cancelled(
    sockets: Sockets,
) -> None:
    def answer(request: Request) -> doubles.Answers:
        if isinstance(request, Call) and request.method == "fail":
            yield Item(id=request.id, index=0)
            yield Failure(id=request.id, code=500, name="driver", text="channel 3 is gone")
        elif isinstance(request, Call) and request.method == "confused":
            yield Done(id=request.id)

    with RouterDouble(answer) as double:
        async with linked(sockets, double.endpoint) as link:
            await link.wait_up(LIMIT_S)
            link._caller._silence_s = 0.3
            failing = link.stream("fail", [], {}, timeout=math.inf, credit=2)
            assert await failing.next() is None
            with pytest.raises(LabmeshError, match="channel 3"):
                await failing.next()
            with pytest.raises(OutcomeUnknown, match="no answer to this"):
                await link.stream("confused", [], {}, timeout=math.inf, credit=2).next()
            with pytest.raises(OutcomeUnknown, match="fell silent while scan"):
                await link.stream("scan", [], {}, timeout=math.inf, credit=2).next()
            stream = link.stream("scan", [], {}, timeout=math.inf, credit=2)
            reading = asyncio.create_task(stream.next())
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await until(lambda: isinstance(double.requests[-1], Cancel))
            with pytest.raises(StopAsyncIteration):
                await stream.next()


# ── cancelling, closing, crowding ───────────────────────────────────────────────────────────────


async def test_cancelling_the_caller_takes_its_call_back(sockets: Sockets) -> None:
    with RouterDouble() as double:
        async with linked(sockets, double.endpoint) as link:
            waiting = asyncio.create_task(link.request(call("ramp"), Result, timeout=LIMIT_S))
            await until(lambda: double.requests)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await until(lambda: len(double.requests) == 2)
            called, cancelled = double.requests
            assert isinstance(cancelled, Cancel)
            assert (cancelled.call, cancelled.target) == (called.id, "double")
            assert len(link._caller) == 0


async def test_a_question_that_is_cancelled_is_just_forgotten(sockets: Sockets) -> None:
    with RouterDouble() as double:
        async with linked(sockets, double.endpoint) as link:
            for _ in range(2):
                waiting = asyncio.create_task(ask(link))
                await until(lambda: len(link._caller) == 1 and link.up)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                assert len(link._caller) == 0
            # Cancelled before it was sent, where the link is not up: nothing is told either.
            assert not any(isinstance(each, Cancel) for each in double.requests)


async def test_what_was_begun_is_replied_to_or_forgotten(sockets: Sockets) -> None:
    with RouterDouble() as double:
        async with linked(sockets, double.endpoint) as link:
            await link.wait_up(LIMIT_S)
            waits = link.begin(call("ramp"), timeout=LIMIT_S)
            ended = link.begin(call("ramp"), timeout=LIMIT_S)
            assert len(link._caller) == 2
            link.forget(waits)
            assert len(link._caller) == 1
        with pytest.raises(LinkLost):
            await link.reply_to(ended, Result)
        link.forget(ended)
        link.forget(waits)


async def test_an_answer_to_a_caller_that_is_being_cancelled_harms_nobody(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[Origin] = []

    def hold(request: Request, _body: memoryview | None, origin: Origin) -> Answer:
        held.append(origin)
        return Done(id=request.id) if isinstance(request, GetStatus) else None

    async with serving(hold) as service, linked(sockets, endpoint_of(service.address)) as link:
        waiting = asyncio.create_task(link.request(call("ramp"), Result, timeout=LIMIT_S))
        await until(lambda: held)
        service.reply(held[0], Result(id=held[0].request_id))
        assert link._socket.poll(1000), "it is here, and the loop has not run since"
        waiting.cancel()
        link._channel.drain()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await ask(link)
    assert "was not handled" not in caplog.text


async def test_closing_ends_what_is_open_and_refuses_what_comes(sockets: Sockets) -> None:
    with RouterDouble() as double:
        link = Link(sockets, double.endpoint, where="the node")
        await link.wait_up(LIMIT_S)
        sent = [
            asyncio.create_task(ask(link)),
            asyncio.create_task(link.request(call("ramp"), Result, timeout=LIMIT_S)),
        ]
        await until(lambda: len(double.requests) == 2)
        link.close()
        link.close()
        with pytest.raises(LinkLost) as lost:
            await sent[0]
        assert type(lost.value) is LinkLost
        with pytest.raises(OutcomeUnknown):
            await sent[1]
        with pytest.raises(NotSent, match="is closed"):
            await ask(link)
        with pytest.raises(NotSent, match="is closed"):
            await link.wait_up(LIMIT_S)


async def test_closing_ends_what_was_not_sent_yet(sockets: Sockets) -> None:
    with doubles.silent() as endpoint:
        link = Link(sockets, endpoint, where="the node")
        waiting = [
            asyncio.create_task(ask(link)),
            asyncio.create_task(link.request(call("ramp"), Result, timeout=LIMIT_S)),
            asyncio.create_task(link.wait_up(LIMIT_S)),
        ]
        await until(lambda: len(link._outbox) == 2 and len(link._waiters) == 1)
        link.close()
        for each in waiting:
            with pytest.raises(NotSent, match="closed"):
                await each
        assert not len(link._waiters)


async def test_what_cannot_be_encoded_is_refused_here_and_leaves_nothing_open(
    sockets: Sockets,
) -> None:
    async with serving() as service, linked(sockets, endpoint_of(service.address)) as link:
        with pytest.raises(ProtocolError, match="set"):
            await link.request(call("square", {1, 2}), Result, timeout=LIMIT_S)
        assert len(link._caller) == 0
        assert link._outbox == {}


async def test_5000_requests_at_once_are_all_answered_and_none_mixed_up(sockets: Sockets) -> None:
    async with serving() as service, linked(sockets, endpoint_of(service.address)) as link:
        answers = await asyncio.gather(
            *(link.request(call("square", n), Result, timeout=LIMIT_S) for n in range(5000))
        )
    assert [each.value for each in answers] == [n**2 for n in range(5000)]


async def test_a_node_that_does_not_read_holds_requests_up_and_costs_no_link(
    sockets: Sockets,
) -> None:
    """More than the socket takes: the rest waits for room, or ends as not sent."""
    payload = "x" * 10_000
    with RouterDouble(lambda request: [Result(id=request.id, value="ok")]) as double:
        async with linked(sockets, double.endpoint) as link:
            await link.wait_up(LIMIT_S)
            double.hold()
            waiting = [
                asyncio.create_task(link.request(call("put", payload), Result, timeout=LIMIT_S))
                for _ in range(4000)
            ]
            await until(lambda: link._outbox)
            assert link.up
            with pytest.raises(NotSent, match="does not keep up"):
                await link.request(call("put", payload), Result, timeout=0.2)
            double.read()
            answers = await asyncio.gather(*waiting)
            assert {each.value for each in answers} == {"ok"}
            assert link.up
