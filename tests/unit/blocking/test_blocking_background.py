"""A loop in a thread: work, errors, Ctrl-C, and an end in every state."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from labmesh.blocking.background import BackgroundLoop
from labmesh.errors import LinkLost, NotFound, NotSent


@pytest.fixture
def background() -> Iterator[BackgroundLoop]:
    loop = BackgroundLoop("test-loop")
    yield loop
    loop.close()


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    return value


def test_work_runs_in_its_thread_and_its_result_comes_back(background: BackgroundLoop) -> None:
    async def where() -> str:
        return threading.current_thread().name

    assert background.run(answer(3)) == 3
    assert background.run(where()) == "test-loop"


def test_an_error_keeps_its_class_and_its_traceback_ends_here(background: BackgroundLoop) -> None:
    async def deep(levels: int) -> None:
        if levels:
            await deep(levels - 1)
        raise NotFound("no relay 'psu'", known=["Inst-0"])

    with pytest.raises(NotFound, match="no relay 'psu'") as caught:
        background.run(deep(9))
    assert caught.value.detail == {"known": ["Inst-0"]}
    frames = [each.name for each in traceback.extract_tb(caught.value.__traceback__)]
    assert "deep" not in frames


def test_a_bug_keeps_its_whole_traceback(background: BackgroundLoop) -> None:
    async def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        background.run(bug())
    assert "bug" in [each.name for each in traceback.extract_tb(caught.value.__traceback__)]


def test_a_timeout_of_the_work_is_not_one_of_the_wait(background: BackgroundLoop) -> None:
    async def late() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        background.run(late())


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself Ctrl-C there")
def test_ctrl_c_cancels_the_work_and_is_raised_at_once(background: BackgroundLoop) -> None:
    cancelled = threading.Event()

    async def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(KeyboardInterrupt):
        background.run(interrupted())
    assert cancelled.wait(10)
    assert background.run(answer(4)) == 4


def test_many_threads_share_it(background: BackgroundLoop) -> None:
    got: list[int] = []

    def ask(number: int) -> None:
        for _ in range(50):
            got.append(background.run(answer(number)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(got) == [0] * 50 + [1] * 50 + [2] * 50 + [3] * 50


def test_a_blocking_call_in_its_own_thread_is_refused(background: BackgroundLoop) -> None:
    async def blocks() -> int:
        return background.run(answer(1))

    with pytest.raises(RuntimeError, match="do it in another thread"):
        background.run(blocks())


def test_contexts_are_left_at_the_end_the_last_one_first(background: BackgroundLoop) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def context(name: str) -> AsyncIterator[str]:
        yield name
        order.append(name)

    assert background.enter(context("nodes")) == "nodes"
    background.enter(context("client"))
    background.close()
    assert order == ["client", "nodes"]


def test_closing_cancels_what_is_open_and_whoever_waits_is_told(background: BackgroundLoop) -> None:
    began = threading.Event()
    errors: list[BaseException] = []

    async def for_ever() -> None:
        began.set()
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            background.run(for_ever())
        except LinkLost as exc:
            errors.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    began.wait()
    background.close()
    thread.join(10)
    assert [str(each) for each in errors] == [
        "the mesh was closed while this was open, and its outcome is unknown"
    ]


def test_after_its_end_it_refuses_work_and_closes_again(background: BackgroundLoop) -> None:
    background.close()
    background.close()
    background.request_close()
    assert background.closed
    with pytest.raises(NotSent, match="this mesh is closed"):
        background.run(answer(1))
    assert "test-loop" not in [each.name for each in threading.enumerate()]


def test_a_finalizer_ends_it_without_waiting(background: BackgroundLoop) -> None:
    background.request_close()
    background.request_close()
    with pytest.raises(NotSent):
        background.run(answer(1))
    background.close()


def test_when_its_thread_dies_whoever_waits_is_told(background: BackgroundLoop) -> None:
    async def die() -> None:
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()

    seen: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, seen.append
    try:
        with pytest.raises(LinkLost, match="has ended; connect again"):
            background.run(die())
    finally:
        threading.excepthook = before
    assert [each.exc_type for each in seen] == [RuntimeError]
    gc.collect()  # what the loop left behind is reported now, not during another test
