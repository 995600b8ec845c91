"""The audit journals of a mesh: who did what, in both secured modes; a node that is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from tests.support.keyed import KeyedLab, keyed_socket
from tests.support.peers import until
from tests.support.places import Places
from tests.support.processes import Process
from tests.support.wire_events import published

from labmesh import expose
from labmesh.cli.app import main
from labmesh.config import load_config
from labmesh.errors import Busy, DriverError, Forbidden, Locked
from labmesh.protocol.access import fingerprint
from labmesh.protocol.audit import Entry
from labmesh.protocol.audit_check import Checker
from labmesh.protocol.messages import Acquire, Lease
from labmesh.protocol.retention import Rule
from labmesh.storage.journal_reading import check_journal, entries_of, head_beside, journal_files
from labmesh.transport.key_pairs import new_key_pair
from labmesh.transport.keys import Security

LIMIT_S = 10.0
LINGER_MS = 1000


class Supply:
    """A driver with something to read, to write, and to keep secret."""

    def __init__(self) -> None:
        self._voltage = 0.0

    def measure(self) -> float:
        """Read it."""
        return self._voltage

    def set_voltage(self, value: float, *, slew: float = 1.0) -> float:
        """Change it."""
        self._voltage = value
        return value * slew

    @expose(redact=["pin"])
    def unlock(self, pin: str, level: int = 1) -> int:
        """Needs a secret."""
        return level

    @property
    def limit(self) -> float:
        """A value."""
        return 5.0

    @limit.setter
    @expose(redact=["value"])
    def limit(self, value: float) -> None:
        self._voltage = min(self._voltage, value)

    def fail(self) -> None:
        """Always."""
        raise ValueError("nothing is connected")


@pytest.fixture
async def opened(no_leaks: None) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def lines_of(path: Path) -> list[Entry]:
    return [each.entry for each in entries_of(journal_files(path))]


def brief(entry: Entry) -> tuple[Any, ...]:
    """Who, what, with what, and how it ended."""
    who = entry.user.partition("#")[0]
    return (who, entry.method, msgspec.json.decode(entry.parameters), entry.outcome, entry.error)


def assert_whole(path: Path) -> None:
    verdict = check_journal(journal_files(path), Checker(heads=[head_beside(path)]))
    assert not verdict.faults
    assert verdict.lines > 2


async def ready(node: Any) -> None:
    await asyncio.wait_for(_wait(node), LIMIT_S)


async def _wait(node: Any) -> None:
    await node.ready


async def test_in_mode_keys_the_journals_have_who_did_what(
    opened: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    base = tmp_path / "state" / "labmesh" / "audit" / "labmesh"
    keys, places = KeyedLab(tmp_path / "keys"), Places(tmp_path)
    ana, vic, root = (
        keys.admit(name, role)  # type: ignore[arg-type]
        for name, role in (("ana", "operator"), ("vic", "viewer"), ("root", "admin"))
    )
    psu, vault = keys.admit("psu-1", "relay"), keys.admit("vault", "bank")
    broker = await opened.enter_async_context(places.broker(security=keys.broker))
    relay = await opened.enter_async_context(
        places.relay("psu-1", Supply(), security=psu, read_only=["measure"])
    )
    bank = await opened.enter_async_context(places.bank("vault", security=vault))
    await ready(relay)
    await ready(bank)
    clients = {
        name: await opened.enter_async_context(places.client(security=each))
        for name, each in (("ana", ana), ("vic", vic), ("root", root))
    }
    await _use(clients)
    with pytest.raises(Forbidden):
        await (await clients["vic"].get_relay_agent("psu-1")).call("set_voltage", [9.0])
    stores = {name: await each.get_databank_agent() for name, each in clients.items()}
    stored = await stores["ana"].put(b"12345", name="five")
    with pytest.raises(Forbidden):
        await stores["ana"].delete(stored.dataset_id)
    await stores["root"].delete(stored.dataset_id, why="a test")
    keys.revoke("vic")
    _forge(keys, str(broker.xsub))
    _come_with_a_wrong_key(keys, str(broker.rpc))
    await until(lambda: broker._proxy.refused["forged"], LIMIT_S)
    await until(lambda: _has(base / "broker.jsonl", "event", "connection", "access"), LIMIT_S)
    await opened.aclose()

    at_relay = [brief(each) for each in lines_of(base / "relay-psu-1.jsonl")]
    assert at_relay[1:-1] == [
        *_used(at_relay),
        ("client:vic", "set_voltage", [9.0], "refused", "Forbidden"),
    ]
    assert [each[1] for each in (at_relay[0], at_relay[-1])] == ["start", "stop"]
    driver = ("set_voltage", "unlock", "limit", "fail")
    calls = [each for each in lines_of(base / "relay-psu-1.jsonl") if each.method in driver]
    assert {each.what for each in calls} == {"call"}, "also those that were refused"
    first = lines_of(base / "relay-psu-1.jsonl")[1]
    assert first.address == "127.0.0.1"
    mark = fingerprint(keys.pairs["ana"].public.decode())
    assert first.user == f"client:ana#{mark}"
    assert first.duration_s is not None
    assert first.call

    at_bank = [brief(each) for each in lines_of(base / "bank-vault.jsonl")]
    assert [(who, method, outcome) for who, method, _, outcome, _ in at_bank[1:-1]] == [
        ("client:ana", "upload", "ok"),
        ("client:ana", "delete", "refused"),
        ("client:root", "delete", "ok"),
    ]
    assert at_bank[1][2]["size"] == 5
    assert lines_of(base / "bank-vault.jsonl")[1].object == stored.dataset_id

    at_broker = lines_of(base / "broker.jsonl")
    told = {(each.what, each.user.partition("#")[0], each.object) for each in at_broker}
    assert ("access", "the folder of keys", "vic") in told
    assert ("event", "relay:psu-1", "state.somebody-else") in told
    assert any(each.what == "connection" and each.outcome == "refused" for each in at_broker)
    for each in base.glob("*.jsonl"):
        assert_whole(each)


async def _use(clients: dict[str, Any]) -> None:
    """What the operator does at the relay, and the admin."""
    psu = await clients["ana"].get_relay_agent("psu-1")
    await psu.call("measure")
    await psu.call("set_voltage", {"value": 2.5, "slew": 2.0})
    await psu.call("unlock", ["1234"])
    await psu.set("limit", 3.0)
    with pytest.raises(DriverError):
        await psu.call("fail")
    lease = await psu.acquire(note="a scan")
    with pytest.raises(Locked):
        await (await clients["root"].get_relay_agent("psu-1")).call("set_voltage", [1])
    await (await clients["root"].get_relay_agent("psu-1")).break_lease(reason="it is mine")
    with contextlib.suppress(Locked):
        await lease.release()


def _used(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What the journal has of that: values that are another each time are taken as found."""
    ended = next(each for each in found if each[1] == "broken")
    taken = next(each for each in found if each[1] == "acquire")
    broke = next(each for each in found if each[1] == "break")
    assert taken[0] == "client:ana"
    assert taken[2]["note"] == "a scan"
    assert broke[0] == "client:root"
    assert broke[2]["reason"] == "it is mine"
    assert ended[0] == "client:ana"
    assert ended[2]["by"].startswith("root")
    assert taken[2]["fence"] == ended[2]["fence"]
    return [
        ("client:ana", "set_voltage", {"value": 2.5, "slew": 2.0}, "ok", ""),
        ("client:ana", "unlock", ["<not shown>"], "ok", ""),
        ("client:ana", "limit", ["<not shown>"], "ok", ""),
        ("client:ana", "fail", None, "failed", "ValueError"),
        taken,
        ("client:root", "set_voltage", [1], "refused", "Locked"),
        ended,
        broke,
    ]


