"""What a process holds: tasks, threads, descriptors. A test that leaves more behind fails."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils.garbage import GarbageCollectorThread

__all__ = ["Held", "assert_nothing_more", "nothing_is_left", "warm_up"]

_FOLDERS = ("/proc/self/fd", "/dev/fd")
_TASKS = "/proc/self/task"
#: What ends by itself (a pool's thread, a closed connection) gets so long.
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Held:
    """What this process holds at one moment; sockets are among the descriptors."""

    tasks: frozenset[asyncio.Task[object]]
    threads: frozenset[threading.Thread]
    #: the threads of the system: those of ZeroMQ are not Python's
    native_threads: int
    #: number → what it is
    descriptors: dict[int, str]

    @classmethod
    def now(cls) -> Held:
        """Look. Tasks are those of the running loop, where there is one."""
        return cls(_tasks(), _threads(), _native_threads(), _descriptors())

    def left_since(self, before: Held) -> list[str]:
        """What there is more than there was, a line each."""
        lines = [f"task {each.get_name()}: {each.get_coro()}" for each in self.tasks - before.tasks]
        lines += [f"thread {each.name}" for each in self.threads - before.threads]
        if not lines and self.native_threads > before.native_threads:
            lines.append(
                f"{self.native_threads - before.native_threads} threads of ZeroMQ: a context was "
                "not terminated"
            )
        surplus = len(self.descriptors) - len(before.descriptors)
        if surplus > 0:
            fresh = [
                f"{number} → {what}"
                for number, what in self.descriptors.items()
                if before.descriptors.get(number) != what
            ]
            lines.append(f"{surplus} descriptors: {', '.join(sorted(fresh))}")
        return lines


async def assert_nothing_more(before: Held, patience_s: float = PATIENCE_S) -> None:
    """Fail if, after a while for what ends by itself, there is more than before."""
    deadline = time.monotonic() + patience_s
    while left := Held.now().left_since(before):
        assert time.monotonic() < deadline, "left behind:\n  " + "\n  ".join(left)
        await asyncio.sleep(0.01)


@contextmanager
def nothing_is_left(patience_s: float = PATIENCE_S) -> Iterator[None]:
    """The same for code without a loop."""
    before = Held.now()
    yield
    deadline = time.monotonic() + patience_s
    while left := Held.now().left_since(before):
        assert time.monotonic() < deadline, "left behind:\n  " + "\n  ".join(left)
        time.sleep(0.01)


def warm_up() -> None:
    """Have pyzmq make what it keeps for the life of the process (by a message without a copy)."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.PAIR) as near, context.socket(zmq.PAIR) as far:
        near.bind("inproc://warm-up")
        far.connect("inproc://warm-up")
        near.send(bytes(2**20), copy=False)
        far.recv()
    context.term()


def _tasks() -> frozenset[asyncio.Task[object]]:
    try:
        return frozenset(asyncio.all_tasks() - {asyncio.current_task()})  # type: ignore[arg-type]
    except RuntimeError:  # no loop runs
        return frozenset()


def _threads() -> frozenset[threading.Thread]:
    return frozenset(
        each
        for each in threading.enumerate()
        # pyzmq's lives as long as the process, those of the default executor as long as the loop.
        if not isinstance(each, GarbageCollectorThread) and not each.name.startswith("asyncio_")
    )


def _native_threads() -> int:
    tasks = Path(_TASKS)
    if not tasks.is_dir():
        return 0
    executor = sum(each.name.startswith("asyncio_") for each in threading.enumerate())
    return len(os.listdir(tasks)) - executor


def _descriptors() -> dict[int, str]:
    folder = next((each for each in _FOLDERS if os.path.isdir(each)), None)
    if folder is None:
        return {}
    found = {}
    for name in os.listdir(folder):
        try:
            found[int(name)] = os.readlink(f"{folder}/{name}")
        except OSError:
            # The one with which the folder was read, or no link on this system.
            if os.path.exists(f"{folder}/{name}"):
                found[int(name)] = "open"
    return found
