"""A network in mode *keys* against keys that it must not admit, and members that want too much.

    pytest tests/faults/test_bad_members.py -s

prints the tables (number, input, whose key, reply) and how a witness was served meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context

import pytest
import zmq
from tests.support.bad_members import attack_as, member_cases
from tests.support.keyed_mesh import DOORS_OF, KeyedMesh, keyed_mesh
from tests.support.knocking import ADMITTED, BROKEN, REFUSED, Knock
from tests.support.peers import until
from tests.support.witness import watching

from labmesh.protocol.access import DOORS
from labmesh.transport.key_pairs import KeyPair, NetworkKeys, new_key_pair

ALL_DOORS = [door for doors in DOORS_OF.values() for door in doors]
ASKED = ("directory", "relay", "ingest", "retrieve")
PATIENCE_S = 8.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedMesh]:
    with keyed_mesh(tmp_path_factory.mktemp("keyed")) as running:
        yield running


@pytest.fixture(scope="module")
def attackers() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


# ── the handshake ───────────────────────────────────────────────────────────────────────────────


def wrong_keys(mesh: KeyedMesh, door: str) -> Iterator[tuple[str, KeyPair | None, bytes, str]]:
    """Whoever must not come in at a door: its name, key, the server's key, and what it must get."""
    server, pairs = mesh.server_key(door), mesh.pairs
    for name in ("unknown", "revoked", "expired", "elsewhere"):
        yield name, pairs[name], server, REFUSED
    zeros = KeyPair(b"0" * 40, b"0" * 40)
    yield "all zeros", zeros, server, BROKEN
    mine = new_key_pair()
    for name, public in (("the server's", server), ("the admin's", pairs["ada"].public)):
        yield f"{name} public key, another secret", KeyPair(public, mine.secret), server, BROKEN
    yield "a right key, expecting another server", pairs["ada"], mine.public, BROKEN
    password = NetworkKeys.from_password("of a network with a password", "labmesh")
    yield "the keys of a password", password.client, password.server.public, BROKEN
    yield "no key: NULL", None, b"", BROKEN


async def test_who_has_no_right_key_gets_in_nowhere(mesh: KeyedMesh) -> None:
    """I22; and who has one gets in where its role has business, and at no other door."""
    lab = mesh.lab
    if "unknown" not in lab.pairs:
        lab.stranger("unknown", "operator")
        lab.admit("revoked", "operator")
        lab.revoke("revoked")
        lab.admit("expired", "operator", not_after=time.time() - 1)
        lab.admit("elsewhere", "operator", addresses=("10.9.0.0/16",))
    before, counted = mesh.state(), mesh.facts()["connections_refused"]
    rows: list[tuple[str, str, str, Knock]] = []
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with ExitStack() as opened:
        opened.callback(context.term)
        async with mesh.link("vera", "directory") as link, watching(link, "directory"):

            def try_at(door: str, name: str, own: KeyPair | None, key: bytes, must: str) -> None:
                knock = Knock(context, mesh.endpoints[door], door)
                opened.callback(knock.close)
                knock.knock(own, key)
                rows.append((door, name, must, knock))

            for door in ALL_DOORS:
                for name, own, server_key, must in wrong_keys(mesh, door):
                    try_at(door, name, own, server_key, must)
                plain = Knock(context, mesh.endpoints[door], door)
                opened.callback(plain.close)
                plain.socket.plain_username, plain.socket.plain_password = b"ada", b"x" * 100
                plain.knock(None)
                rows.append((door, "no key: PLAIN", BROKEN, plain))
                roles = {"psu-2": "relay", "bank-1": "bank", "vera": "viewer", "otto": "operator"}
                for name, role in {**roles, "ada": "admin", "broker": "broker"}.items():
                    must = ADMITTED if role in DOORS[door] else REFUSED  # type: ignore[index]
                    try_at(door, role, mesh.pairs[name], mesh.server_key(door), must)
            began = time.monotonic()
            await until(
                lambda: not [each for each in rows if not each[3].look()],
                PATIENCE_S,
                "all are told",
            )
            took_s = time.monotonic() - began
    for number, (door, name, _, knock) in enumerate(rows, 1):
        print(f"{number:4d}  I22  {name:40.40s} {door:10s} {knock.became}")
    wrong = [
        f"{door} {name}: {knock.became}" for door, name, must, knock in rows if knock.became != must
    ]
    print(f"{len(rows)} handshakes in {took_s:.2f} s")
    assert wrong == []
    assert mesh.state() == before
    by_key = [each for each in rows if each[0] in DOORS_OF["broker"] and each[2] == REFUSED]
    counted = mesh.facts()["connections_refused"] - counted
    print(f"the broker counted {counted} refused, of which {len(by_key)} by their keys")
    assert counted >= len(by_key)
    for node in DOORS_OF:
        await until(lambda node=node: mesh.turned_away(node), PATIENCE_S, f"the journal of {node}")
        print(f"the journal of {node}: {mesh.turned_away(node)}")


