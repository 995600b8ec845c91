"""The fixture that finds leaks finds them: else every test that relies on it proves nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import zmq
from tests.support.leaks import Held, assert_nothing_more, nothing_is_left, warm_up


@pytest.fixture(autouse=True)
def _warm() -> None:
    warm_up()


async def leave_a_task(stack: ExitStack) -> None:
    gate = asyncio.Event()
    task = asyncio.create_task(gate.wait(), name="left behind")
    stack.callback(task.cancel)


def leave_a_thread(stack: ExitStack) -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="left behind")
    thread.start()
    stack.callback(thread.join)
    stack.callback(gate.set)


def leave_a_descriptor(stack: ExitStack) -> None:
    stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def leave_a_tcp_socket(stack: ExitStack) -> None:
    stack.callback(socket.socket().close)


def leave_a_context(stack: ExitStack) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.socket(zmq.PAIR).close()
    stack.callback(context.term)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize(
    ("leave", "says"),
    [
        (leave_a_thread, "thread left behind"),
        (leave_a_descriptor, "1 descriptors: .*null"),
        (leave_a_tcp_socket, "1 descriptors: .*socket:"),
        (leave_a_context, "threads of ZeroMQ: a context was not terminated"),
    ],
)
async def test_what_is_left_is_found_and_named(
    leave: Callable[[ExitStack], None], says: str
) -> None:
    with ExitStack() as stack:
        before = Held.now()
        leave(stack)
        with pytest.raises(AssertionError, match=says):
            await assert_nothing_more(before, patience_s=0.0)
    await assert_nothing_more(before)
    with (
        ExitStack() as stack,
        pytest.raises(AssertionError, match=says),
        nothing_is_left(patience_s=0.0),
    ):
        leave(stack)


async def test_a_task_that_is_left_is_found_and_named() -> None:
    with ExitStack() as stack:
        before = Held.now()
        await leave_a_task(stack)
        with pytest.raises(AssertionError, match="task left behind"):
            await assert_nothing_more(before, patience_s=0.0)
    await assert_nothing_more(before)


async def test_what_ends_in_time_is_no_leak_nor_is_the_loops_own_pool() -> None:
    before = Held.now()
    await asyncio.to_thread(lambda: None)
    task = asyncio.create_task(asyncio.sleep(0))
    await assert_nothing_more(before)
    assert task.done()
