"""A mesh over several hosts: who is admitted, who is told why not, and which addresses are found.

The hosts are network namespaces, which need root; without it these tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.support.namespaces import Lab
from tests.support.processes import Process, program
from tests.support.promptness import SLACK_S

PASSWORD = {"LMH_NETWORK_PASSWORD": "one word for the whole laboratory"}
INSECURE = {"LMH_INSECURE": "1"}
LIMIT_S = 20.0
#: A refusal is told within this time.
TOLD_S = 2.0 + SLACK_S


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    """Three computers; the tests leave nothing running on them."""
    with Lab(["broker", "relay", "client"]) as lab:
        yield lab


class Network:
    """A broker and a bank on one host, a relay on another.

    All know the broker by the address of its host, and are bound to every interface of theirs.
    """

    def __init__(self, hosts: Lab, folder: Path) -> None:
        self.hosts, self._folder = hosts, folder
        self._started: list[Process] = []

    def start(self, host: str, environ: Mapping[str, str], *arguments: Any) -> Process:
        process = self.hosts[host].start(arguments, cwd=self._folder, environ=environ)
        self._started.append(process)
        return process

    def stop(self) -> None:
        for process in self._started:
            process.kill9()

    def broker(self, environ: Mapping[str, str]) -> Process:
        return self._ready("broker", environ, {"kind": "broker"})

    def members(self, environ: Mapping[str, str]) -> tuple[Process, Process]:
        """A relay and a bank, registered."""
        options = {**self._broker_host(), "data_dir": str(self._folder / "bank")}
        return (
            self._ready("relay", environ, self._relay()),
            self._ready("broker", environ, {"kind": "bank", **options}),
        )

    def refused_relay(self, environ: Mapping[str, str]) -> Process:
        nodes = json.dumps([self._relay()])
        return self.start("relay", environ, program("nodes.py"), nodes)

    def visit(self, host: str, environ: Mapping[str, str], broker: str = "") -> dict[str, Any]:
        """What a client finds from this host."""
        address = broker or self.hosts["broker"].address
        visitor = self.start(host, environ, program("visitor.py"), address, "Inst-0", "bank-0")
        found: dict[str, Any] = json.loads(visitor.wait_for(r"^\{.*\}$", LIMIT_S)[0])
        return found

    def command(self, host: str, environ: Mapping[str, str], *words: str) -> Process:
        """A command of labmesh that has ended."""
        broker = ["--broker", self.hosts["broker"].address]
        process = self.start(host, environ, "-m", "labmesh", *words, *broker)
        process.wait_end(LIMIT_S)
        return process

    def _relay(self) -> dict[str, Any]:
        return {"kind": "relay", "relay_id": "Inst-0", "state_interval": 0.1, **self._broker_host()}

    def _broker_host(self) -> dict[str, str]:
        return {"broker_address": self.hosts["broker"].address, "local_address": "127.0.0.1"}

    def _ready(self, host: str, environ: Mapping[str, str], node: dict[str, Any]) -> Process:
        process = self.start(host, environ, program("nodes.py"), json.dumps([node]))
        process.wait_for("^ready ", LIMIT_S)
        return process


@pytest.fixture
def network(hosts: Lab, tmp_path: Path) -> Iterator[Network]:
    network = Network(hosts, tmp_path)
    yield network
    network.stop()


def assert_everything_works(found: dict[str, Any], hosts: Lab) -> None:
    """The visitor called, listened, uploaded and downloaded, at the addresses of the interfaces."""
    assert found.get("error") is None, found
    assert found["square"] == 144
    assert [state[0] for state in found["states"]] == ["Inst-0", "Inst-0"]
    assert found["same"] is True
    assert host_of(found["relays"]["Inst-0"]) == hosts["relay"].address
    assert [host_of(each) for each in found["banks"]["bank-0"]] == [hosts["broker"].address] * 2


def host_of(endpoint: str) -> str:
    return endpoint.removeprefix("tcp://").rpartition(":")[0]


def test_without_a_password_other_hosts_are_refused_and_told_why(network: Network) -> None:
    broker = network.broker({})
    refusal = r"refused this host: it runs without keys or a password \(protected mode\)"

    visit = network.visit("client", {})
    print(f"a client is told after {visit['took_s']:.2f} s: {visit['text']}")
    assert visit["error"] == "AuthenticationError"
    assert "protected mode" in visit["text"]
    assert network.hosts["broker"].address in visit["text"]
    for way_out in ("LMH_NETWORK_PASSWORD", "LMH_INSECURE"):
        assert way_out in visit["text"]
    assert visit["took_s"] < TOLD_S

    listing = network.command("client", {}, "ls")
    print(f"labmesh ls: exit code {listing.exit_code}: {listing.errors}")
    assert listing.exit_code == 4
    assert "protected mode" in listing.errors

    relay = network.refused_relay({})
    relay.wait_for(refusal, LIMIT_S)
    assert relay.wait_end(LIMIT_S) == 1
    assert relay.errors.splitlines()[-1].startswith("labmesh.errors.AuthenticationError: ")

    # The same machine is admitted meanwhile, and each refused host was reported once.
    listing = network.start("broker", {}, "-m", "labmesh", "ls", "--json")
    assert listing.wait_end(LIMIT_S) == 0
    for host in ("client", "relay"):
        address = network.hosts[host].address
        reports = [each for each in broker.errors.splitlines() if f"refused {address} " in each]
        assert len(reports) == 1, broker.errors
        assert "protected mode" in reports[0]


def test_an_insecure_network_admits_every_host_and_says_so(network: Network) -> None:
    broker = network.broker(INSECURE)
    assert "broker is insecure" in broker.errors
    network.members(INSECURE)
    assert_everything_works(network.visit("client", {}), network.hosts)


def test_with_the_password_hosts_find_each_other_at_their_interfaces(network: Network) -> None:
    network.broker(PASSWORD)
    for host, member in zip(("relay", "broker"), network.members(PASSWORD), strict=True):
        assert f"advertises {network.hosts[host].address}, the interface that" in member.errors
    assert_everything_works(network.visit("client", PASSWORD), network.hosts)
    for host, environ in (("client", PASSWORD), ("relay", PASSWORD)):
        listing = network.command(host, environ, "ls", "--json")
        assert listing.exit_code == 0
        assert network.hosts["relay"].address in listing.output
    for environ in ({}, {"LMH_NETWORK_PASSWORD": "another word"}):
        found = network.visit("client", environ)
        print(f"told after {found['took_s']:.2f} s: {found['text']}")
        assert found["error"] == "AuthenticationError"
        assert "LMH_NETWORK_PASSWORD" in found["text"]
        assert found["took_s"] < TOLD_S
