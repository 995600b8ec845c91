"""One lifecycle for all four nodes: start, ready, serve, stop, cancel, start again."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.support.hearing import Heard
from tests.support.places import ANYWHERE, Places
from tests.support.processes import Process
from tests.support.promptness import SLACK_S

from labmesh import DataBank, DirectoryBroker, RelayAgent
from labmesh.errors import ConfigError, Conflict, LinkLost, NotSent, Stopping
from labmesh.node import Node
from labmesh.testing import Held, LocalMesh, ScriptedInstrument

KINDS = ("broker", "relay", "bank", "client")
#: The natural one, its reverse, the broker in the middle and last, the client first and early.
ORDERS = [
    ("broker", "bank", "relay", "client"),
    ("client", "relay", "bank", "broker"),
    ("relay", "bank", "client", "broker"),
    ("client", "broker", "relay", "bank"),
    ("bank", "client", "broker", "relay"),
]
LIMIT_S = 10.0


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def make(kind: str, places: Places) -> Node:
    """A node of this kind, not started."""
    nodes: dict[str, Callable[[], Node]] = {
        "broker": places.broker,
        "relay": places.relay,
        "bank": places.bank,
        "client": places.client,
    }
    return nodes[kind]()


async def up(stack: AsyncExitStack, node: Any) -> Any:
    """Start a node that ends with the stack; gives it once it is ready."""
    await stack.enter_async_context(node)
    async with asyncio.timeout(LIMIT_S):
        await node.ready
    return node


# ── starting ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
async def test_nodes_start_in_any_order(order: tuple[str, ...], places: Places) -> None:
    nodes = {kind: make(kind, places) for kind in KINDS}
    async with asyncio.TaskGroup() as group:
        serving = {kind: group.create_task(nodes[kind].serve(), name=kind) for kind in order}
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(each.ready for each in nodes.values()))
        await use(nodes["client"], nodes["bank"], places.folder)
        for kind in ("client", "relay", "bank", "broker"):
            serving[kind].cancel()


async def use(client: Any, bank: Any, folder: Path) -> None:
    """Everything that a client does: list, call, hear states and datasets, download."""
    states, datasets = Heard(), Heard()
    client.on_state(states)
    client.on_dataset(datasets)
    relay = await client.get_relay_agent("Inst-0")
    assert await relay.poll() == {"voltage": 2.5}
    assert [each["relay_id"] for each in await client.list_relay_ids()] == ["Inst-0"]
    assert [each["bank_id"] for each in await client.list_banks()] == ["bank-0"]
    assert (await states.count(1))[0] == ("Inst-0", {"voltage": 2.5})
    content = bytes(range(256)) * 5000
    stored = await (await client.get_databank_agent(None)).upload(content, name="scan")
    heard = await datasets.one(lambda each: each["dataset_id"] == stored.dataset_id)
    got = await (await client.get_databank_agent(heard["bank_id"])).download(
        heard["dataset_id"], folder / "scan.bin"
    )
    assert (folder / "scan.bin").read_bytes() == content
    assert got["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_node_is_an_async_context_manager(kind: str, places: Places) -> None:
    async with AsyncExitStack() as stack:
        if kind != "broker":
            await up(stack, places.broker())
        node = make(kind, places)
        assert "not started" in repr(node)
        async with node as entered:
            assert entered is node
            await node.ready
            assert ": up>" in repr(node)
        assert ": stopped>" in repr(node)


@pytest.mark.parametrize("method", ["serve", "run"])
@pytest.mark.parametrize("kind", KINDS)
async def test_serve_and_run_hold_it_open_until_they_are_cancelled(
    kind: str, method: str, places: Places
) -> None:
    async with AsyncExitStack() as stack:
        if kind != "broker":
            await up(stack, places.broker())
        node = make(kind, places)
        serving = asyncio.create_task(getattr(node, method)())
        await node.ready
        assert not serving.done()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert ": stopped>" in repr(node)


@pytest.mark.parametrize("kind", KINDS)
async def test_serve_ends_when_the_node_is_stopped(kind: str, places: Places) -> None:
    async with AsyncExitStack() as stack:
        if kind != "broker":
            await up(stack, places.broker())
        node = make(kind, places)
        serving = asyncio.create_task(node.serve())
        await node.ready
        await node.stop()
        async with asyncio.timeout(LIMIT_S):
            await serving


async def test_serve_of_a_connected_client_leaves_it_connected(places: Places) -> None:
    async with places.broker(), places.client() as client:
        serving = asyncio.create_task(client.serve())
        await asyncio.sleep(0)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert await client.list_relay_ids() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_ready_can_be_awaited_before_the_start_and_often(kind: str, places: Places) -> None:
    async with AsyncExitStack() as stack:
        if kind != "broker":
            await up(stack, places.broker())
        node = make(kind, places)

        async def wait() -> str:
            await node.ready
            return repr(node)

        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0)
        await stack.enter_async_context(node)
        async with asyncio.timeout(LIMIT_S):
            assert all(": up>" in each for each in await asyncio.gather(*waiting))
            await node.ready


async def test_ready_of_a_node_that_was_stopped_first_says_so(places: Places) -> None:
    relay = places.relay()
    waiting = asyncio.create_task(_ready(relay))
    async with relay:
        await asyncio.sleep(0)
        assert not waiting.done()
    with pytest.raises(Stopping, match="Inst-0 has stopped"):
        await waiting
    with pytest.raises(Stopping, match="Inst-0 has stopped"):
        await relay.ready


async def _ready(node: Node) -> None:
    await node.ready


async def test_a_running_node_cannot_be_started_again(places: Places) -> None:
    async with places.broker() as broker:
        with pytest.raises(RuntimeError, match="is running already"):
            await broker.start()
        assert ": up>" in repr(broker)


# ── stopping ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
async def test_stopping_twice_and_before_the_start_is_fine(kind: str, places: Places) -> None:
    async with AsyncExitStack() as stack:
        if kind != "broker":
            await up(stack, places.broker())
        node = make(kind, places)
        await node.stop()
        await up(stack, node)
        await asyncio.gather(node.stop(), node.stop())
        await node.stop()
        assert ": stopped>" in repr(node)


async def test_closing_a_client_that_never_connected_is_fine(places: Places) -> None:
    client = places.client()
    await client.close()
    async with places.broker():
        await client.connect()
        await asyncio.gather(client.close(), client.close())
        await client.close()


async def test_who_is_cancelled_while_a_node_stops_does_not_keep_it_from_its_end(
    places: Places,
) -> None:
    released = threading.Event()
    driver = ScriptedInstrument(work=Held(released, "done"))
    async with places.broker(), places.client() as client:
        relay = places.relay(driver=driver)
        await relay.start()
        working = asyncio.create_task((await client.get_relay_agent("Inst-0")).work())
        await asyncio.to_thread(driver.calls.wait_for, 1)
        stopping = asyncio.create_task(relay.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        released.set()
        await relay.stop()
        assert ": stopped>" in repr(relay)
        assert await working == "done"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_node_that_is_cancelled_while_it_starts_leaves_nothing(
    kind: str, places: Places
) -> None:
    """At each step of its start, until it is done earlier than it is cancelled."""
    async with AsyncExitStack() as stack:
        if kind != "broker":
            await up(stack, places.broker())
        for steps in range(1, 200, 1 if kind == "bank" else 10):
            node = make(kind, places)
            starting = asyncio.create_task(node.__aenter__())
            for _ in range(steps):
                await asyncio.sleep(0)
            if starting.done():
                await starting
                await node.stop()
                break
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert ": stopped>" in repr(node)


async def test_a_client_that_is_closed_while_it_connects_says_so(places: Places) -> None:
    client = places.client()
    connecting = asyncio.create_task(client.connect())
    await asyncio.sleep(0)
    began = time.monotonic()
    await client.close()
    with pytest.raises(Stopping, match="while it was connecting"):
        await connecting
    assert time.monotonic() - began < SLACK_S


async def test_a_callback_may_close_its_client() -> None:
    async with LocalMesh({"Inst-0": ScriptedInstrument(poll={"voltage": 2.5})}, banks=0) as mesh:
        client = await mesh.client()
        heard = Heard()

        async def close(relay_id: str, _state: dict[str, Any]) -> None:
            heard(relay_id)
            await client.close()

        client.on_state(close)
        await heard.count(1)
        async with asyncio.timeout(LIMIT_S):
            await client.wait_ended()
            await client.stop()
        assert ": stopped>" in repr(client)


async def test_what_is_in_flight_is_finished_and_nothing_new_is_taken() -> None:
    released = threading.Event()
    driver = ScriptedInstrument(work=[Held(released, 1), 2, 3])
    async with LocalMesh({"Inst-0": driver}, banks=0) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent("Inst-0")
        running = asyncio.create_task(relay.work())
        await asyncio.to_thread(driver.calls.wait_for, 1)
        queued = asyncio.create_task(relay.work())
        while (await relay.status()).facts["queued"] == 0:
            assert not queued.done()
        stopping = asyncio.create_task(mesh.relays["Inst-0"].stop())
        with pytest.raises(Stopping, match="was not run"):
            await queued
        with pytest.raises(Stopping, match="work was not run"):
            await relay.work()
        released.set()
        assert await running == 1
        await stopping
    assert len(driver.calls) == 1


async def test_the_caller_of_a_stuck_driver_is_told_when_its_relay_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labmesh.relay._FINISH_S", 0.1)
    released = threading.Event()
    driver = ScriptedInstrument(work=Held(released, 1))
    async with LocalMesh({"Inst-0": driver}, banks=0) as mesh:
        client = await mesh.client()
        relay = await client.get_relay_agent("Inst-0")
        running = asyncio.create_task(relay.work())
        await asyncio.to_thread(driver.calls.wait_for, 1)
        try:
            await mesh.relays["Inst-0"].stop()
            with pytest.raises(TimeoutError, match="Inst-0 was stopped while work was running"):
                await running
        finally:
            released.set()


class Endless:
    """Content that begins, and does not end."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield bytes(10)
        self.begun.set()
        await asyncio.Event().wait()


