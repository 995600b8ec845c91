"""A running network against every bad message of a numbered table.

    pytest tests/faults/test_bad_messages.py -s

prints the table (number, input, socket, reply) and how the witness was served meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest
from tests.support.bad_messages import REPLY_MS, attack, cases_for, dealer
from tests.support.by_hand import connected
from tests.support.peers import open_sockets
from tests.support.processes import Process, program
from tests.support.witness import Witness

from labmesh.transport.link import Link

ROLES = ("directory", "relay", "ingest", "retrieve")


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("attacked")
    with Process([program("attacked.py"), folder / "bank"], cwd=folder) as process:
        endpoints = json.loads(process.wait_for(r"^\{.*\}$", 20)[0])
        yield process, endpoints
        process.terminate()
        assert process.wait_end(10) == 0


def tree(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*"))


@pytest.fixture(scope="module")
def attackers() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("role", ROLES)
async def test_every_bad_message_is_refused_and_harms_nobody(
    role: str,
    attacked: tuple[Process, dict[str, str]],
    attackers: ProcessPoolExecutor,
    tmp_path: Path,
) -> None:
    process, endpoints = attacked
    canary = tmp_path / "canary"
    cases = cases_for(role, str(canary))
    bank = process_folder(process)
    with open_sockets() as sockets:
        links = {each: Link(sockets, endpoint, where=each) for each, endpoint in endpoints.items()}
        try:
            await asyncio.gather(*(each.wait_up(5.0) for each in links.values()))
            before = await facts(endpoints), tree(bank)
            witness = Witness(links[role])
            watching = asyncio.create_task(witness.run())
            # In a process of its own, so that the witness is kept waiting by the network alone.
            codes = await asyncio.get_running_loop().run_in_executor(
                attackers, attack, role, str(canary), endpoints[role]
            )
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError), f"the witness was not served: {ended}"
            after = await facts(endpoints), tree(bank)
        finally:
            for each in links.values():
                each.close()
    rows = list(zip(cases, codes, strict=True))
    for number, (case, code) in enumerate(rows, 1):
        shown = {None: "dropped", 0: "answered"}.get(code, str(code))
        print(f"{number:4d}  {case.group:4s} {case.name:45.45s} {role:10s} {shown}")
    print(f"witness of {role}: {len(witness.trips_s)} served, p99 {witness.p99_ms:.1f} ms")
    wrong = [f"{case.group} {case.name}: {code}" for case, code in rows if code not in case.codes]
    assert wrong == []
    assert process.exit_code is None
    assert before == after
    assert not canary.exists()


def process_folder(process: Process) -> Path:
    return Path(os.readlink(f"/proc/{process.pid}/cwd")) / "bank"


async def facts(endpoints: dict[str, str]) -> tuple[object, object]:
    """What must not change: who is listed, and what has reached the driver."""
    listed = await asyncio.to_thread(ask, endpoints["directory"], {"type": "list_nodes"})
    driver = await asyncio.to_thread(ask, endpoints["relay"], {"type": "call", "method": "counted"})
    return [each["node_id"] for each in listed["nodes"]], driver["value"]


def ask(endpoint: str, request: dict[str, object]) -> dict[str, object]:
    with dealer(endpoint) as peer:
        peer.send(msgspec.msgpack.encode({"id": "1", **request}))
        reply = {"type": "alive"}
        while reply["type"] == "alive":
            assert peer.poll(REPLY_MS)
            reply = msgspec.msgpack.decode(peer.recv())
        return reply


# ── the calls of others ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stranger_has_one", [False, True], ids=["no session", "a session"])
@pytest.mark.parametrize("owner_has_one", [False, True], ids=["no session", "a session"])
def test_nobody_reaches_the_calls_of_another_client(
    owner_has_one: bool, stranger_has_one: bool, attacked: tuple[Process, dict[str, str]]
) -> None:
    """It knows the id of an open call, and says what only that call's client may say."""
    sessions = [
        secrets.token_hex(8) if has_one else "" for has_one in (owner_has_one, stranger_has_one)
    ]
    with connected(attacked[1]["relay"], *sessions) as (owner, stranger):
        one = owner.ask("call", "41", method="numbers", credit=1)
        assert (one["type"], one["index"], one["value"]) == ("item", 0, 0)

        assert stranger.ask("more", "1", call="41", credit=100)["code"] == 404
        assert stranger.ask("cancel", "2", call="41")["code"] == 404
        # Of its own calls with this id; without a session nothing is kept of those.
        state = "not_run" if stranger_has_one else "unknown"
        assert stranger.ask("get_call", "3", call="41")["state"] == state

        # Nothing of it changed: there was credit for one item, and now there is for two more.
        owner.send("more", "42", call="41", credit=2)
        answers = [owner.receive() for _ in range(3)]
        items = [each for each in answers if each["type"] == "item"]
        assert [(each["index"], each["value"]) for each in items] == [(1, 1), (2, 2)]
        assert sorted(each["type"] for each in answers) == ["done", "item", "item"]
        assert owner.ask("get_call", "43", call="41")["state"] == "running"
        owner.send("cancel", "44", call="41")
        ends = {each["id"]: each["type"] for each in (owner.receive(), owner.receive())}
        assert set(ends) == {"41", "44"}
        assert ends["41"] == "error"


# ── below ZeroMQ ────────────────────────────────────────────────────────────────────────────────

GARBAGE = {
    "nothing, then closed": b"",
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS hello": bytes.fromhex("16030100a50100009f0303") + bytes(160),
    "half a greeting": b"\xff\0\0\0\0\0\0\0\1\x7f",
    "a greeting of ZMTP 1.0": b"\x01\x00",
    "a greeting of ZMTP 2.0": b"\xff\0\0\0\0\0\0\0\1\x7f\x01\x05\x00\x00",
    "a greeting of ZMTP 3.0 of an unknown mechanism": b"\xff\0\0\0\0\0\0\0\1\x7f\x03\x00"
    + b"NONSENSE".ljust(20, b"\0")
    + bytes(32),
    "a frame of ZMTP 1.0 that claims 2**63 bytes": b"\xff\x7f" + b"\xff" * 7 + b"\x00",
    "random bytes": bytes((each * 167 + 13) % 256 for each in range(4096)),
}


@pytest.mark.parametrize("role", ROLES)
async def test_garbage_below_zeromq_harms_nobody(
    role: str, attacked: tuple[Process, dict[str, str]]
) -> None:
    process, endpoints = attacked
    host, _, port = endpoints[role].removeprefix("tcp://").rpartition(":")

    def throw() -> None:
        for content in GARBAGE.values():
            with socket.create_connection((host, int(port)), timeout=5) as raw:
                raw.sendall(content)

    with open_sockets() as sockets:
        link = Link(sockets, endpoints[role], where=role)
        try:
            await link.wait_up(5.0)
            witness = Witness(link)
            watching = asyncio.create_task(witness.run())
            for _ in range(5):
                await asyncio.to_thread(throw)
            watching.cancel()
            (ended,) = await asyncio.gather(watching, return_exceptions=True)
            assert isinstance(ended, asyncio.CancelledError)
        finally:
            link.close()
    assert process.exit_code is None


def test_the_attacked_process_still_ends_on_request(tmp_path: Path) -> None:
    with Process([program("attacked.py"), tmp_path / "bank"], cwd=tmp_path) as process:
        endpoints = json.loads(process.wait_for(r"^\{.*\}$", 20)[0])
        for endpoint in endpoints.values():
            with dealer(endpoint) as peer:
                peer.send(b"\xff")
                assert peer.poll(REPLY_MS)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait_end(10) == 0