# ── requests ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", ASKED)
async def test_what_a_key_may_not_ask_for_is_refused_and_changes_nothing(
    role: str, mesh: KeyedMesh, attackers: ProcessPoolExecutor
) -> None:
    cases = member_cases(role, mesh.endpoints)
    before, before_mb = mesh.state(), mesh.memory_mb()
    async with mesh.link("vera", role) as link, watching(link, role):
        # In a process of its own, so that the witness is kept waiting by the network alone.
        codes = await asyncio.get_running_loop().run_in_executor(
            attackers, attack_as, mesh.endpoints[role], mesh.server_key(role), mesh.pairs, cases
        )
    rows = list(zip(cases, codes, strict=True))
    for number, (case, code) in enumerate(rows, 1):
        shown = {None: "dropped", 0: "answered"}.get(code, str(code))
        print(f"{number:4d}  {case.group:4s} {case.name:40.40s} {role:9s} {case.who:6s} {shown}")
    grown_mb = mesh.memory_mb() - before_mb
    print(f"{len(rows)} rows at {role}; the process grew by {grown_mb:.1f} MB")
    wrong = [f"{each.name} ({each.who}): {code}" for each, code in rows if code not in each.codes]
    assert wrong == []
    assert mesh.state() == before
    assert grown_mb < 20


async def test_ten_thousand_heartbeats_for_another_harm_nobody(mesh: KeyedMesh) -> None:
    """I26: as fast as they go."""
    count = 10_000
    async with mesh.link("vera", "directory") as link, watching(link, "directory, flooded"):
        with mesh.by_hand("directory", ("psu-2", "")) as (flood,):
            began = time.monotonic()

            def send_all() -> list[int]:
                codes = []
                for first in range(0, count, 500):
                    for number in range(first, first + 500):
                        flood.send("heartbeat", str(number), node_id="psu-1", node_epoch="e")
                    codes += [flood.receive()["code"] for _ in range(500)]
                return codes

            codes = await asyncio.to_thread(send_all)
            took_s = time.monotonic() - began
    print(f"{count} forged heartbeats in {took_s:.1f} s: {sorted(set(codes))}")
    assert set(codes) == {403}


# ── the calls and leases of others ──────────────────────────────────────────────────────────────

VICTIM = "0123456789abcdef"


def test_a_key_reaches_no_call_of_another_not_even_with_its_session(mesh: KeyedMesh) -> None:
    """I44, I45: the other one knows the session and the id."""
    reached = mesh.ask("relay", "call", method="counted")["value"][0]
    write = {"method": "set_voltage", "args": [0.0]}
    with mesh.by_hand("relay", ("otto", VICTIM), ("oona", VICTIM)) as (otto, oona):
        first = otto.ask("call", "41", method="numbers", credit=1)["value"]
        rows = {
            "more for the call of another key": oona.ask("more", "1", call="41", credit=9),
            "cancel of the call of another key": oona.ask("cancel", "2", call="41"),
            "cancel of an unknown call": otto.ask("cancel", "42", call="7"),
            "same id, another method": otto.ask("call", "41", method="counted"),
        }
        asked = oona.ask("get_call", "3", call="41")
        otto.send("cancel", "45", call="41")
        ends = {each["id"]: each.get("code", 0) for each in (otto.receive(), otto.receive())}
        rows["cancel of a finished call"] = otto.ask("cancel", "46", call="41")
        kept = otto.ask("call", "47", **write)
        again = otto.ask("call", "47", **write)
        rows["finished, other parameters"] = otto.ask("call", "47", **{**write, "args": [5.0]})
        rows["finished, other method"] = otto.ask("call", "47", method="counted")
        # Of another key it is no repeat, and does not get what the first one was told.
        strange = oona.ask("call", "47", method="counted")
    codes = {name: each.get("code", 0) for name, each in rows.items()}
    for name, code in codes.items():
        print(f"      I45  {name:40s} {code}")
    assert codes == {
        "more for the call of another key": 404,
        "cancel of the call of another key": 404,
        "cancel of an unknown call": 404,
        "same id, another method": 409,
        "cancel of a finished call": 404,
        "finished, other parameters": 409,
        "finished, other method": 409,
    }
    assert (first, asked["state"]) == (0, "not_run")
    # A generator that waits for credit is ended at once; one that runs is told to end.
    assert (set(ends), ends["45"] in (0, 409)) == ({"41", "45"}, True)
    assert ends["41"] in (499, 500)
    assert kept["value"] == again["value"] == 0.0
    assert strange["value"] == [reached + 1, 0.0], "the repeats did not reach the driver"


