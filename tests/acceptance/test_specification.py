"""The specification's four programs, unchanged, each in a process of its own."""

from __future__ import annotations

import ast
import hashlib
import itertools
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import (
    Process,
    program,
    specification_folder,
    specification_toml,
)

from labmesh import DirectorClientAgent
from labmesh.util import read_toml_config

PROGRAMS = ("broker", "bank", "relay", "client")
ORDERS = list(itertools.permutations(PROGRAMS))
#: The natural one, its reverse, the broker last of all, the client first of all.
TELLING_ORDERS = [
    ("broker", "bank", "relay", "client"),
    ("client", "relay", "bank", "broker"),
    ("relay", "client", "bank", "broker"),
    ("client", "broker", "relay", "bank"),
]
CONVERGED_S = 20.0
BEGUN_S = 15.0
END_S = 5.0
UPLOAD_BYTES, UPLOAD_SEED = 3_000_001, 42


@dataclass(frozen=True)
class Lab:
    """A folder with a file of free ports, in which the specification's programs run."""

    folder: Path
    toml: Path
    tables: dict[str, Any]
    processes: ExitStack

    def start(self, name: str) -> Process:
        """Start one program; returns when it has begun to bind and connect."""
        path = specification_folder() / f"{name}.py"
        process = Process([path, "--toml", self.toml], cwd=self.folder)
        self.processes.enter_context(process)
        process.wait_begun(BEGUN_S)
        return process

    def upload(self) -> str:
        """Have a fifth process upload; the id of the dataset."""
        bank = self.tables["bank"]
        ingest = bank["ingest_bind"].replace("*", bank["default_address"])
        arguments = [program("upload.py"), ingest, str(UPLOAD_BYTES), str(UPLOAD_SEED)]
        uploader = self.processes.enter_context(Process(arguments, cwd=self.folder))
        dataset_id = uploader.wait_for(r"^uploaded (\S+)$", CONVERGED_S)[1]
        assert uploader.wait_end(END_S) == 0
        return dataset_id


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab of its own."""
    specification_folder()
    with ExitStack() as processes:
        yield open_lab(tmp_path, processes)


def open_lab(folder: Path, processes: ExitStack) -> Lab:
    """A lab in this folder, whose processes end with ``processes``."""
    toml = specification_toml(folder)
    return Lab(folder, toml, read_toml_config(toml), processes)


def converge(lab: Lab, order: tuple[str, ...]) -> float:
    """Start the programs in this order; seconds from the last start to a verified download."""
    started = {name: lab.start(name) for name in order}
    client, last_start = started["client"], started[order[-1]].started_at
    left = Countdown(last_start + CONVERGED_S)
    client.wait_for(r"\[state\] Inst-0: .*'voltage': 2\.5\b", left())
    dataset_id = lab.upload()
    report = client.wait_for(r"^\[downloaded\] (\{.*\})$", left())[1]
    took_s = time.monotonic() - last_start
    check_download(lab, dataset_id, ast.literal_eval(report))
    # A client that has waited a while for the broker says why.
    waiting = "still waiting for the broker: "
    assert [each for each in client.errors.splitlines() if not each.startswith(waiting)] == []
    return took_s


class Countdown:
    """Seconds left until a monotonic time, at least a little."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def __call__(self) -> float:
        return max(0.01, self._deadline - time.monotonic())


def check_download(lab: Lab, dataset_id: str, reported: dict[str, Any]) -> None:
    """What was downloaded is what was uploaded, in the file that the program named."""
    expected = random.Random(UPLOAD_SEED).randbytes(UPLOAD_BYTES)
    path = lab.folder / f"download_{dataset_id}.bin"
    assert path.read_bytes() == expected
    assert reported["dataset_id"] == dataset_id
    assert reported["size"] == len(expected)
    assert reported["sha256"] == hashlib.sha256(expected).hexdigest()
    assert reported["meta"] == {"seed": UPLOAD_SEED}
    assert lab.folder.joinpath(reported["path"]).samefile(path)


@pytest.mark.parametrize("order", TELLING_ORDERS, ids=" ".join)
def test_start_order_converges(lab: Lab, order: tuple[str, ...]) -> None:
    print(f"{' '.join(order)}: {converge(lab, order):.1f} s")


