"""Calls that are held up beyond their deadlines, wherever: none of them runs late.

    pytest tests/faults/test_calls_late.py -s

prints a line of figures for each fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from contextlib import ExitStack
from typing import Any, Self

import pytest
from tests.support.cable import Cable
from tests.support.direct import connected_sockets
from tests.support.history import History, Journal, Lag, Operation, conclude, twice
from tests.support.namespaces import Lab
from tests.support.peers import until
from tests.support.places import Places, list_relay
from tests.support.plain_client import PlainClient, plain_clients
from tests.support.processes import Process, free_ports, program
from tests.support.promptness import SLACK_S

import labmesh
import labmesh.transport.blocking as blocking_module
from labmesh import RelayClient
from labmesh.errors import OutcomeUnknown

RELAY = "Inst-0"
CALLS = 100
TIMEOUT_S = 1.0
#: Calls that are to be in the queue before their relay is stopped are in it by then.
QUEUED_S = 3.0
LIMIT_S = 20.0
#: A caller without a timeout gives up when it has heard nothing for so long.
GIVEN_UP_S = 4.0


def recording_relay(places: Places, journal: Journal, **options: Any) -> Process:
    """A relay in a process of its own, whose driver writes down what it runs."""
    keywords = {
        "relay_id": RELAY,
        "broker_rpc": places.rpc,
        "state_pub": places.xsub,
        "rpc_bind": "tcp://127.0.0.1:*",
        "heartbeat_seconds": 0.5,
        **options,
    }
    arguments = [program("recording_relay.py"), journal.path, json.dumps(keywords)]
    return Process(arguments, cwd=places.folder)


def conclude_late(
    row: str,
    faults: str,
    history: History,
    journal: Journal,
    machine_s: float,
    *,
    is_alone: bool = False,
) -> None:
    """What must be so of calls whose relay could not be reached in time.

    :param machine_s: how late the machine was at worst; alone with it nothing else is granted.
    """
    executions = journal.executions
    told = ", ".join(f"{count} {what}" for what, count in history.told().items())
    conclude(
        row,
        faults,
        len(history.operations),
        {
            "executed after the deadline": history.late(executions),
            "executed twice": twice(executions),
            "not told how it ended": history.not_told(),
            "told wrongly": history.falsely_told(executions),
            "deadline overrun": history.overrun(machine_s if is_alone else SLACK_S),
        },
        f"told: {told}; overrun at most {1000 * history.worst_overrun_s():.0f} ms "
        f"(of them the machine's {1000 * machine_s:.0f} ms)",
    )


# ── a relay that is stopped ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stopped_s", [4.5, pytest.param(10.0, marks=pytest.mark.soak)])
async def test_a_stopped_relay_runs_nothing_of_what_it_missed(
    stopped_s: float, places: Places, journal: Journal
) -> None:
    """FR1: a relay goes on when nobody waits any more. 100 calls of tasks, 100 of threads, and 100
    of a client that takes nothing back; of these half were in the queue already."""
    history = History()
    with ExitStack() as stack:
        async with places.broker(), places.client() as client:
            relay_process = stack.enter_context(recording_relay(places, journal))
            await asyncio.to_thread(relay_process.wait_for, "^ready", LIMIT_S)
            relay = await client.get_relay_agent(RELAY, wait=LIMIT_S)
            await relay.call("move", "first")
            threads = stack.enter_context(_Threads(places.rpc))
            await asyncio.to_thread(threads.connect)
            endpoint = client.health(RELAY).endpoint
            (plain,) = stack.enter_context(plain_clients(endpoint, count=1))
            busy = asyncio.create_task(relay.call("busy", QUEUED_S, timeout=LIMIT_S))
            while (await relay.status()).facts["busy_with"] != "busy":
                assert not busy.done()
            by_hand = _plain_calls(plain, range(1, CALLS // 2 + 1), QUEUED_S)
            while (await relay.status()).facts["queued"] < CALLS // 2:
                assert not busy.done()
            relay_process.stop()
            stopped_at = time.monotonic()
            with Lag() as lag:
                blocking = threads.begin()
                by_hand |= _plain_calls(plain, range(CALLS // 2 + 1, CALLS + 1), TIMEOUT_S)
                await calls_of_tasks(relay, history)
                await asyncio.to_thread(threads.join)
            expired_at = max(each.deadline for each in by_hand.values())
            await asyncio.sleep(max(stopped_at + stopped_s, expired_at) - time.monotonic())
            relay_process.cont()
            _plain_replies(plain, by_hand)
            with pytest.raises(OutcomeUnknown):
                await busy
            # Relays take turns between connections: behind these none of the old ones waits.
            for number in range(3 * CALLS):
                await relay.call("put", f"after-{number}", timeout=LIMIT_S)
    assert journal.count("after-") == 3 * CALLS
    faults = f"SIGSTOP for {stopped_s:g} s"
    is_alone = stopped_s >= 10.0
    conclude_late("FR1", faults, history, journal, lag.worst_s, is_alone=is_alone)
    conclude_late("FR1 (threads)", faults, blocking, journal, lag.worst_s, is_alone=is_alone)
    assert len(threads.direct) == CALLS
    plain_history = History(by_hand.values())
    conclude(
        "FR1 (plain ZeroMQ)",
        faults,
        len(by_hand),
        {
            "executed after the deadline": plain_history.late(journal.executions),
            "told otherwise": [each for each in by_hand.values() if each.error != "expired"],
        },
        f"told: {sum(each.error == 'expired' for each in by_hand.values())} expired",
    )


async def test_what_a_caller_has_given_up_does_not_begin_later(
    places: Places, journal: Journal
) -> None:
    """FR1 with callers who have time: they hear nothing for 4 s, and are told; their deadlines are
    far away when the relay goes on. Half of their calls were in the queue before it stopped."""
    history = History()
    with ExitStack() as stack:
        async with places.broker(), places.client() as client:
            relay_process = stack.enter_context(recording_relay(places, journal))
            await asyncio.to_thread(relay_process.wait_for, "^ready", LIMIT_S)
            relay = await client.get_relay_agent(RELAY, wait=LIMIT_S)
            await relay.call("move", "first")
            busy = asyncio.create_task(relay.call("busy", QUEUED_S, timeout=LIMIT_S))
            while (await relay.status()).facts["busy_with"] != "busy":
                assert not busy.done()

            def begin(first: int) -> list[asyncio.Task[Operation]]:
                return [
                    asyncio.create_task(
                        history.watch(
                            f"patient-{number}",
                            relay.call("move", f"patient-{number}", timeout=None),
                            GIVEN_UP_S,
                        )
                    )
                    for number in range(first, first + CALLS // 2)
                ]

            calls = begin(0)
            while (await relay.status()).facts["queued"] < CALLS // 2:
                assert not busy.done()
            relay_process.stop()
            calls += begin(CALLS // 2)
            await asyncio.gather(*calls)
            relay_process.cont()
            with pytest.raises(OutcomeUnknown):
                await busy
            for number in range(3 * CALLS):
                await relay.call("put", f"after-{number}", timeout=LIMIT_S)
    ran = [each.tag for each in journal.executions if each.tag.startswith("patient-")]
    conclude(
        "FR1 (no timeout)",
        "SIGSTOP until all were told",
        len(calls),
        {
            "ran after their callers were told": ran,
            "not told": history.not_told(),
            "too late": history.overrun(SLACK_S),
        },
        f"told: {dict(history.told())}",
    )


async def calls_of_tasks(relay: RelayClient, history: History) -> None:
    """All at a time, to their ends."""
    tags = [f"task-{number}" for number in range(CALLS)]
    await asyncio.gather(
        *(
            history.watch(each, relay.call("move", each, timeout=TIMEOUT_S), TIMEOUT_S)
            for each in tags
        )
    )


def _plain_calls(plain: PlainClient, call_ids: range, timeout_s: float) -> dict[int, Operation]:
    """Calls of which nobody says that their caller has given up; only their deadline does."""
    history = History()
    operations = {each: history.begin(plain.tag(each), timeout_s) for each in call_ids}
    for call_id, operation in operations.items():
        plain.send(call_id, deadline=operation.deadline)
    return operations


def _plain_replies(plain: PlainClient, operations: dict[int, Operation]) -> None:
    answered: set[int] = set()
    while len(answered) < len(operations):
        replies = plain.received(int(1000 * LIMIT_S))
        assert replies, f"no answer to {operations.keys() - answered}"
        for reply in replies:
            call_id = int(reply.id)  # type: ignore[attr-defined]
            answered.add(call_id)
            operations[call_id].error = getattr(reply, "name", "a result")


class _Threads:
    """As many threads as calls, each with a connection of its own to the relay."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._threads: list[threading.Thread] = []
        #: calls that went over such a connection to their end
        self.direct: list[str] = []

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self._patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        self._patch.setattr(blocking_module, "_KEPT", CALLS)
        return self

    def __exit__(self, *_: object) -> None:
        self.join()
        self._stack.close()

    def connect(self) -> None:
        """As a script does."""
        self._mesh = self._stack.enter_context(labmesh.connect(self._address))
        self._relay = self._mesh[RELAY]
        connected_sockets(self._mesh, RELAY, CALLS)
        sockets = self._mesh._session.client.direct
        ask = sockets.ask

        def counting(*arguments: Any) -> Any:
            try:
                return ask(*arguments)
            except OutcomeUnknown:
                self.direct.append(arguments[0].id)
                raise

        self._patch.setattr(sockets, "ask", counting)

    def begin(self) -> History:
        """All at a time."""
        history = History()

        def call(tag: str) -> None:
            history.run(tag, lambda: self._relay.call("move", tag, timeout=TIMEOUT_S), TIMEOUT_S)

        self._threads = [
            threading.Thread(target=call, args=(f"thread-{number}",)) for number in range(CALLS)
        ]
        for each in self._threads:
            each.start()
        return history

    def join(self) -> None:
        """Wait for their ends."""
        for each in self._threads:
            each.join()


