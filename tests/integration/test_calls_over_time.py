"""Calls that outlast the time that their driver allows them: they are told to end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from labmesh import cancel_requested, expose
from labmesh.errors import NotSent, OutcomeUnknown
from labmesh.testing import LocalMesh

LIMIT_S = 10.0
#: Much longer than a call may take, and less than the test may.
LONG_S = 30.0
ALLOWED_S = 0.1


class Oven:
    """Whatever it does takes too long, and can be ended."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @expose(timeout=ALLOWED_S)
    async def heat(self) -> None:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            # It takes longer than the relay's next look at its calls.
            await asyncio.sleep(0.05)
            self.log.append("switched off")
            raise

    @expose(timeout=ALLOWED_S)
    def anneal(self) -> None:
        never = threading.Event()
        for _ in range(round(LONG_S / 0.01)):
            if cancel_requested():
                self.log.append("switched off")
                return
            never.wait(0.01)

    @expose(timeout=ALLOWED_S)
    def ramp(self) -> Iterator[int]:
        never = threading.Event()
        try:
            for step in range(round(LONG_S / 0.01)):
                never.wait(0.01)
                yield step
        finally:
            self.log.append("switched off")

    def take_log(self) -> list[str]:
        log, self.log = self.log, []
        return log


@pytest.mark.parametrize("method", ["heat", "anneal"])
async def test_a_call_that_takes_too_long_is_told_to_end(method: str) -> None:
    async with LocalMesh({"oven-0": Oven()}, banks=0) as mesh:
        oven = await (await mesh.client()).get_relay_agent("oven-0")
        with pytest.raises(OutcomeUnknown, match="as long as it may") as caught:
            await oven.call(method, timeout=LIMIT_S)
        assert caught.value.detail["state"] == "running"
        assert await oven.call("take_log", timeout=LIMIT_S) == ["switched off"]


async def test_a_scan_that_takes_too_long_is_closed() -> None:
    async with LocalMesh({"oven-0": Oven()}, banks=0) as mesh:
        oven = await (await mesh.client()).get_relay_agent("oven-0")
        with pytest.raises(OutcomeUnknown, match="as long as it may"):
            async for _ in oven.stream("ramp", timeout=LIMIT_S):
                pass
        assert await oven.call("take_log", timeout=LIMIT_S) == ["switched off"]


async def test_there_is_nothing_to_settle_where_the_end_is_known() -> None:
    async with LocalMesh({"oven-0": Oven()}, banks=0) as mesh:
        oven = await (await mesh.client()).get_relay_agent("oven-0")
        with pytest.raises(NotSent) as caught:
            await oven.call("take_log", timeout=0)
        with pytest.raises(ValueError, match=r"is known \(NotSent\): "):
            await oven.call_status(caught.value)
