"""Nodes that a command holds open: how they begin, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from labmesh.cli.output import Output
from labmesh.cli.running import hold, hold_open
from labmesh.config import Config
from labmesh.errors import Conflict
from labmesh.node import Node
from labmesh.transport.keys import Security

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")


class Idle(Node):
    """A node that does nothing until it is told to break."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__(name, security=Security("open"))
        self._log = log
        self.trouble = asyncio.Event()

    async def _open(self) -> None:
        self._log.append(f"{self.node_id} opened")
        self._spawn(self._until_trouble(), "trouble")
        self._set_ready()

    async def _until_trouble(self) -> None:
        await self.trouble.wait()
        raise Conflict(f"{self.node_id} is in trouble")

    async def _close(self) -> None:
        self._log.append(f"{self.node_id} closed")


class Broken(Idle):
    """A node that cannot be started."""

    async def _open(self) -> None:
        raise Conflict("port 1 is taken", port=5761)


@pytest.fixture
def log() -> list[str]:
    return []


async def test_sigterm_ends_them_in_reverse_order(log: list[str]) -> None:
    nodes = [Idle("first", log), Idle("second", log)]

    def ready() -> None:
        log.append("ready")
        os.kill(os.getpid(), signal.SIGTERM)

    await hold_open([lambda: nodes[0], lambda: nodes[1]], ready, Output())
    assert log == ["first opened", "second opened", "ready", "second closed", "first closed"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_one_that_cannot_start_leaves_none_behind(log: list[str]) -> None:
    nodes = [Idle("first", log), Broken("second", log)]
    with pytest.raises(Conflict, match="port 1"):
        await hold_open([lambda: nodes[0], lambda: nodes[1]], log.clear, Output())
    assert log == ["first opened", "second closed", "first closed"]


async def test_one_that_fails_later_is_reported_and_the_others_go_on(
    log: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [Idle("first", log), Idle("second", log)]

    async def until_reported() -> None:
        nodes[1].trouble.set()
        while "has ended" not in "".join(told):
            told.append(capsys.readouterr().err)
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)

    told: list[str] = []
    watching: list[asyncio.Task[None]] = []

    def ready() -> None:
        watching.append(asyncio.create_task(until_reported()))

    await hold_open([lambda: nodes[0], lambda: nodes[1]], ready, Output())
    await watching[0]
    assert "node second has ended: second is in trouble" in "".join(told)


async def test_without_the_first_one_nothing_goes_on(log: list[str]) -> None:
    nodes = [Idle("first", log), Idle("second", log)]
    with pytest.raises(Conflict, match="first is in trouble"):
        await hold_open([lambda: nodes[0], lambda: nodes[1]], nodes[0].trouble.set, Output())
    assert log[-1] == "first closed"


def test_a_port_that_is_taken_is_told_with_file_table_and_key(log: list[str]) -> None:
    config = Config(path=Path("lab.toml"))
    with pytest.raises(Conflict, match=r"^lab.toml: \[bank\] ingest_bind: port 1 is taken$"):
        hold([lambda: Broken("only", log)], log.clear, Output(), config)