# ── a link that is half open ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cut_s", [2.0, pytest.param(10.0, marks=pytest.mark.soak)])
async def test_a_link_that_was_half_open_brings_nothing_late(
    cut_s: float, places: Places, journal: Journal
) -> None:
    """FR2: one client's packets get nowhere, the other's arrive and the answers get nowhere."""
    with Lab(["broker", "relay", "deaf", "mute"]) as lab:
        clients = _on_hosts(lab, places, journal)
        for each in clients:
            await asyncio.to_thread(each.wait_for, "^linked", LIMIT_S)
        lab["mute"].cut_off(lab["relay"].address)
        lab["relay"].cut_off(lab["deaf"].address)
        cut_at = time.monotonic()
        with Lag() as lag:
            histories = await asyncio.gather(*(_calls_of(each) for each in clients))
        await asyncio.sleep(max(0.0, cut_at + cut_s - time.monotonic()))
        lab["mute"].let_through(lab["relay"].address)
        lab["relay"].let_through(lab["deaf"].address)
        for each in ("mute", "relay"):
            # What waited in the kernel is sent again when its time has come, and not before.
            await until(lab[each].has_nothing_to_send, LIMIT_S, "what was held up has arrived")
        for each in clients:
            os.kill(each.pid, signal.SIGUSR1)
            await asyncio.to_thread(each.wait_for, "^healed", LIMIT_S)
    for name, history in zip(("mute", "deaf"), histories, strict=True):
        faults = f"blackhole for {cut_s:g} s, client {name}"
        is_alone = cut_s >= 10.0
        conclude_late("FR2", faults, history, journal, lag.worst_s, is_alone=is_alone)
    assert journal.count("mute-after-") >= 2 * CALLS
    assert journal.count("deaf-after-") >= 2 * CALLS
    assert {each.told for each in histories[0].operations} == {"unknown"}


