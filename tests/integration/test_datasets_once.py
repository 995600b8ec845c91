"""Each dataset is handed once to each callback, from where it asked for, whatever was lost."""

from __future__ import annotations

import asyncio
import errno
import queue
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.hearing import LIMIT_S, Heard
from tests.support.peers import until
from tests.support.wire_events import lose

import labmesh
from labmesh import DirectorClientAgent
from labmesh.errors import ConfigError, Conflict
from labmesh.events import dataset_listening
from labmesh.events.healing import Gap
from labmesh.storage.cursor_file import CursorFile
from labmesh.testing import LocalMesh


@pytest.fixture
async def mesh() -> AsyncIterator[LocalMesh]:
    async with LocalMesh(banks=1, in_memory=True) as mesh:
        yield mesh


async def stored(client: DirectorClientAgent, *names: str) -> list[str]:
    bank = await client.get_databank_agent()
    return [(await bank.upload(each.encode(), dataset_id=each)).dataset_id for each in names]


def ids(items: list[dict[str, Any]]) -> list[str]:
    return [each["dataset_id"] for each in items]


async def test_where_a_callback_begins(mesh: LocalMesh) -> None:
    client = await mesh.client()
    heard = {name: Heard() for name in ("now", "all", "hour", "future", "later")}
    old = await stored(client, "a", "b", "c")
    client.on_dataset(heard["all"], since=0)
    assert ids(await heard["all"].count(3)) == old
    client.on_dataset(heard["now"])
    client.on_dataset(heard["hour"], since="1h")
    client.on_dataset(heard["future"], since=4e9)
    new = await stored(client, "d", "e")
    assert ids(await heard["all"].count(5)) == old + new
    assert ids(await heard["hour"].count(5)) == old + new
    assert ids(await heard["now"].count(2)) == new
    assert ids(await heard["future"].count(2)) == new
    many = await stored(client, *(f"set-{number:02}" for number in range(25)))
    client.on_dataset(heard["later"], since=0)
    assert ids(await heard["later"].count(30)) == old + new + many
    with pytest.raises(ValueError, match="is no time"):
        client.on_dataset(print, since="soon")


async def test_a_cursor_goes_on_where_it_was(mesh: LocalMesh, tmp_path: Path) -> None:
    path = tmp_path / "cursor.json"
    client = await mesh.client()
    await stored(client, "before")
    first, second = Heard(), Heard()
    handle = client.on_dataset(first, cursor=path)
    with pytest.raises(Conflict, match=r"cursor\.json is in use"):
        client.on_dataset(print, cursor=path)
    new = await stored(client, "a", "b")
    assert ids(await first.count(2)) == new
    handle.cancel()
    await handle.closed()
    missed = await stored(client, "c", "d")
    # Another program, another time; what it says of since= counts no more.
    other = await mesh.client()
    handle = other.on_dataset(second, cursor=path, since=0)
    assert ids(await second.count(2)) == missed
    await stored(client, "e")
    await second.count(3)
    await other.close()
    assert not any(each["repeated"] for each in first.items + second.items)


async def test_a_blocking_program_has_the_same(mesh: LocalMesh, tmp_path: Path) -> None:
    path = tmp_path / "cursor.json"

    def listen(*names: str) -> list[str]:
        told: queue.Queue[dict[str, Any]] = queue.Queue()
        with labmesh.connect(mesh.address) as blocking:
            blocking.on_dataset(told.put, cursor=path, since="1h")
            for name in names:
                blocking.put(name, dataset_id=name)
            return [told.get(timeout=LIMIT_S)["dataset_id"] for _ in range(2)]

    client = await mesh.client()
    await stored(client, "a")
    assert await asyncio.to_thread(listen, "b") == ["a", "b"]
    await stored(client, "c")
    assert await asyncio.to_thread(listen, "d") == ["c", "d"]