async def test_an_upload_ends_with_its_relay(places: Places) -> None:
    content = Endless()
    async with places.broker(), places.bank() as bank:
        await bank.ready
        relay = await places.relay().__aenter__()
        await relay.ready
        uploading = asyncio.create_task(relay.upload(content))
        await content.begun.wait()
        assert len(bank._uploads) == 1
        await relay.stop()
        with pytest.raises(Stopping, match="Inst-0 was stopped while this was open"):
            await uploading
        with pytest.raises(Stopping, match="not running"):
            await relay.upload(b"late")
        assert len(bank._uploads) == 0


async def test_uploads_and_downloads_end_with_their_client(places: Places) -> None:
    content = Endless()
    async with places.broker(), places.bank():
        client = await places.client().connect()
        proxy = await client.get_databank_agent()
        stored = await proxy.upload(bytes(30_000_000))
        uploading = asyncio.create_task(proxy.upload(content))
        await content.begun.wait()
        begun = asyncio.Event()
        dest = places.folder / "scan.bin"
        downloading = asyncio.create_task(
            proxy.download(stored.dataset_id, dest, progress=lambda *_: begun.set())
        )
        await begun.wait()
        await client.close()
        with pytest.raises(Stopping):
            await uploading
        with pytest.raises(ConnectionError):
            await downloading
        with pytest.raises(ConnectionError):
            await proxy.list()
        assert list(places.folder.glob("*scan*")) == []


