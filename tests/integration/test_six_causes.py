"""Why nobody gets in, in every interface: the cause and its mend, within two seconds.

    pytest tests/integration/test_six_causes.py -s

prints after how many seconds each was told.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TextIO, TypeVar

import pytest
from tests.support import doubles
from tests.support.keyed import KeyedLab
from tests.support.places import Places
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S

import labmesh
from labmesh.cli import main
from labmesh.cli.checkup import Finding
from labmesh.cli.doctor import examine
from labmesh.cli.options import ClientOptions
from labmesh.errors import LabmeshError
from labmesh.instruments.simulated import PowerSupply
from labmesh.relay import RelayAgent, upload_dataset
from labmesh.transport.key_pairs import new_key_pair
from labmesh.transport.keys import Security

#: A person is told within 2 s.
TOLD_S = 2.0 + SLACK_S
#: Who waits for an answer that does not come waits so long.
TIMEOUT_S = 2.5
LIMIT_S = 10.0
WORD, OTHER = "one word for the whole laboratory", "another word of the same length"
REFUSED, NO_ANSWER = 4, 5
#: More would wait for a thread, and not for an answer.
AT_A_TIME = 4


def password(word: str) -> dict[str, str]:
    return {"LMH_SECURITY": "password", "LMH_NETWORK_PASSWORD": word}


OPEN = {"LMH_SECURITY": "open"}
#: A broker may be behind it that is just slow: a command says so at once, and waits for it.
WAITED_FOR = ("silence", "black hole")


@dataclass(frozen=True)
class Case:
    """Who comes to which broker, and what he is told."""

    who: str
    broker: str
    cause: str
    mend: str
    exit_code: int = REFUSED


CASES = [
    Case(
        *("stranger", "keys"),
        *(r"does not accept the key of (client eve|relay eve-psu) \(", "labmesh keys invite"),
    ),
    Case("revoked", "keys", "not on the allow-list, was revoked", "labmesh keys join"),
    Case("misled", "keys", "has another key than the one that is trusted", "trusted/broker.pub"),
    Case("ana", "password", "its network has a password in place of keys", "labmesh keys join"),
    Case("ana", "open", "runs without keys and without a password", "LMH_SECURITY=open here"),
    Case("word", "keys", "or keys in place of a password", "labmesh keys join"),
    Case("other word", "password", "has another network password", "the same on every node"),
    Case("word", "open", "runs without a password, but", "set it there too, or unset it here"),
    Case("nothing", "keys", "wants the network password, or a key", "labmesh keys join"),
    Case("nothing", "password", "wants the network password", "set LMH_NETWORK_PASSWORD here"),
    Case("nothing", "nobody", "nobody answers", "is it running", NO_ANSWER),
    Case("nothing", "no host", "'no-such-host.invalid'.*not known here .DNS", "spelled", NO_ANSWER),
    Case("nothing", "HTTP", "does not speak labmesh, it says", "5750", NO_ANSWER),
    Case("ana", "HTTP", "does not speak labmesh, it says", "5750", NO_ANSWER),
    Case("nothing", "silence", "something listens there, but says nothing", "tunnel", NO_ANSWER),
    Case("nothing", "garbage", "does not speak labmesh, it says", "5750", NO_ANSWER),
    Case("word", "garbage", "does not speak labmesh, it says", "5750", NO_ANSWER),
    Case("nothing", "events", "speaks ZeroMQ, but breaks every handshake off", "5750", NO_ANSWER),
    Case("nothing", "black hole", "does not answer: nothing comes back", "firewall", NO_ANSWER),
]


@dataclass
class Lab:
    """A broker of each mode, other programs, and the environments of those who come."""

    brokers: dict[str, str]
    environments: dict[str, dict[str, str]]

    def security(self, who: str) -> Security:
        return Security.resolve(environ=self.environments[who])


@pytest.fixture
async def lab(tmp_path: Path, no_leaks: None) -> AsyncIterator[Lab]:
    keyed = KeyedLab(tmp_path / "keys")
    for name in ("ana", "relay-1", "misled", "revoked"):
        keyed.admit(name, "operator")
    keyed.stranger("eve", "operator")
    for name, folder in keyed.folders.items():
        relay_id = f"{name}-psu"
        keyed.pairs[relay_id] = folder.create(relay_id, "relay")
        if name != "eve":
            keyed.change(relay_id, "relay")
    for name in ("revoked", "revoked-psu"):
        keyed.revoke(name)
    keyed.folders["misled"].pin_broker(new_key_pair().public)

    def keys(name: str) -> dict[str, str]:
        return {"LMH_SECURITY": "keys", "LMH_KEYS_DIR": str(keyed.folders[name].path)}

    environments = {
        **{name: keys(name) for name in ("ana", "misled", "revoked")},
        "stranger": keys("eve"),
        "word": password(WORD),
        "other word": password(OTHER),
        "nothing": OPEN,
    }
    securities = {
        "keys": keyed.broker,
        "password": Security.resolve(environ=password(WORD)),
        "open": Security.resolve(environ=OPEN),
    }
    async with AsyncExitStack() as stack:
        brokers = {
            "nobody": f"tcp://127.0.0.1:{free_ports(1)[0]}",
            "no host": "tcp://no-such-host.invalid:5750",
        }
        for mode, security in securities.items():
            places = Places(tmp_path)
            await stack.enter_async_context(places.broker(security=security))
            brokers[mode] = places.rpc
            brokers.setdefault("events", "")
            if mode == "open":
                brokers["events"] = places.xpub
        brokers["HTTP"] = stack.enter_context(web_server())
        brokers["silence"] = stack.enter_context(doubles.silent())
        brokers["black hole"] = stack.enter_context(doubles.black_hole())
        garbage = doubles.tcp_server(lambda connection: connection.sendall(b"\x00\x99*IDN?\n" * 9))
        brokers["garbage"] = stack.enter_context(garbage)
        yield Lab(brokers, environments)


@contextmanager
def web_server() -> Iterator[str]:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_each_cause_is_told_with_its_mend_in_every_interface(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    at_a_time = asyncio.Semaphore(AT_A_TIME)
    found = await asyncio.gather(*(in_python(lab, caplog, each, at_a_time) for each in CASES))
    wrong = [each for _, faults in found for each in faults]
    slowest = max(took_s for took_s, _ in found)
    print(f"{len(CASES)} causes in four interfaces, the slowest told after {slowest:.2f} s")
    assert not wrong, "\n".join(wrong)


async def in_python(
    lab: Lab, caplog: pytest.LogCaptureFixture, case: Case, at_a_time: asyncio.Semaphore
) -> tuple[float, list[str]]:
    """After how long it was told in the slowest interface; and what is wrong."""
    async with at_a_time:
        return await told_in_python(lab, caplog, case)


async def told_in_python(
    lab: Lab, caplog: pytest.LogCaptureFixture, case: Case
) -> tuple[float, list[str]]:
    """The same, at once."""
    endpoint, security = lab.brokers[case.broker], lab.security(case.who)
    number = CASES.index(case)

    async def client() -> None:
        await labmesh.DirectorClientAgent(broker_rpc=endpoint, security=security).connect(TIMEOUT_S)

    async def blocking() -> None:
        await asyncio.to_thread(labmesh.connect, endpoint, timeout=TIMEOUT_S, security=security)

    async def upload(name: str) -> None:
        await upload_dataset(endpoint, b"x", dataset_id=name, security=security)

    async def relay(name: str) -> None:
        places = {"broker_rpc": endpoint, "state_pub": endpoint, "rpc_bind": "tcp://127.0.0.1:*"}
        async with RelayAgent(name, PowerSupply(), **places, security=security) as node:
            await node.ready

    told = {"client": told_by_error(client()), "connect": told_by_error(blocking())}
    relay_id = f"relay-{number}-x"
    if security.mode == "keys":
        # A relay has a key of its own; of a bank none is known, which is said before it is asked.
        relay_id = f"{lab.environments[case.who]['LMH_KEYS_DIR'].rpartition('/')[2]}-psu"
    else:
        told["upload"] = told_in_log(caplog, upload, f"upload-{number}-x", case)
    told["relay"] = told_in_log(caplog, relay, relay_id, case)
    slowest, wrong = 0.0, []
    for interface, (took_s, text) in zip(told, await asyncio.gather(*told.values()), strict=True):
        slowest = max(slowest, took_s)
        if took_s > TOLD_S or not re.search(case.cause, text) or case.mend not in text:
            wrong.append(f"{case}, {interface}, {took_s:.2f} s: {text}")
    print(f"{case.who:10} → {case.broker:10} {slowest:.2f} s")
    return slowest, wrong


Told = tuple[float, str]


async def told_by_error(work: Awaitable[None]) -> Told:
    """Seconds until it raised, and what."""
    began = time.monotonic()
    with pytest.raises(LabmeshError) as raised:
        await work
    return time.monotonic() - began, str(raised.value)


async def told_in_log(
    caplog: pytest.LogCaptureFixture,
    work: Callable[[str], Awaitable[None]],
    name: str,
    case: Case,
) -> Told:
    """The same of who waits on for what may come: then the log tells why."""
    began, first = time.monotonic(), len(caplog.records)
    task = asyncio.ensure_future(work(name))
    text = ""
    while time.monotonic() < began + TOLD_S and not task.done():
        lines = [
            each.getMessage()
            for each in caplog.records[first:]
            if each.levelno >= logging.WARNING and name in each.getMessage()
        ]
        text = " ".join(lines)
        if re.search(case.cause, text):
            break
        await asyncio.sleep(0.01)
    took_s = time.monotonic() - began
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, LabmeshError):
        text = str(ended)
    return took_s, text


async def test_the_command_line_and_the_doctor_tell_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("labmesh.cli.options._CERTAIN_S", 2.0)
    monkeypatch.setattr("labmesh.cli.options._PATIENCE_S", TOLD_S + 0.5)
    monkeypatch.setattr(sys, "stderr", Apart(sys.stderr))
    once = {(case.broker, case.cause): case for case in reversed(CASES)}
    # A process has one environment: those who come with the same one come at the same time.
    together = {
        who: [each for each in once.values() if each.who == who] for who in lab.environments
    }
    at_a_time = asyncio.Semaphore(AT_A_TIME)
    wrong = []
    for who, cases in together.items():
        for name in ("LMH_KEYS_DIR", "LMH_NETWORK_PASSWORD"):
            monkeypatch.delenv(name, raising=False)
        for name, value in lab.environments[who].items():
            monkeypatch.setenv(name, value)
        told = (on_the_command_line(lab, caplog, each, at_a_time) for each in cases)
        wrong += [each for faults in await asyncio.gather(*told) for each in faults]
    assert not wrong, "\n".join(wrong)


async def on_the_command_line(
    lab: Lab, caplog: pytest.LogCaptureFixture, case: Case, at_a_time: asyncio.Semaphore
) -> list[str]:
    """What is wrong about what a command and the doctor say."""
    async with at_a_time:
        return await told_on_the_command_line(lab, caplog, case)


async def told_on_the_command_line(
    lab: Lab, caplog: pytest.LogCaptureFixture, case: Case
) -> list[str]:
    """The same, at once."""
    wrong = []
    endpoint = lab.brokers[case.broker]
    printed = io.StringIO()
    PRINTED.set(printed)
    began, began_at = time.monotonic(), time.time()
    command = asyncio.to_thread(main, ["ls", "--broker", endpoint])
    (code, took_s), (finding, doctor_s) = await asyncio.gather(
        timed(command, began), timed(first_failure(endpoint), began)
    )
    text = printed.getvalue()
    if case.broker in WAITED_FOR:
        first = next(each for each in caplog.records if re.search(case.cause, each.message))
        took_s = first.created - began_at
    if (
        (code, took_s < TOLD_S) != (case.exit_code, True)
        or not re.search(case.cause, text)
        or case.mend not in text
    ):
        wrong.append(f"{case}, ls, exit code {code}, {took_s:.2f} s: {text}")
    text = f"{finding.text} {finding.advice}"
    is_late = doctor_s > TOLD_S and case.broker not in WAITED_FOR
    is_told = re.search(case.cause, text) and case.mend in text and finding.advice
    if is_late or not is_told:
        wrong.append(f"{case}, doctor, {doctor_s:.2f} s: {finding}")
    print(f"{case.who:10} → {case.broker:10} ls {took_s:.2f} s, doctor {doctor_s:.2f} s")
    return wrong


#: Where this command's errors go.
PRINTED: ContextVar[io.StringIO] = ContextVar("PRINTED")


class Apart(io.TextIOBase):
    """Stands for stderr, and keeps apart what commands print that run at the same time."""

    def __init__(self, beside: TextIO) -> None:
        self._beside = beside

    def write(self, text: str) -> int:
        return PRINTED.get(self._beside).write(text)


T = TypeVar("T")


async def timed(work: Awaitable[T], began: float) -> tuple[T, float]:
    """What it gave, and how many seconds after ``began``."""
    return await work, time.monotonic() - began


async def first_failure(endpoint: str) -> Finding:
    """The first thing that the doctor finds wrong."""
    async with aclosing(examine(ClientOptions(broker=endpoint))) as findings:
        return await anext(each async for each in findings if each.level == "FAIL")