async def test_a_callback_that_is_interrupted_is_called_again(
    mesh: LocalMesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An async one, a task that a plain one returned, and one that raises, which has ended."""
    client = await mesh.client()
    begun: list[str] = []

    async def never_ends(record: dict[str, Any]) -> None:
        begun.append(record["dataset_id"])
        await asyncio.Event().wait()

    failed: list[str] = []

    def fails(record: dict[str, Any]) -> None:
        failed.append(record["dataset_id"])
        raise LookupError("no such folder")

    callbacks = {
        "async": never_ends,
        "task": lambda record: asyncio.ensure_future(never_ends(record)),
        "fails": fails,
    }
    handles = [client.on_dataset(each, cursor=tmp_path / name) for name, each in callbacks.items()]
    await stored(client, "a", "b")
    await until(lambda: (begun, failed) == (["a", "a"], ["a", "b"]))
    # What is saved is that the second one has ended, not only that it began.
    await until(lambda: "handing" not in (tmp_path / "fails").read_text())
    assert "no such folder" in caplog.text
    for each in handles:
        each.cancel()
        await each.closed()
    again = {name: Heard() for name in callbacks}
    for name, heard in again.items():
        client.on_dataset(heard, cursor=tmp_path / name)
    await stored(client, "c")
    for name in ("async", "task"):
        told = [(each["dataset_id"], each["repeated"]) for each in await again[name].count(3)]
        assert told == [("a", True), ("b", False), ("c", False)]
    assert ids(await again["fails"].count(1)) == ["c"]


async def test_a_cursor_that_cannot_be_used_is_refused(mesh: LocalMesh, tmp_path: Path) -> None:
    client = await mesh.client()
    path = tmp_path / "cursor.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="is broken"):
        client.on_dataset(print, cursor=path)
    assert path.read_text() == "{"
    with pytest.raises(ConfigError, match="cannot be used"):
        client.on_dataset(print, cursor=tmp_path)


async def test_a_disk_that_refuses_the_cursor_holds_datasets_back(
    mesh: LocalMesh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replace, tried, is_full = CursorFile._replace, 0, False

    def refuse(file: CursorFile, content: bytes) -> None:
        nonlocal tried
        tried += 1
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(file, content)

    monkeypatch.setattr(CursorFile, "_replace", refuse)
    client = await mesh.client()
    heard = Heard()
    client.on_dataset(heard, cursor=tmp_path / "cursor.json")
    await stored(client, "a")
    await heard.count(1)
    await until(lambda: "handing" not in (tmp_path / "cursor.json").read_text())
    is_full, tried = True, 0
    await stored(client, "b")
    await until(lambda: tried >= 3)
    assert ids(heard.items) == ["a"]
    assert "waits: the cursor" in caplog.text
    is_full = False
    assert ids(await heard.count(2)) == ["a", "b"]


async def test_a_slow_callback_loses_nothing(
    mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finds no room in its queue is fetched again from the bank."""
    monkeypatch.setattr(dataset_listening, "_QUEUE", 4)
    client = await mesh.client()
    go_on = asyncio.Event()
    heard = Heard()

    async def slow(record: dict[str, Any]) -> None:
        heard(record)
        await go_on.wait()

    handle = client.on_dataset(slow)
    new = await stored(client, *(f"set-{number:02}" for number in range(20)))
    await heard.count(1)
    go_on.set()
    assert ids(await heard.count(20)) == new
    assert handle.lost == 0


async def test_announcements_that_are_lost_cost_nothing_and_are_told(
    mesh: LocalMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every third one, also the last: the bank's own count shows it."""
    passed = 0

    def every_third(topic: bytes) -> bool:
        nonlocal passed
        passed += topic.startswith(b"dataset.")
        return topic.startswith(b"dataset.") and passed % 3 == 0

    client = await mesh.client()
    heard, gaps = Heard(), Heard()
    client.on_dataset(heard)
    client.on_gap(gaps)
    await stored(client, "first")
    await heard.count(1)
    passed = 0
    lose(monkeypatch, every_third)
    new = await stored(client, *(f"set-{number:02}" for number in range(12)))
    assert ids(await heard.count(13)) == ["first", *new]

    def recovered(items: list[Gap]) -> int:
        return sum(each.recovered for each in items)

    await gaps.until(lambda items: recovered(items) >= 4)
    assert recovered(gaps.items) == 4
    assert not any(each.lost for each in gaps.items)


async def test_banks_that_come_go_and_begin_anew(mesh: LocalMesh) -> None:
    """A bank in memory has an empty list when it is back, and gives its first numbers again."""
    client = await mesh.client()
    heard = Heard()
    client.on_dataset(heard)
    await stored(client, "a", "b")
    await heard.count(2)
    await mesh.restart_bank("bank-0")
    await stored(client, "c")
    await heard.count(3)
    await mesh.start_bank("bank-1")
    other = await client.get_databank_agent("bank-1")
    await other.upload(b"d", dataset_id="d")
    await heard.count(4)
    await mesh.restart_broker()
    # A question on its way when the link breaks is one that its sender has to ask again.
    await until(lambda: client._broker.epoch == mesh.broker.epoch)
    await stored(client, "e")
    assert ids(await heard.count(5)) == ["a", "b", "c", "d", "e"]