# ── starting again ──────────────────────────────────────────────────────────────────────────────


async def test_every_node_can_be_started_again(places: Places) -> None:
    nodes = [make(kind, places) for kind in KINDS]
    epochs = []
    for _ in range(2):
        async with AsyncExitStack() as stack:
            for node in nodes:
                await up(stack, node)
            _, relay, bank, client = nodes
            await use(client, bank, places.folder)
            epochs.append([each.epoch for each in nodes])
            assert relay.registered  # type: ignore[attr-defined]
        assert not relay.registered  # type: ignore[attr-defined]
    assert all(first != second for first, second in zip(*epochs, strict=True))


def test_every_node_can_be_started_again_in_another_loop(places: Places) -> None:
    nodes = [make(kind, places) for kind in KINDS]

    async def once() -> None:
        async with AsyncExitStack() as stack:
            # The broker last: the others have to wait, each with what belongs to this loop.
            for node in (nodes[1], nodes[2]):
                await stack.enter_async_context(node)
            await up(stack, nodes[0])
            await up(stack, nodes[3])
            await nodes[1].ready
            await nodes[2].ready
            await use(nodes[3], nodes[2], places.folder)

    asyncio.run(once())
    asyncio.run(once())


def test_a_relay_is_made_in_one_thread_and_runs_in_another(places: Places) -> None:
    """Also the others: nothing of a node belongs to the thread or loop that made it."""
    nodes = {kind: make(kind, places) for kind in ("broker", "bank", "relay")}
    cancels: dict[str, Callable[[], object]] = {}
    begun = threading.Barrier(4, timeout=LIMIT_S)

    def run(kind: str) -> None:
        async def serve() -> None:
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            assert task is not None
            cancels[kind] = lambda: loop.call_soon_threadsafe(task.cancel)
            begun.wait()
            await nodes[kind].run()

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(serve())

    threads = [threading.Thread(target=run, args=(kind,)) for kind in nodes]
    for each in threads:
        each.start()
    begun.wait()

    async def ask() -> None:
        async with places.client() as client:
            await client.get_relay_agent("Inst-0")
            await client.get_databank_agent()
            await use(client, nodes["bank"], places.folder)

    try:
        asyncio.run(ask())
    finally:
        for cancel in cancels.values():
            cancel()
        for each in threads:
            each.join(LIMIT_S)