@pytest.mark.soak
@pytest.mark.timeout(24 * 60)
def test_all_24_start_orders_converge(tmp_path: Path) -> None:
    """Each order in a lab of its own; all are tried, then those that did not converge are named."""
    specification_folder()
    seconds: dict[tuple[str, ...], float] = {}
    failures: list[str] = []
    for number, order in enumerate(ORDERS, 1):
        folder = tmp_path / f"order-{number}"
        folder.mkdir()
        with ExitStack() as processes:
            try:
                seconds[order] = converge(open_lab(folder, processes), order)
            except (AssertionError, pytest.fail.Exception) as exc:
                failures.append(f"{' '.join(order)}: {exc}")
        took = f"{seconds[order]:6.1f} s" if order in seconds else "did not converge"
        print(f"{number:2}  {' '.join(f'{name:6}' for name in order)}  {took}")
    slowest = max(seconds.values(), default=float("nan"))
    print(f"{len(seconds)} of {len(ORDERS)} converge, the slowest in {slowest:.1f} s")
    assert not failures, "\n".join(failures)


async def test_the_client_prints_who_is_there(lab: Lab) -> None:
    """In the order broker, bank, relay, client its lists name the relay and the bank."""
    for name in ("broker", "bank", "relay"):
        lab.start(name)
    await registered(lab, "Inst-0", "bank-0")
    client = lab.start("client")
    services = ast.literal_eval(client.wait_for(r"^Services: (.*)$", CONVERGED_S)[1])
    banks = ast.literal_eval(client.wait_for(r"^Banks: (.*)$", CONVERGED_S)[1])
    tables = lab.tables
    assert [each["relay_id"] for each in services] == ["Inst-0"]
    assert services[0]["rpc_endpoint"] == local(tables["relay"]["default_rpc_bind"])
    assert [each["bank_id"] for each in banks] == ["bank-0"]
    assert banks[0]["ingest"] == local(tables["bank"]["ingest_bind"])
    assert banks[0]["retrieve"] == local(tables["bank"]["retrieve_bind"])


async def registered(lab: Lab, relay_id: str, bank_id: str) -> None:
    """Wait until the directory lists both."""
    tables = lab.tables
    client = DirectorClientAgent(
        tables["broker"]["address"], tables["client"]["broker_rpc"], tables["client"]["broker_xpub"]
    )
    async with client:
        await client.get_relay_agent(relay_id)
        await client.get_databank_agent(bank_id)


def local(bind: str) -> str:
    """Where a port that is bound everywhere is found, on one machine."""
    return bind.replace("*", "127.0.0.1")


def test_sigterm_ends_the_nodes_with_exit_code_0(lab: Lab) -> None:
    """A client serves nobody: there SIGTERM does what it does to any program."""
    started = {name: lab.start(name) for name in PROGRAMS}
    started["client"].wait_for(r"\[state\]", CONVERGED_S)
    expected = {"broker": 0, "bank": 0, "relay": 0, "client": -signal.SIGTERM}
    for name in ("client", "relay", "bank", "broker"):
        started[name].terminate()
        assert started[name].wait_end(END_S) == expected[name], started[name].tail()
        assert started[name].errors == ""


def test_ctrl_c_ends_each_program_with_nothing_but_a_keyboard_interrupt(lab: Lab) -> None:
    """``asyncio.run`` cancels the program, then raises KeyboardInterrupt: no other error shows."""
    started = {name: lab.start(name) for name in PROGRAMS}
    started["client"].wait_for(r"\[state\]", CONVERGED_S)
    for name in ("client", "relay", "bank", "broker"):
        process = started[name]
        process.interrupt()
        assert process.wait_end(END_S) in (-signal.SIGINT, 128 + signal.SIGINT)
        raised = [line for line in process.errors.splitlines() if line and not line.startswith(" ")]
        allowed = ("Traceback", "During handling", "KeyboardInterrupt", "asyncio.exceptions.Cancel")
        assert [line for line in raised if not line.startswith(allowed)] == []
        assert raised[-1] == "KeyboardInterrupt"
