"""Broken set-ups, each made for real: the doctor finds the cause of each, and names the mend.

    pytest tests/integration/test_doctor_set_ups.py -s

prints how many of how many were named. The list is the table of docs/howto-doctor.md.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import zmq
from tests.support import doubles
from tests.support.keyed import KeyedLab
from tests.support.namespaces import Lab
from tests.support.peers import until
from tests.support.places import Places, list_relay
from tests.support.processes import environment, free_ports

from labmesh import DirectoryBroker
from labmesh.cli.checkup import Finding
from labmesh.cli.doctor import examine
from labmesh.cli.options import ClientOptions
from labmesh.protocol.access import Role
from labmesh.transport.key_pairs import new_key_pair
from labmesh.transport.keys import Security

DOCUMENT = Path(__file__).parents[2] / "docs" / "howto-doctor.md"
WORD = "four random words here"
LIMIT_S = 20.0
PATIENCE_S = 2.0
#: Looking again and again, and waiting for who is not there, is no part of what is tested here.
CLOCKS_S = 0.5
ASK_S = 0.5
OPEN = {"LMH_SECURITY": "open"}
VARIABLES = (
    *("LMH_SECURITY", "LMH_KEYS_DIR", "LMH_IDENTITY", "LMH_NETWORK", "LMH_NETWORK_PASSWORD"),
    *("LMH_INSECURE", "LMH_BROKER", "LMH_SPARE"),
)


class Row(NamedTuple):
    """A line of the document's table."""

    broken: str
    level: str
    check: str
    says: str
    mend: str

    def is_in(self, findings: list[Finding]) -> bool:
        return any(
            each.level == self.level
            and each.check.partition(" ")[0] == self.check.partition(" ")[0]
            and each.check.startswith(self.check)
            and self.says in each.text
            and self.mend in f"{each.text} {each.advice}"
            for each in findings
        )


def table() -> list[Row]:
    rows = []
    for line in DOCUMENT.read_text().splitlines():
        cells = [each.strip() for each in line.strip("|").split("|")]
        if line.startswith("| ") and cells[1] in ("FAIL", "warn"):
            rows.append(Row(cells[0], cells[1], cells[2], cells[3].strip("`"), cells[4].strip("`")))
    return rows


def password(word: str, network: str = "labmesh") -> dict[str, str]:
    return {"LMH_NETWORK_PASSWORD": word, "LMH_NETWORK": network, "LMH_SECURITY": "password"}