# ── failing ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def taken() -> Iterator[str]:
    """An address of this machine at which another program listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


BINDS = {
    "broker rpc": ("broker", lambda at: DirectoryBroker(at, ANYWHERE, ANYWHERE)),
    "broker xsub": ("broker", lambda at: DirectoryBroker(ANYWHERE, at, ANYWHERE)),
    "broker xpub": ("broker", lambda at: DirectoryBroker(ANYWHERE, ANYWHERE, at)),
    "relay": ("relay Inst-0", lambda at: RelayAgent("Inst-0", ScriptedInstrument(), rpc_bind=at)),
    "ingest": ("bank bank-0", lambda at: DataBank(ingest_bind=at, retrieve_bind=ANYWHERE)),
    "retrieve": ("bank bank-0", lambda at: DataBank(ingest_bind=ANYWHERE, retrieve_bind=at)),
}


@pytest.mark.parametrize("socket_name", BINDS)
async def test_a_taken_port_names_itself_who_asked_and_the_way_out(
    socket_name: str, taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is left open: the node starts once the port is free."""
    monkeypatch.chdir(tmp_path)
    owner, make_node = BINDS[socket_name]
    node = make_node(taken)
    with pytest.raises(Conflict, match=rf"{owner} asked for it: .*port '\*'") as caught:
        await node.start()
    port = taken.rpartition(":")[2]
    assert f"port {port} " in str(caught.value)
    with pytest.raises(Conflict):
        await node.ready
    await node.stop()
    free = make_node(ANYWHERE)
    await free.start()
    await free.stop()


async def test_a_failed_start_can_be_repeated(places: Places) -> None:
    relay = places.relay(rpc_bind=places.xpub)
    async with places.broker() as broker:
        with pytest.raises(Conflict):
            await relay.serve()
        await broker.stop()
        await relay.start()
        await relay.stop()
        await broker.start()
        with pytest.raises(Conflict):
            await relay.start()


async def test_two_banks_never_share_a_folder(places: Places) -> None:
    async with places.bank() as bank:
        second = places.bank("bank-1", data_dir=places.folder / "bank-0")
        with pytest.raises(Exception, match="bank-0") as caught:
            await second.serve()
        assert not isinstance(caught.value, AssertionError)
        assert ": up>" in repr(bank)
    async with second:
        assert ": up>" in repr(second)


@pytest.mark.parametrize("kind", KINDS)
async def test_settings_that_cannot_be_used_leave_the_node_as_it_was(
    kind: str, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make(kind, places)
    monkeypatch.setenv("LMH_SECURITY", "password")
    with pytest.raises(ConfigError, match="LMH_NETWORK_PASSWORD is not set"):
        await node.start()
    assert "not started" in repr(node)
    monkeypatch.delenv("LMH_SECURITY")
    async with AsyncExitStack() as stack:
        if kind != "broker":
            await up(stack, places.broker())
        await up(stack, node)


async def test_a_host_that_is_not_this_machine_cannot_be_bound() -> None:
    broker = DirectoryBroker("tcp://198.51.100.7:*", ANYWHERE, ANYWHERE)
    with pytest.raises(ConfigError, match=r"198\.51\.100\.7.*use '\*'"):
        await broker.start()


async def test_without_a_broker_connecting_ends_in_time_and_says_what_to_try(
    places: Places,
) -> None:
    client = places.client()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=f"{places.rpc}.*labmesh broker") as caught:
        await client.connect(timeout=0.3)
    assert time.monotonic() - began < 0.3 + SLACK_S
    assert isinstance(caught.value, LinkLost)