def _count(path: Path) -> int:
    return len(lines_of(path))


def _has(path: Path, *kinds: str) -> bool:
    return path.exists() and {each.what for each in lines_of(path)}.issuperset(kinds)


def _forge(keys: KeyedLab, xsub: str) -> None:
    """An event under the topic of another relay."""
    with keyed_socket(zmq.XPUB, xsub, keys.pairs["psu-1"], keys.broker_pair.public) as socket:
        assert socket.poll(5000)
        socket.send_multipart(published([b"state.somebody-else", b"{}", b"1"]))
        socket.close(LINGER_MS)


def _come_with_a_wrong_key(keys: KeyedLab, rpc: str) -> None:
    with keyed_socket(zmq.DEALER, rpc, new_key_pair(), keys.broker_pair.public) as socket:
        socket.send(b"{}")
        assert not socket.poll(300)


# ── a node that is killed ───────────────────────────────────────────────────────────────────────


def _relay_process(places: Places, folder: Path) -> Process:
    arguments = ["labmesh.instruments.simulated:PowerSupply", "--id", "psu-1", "--bind"]
    address = ["tcp://127.0.0.1:*", "--broker", places.rpc]
    return Process(
        ["-m", "labmesh", "relay", *arguments, *address],
        cwd=folder,
        environ={"LMH_AUDIT_DIR": str(folder)},
    )


