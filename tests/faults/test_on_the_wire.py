"""What somebody who listens to the wire can read: with a password or with keys nothing, else all.

    pytest tests/faults/test_on_the_wire.py -s

prints how often each thing was found. The open run is the control: it shows that the search would
find what is there.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.support.hearing import Heard
from tests.support.keyed import KeyedLab
from tests.support.recording import Wire
from tests.support.sniffing import Sniffer
from tests.support.specified import CONTENT, SpecifiedPrograms
from zmq.utils import z85

from labmesh import DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent
from labmesh.errors import DriverError
from labmesh.transport.keys import Security

PASSWORD = "quagga-pangolin-axolotl-41"
ANYWHERE = "tcp://127.0.0.1:*"
PAYLOAD = random.Random(7).randbytes(300_000)
READING = 12345.678912
ARRAY = np.random.default_rng(7).normal(size=2000)
LIMIT_S = 20.0


class Wombatron:
    """A driver whose words occur nowhere else: doc-of-the-wombatron."""

    def set_numbat(self, bilby: float, note: str) -> dict[str, Any]:
        """Set the numbat: doc-of-set-numbat."""
        return {"echidna": note.upper(), "bilby": bilby}

    def spectrum(self) -> np.ndarray:
        """An array."""
        return ARRAY

    def fail(self) -> None:
        """Raise."""
        raise ValueError("the-potoroo-is-out")

    def poll(self) -> dict[str, float]:
        """A state."""
        return {"quokka": READING}


#: What is said in :func:`talk`, as it would be found on the wire.
SAID = {
    "relay id": b"Wombat-0",
    "bank id": b"burrow-0",
    "driver's class": b"Wombatron",
    "driver's docstring": b"doc-of-the-wombatron",
    "method": b"set_numbat",
    "method's docstring": b"doc-of-set-numbat",
    "parameter name": b"bilby",
    "parameter value (text)": b"dunnart-of-the-parameter",
    "parameter value (number)": struct.pack(">d", 2.718281828),
    "result": b"DUNNART-OF-THE-PARAMETER",
    "result's array": ARRAY.tobytes()[4000:4032],
    "driver's error": b"the-potoroo-is-out",
    "state's topic": b"state.Wombat-0",
    "state's key": b"quokka",
    "state's value": struct.pack(">d", READING),
    "payload, its first bytes": PAYLOAD[:32],
    "payload, in the middle": PAYLOAD[150_000:150_032],
    "payload, its last bytes": PAYLOAD[-32:],
    "dataset's name": b"kultarr-scan",
    "dataset's meta, key": b"mulgara",
    "dataset's meta, value": b"phascogale",
}


class RelayBehindWire(RelayAgent):
    """A relay that others reach through the wire."""

    wire: Wire

    def _endpoints(self) -> dict[str, str]:
        return {name: self.wire.front(each) for name, each in super()._endpoints().items()}


class BankBehindWire(DataBank):
    """A bank that others reach through the wire."""

    wire: Wire

    def _endpoints(self) -> dict[str, str]:
        return {name: self.wire.front(each) for name, each in super()._endpoints().items()}


class Secured(NamedTuple):
    """What each node of a network is secured with, and what nobody may read of it."""

    broker: Security
    relay: Security
    bank: Security
    client: Security
    secrets: dict[str, bytes]


def opened() -> Secured:
    """Neither password nor keys: the control."""
    return Secured(*[Security.resolve(environ={})] * 4, secrets={})


def with_password() -> Secured:
    """The password, and what was made of it, are secret."""
    security = Security.resolve(environ={"LMH_NETWORK_PASSWORD": PASSWORD})
    assert security.keys is not None
    secrets = {"password": PASSWORD.encode()}
    for side, pair in (("servers'", security.keys.server), ("clients'", security.keys.client)):
        secrets[f"{side} secret key"] = z85.decode(pair.secret)
        secrets[f"{side} secret key, as text"] = pair.secret
    return Secured(*[security] * 4, secrets=secrets)


def with_keys(folder: Path) -> Secured:
    """Secret keys are secret, and nobody sees by the public ones who it is that talks."""
    lab = KeyedLab(folder)
    relay, bank = lab.admit("Wombat-0", "relay"), lab.admit("burrow-0", "bank")
    client = lab.admit("bandicoot", "operator")
    secrets = {"client's name": b"bandicoot"}
    for name, pair in {"broker": lab.broker_pair, **lab.pairs}.items():
        for half, key in (("secret", pair.secret), ("public", pair.public)):
            secrets[f"{name}: {half} key"] = z85.decode(key)
            secrets[f"{name}: {half} key, as text"] = key
    return Secured(lab.broker, relay, bank, client, secrets)


async def talk(wire: Wire, secured: Secured, folder: Path) -> None:
    """A network whose every connection goes over the wire, and everything that it can say."""
    async with AsyncExitStack() as nodes:
        broker = DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE, security=secured.broker)
        await nodes.enter_async_context(broker)
        rpc, xsub, xpub = (wire.front(str(each)) for each in (broker.rpc, broker.xsub, broker.xpub))
        relay = RelayBehindWire(
            "Wombat-0",
            Wombatron(),
            rpc,
            ANYWHERE,
            xsub,
            state_interval=0.1,
            security=secured.relay,
        )
        bank = BankBehindWire(
            ingest_bind=ANYWHERE,
            retrieve_bind=ANYWHERE,
            data_dir=folder,
            broker_rpc=rpc,
            broker_xsub=xsub,
            bank_id="burrow-0",
            security=secured.bank,
        )
        for node in (relay, bank):
            node.wire = wire
            await nodes.enter_async_context(node)
            await node.ready
        client = DirectorClientAgent(broker_rpc=rpc, broker_xpub=xpub, security=secured.client)
        await nodes.enter_async_context(client)
        await ask(client, relay)


async def ask(client: DirectorClientAgent, relay: RelayAgent) -> None:
    """Call, listen, upload, download; the answers are checked."""
    states, datasets = Heard(), Heard()
    client.on_state(lambda _, state: states(state))
    client.on_dataset(datasets)
    wombat = await client.get_relay_agent("Wombat-0")
    assert "set_numbat" in [each.name for each in (await wombat.describe()).methods]
    answer = await wombat.set_numbat(bilby=2.718281828, note="dunnart-of-the-parameter")
    assert answer == {"echidna": "DUNNART-OF-THE-PARAMETER", "bilby": 2.718281828}
    np.testing.assert_array_equal(await wombat.spectrum(), ARRAY)
    with pytest.raises(DriverError, match="the-potoroo-is-out"):
        await wombat.fail()
    assert (await states.count(3))[-1] == {"quokka": READING}
    dataset_id = await relay.upload(PAYLOAD, name="kultarr-scan", meta={"mulgara": "phascogale"})
    dataset = await datasets.one(lambda each: each["dataset_id"] == dataset_id)
    bank = await client.get_databank_agent(dataset["bank_id"])
    assert await bank.read(dataset_id) == PAYLOAD


async def test_nothing_that_a_secured_network_says_can_be_read(tmp_path: Path) -> None:
    networks = {"password": with_password(), "keys": with_keys(tmp_path / "lab"), "open": opened()}
    wires = {}
    async with asyncio.timeout(LIMIT_S), AsyncExitStack() as stack:
        for mode, secured in networks.items():
            wires[mode] = await stack.enter_async_context(Wire())
            await talk(wires[mode], secured, tmp_path / mode)
    secrets = networks["password"].secrets | networks["keys"].secrets
    print("", *(f"{mode} ({wire.size:,} bytes heard)" for mode, wire in wires.items()), sep="  ")
    for name, needle in (SAID | secrets).items():
        print(f"{name:36}", *(f"{wire.count(needle):5}" for wire in wires.values()))
    for mode in ("password", "keys"):
        read = [name for name, needle in (SAID | secrets).items() if wires[mode].count(needle)]
        assert read == [], mode
        assert wires[mode].size > wires["open"].size
    assert [name for name, needle in SAID.items() if not wires["open"].count(needle)] == []
    assert [name for name, needle in secrets.items() if wires["open"].count(needle)] == []
    assert wires["open"].size > 2 * len(PAYLOAD)


def listen_to_the_programs(folder: Path, environ: Mapping[str, str]) -> Sniffer:
    """The specification's programs until they have converged; what was heard on their ports."""
    programs = SpecifiedPrograms(folder)
    with Sniffer(programs.ports) as heard:
        programs.converge(environ)
        heard.stop()
    return heard