def test_nobody_uses_renews_or_ends_the_lease_of_another_key(mesh: KeyedMesh) -> None:
    """I42: the forger knows session and fence."""
    write = {"method": "set_voltage", "args": [3.0]}
    who = (("otto", VICTIM), ("oona", VICTIM), ("vera", VICTIM), ("ada", "ad" * 8))
    with mesh.by_hand("relay", *who) as (otto, oona, vera, ada):
        reached = ada.ask("call", "1", method="counted")["value"]
        taken = otto.ask("acquire", "1", ttl_s=30.0, note="a sweep", holder="ada")
        fence = taken["fence"]
        rows = {
            "write with the fence of another": oona.ask("call", "1", **write, fence=fence),
            "write without a fence": oona.ask("call", "2", **write),
            "a fence that comes next": oona.ask("call", "3", **write, fence=fence + 1),
            "renew with the fence of another": oona.ask("renew", "4", fence=fence),
            "take it as well": oona.ask("acquire", "5", ttl_s=30.0),
            "break it as an operator": oona.ask("break_lease", "6", fence=fence, by="ada"),
            "viewer: renew": vera.ask("renew", "1", fence=fence),
            "viewer: release": vera.ask("release", "2", fence=fence),
            "admin: write without breaking it": ada.ask("call", "2", **write),
            "admin: another fence": ada.ask("break_lease", "3", fence=fence + 1),
        }
        oona.ask("release", "7", fence=fence)
        rows["its holder, after all that"] = otto.ask("renew", "2", fence=fence)
        assert ada.ask("call", "4", method="counted")["value"] == reached
        rows["admin breaks it"] = ada.ask("break_lease", "5", fence=fence, by="somebody else")
        rows["its holder writes with the old fence"] = otto.ask("call", "3", **write, fence=fence)
        rows["its holder renews the old one"] = otto.ask("renew", "4", fence=fence)
        assert ada.ask("call", "6", method="counted")["value"] == reached
    codes = {name: each.get("code", 0) for name, each in rows.items()}
    for name, code in codes.items():
        print(f"      I42  {name:40s} {code}")
    assert codes == {
        "write with the fence of another": 423,
        "write without a fence": 423,
        "a fence that comes next": 423,
        "renew with the fence of another": 423,
        "take it as well": 423,
        "break it as an operator": 403,
        "viewer: renew": 403,
        "viewer: release": 403,
        "admin: write without breaking it": 423,
        "admin: another fence": 409,
        "its holder, after all that": 0,
        "admin breaks it": 0,
        "its holder writes with the old fence": 423,
        "its holder renews the old one": 423,
    }
    assert "a sweep" in str(rows["write without a fence"])
    assert "otto" in str(rows["write without a fence"]), "who holds it is who proved it"


@pytest.mark.parametrize("ends", ["its time is over", "it is revoked"])
def test_a_key_that_ends_in_the_middle_of_a_call_gets_nothing_more(
    mesh: KeyedMesh, ends: str
) -> None:
    """I43."""
    name = "end" if ends == "its time is over" else "rev"
    ends_s = 5.0  # what is asked before its end is asked by then
    limits = {"not_after": time.time() + ends_s} if name == "end" else {}
    mesh.lab.admit(name, "operator", **limits)
    mesh.wait_admitted(name, "relay")
    with mesh.by_hand("relay", (name, "ab" * 8)) as (member,):
        first = member.ask("call", "1", method="numbers", credit=1)
        assert first["value"] == 0
        lease = member.ask("acquire", "2", ttl_s=30.0)
        assert lease["fence"]
        reached = mesh.ask("relay", "call", method="counted")["value"]
        if name == "rev":
            mesh.lab.revoke(name)
        began = time.monotonic()
        number = 10
        while member.answer_to("get_call", str(number), call="1").get("code", 0) != 403:
            assert time.monotonic() < began + 2 * ends_s
            number += 1
        took_s = time.monotonic() - began
        rows = {
            "more of its stream": member.answer_to("more", "5000", call="1", credit=9),
            "a new call": member.answer_to("call", "5001", method="counted"),
            "a write": member.answer_to("call", "5002", method="set_voltage", args=[9.0]),
            "a write with its lease": member.answer_to(
                "call", "5003", method="set_voltage", args=[9.0], fence=lease["fence"]
            ),
            "renew its lease": member.answer_to("renew", "5004", fence=lease["fence"]),
        }
    for what, answer in rows.items():
        print(f"      I43  {ends}: {what:30s} {answer.get('code', 0)}")
    print(f"{ends}: refused {took_s:.2f} s after")
    assert {each.get("code", 0) for each in rows.values()} == {403}
    assert mesh.ask("relay", "call", method="counted")["value"] == reached
    # What it has left keeps nobody from anything.
    while mesh.ask("relay", "break_lease", fence=lease["fence"]).get("code") != 404:
        assert time.monotonic() < began + 3 * ends_s
    assert mesh.facts("relay")["lease"] is None
