"""Links that stand still, break and come back: nothing runs late, nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.cable import Cable
from tests.support.leaks import Held, assert_nothing_more, warm_up
from tests.support.peers import PROTECTED, endpoint_of, open_sockets
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S

from labmesh import DataBank, RelayAgent
from labmesh.content import MemorySink
from labmesh.errors import LabmeshError, NotSent, OutcomeUnknown
from labmesh.protocol.caller import SILENCE_S, Caller
from labmesh.protocol.messages import (
    Call,
    Committed,
    DatasetRecord,
    Fetch,
    Fetched,
    GetDataset,
    GetStatus,
    Result,
    Status,
)
from labmesh.transfer import UploadSettings, download, upload
from labmesh.transport.link import Link
from labmesh.transport.sockets import Sockets

ANYWHERE = "tcp://127.0.0.1:*"
LIMIT_S = 30.0
CONTENT = os.urandom(8 * 2**20)


@pytest.fixture(autouse=True)
async def no_leaks() -> AsyncIterator[None]:
    warm_up()
    before = Held.now()
    yield
    await assert_nothing_more(before)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with open_sockets(name="client") as opened:
        yield opened


class Counter:
    """An instrument that counts what it is told to do."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def step(self, number: int) -> int:
        self.steps.append(number)
        return number


@asynccontextmanager
async def relay_behind_a_cable(driver: Counter) -> AsyncIterator[Cable]:
    nobody = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    relay = RelayAgent(
        "Inst-0", driver, nobody, ANYWHERE, nobody, security=PROTECTED, state_interval=60.0
    )
    async with relay, Cable(relay.rpc.port) as cable:
        yield cable


@asynccontextmanager
async def linked(sockets: Sockets, cable: Cable) -> AsyncIterator[Link]:
    link = Link(sockets, cable.endpoint, where="relay Inst-0", target="Inst-0")
    try:
        await link.wait_up(LIMIT_S)
        yield link
    finally:
        link.close()


async def step(link: Link, number: int, timeout: float = LIMIT_S) -> Any:
    request = Call(id="-", method="step", args=[number])
    return (await link.request(request, Result, timeout=timeout)).value


async def test_a_command_that_was_held_up_beyond_its_deadline_never_runs(sockets: Sockets) -> None:
    driver = Counter()
    async with relay_behind_a_cable(driver) as cable, linked(sockets, cable) as link:
        assert await step(link, 0) == 0
        cable.hold("up")
        began = time.monotonic()
        late = await asyncio.gather(
            *(step(link, number, timeout=0.5) for number in range(1, 101)), return_exceptions=True
        )
        overrun = time.monotonic() - began - 0.5
        assert {type(each) for each in late} == {OutcomeUnknown}
        cable.release()
        assert await step(link, 101) == 101, "the link has not broken; what was held came before"
        assert driver.steps == [0, 101]
        print(f"100 commands held up: 0 ran late; overrun {1000 * overrun:.1f} ms")
        assert 0 <= overrun < SLACK_S


async def test_a_command_that_ran_and_whose_answer_was_held_up_ran_once(sockets: Sockets) -> None:
    driver = Counter()
    async with relay_behind_a_cable(driver) as cable, linked(sockets, cable) as link:
        cable.hold("down")
        outcomes = await asyncio.gather(
            *(step(link, number, timeout=0.5) for number in range(20)), return_exceptions=True
        )
        assert {type(each) for each in outcomes} == {OutcomeUnknown}
        cable.release()
        assert await step(link, 20) == 20, "late answers are nobody's"
        assert driver.steps == list(range(21))


@pytest.mark.parametrize("directions", [("up",), ("down",), ("up", "down")], ids="+".join)
@pytest.mark.parametrize("silence_s", [2.0, pytest.param(SILENCE_S, marks=pytest.mark.soak)])
async def test_a_link_that_stands_still_is_noticed_and_heals(
    sockets: Sockets,
    directions: tuple[str, ...],
    silence_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labmesh.transport.requests.Caller", partial(Caller, silence_s=silence_s))
    driver = Counter()
    async with relay_behind_a_cable(driver) as cable, linked(sockets, cable) as link:
        cable.hold(*directions)
        began = time.monotonic()
        lost = asyncio.create_task(step(link, 1, timeout=LIMIT_S))
        with pytest.raises(OutcomeUnknown):
            await lost
        noticed_s = time.monotonic() - began
        with pytest.raises((NotSent, OutcomeUnknown)) as second:
            await step(link, 2, timeout=0.3)
        cable.cut()  # both ends have given it up by now; a new one takes its place
        cable.release()
        began = time.monotonic()
        assert await step(link, 3) == 3
        healed_s = time.monotonic() - began
        print(f"held {'+'.join(directions)}: noticed {noticed_s:.2f} s, healed {healed_s:.2f} s")
        assert noticed_s < silence_s + SLACK_S
        assert healed_s < 3.0 + SLACK_S
        assert driver.steps.count(1) <= 1
        assert driver.steps.count(2) <= isinstance(second.value, OutcomeUnknown)


async def test_a_link_that_breaks_again_and_again_runs_each_command_at_most_once(
    sockets: Sockets,
) -> None:
    driver = Counter()
    done: list[int] = []
    unknown = 0
    async with relay_behind_a_cable(driver) as cable, linked(sockets, cable) as link:

        async def saw() -> None:
            while True:
                await asyncio.sleep(0.15)
                cable.cut()

        sawing = asyncio.create_task(saw())
        for number in range(400):
            try:
                done.append(await step(link, number))
            except OutcomeUnknown:
                unknown += 1
        sawing.cancel()
        await asyncio.gather(sawing, return_exceptions=True)
    assert len(driver.steps) == len(set(driver.steps))
    assert set(done) <= set(driver.steps)
    assert len(done) + unknown == 400
    print(f"400 commands over a link that breaks: {len(done)} done, {unknown} unknown, 0 twice")


# ── transfers ───────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def bank(folder: Path) -> AsyncIterator[DataBank]:
    nobody = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    node = DataBank(
        ingest_bind=ANYWHERE,
        retrieve_bind=ANYWHERE,
        data_dir=folder,
        broker_rpc=nobody,
        broker_xsub=nobody,
        security=PROTECTED,
    )
    async with node:
        yield node


async def in_pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 50_000):
        yield content[start : start + 50_000]