def test_nothing_of_the_specifications_programs_can_be_read(tmp_path: Path) -> None:
    """The kernel's own record of the loopback interface, on all ports of the four programs."""
    said = {
        "relay id": b"Inst-0",
        "bank id": b"bank-0",
        "driver's class": b"MockPSU",
        "method": b"set_voltage",
        "parameter's name": b"value",
        "state's key": b"last_updated",
        "state's value": struct.pack(">d", 2.5),
        "payload": CONTENT[1000:1032],
        "payload, its last bytes": CONTENT[-32:],
        "dataset's meta": b"\xa4seed\x2a",
    }
    password = {"LMH_NETWORK_PASSWORD": PASSWORD}
    private = listen_to_the_programs(tmp_path / "closed", password)
    public = listen_to_the_programs(tmp_path / "opened", {})
    print(f"{'':28} with password  without   ({private.size:,} and {public.size:,} bytes heard)")
    for name, needle in (said | {"password": PASSWORD.encode()}).items():
        print(f"{name:28} {private.count(needle):13}  {public.count(needle):7}")
    assert [name for name, needle in said.items() if private.count(needle)] == []
    assert [name for name, needle in said.items() if not public.count(needle)] == []
    for heard in (private, public):
        assert heard.count(PASSWORD.encode()) == 0
        assert heard.size > 2 * len(CONTENT)