async def test_what_a_killed_node_had_written_is_whole_and_goes_on(
    opened: AsyncExitStack, tmp_path: Path
) -> None:
    places = Places(tmp_path)
    path = tmp_path / "relay-psu-1.jsonl"
    await opened.enter_async_context(places.broker())
    client = await opened.enter_async_context(places.client())
    written = 0
    for start in range(2):
        before = written
        with _relay_process(places, tmp_path) as process:
            psu = await client.get_relay_agent("psu-1", wait=LIMIT_S)
            for number in range(20):
                await psu.call("set_voltage", [number / 10 + start])
            await until(lambda seen=before: _count(path) > seen + 20, LIMIT_S)
            written = _count(path)
            for _ in range(20):
                await psu.call("set_voltage", [0.5])
            process.kill9()
        verdict = check_journal(journal_files(path), Checker(heads=[head_beside(path)]))
        assert [each.kind for each in verdict.faults] in ([], ["torn"])
        assert verdict.n >= written
    told = [each.method for each in lines_of(path)]
    assert told.count("start") == 2
    assert "stop" not in told
    assert told.count("set_voltage") > 20


async def test_what_a_bank_does_by_its_rules_is_its_own_doing(
    opened: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMH_AUDIT_DIR", str(tmp_path / "audit"))
    places = Places(tmp_path)
    await opened.enter_async_context(places.broker())
    rules = [Rule(name="old", keep_last=1)]
    bank = await opened.enter_async_context(places.bank(retention=rules, trash_days=0))
    client = await opened.enter_async_context(places.client())
    store = await client.get_databank_agent()
    for number in range(2):
        await store.upload(b"%d" % number, dataset_id=f"scan-{number}", name="old")
    bank._upkeep._times.settle_s = 0.0
    await bank._upkeep.tidy_once()
    await opened.aclose()
    path = tmp_path / "audit" / "bank-bank-0.jsonl"
    assert [(each.user, each.method, each.object) for each in lines_of(path)[1:-1]] == [
        ("anonymous", "upload", "scan-0"),
        ("anonymous", "upload", "scan-1"),
        ("bank-0", "delete", "scan-0"),
        ("bank-0", "purge", "scan-0"),
    ]
    assert_whole(path)


class Scanner:
    """Writes between its items."""

    def scan(self, points: int) -> Iterator[int]:
        yield from range(points)


async def test_a_lease_that_others_had_to_be_waited_for_is_there_once_it_is_granted(
    opened: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMH_AUDIT_DIR", str(tmp_path / "audit"))
    places = Places(tmp_path)
    await opened.enter_async_context(places.broker())
    relay = await opened.enter_async_context(places.relay("psu-1", Scanner()))
    await ready(relay)
    one, other = [
        await (await opened.enter_async_context(places.client())).get_relay_agent("psu-1")
        for _ in range(2)
    ]
    scan = one.stream("scan", [9], credit=1)
    assert await anext(scan) == 0
    # The relay answers when a part of his time is over; the rest is for the way.
    monkeypatch.setattr("labmesh.serving.lease_desk._WAITED_PART", 0.01)
    with pytest.raises(Busy):
        await other._client.request("psu-1", Acquire(id="-", note="no"), Lease, timeout=10.0)
    monkeypatch.setattr("labmesh.serving.lease_desk._WAITED_PART", 0.9)
    acquiring = asyncio.create_task(other.acquire(note="yes"))
    while (await one.status()).facts["lease"] is None:  # noqa: ASYNC110  (nobody announces it)
        await asyncio.sleep(0.001)
    assert [item async for item in scan] == list(range(1, 9))
    await (await acquiring).release()
    await opened.aclose()
    found = lines_of(tmp_path / "audit" / "relay-psu-1.jsonl")[1:-1]
    assert [(each.method, each.outcome, each.error) for each in found] == [
        ("released", "ok", ""),
        ("acquire", "not_run", "Busy"),
        ("scan", "ok", ""),
        ("acquire", "ok", ""),
        ("released", "ok", ""),
    ]


# ── the how-to, in mode password ────────────────────────────────────────────────────────────────

HOWTO = (Path(__file__).parents[2] / "docs" / "howto-audit.md").read_text(encoding="utf-8")


async def test_the_howto(
    opened: AsyncExitStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: dict[str, Any] = {"__name__": "howto"}
    (block,) = re.findall(r"```python\n(.*?)```", HOWTO, re.DOTALL)
    exec(compile(block, "howto-audit.md", "exec"), names)
    (settings,) = re.findall(r"```toml\n(.*?)```", HOWTO, re.DOTALL)
    file = tmp_path / "labmesh.toml"
    file.write_text(settings, encoding="utf-8")
    assert load_config(file).security.audit_dir == "/var/lib/labmesh/audit"
    environ = {"LMH_NETWORK_PASSWORD": "a word of six", "LMH_AUDIT_DIR": str(tmp_path)}
    security = Security.resolve(audit_dir="/nowhere", environ=environ)
    places = Places(tmp_path)
    await opened.enter_async_context(places.broker(security=security))
    relay = await opened.enter_async_context(
        places.relay("laser-1", names["Laser"](), security=security)
    )
    await ready(relay)
    client = await opened.enter_async_context(places.client(security=security))
    laser = await client.get_relay_agent("laser-1")
    assert await laser.call("unlock", {"pin": "1234", "power": 0.5}) == 0.5
    async with laser.batch() as batch:
        batch.call("unlock", ["1234", 0.1])
        batch.call("unlock", ["1234", 0.2])
    assert (await relay_status(client, "laser-1"))["audit_lost"] == 0
    await opened.aclose()

    monkeypatch.setenv("LMH_AUDIT_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "relay-laser-1.jsonl"
    assert b'"1234"' not in path.read_bytes()
    commands = re.findall(r"^\$ labmesh (.+)$", HOWTO, re.MULTILINE)
    assert len(commands) == 6
    head = head_beside(path)
    printed = []
    for line in commands:
        assert main(shlex.split(line.replace("HASH", head))) == 0, line
        printed.append(capsys.readouterr())
    since, named, by_user, refused, whole, kept = printed
    assert "start" in since.out
    assert "unlock" in since.out
    assert len(named.out.splitlines()) == 2  # the call, and the batch
    assert [json.loads(each)["method"] for each in by_user.out.splitlines()] == ["unlock", "batch"]
    assert (refused.out, "nothing of that" in refused.err) == ("", True)
    assert whole.out.count("whole") == 2
    assert head in kept.out

    lines = path.read_bytes().splitlines(keepends=True)
    for content, what in (
        (b"".join(lines).replace(b"0.5", b"0.6"), "(changed)"),
        (b"".join(lines[:-1]), "(cut)"),
        (lines[0] + b"".join(lines[2:]), "(removed)"),
    ):
        path.write_bytes(content)
        assert main(["audit", "verify", str(path)]) == 7
        assert what in capsys.readouterr().out
    assert main(["audit", "verify", "--json"]) == 7
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["faults"][0]["row"] == 2
    assert main(["audit", "verify", "--head", head]) == 2
    assert main(["audit", "verify", str(path), "--head", "abc"]) == 2
    assert main(["audit", "show", "nothing.jsonl"]) == 3
    monkeypatch.setenv("LMH_AUDIT_DIR", "off")
    assert main(["audit", "show"]) == 2
    monkeypatch.setenv("LMH_AUDIT_DIR", str(tmp_path / "empty"))
    assert main(["audit", "show"]) == 3


async def relay_status(client: Any, relay_id: str) -> dict[str, Any]:
    status = await (await client.get_relay_agent(relay_id)).status()
    facts: dict[str, Any] = status.facts
    return facts
