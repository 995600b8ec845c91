"""A relay that is killed while it acquires and sends, with a bank that comes and goes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.support.networks import Network
from tests.support.processes import Process, Start, free_ports, program
from tests.support.programs.spooling_relay import content_of

BEGIN_S = 20.0
DRAIN_S = 120.0


def test_nothing_that_an_upload_kept_is_lost_in_3_kills(start: Start, tmp_path: Path) -> None:
    kill_relays(start, tmp_path, kills=3, seed=1, within_s=0.4)


def test_a_second_relay_on_a_spool_ends_with_an_error(start: Start, tmp_path: Path) -> None:
    network = Network(start, tmp_path)
    network.broker()
    command = [
        *("-m", "labmesh", "relay", "labmesh.instruments.simulated:PowerSupply", "--id", "psu-1"),
        *("--broker", network.rpc.removeprefix("tcp://"), "--spool", "spool"),
        *("--bind", "tcp://127.0.0.1:*"),
    ]
    start(command, cwd=tmp_path).wait_for("psu-1", BEGIN_S)
    second = start(command, cwd=tmp_path)
    assert second.wait_end(BEGIN_S) not in (0, None)
    assert "is in use by another relay" in second.errors
    assert (tmp_path / "spool" / "psu-1" / "LOCK").is_file()


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_nothing_that_an_upload_kept_is_lost_in_200_kills(start: Start, tmp_path: Path) -> None:
    kill_relays(start, tmp_path, kills=200, seed=random.SystemRandom().randrange(10**6))


class Lab:
    """One relay with a spool, one bank; each a process that can be killed."""

    def __init__(self, start: Start, folder: Path) -> None:
        self.network = Network(start, folder, ttl_s=3.0, heartbeat_s=0.5)
        self.network.broker()
        self.spool = folder / "spool"
        ingest, retrieve = free_ports(2)
        self._binds = {
            "ingest_bind": f"tcp://127.0.0.1:{ingest}",
            "retrieve_bind": f"tcp://127.0.0.1:{retrieve}",
        }

    def bank(self) -> Process:
        """The bank, once it is listed."""
        return self.network.ready_nodes(self.network.bank("bank-0", **self._binds))

    def relay(self, name: str, *mode: str) -> Process:
        """The relay, once it acquires."""
        arguments = [
            program("spooling_relay.py"),
            self.network.rpc,
            self.network.xsub,
            self.spool,
            name,
            *mode,
        ]
        process = self.network.start(arguments, cwd=self.network.folder)
        process.wait_for("^ready", BEGIN_S)
        return process


def kill_relays(
    start: Start, folder: Path, *, kills: int, seed: int, within_s: float = 1.0
) -> None:
    """Kill -9 the relay again and again, at random moments; the bank, too, and it stays away.

    :param within_s: after the first upload, at most so long.
    """
    chance = random.Random(seed)
    lab = Lab(start, folder)
    bank: Process | None = lab.bank()
    kept: list[str] = []
    bank_kills = 0
    for number in range(kills):
        relay = lab.relay(f"r{number}")
        relay.wait_for("^kept", BEGIN_S)
        time.sleep(chance.uniform(0, within_s))  # the moment of the kill is the case under test
        if bank is None:
            bank = lab.bank()
        elif chance.random() < 0.5:
            bank.kill9()
            bank, bank_kills = None, bank_kills + 1
            time.sleep(chance.uniform(0, 0.5))
        relay.kill9()
        relay.wait_end(BEGIN_S)
        kept += [each.text.split()[1] for each in relay.lines if each.text.startswith("kept")]
    if bank is None:
        bank = lab.bank()
    began = time.monotonic()
    drain = lab.relay("last", "idle")
    assert drain.wait_end(DRAIN_S) == 0
    report(lab, kept, seed, kills, bank_kills, time.monotonic() - began)


def report(
    lab: Lab, kept: list[str], seed: int, kills: int, bank_kills: int, drained_s: float
) -> None:
    """Look at what the bank has, and at what is left in the spool."""
    stored = datasets(lab)
    counts = Counter(dataset_id for dataset_id, _ in stored)
    lost = [each for each in kept if each not in counts]
    twice = [each for each, count in counts.items() if count > 1]
    wrong = [name for name, content in stored if content != content_of(name)]
    incomplete = [*lab.spool.glob("incomplete/*/data")]
    # A short one that was killed before it was described has a number and no id.
    named = {each: each.parent.name.partition("-")[2] for each in incomplete}
    no_prefix = [
        each
        for each, name in named.items()
        if name and not content_of(name).startswith(each.read_bytes())
    ]
    print(
        f"seed {seed}: relay killed {kills} times, bank {bank_kills} times; {len(kept)} uploads "
        f"returned, lost {len(lost)}, twice {len(twice)}, wrong {len(wrong)}; {len(stored)} in the "
        f"bank, {len(incomplete)} interrupted ones put aside; rest sent in {drained_s:.1f} s"
    )
    assert (lost, twice, wrong, no_prefix) == ([], [], [], [])
    assert [*lab.spool.glob("refused/*"), *lab.spool.glob("damaged/*")] == []
    assert [*lab.spool.glob("*.data")] == []
    assert len(kept) >= kills


def datasets(lab: Lab) -> list[tuple[str, bytes]]:
    """Every dataset of the bank, with its verified bytes."""

    async def fetch() -> list[tuple[str, bytes]]:
        async with lab.network.client() as client:
            bank = await client.get_databank_agent("bank-0")
            records = await bank.list(limit=1000)
            while records and len(records) % 1000 == 0:
                records += await bank.list(limit=1000, after=records[-1].sequence)
            ids = [str(each.dataset_id) for each in records]
            return [(each, await bank.read(each)) for each in ids]

    return asyncio.run(fetch())