async def stored(sockets: Sockets, node: DataBank, dataset_id: str) -> DatasetRecord:
    link = Link(sockets, endpoint_of(node.retrieve), where="the bank")
    try:
        asked = GetDataset(id="-", dataset_id=dataset_id)  # type: ignore[arg-type]
        return (await link.request(asked, Committed, timeout=LIMIT_S)).record
    finally:
        link.close()


async def datasets(sockets: Sockets, node: DataBank) -> Any:
    link = Link(sockets, endpoint_of(node.retrieve), where="the bank")
    try:
        return (await link.request(GetStatus(id="-"), Status, timeout=LIMIT_S)).facts["datasets"]
    finally:
        link.close()


@pytest.mark.parametrize("kind", ["bytes", "stream"])
async def test_an_upload_goes_on_where_it_was_after_every_break(
    kind: str, sockets: Sockets, tmp_path: Path
) -> None:
    cuts: list[int] = []
    async with bank(tmp_path / "bank") as node, Cable(node.ingest.port) as cable:

        def saw(safe: int, _size: int | None) -> None:
            if safe >= (len(cuts) + 1) * 2**20 and len(cuts) < 7:
                cuts.append(safe)
                cable.cut()

        record = await upload(
            sockets,
            cable.endpoint,
            CONTENT if kind == "bytes" else in_pieces(CONTENT),
            settings=UploadSettings(timeout_s=5.0, retries=3, chunk_bytes=100_000),
            progress=saw,
        )
        assert record.sha256 == hashlib.sha256(CONTENT).hexdigest()
        assert (await stored(sockets, node, record.dataset_id)).size == len(CONTENT)
        repeated = cable.passed["up"] - len(CONTENT)
        print(f"upload of {kind} over {len(cuts)} breaks: {repeated / 1000:.0f} kB sent twice")
        assert len(cuts) == 7
        # A window of eight chunks was under way at each break, at most.
        assert repeated < 8 * 8 * 110_000


async def test_an_upload_whose_last_answer_is_lost_is_stored_once_and_told(
    sockets: Sockets, tmp_path: Path
) -> None:
    async with bank(tmp_path / "bank") as node, Cable(node.ingest.port) as cable:

        def hold_the_answer(safe: int, size: int | None) -> None:
            if safe == size:
                cable.hold("down")

        task = asyncio.create_task(
            upload(
                sockets,
                cable.endpoint,
                CONTENT,
                settings=UploadSettings(timeout_s=5.0),
                dataset_id="scan-1",
                progress=hold_the_answer,
            )
        )
        async with asyncio.timeout(LIMIT_S):
            while await datasets(sockets, node) == 0:
                assert not task.done()
        cable.cut()
        cable.release()
        record = await asyncio.wait_for(task, LIMIT_S)
        assert record == await stored(sockets, node, "scan-1")
        assert await datasets(sockets, node) == 1


async def test_a_download_goes_on_where_it_was_after_every_break(
    sockets: Sockets, tmp_path: Path
) -> None:
    cuts: list[int] = []
    async with bank(tmp_path / "bank") as node, Cable(node.retrieve.port) as cable:
        record = await upload(sockets, endpoint_of(node.ingest), CONTENT, settings=UploadSettings())
        before = cable.passed["down"]
        link = Link(sockets, cable.endpoint, where="the bank")

        arrived = 0

        async def ask(fetch: Fetch) -> tuple[Fetched, memoryview | None]:
            nonlocal arrived
            answer = await link.request_body(fetch, Fetched, timeout=5.0)
            # Not by what is reported as safe: several pieces at once are one report.
            arrived += fetch.size
            if arrived >= (len(cuts) + 1) * 2 * 2**20 and len(cuts) < 3:
                cuts.append(arrived)
                cable.cut()
            return answer

        sink = MemorySink()
        try:
            await download(ask, record, sink)
        finally:
            link.close()
        assert sink.content == CONTENT
        repeated = cable.passed["down"] - before - len(CONTENT)
        print(f"download over {len(cuts)} breaks: {repeated / 1000:.0f} kB fetched twice")
        assert len(cuts) == 3
        assert repeated < 3 * 6 * 1.1 * 2**20, "at most a window at each break"


async def test_a_bank_that_is_gone_for_good_is_given_up(sockets: Sockets, tmp_path: Path) -> None:
    async with bank(tmp_path / "bank") as node, Cable(node.ingest.port) as cable:

        def end(safe: int, _size: int | None) -> None:
            if safe > 2**20:
                cable.hold()
                cable.cut()

        began = time.monotonic()
        with pytest.raises(LabmeshError, match="broke off at byte"):
            await upload(
                sockets,
                cable.endpoint,
                CONTENT,
                settings=UploadSettings(timeout_s=0.5, retries=2, chunk_bytes=100_000),
                progress=end,
            )
        assert time.monotonic() - began < 10.0
        assert await datasets(sockets, node) == 0