async def test_a_broker_without_events_is_found_out_in_time(places: Places) -> None:
    places.ports[2] = places.ports[1]
    async with DirectoryBroker(places.rpc, ANYWHERE, ANYWHERE):
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="no events come"):
            await places.client().connect(timeout=1.5)
        assert time.monotonic() - began < 1.5 + SLACK_S


async def test_what_needs_a_connection_says_so(places: Places) -> None:
    client = places.client()
    attempts: list[Callable[[], Awaitable[Any]]] = [
        client.list_relay_ids,
        client.list_banks,
        client.broker_status,
        client.follow_states,
        lambda: client.get_relay_agent("Inst-0"),
        lambda: client.get_databank_agent(None),
    ]
    for attempt in attempts:
        with pytest.raises(NotSent, match="not connected"):
            await attempt()
    for subscribe in (client.on_state, client.on_dataset, client.on_presence, client.on_event):
        with pytest.raises(NotSent, match="not connected"):
            subscribe(print)
    assert client.last_reading("Inst-0") is None
    assert not client.health().up
    assert client.known_nodes == []


# ── signals ─────────────────────────────────────────────────────────────────────────────────────

PROGRAM = """
import asyncio, json, signal, sys, threading, time
from labmesh import RelayAgent

class Slow:
    def work(self):
        print("working", flush=True)
        time.sleep(0.5)
        return "done"

relay = RelayAgent("Inst-0", Slow(), sys.argv[1], state_pub=sys.argv[2],
                   rpc_bind="tcp://127.0.0.1:*")

async def announce():
    await relay.ready
    print("ready", flush=True)
    await asyncio.Event().wait()

async def main():
    await asyncio.gather(relay.run(), announce())
"""

ENDINGS = {
    # A program of its own tasks ends, gracefully, with exit code 0.
    "nobody handles it": ("asyncio.run(main())", 0, "goodbye"),
    # The program's own handler stays: labmesh does not take it away.
    "the program does": (
        """
async def guarded():
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def handler(*_):
        print("mine", flush=True)
        loop.call_soon_threadsafe(task.cancel)

    signal.signal(signal.SIGTERM, handler)
    await main()

try:
    asyncio.run(guarded())
except asyncio.CancelledError:
    sys.exit(7)
""",
        7,
        "goodbye",
    ),
    # In another thread than the main one labmesh leaves signals alone.
    "another thread": (
        """
thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
thread.start()
thread.join()
""",
        -signal.SIGTERM,
        None,
    ),
}


@pytest.mark.parametrize("handled", ENDINGS)
async def test_sigterm_ends_a_program_unless_it_handles_the_signal_itself(
    handled: str, places: Places
) -> None:
    ending, exit_code, reason = ENDINGS[handled]
    async with places.broker(), places.client() as client:
        presence = Heard()
        client.on_presence(presence)
        arguments = ["-c", PROGRAM + ending, places.rpc, places.xsub]
        with Process(arguments, cwd=places.folder) as process:
            await asyncio.to_thread(process.wait_for, "^ready", LIMIT_S)
            process.terminate()
            assert await asyncio.to_thread(process.wait_end, LIMIT_S) == exit_code
        if reason is not None:
            left = await presence.one(lambda each: each["change"] == "left")
            assert (left["node_id"], left["reason"]) == ("Inst-0", reason)
        if exit_code == 0:
            assert process.errors == ""


async def test_sigterm_lets_the_running_call_finish(places: Places) -> None:
    async with places.broker(), places.client() as client:
        arguments = ["-c", f"{PROGRAM}\nasyncio.run(main())", places.rpc, places.xsub]
        with Process(arguments, cwd=places.folder) as process:
            await asyncio.to_thread(process.wait_for, "^ready", LIMIT_S)
            relay = await client.get_relay_agent("Inst-0")
            working = asyncio.create_task(relay.work())
            await asyncio.to_thread(process.wait_for, "^working", LIMIT_S)
            process.terminate()
            assert await working == "done"
            assert await asyncio.to_thread(process.wait_end, LIMIT_S) == 0
