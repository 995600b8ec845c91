"""A wait that others can end, with what this system has and with what others have."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support.leaks import nothing_is_left
from tests.support.promptness import SLACK_S

from labmesh.transport.spinning import Spin
from labmesh.transport.waking import Bell

LIMIT_S = 10.0


@pytest.fixture(params=["as it is", "without eventfd", "without eventfd and poll", "without poll"])
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has what the name of this parameter says."""
    if "eventfd" in request.param:
        monkeypatch.delattr(os, "eventfd", raising=False)
    if "poll" in request.param:
        monkeypatch.delattr(select, "poll", raising=False)


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The descriptor that is waited for, and what makes it readable."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


@pytest.fixture
def bell(line: tuple[socket.socket, socket.socket], _system: None) -> Iterator[Bell]:
    bell = Bell(line[0].fileno())
    yield bell
    bell.close()


def waited(bell: Bell, timeout_s: float | None) -> float:
    """How long a wait took, seconds."""
    began = time.monotonic()
    bell.wait(timeout_s)
    return time.monotonic() - began


def test_a_wait_ends_when_its_time_is_over(bell: Bell) -> None:
    assert waited(bell, 0.02) >= 0.015
    assert waited(bell, 0.0) < SLACK_S


def test_a_ring_from_another_thread_ends_a_wait_that_has_no_end(bell: Bell) -> None:
    ready = threading.Event()
    ended = threading.Event()

    def wait() -> None:
        ready.set()
        bell.wait()
        ended.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert ready.wait(LIMIT_S)
    bell.ring()
    assert ended.wait(LIMIT_S)
    thread.join(LIMIT_S)


def test_a_ring_that_nobody_waits_for_ends_the_next_wait_and_no_other(bell: Bell) -> None:
    for _ in range(3):
        bell.ring()
    assert waited(bell, LIMIT_S) < SLACK_S
    assert waited(bell, 0.02) >= 0.015


def test_the_descriptor_ends_each_wait_until_it_was_read(
    bell: Bell, line: tuple[socket.socket, socket.socket]
) -> None:
    near, far = line
    far.send(b"x")
    for _ in range(2):
        assert waited(bell, LIMIT_S) < SLACK_S
    near.recv(1)
    assert waited(bell, 0.02) >= 0.015


def test_a_ring_is_heard_while_the_descriptor_is_readable_too(
    bell: Bell, line: tuple[socket.socket, socket.socket]
) -> None:
    near, far = line
    far.send(b"x")
    bell.ring()
    assert waited(bell, LIMIT_S) < SLACK_S
    near.recv(1)
    assert waited(bell, 0.02) >= 0.015, "both were told of in one"


def test_a_look_hears_the_descriptor_and_the_bell_as_a_wait_does(
    bell: Bell, line: tuple[socket.socket, socket.socket]
) -> None:
    near, far = line
    spin = Spin(allowed=True)
    long_ago = 0.0
    has_poll = hasattr(select, "poll")
    assert not bell.look(spin, long_ago)
    far.send(b"x")
    assert bell.look(spin, long_ago) is has_poll
    bell.ring()
    assert bell.look(spin, long_ago) is has_poll
    near.recv(1)
    assert bell.look(spin, long_ago) is False, "the ring was heard"
    assert waited(bell, 0.0) < SLACK_S


def test_rings_that_nobody_hears_never_block(bell: Bell) -> None:
    for _ in range(200_000):
        bell.ring()
    assert waited(bell, LIMIT_S) < SLACK_S
    assert waited(bell, 0.02) >= 0.015


def test_every_ring_is_followed_by_a_wait_that_ends(bell: Bell) -> None:
    """Two threads that wake each other by turns: none is lost, whenever it comes."""
    turns, rounds = threading.Semaphore(0), 2000

    def answer() -> None:
        for _ in range(rounds):
            bell.wait(LIMIT_S)
            turns.release()

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(rounds):
        bell.ring()
        assert turns.acquire(timeout=LIMIT_S)
    thread.join(LIMIT_S)
    assert not thread.is_alive()


@pytest.mark.usefixtures("_system")
def test_closing_twice_gives_everything_back(
    line: tuple[socket.socket, socket.socket],
) -> None:
    with nothing_is_left():
        bell = Bell(line[0].fileno())
        bell.close()
        bell.close()


@pytest.mark.usefixtures("_system")
def test_a_bell_that_nobody_closes_is_closed_with_its_last_reference(
    line: tuple[socket.socket, socket.socket],
) -> None:
    with nothing_is_left():
        bell = Bell(line[0].fileno())
        bell.ring()
        del bell


def test_where_no_descriptor_is_left_there_is_one_error(
    line: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "eventfd", refuse, raising=False)
    for name in ("EFD_NONBLOCK", "EFD_CLOEXEC"):
        monkeypatch.setattr(os, name, 0, raising=False)
    with pytest.raises(OSError, match="too many open files"):
        Bell(line[0].fileno())