def _on_hosts(lab: Lab, places: Places, journal: Journal) -> list[Process]:
    broker = lab["broker"].address
    rpc, xsub, xpub = (f"tcp://{broker}:{port}" for port in (5750, 5751, 5752))
    node = {"kind": "broker", "rpc_bind": rpc, "xsub_bind": xsub, "xpub_bind": xpub}
    password = {"LMH_NETWORK_PASSWORD": "correct horse"}
    lab["broker"].start(
        [program("nodes.py"), json.dumps([node])], cwd=places.folder, environ=password
    ).wait_for("^ready", LIMIT_S)
    options = {
        "relay_id": RELAY,
        "broker_rpc": rpc,
        "state_pub": xsub,
        "rpc_bind": f"tcp://{lab['relay'].address}:5850",
        "local_address": lab["relay"].address,
    }
    lab["relay"].start(
        [program("recording_relay.py"), journal.path, json.dumps(options)],
        cwd=places.folder,
        environ=password,
    )
    return [
        lab[name].start(
            [program("stale_calls.py"), rpc, xpub, RELAY, name, str(CALLS)],
            cwd=places.folder,
            environ=password,
        )
        for name in ("mute", "deaf")
    ]


async def _calls_of(client: Process) -> History:
    """Have a client make its calls; what came of them."""
    os.kill(client.pid, signal.SIGUSR1)
    line = await asyncio.to_thread(client.wait_for, "^history (.*)", LIMIT_S)
    return History(Operation(**each) for each in json.loads(line[1]))


async def test_a_cable_that_stood_still_brings_nothing_late(
    places: Places, journal: Journal
) -> None:
    """FR2 without privileges: both ways held, until both sides have given the connection up."""
    port, nobody = free_ports(2)
    with ExitStack() as stack:
        async with places.broker(), places.client() as client, Cable(port) as cable:
            relay_process = stack.enter_context(
                recording_relay(
                    places,
                    journal,
                    rpc_bind=f"tcp://127.0.0.1:{port}",
                    broker_rpc=f"tcp://127.0.0.1:{nobody}",
                )
            )
            await asyncio.to_thread(relay_process.wait_for, "^ready", LIMIT_S)
            await list_relay(places.rpc, cable.endpoint)
            relay = RelayClient(client, RELAY)
            await relay.call("move", "first")
            history = History()
            cable.hold()
            with Lag() as lag:
                await calls_of_tasks(relay, history)
            assert journal.count("task-") == 0
            held = cable.passed["up"]
            cable.release()
            await until(lambda: cable.passed["up"] > held, LIMIT_S, "what was held went on")
            for number in range(3 * CALLS):
                await relay.call("put", f"after-{number}", timeout=LIMIT_S)
    conclude_late("FR2", "proxy held for 1 s", history, journal, lag.worst_s)