@dataclass
class Bench:
    """Brokers of each mode that run all the time, and this computer's set-up, one after another."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    keyed: KeyedLab
    stack: AsyncExitStack
    brokers: dict[str, Places] = field(default_factory=dict)
    nodes: dict[str, DirectoryBroker] = field(default_factory=dict)

    def variables(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)

    def keys(self, name: str, role: Role = "operator", *, listed: bool = True) -> Any:
        """This computer has such a key; its folder."""
        made = self.keyed.folders.get(name)
        if made is None:
            (self.keyed.admit if listed else self.keyed.stranger)(name, role)
            made = self.keyed.folders[name]
        self.variables({"LMH_SECURITY": "keys", "LMH_KEYS_DIR": str(made.path)})
        return made

    def at_broker(self, name: str, **limits: Any) -> None:
        """This is the broker's computer, and has such a person's key as well."""
        pair = self.keyed.at_broker.create(name, "operator")
        self.keyed.pairs[name] = pair
        self.keyed.change(name, "operator", **limits)
        path = str(self.keyed.at_broker.path)
        self.variables({"LMH_SECURITY": "keys", "LMH_KEYS_DIR": path, "LMH_IDENTITY": name})

    def file(self, text: str) -> None:
        """This folder has such a file; ports that it does not name are free ones."""
        (self.folder / "labmesh.toml").write_text(text)

    async def find(self, broker: str, row: Row) -> list[Finding]:
        """What the doctor finds until it has found this."""
        found = []
        options = ClientOptions(broker=broker or None, timeout=PATIENCE_S)
        async with aclosing(examine(options)) as findings:
            async for each in findings:
                found.append(each)
                if row.is_in([each]):
                    break
        return found


class NotHere(Exception):
    """This computer does not let it be set up."""


SetUp = Callable[[Bench], Awaitable[str | list[Finding] | None]]
SET_UPS: dict[str, SetUp] = {}


def broken(what: str) -> Callable[[SetUp], SetUp]:
    """How it is broken; returns which broker is asked, its address, or what the doctor found."""

    def keep(set_up: SetUp) -> SetUp:
        SET_UPS[what] = set_up
        return set_up

    return keep


@pytest.fixture
async def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> AsyncIterator[Bench]:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("labmesh.cli.doctor._CLOCKS_S", CLOCKS_S)
    monkeypatch.setattr("labmesh.cli.checkup._ASK_S", ASK_S)
    monkeypatch.setattr("labmesh.cli.mesh_checkup._PING_S", ASK_S)
    monkeypatch.setattr("labmesh.cli.mesh_checkup._DOOR_S", ASK_S)
    async with AsyncExitStack() as stack:
        made = Bench(here, monkeypatch, KeyedLab(tmp_path / "keys"), stack)
        securities = {
            "keys": made.keyed.broker,
            "password": Security.resolve(environ=password(WORD)),
            "open": Security.resolve(environ=OPEN),
        }
        for mode, security in securities.items():
            places = made.brokers[mode] = Places(tmp_path / mode)
            broker = places.broker(security=security)
            made.nodes[mode] = await stack.enter_async_context(broker)
        relay = made.brokers["open"].relay("psu-1", security=securities["open"])
        await stack.enter_async_context(relay)
        await relay.ready
        made.brokers["relay"] = Places(tmp_path, [relay.rpc.port, 1, 1])
        yield made


# ── keys ────────────────────────────────────────────────────────────────────────────────────────


@broken("a key that other users of the computer may read")
async def _(bench: Bench) -> None:
    folder = bench.keys("loose")
    folder.secret_path("loose").chmod(0o644)


@broken("half of a key pair is another key's")
async def _(bench: Bench) -> None:
    folder = bench.keys("half")
    other = bench.keyed.folders.get("other") or bench.keys("other")
    folder.public_path("half").write_text(other.public_path("other").read_text())
    bench.keys("half")


@broken("the keys are those of another network")
async def _(bench: Bench) -> None:
    bench.keys("moved")
    bench.variables({"LMH_NETWORK": "attic"})


@broken("a key that is not on the allow-list")
async def _(bench: Bench) -> str:
    bench.keys("eve", listed=False)
    return "keys"


@broken("a key that was revoked, on the broker's computer")
async def _(bench: Bench) -> str:
    bench.at_broker("bob")
    bench.keyed.revoke("bob")
    return "keys"


@broken("a key whose time is over, on the broker's computer")
async def _(bench: Bench) -> str:
    bench.at_broker("old", not_after=time.time() - 60)
    return "keys"


@broken("a relay of the file has no key")
async def _(bench: Bench) -> str:
    bench.keys("ana")
    bench.file('[[relays]]\nid = "psu-1"\ndriver = "lab:PSU"\n')
    return "keys"


@broken("a relay of the file has a person's key: that role may not register")
async def _(bench: Bench) -> None:
    bench.keys("psu-1")
    bench.file('[[relays]]\nid = "psu-1"\ndriver = "lab:PSU"\n')


@broken("two people's keys, and nobody said whose to use")
async def _(bench: Bench) -> None:
    bench.keys("ana").create("bob", "viewer")


@broken("no key of the broker is known")
async def _(bench: Bench) -> None:
    (bench.keys("lone").trusted / "broker.pub").unlink()


@broken("the broker has another key than the one that is trusted")
async def _(bench: Bench) -> str:
    bench.keys("misled").pin_broker(new_key_pair().public)
    return "keys"


@broken("mode keys, and no keys at all")
async def _(bench: Bench) -> None:
    bench.variables({"LMH_SECURITY": "keys", "LMH_KEYS_DIR": str(bench.folder / "none")})


@broken("keys here, and a password there")
async def _(bench: Bench) -> str:
    bench.keys("carl")
    return "password"


# ── passwords ───────────────────────────────────────────────────────────────────────────────────


def _with_password(what: str, broker: str = "password", **variables: str) -> None:
    async def set_up(bench: Bench) -> str:
        bench.variables(variables)
        return broker

    broken(what)(set_up)


_with_password("another password", **password("something else, and long"))
_with_password("a password in the wrong capitals", **password(WORD.upper()))
_with_password("a password with a blank too many", **password(WORD.replace(" r", "  r")))
_with_password("a password with quotation marks around it", **password(f'"{WORD}"'))
_with_password(
    "the password fits, the name of the network does not", **password(WORD, network="attic")
)
_with_password("no password, and the network has one", **OPEN)
_with_password("a password, and the network has none", "open", **password(WORD))
_with_password("a password of white space", **password("  \t "))


@broken("a short password where others can reach it")
async def _(bench: Bench) -> str:
    bench.variables(password("eleven char"))
    bench.file('[broker]\nrpc_bind = "tcp://192.0.2.1:5750"\n')
    return "password"


@broken("a libzmq without encryption")
async def _(bench: Bench) -> str:
    bench.variables(password(WORD))
    bench.monkeypatch.setattr(zmq, "has", lambda _: False)
    return "password"


# ── who is there ────────────────────────────────────────────────────────────────────────────────


@broken("no broker runs")
async def _(bench: Bench) -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@broken("the host's name is not known")
async def _(bench: Bench) -> str:
    return "no-such-host.invalid"


@broken("a web server where the broker is to be")
async def _(bench: Bench) -> str:
    return bench.stack.enter_context(doubles.http())


@broken("something that says nothing where the broker is to be")
async def _(bench: Bench) -> str:
    return bench.stack.enter_context(doubles.silent())


@broken("the port of the broker's events, in place of its requests")
async def _(bench: Bench) -> str:
    return bench.brokers["open"].xpub


@broken("a relay's port, in place of the broker's")
async def _(bench: Bench) -> str:
    return "relay"


@broken("a port of the file that another program holds")
async def _(bench: Bench) -> str:
    held = bench.stack.enter_context(doubles.http())
    bench.file(f'[broker]\nrpc_bind = "{held}"\n')
    return "open"


@broken("a relay that is gone, and still listed")
async def _(bench: Bench) -> str:
    places = bench.brokers["open"]
    await list_relay(places.rpc, f"tcp://127.0.0.1:{free_ports(1)[0]}", "gone")
    return "open"


@broken("the clock of a relay is wrong")
async def _(bench: Bench) -> str:
    ahead = SimpleNamespace(time=lambda: time.time() + 10, monotonic=time.monotonic)
    bench.monkeypatch.setattr("labmesh.transport.publisher.time", ahead)
    return "open"


@broken("the spare broker does not answer")
async def _(bench: Bench) -> None:
    spare = f"127.0.0.1:{free_ports(1)[0]}"
    bench.variables({"LMH_BROKER": bench.brokers["open"].rpc, "LMH_SPARE": spare})


# ── this computer ───────────────────────────────────────────────────────────────────────────────


@broken("the folder of data cannot be written")
async def _(bench: Bench) -> str:
    (bench.folder / "taken").touch()
    bench.file(f'[bank]\ndefault_data_dir = "{bench.folder}/taken/data"\n')
    return "open"


@broken("the disk is nearly full")
async def _(bench: Bench) -> str:
    disk = bench.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    ended = await asyncio.to_thread(subprocess.run, mount, check=False, capture_output=True)
    if ended.returncode:
        raise NotHere("a small disk needs root, and Linux")
    bench.stack.callback(subprocess.run, ["umount", str(disk)], check=True)
    bench.file(f'[bank]\ndefault_data_dir = "{disk}"\n')
    return "open"


@broken("too few open files")
async def _(bench: Bench) -> list[Finding]:
    command = f"ulimit -n 256; exec {sys.executable} -m labmesh doctor --json --broker"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"{command} {bench.brokers['open'].rpc}"),
        env=environment({**OPEN}),
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    found = []
    async for line in process.stdout:
        found.append(Finding(**json.loads(line)))
        if found[-1].check == "open files":
            break
    process.terminate()
    await process.communicate()
    return found


def _with_file(what: str, text: str) -> None:
    async def set_up(bench: Bench) -> str:
        bench.file(text)
        return "open"

    broken(what)(set_up)


_with_file("a key of the file is mistyped", "[broker]\nttl_second = 3\n")
_with_file(
    "the file has its nodes look elsewhere than the broker listens",
    '[broker]\nxsub_bind = "tcp://*:6751"\n',
)
_with_file("heartbeats further apart than the broker waits", "[relay]\nheartbeat_seconds = 60\n")

# ── the table ───────────────────────────────────────────────────────────────────────────────────

#: Set up on hosts of their own.
ON_HOSTS = (
    "protected mode, and the broker is on another computer",
    "a relay that tells others to look for it at 127.0.0.1",
    "a firewall in front of a relay",
)


def test_each_line_of_the_document_is_set_up() -> None:
    rows = [each.broken for each in table()]
    assert len(set(rows)) == len(rows) > 20
    assert {*rows} == {*SET_UPS, *ON_HOSTS}


@pytest.mark.timeout(120)
async def test_the_cause_of_each_broken_set_up_is_found_and_its_mend_named(bench: Bench) -> None:
    rows = [each for each in table() if each.broken in SET_UPS]
    wrong = []
    named = 0
    for row in rows:
        with bench.monkeypatch.context() as patched:
            for name in VARIABLES:
                patched.delenv(name, raising=False)
            bench.monkeypatch, outer = patched, bench.monkeypatch
            began = time.monotonic()
            try:
                found = await SET_UPS[row.broken](bench) or ""
            except NotHere as exc:
                print(f"left out: {row.broken}: {exc}")
                continue
            finally:
                bench.monkeypatch = outer
            if isinstance(found, str):
                places = bench.brokers.get(found)
                found = await bench.find(found if places is None else places.rpc, row)
            named += row.is_in(found)
            print(f"{time.monotonic() - began:5.2f} s  {row.broken}")
        (bench.folder / "labmesh.toml").unlink(missing_ok=True)
        if not row.is_in(found):
            lines = "\n".join(f"    {each}" for each in found if each.level != "ok")
            wrong.append(f"{row}\n{lines}")
    print(f"{named} of {len(rows)} broken set-ups named")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mode", ["keys", "password", "open"])
async def test_a_healthy_set_up_has_no_failure(bench: Bench, mode: str) -> None:
    if mode == "keys":
        bench.keys("ana")
        user = bench.keyed.grant("ana", "operator").user
        guard = bench.nodes["keys"]._sockets.security.guard
        assert guard is not None
        await until(lambda: guard.grant_of(user))
    else:
        bench.variables(OPEN if mode == "open" else password(WORD))
    places = bench.brokers[mode]
    binds = ("rpc", "xsub", "xpub")
    lines = [f'{each}_bind = "{getattr(places, each)}"' for each in binds]
    looks = f'broker_rpc = "{places.rpc}"\nbroker_xsub = "{places.xsub}"\n'
    bench.file(
        "\n".join(["[broker]", *lines, "[relay]", looks, "[bank]", looks, "[client]"])
        + f'\nbroker_rpc = "{places.rpc}"\nbroker_xpub = "{places.xpub}"\n'
    )
    found = [each async for each in examine(ClientOptions())]
    assert [each for each in found if each.level == "FAIL"] == []
    expected = {"security", "broker", *(f"port {each}" for each in places.ports)}
    assert {each.check for each in found if each.level == "ok"} > expected


def test_what_needs_several_computers_is_found_as_well(tmp_path: Path) -> None:
    rows = {each.broken: each for each in table() if each.broken in ON_HOSTS}
    labmesh = ["-m", "labmesh"]
    psu = "labmesh.instruments.simulated:PowerSupply"
    with Lab(["protected", "insecure", "relay", "client"]) as lab:
        open_ = {"LMH_INSECURE": "1", "LMH_SECURITY": "open"}
        address = lab["insecure"].address
        brokers = [
            lab["protected"].start([*labmesh, "broker", "--json"], cwd=tmp_path, environ=OPEN),
            lab["insecure"].start([*labmesh, "broker", "--json"], cwd=tmp_path, environ=open_),
        ]
        for each in brokers:
            each.wait_for('"event":"ready"', LIMIT_S)
        arguments = ["--broker", address, "--json"]
        lonely = [*labmesh, "relay", psu, "--id", "lonely", "--bind", "tcp://127.0.0.1:*"]
        walled = [*labmesh, "relay", psu, "--id", "walled", "--bind", "tcp://*:*"]
        relays = [
            lab["insecure"].start([*lonely, *arguments], cwd=tmp_path, environ=open_),
            lab["relay"].start([*walled, *arguments], cwd=tmp_path, environ=open_),
        ]
        for each in relays:
            each.wait_for('"event":"ready"', LIMIT_S)
        lab["relay"].cut_off(lab["client"].address)

        def found_at(broker: str) -> list[Finding]:
            command = [sys.executable, *labmesh, "doctor", "--json", "--broker", broker]
            ended = subprocess.run(
                [*lab["client"].prefix, *command],
                cwd=tmp_path,
                env=environment(OPEN),
                capture_output=True,
                timeout=LIMIT_S,
                check=False,
            )
            assert ended.returncode == 1
            return [Finding(**json.loads(line)) for line in ended.stdout.splitlines()]

        with ThreadPoolExecutor() as at_once:
            each_found = at_once.map(found_at, (address, lab["protected"].address))
        findings = [each for found in each_found for each in found]
    lines = [each for each in findings if each.level != "ok"]
    assert [each.broken for each in rows.values() if not each.is_in(findings)] == [], lines
    print(f"{len(rows)} of {len(rows)} on several computers named")
