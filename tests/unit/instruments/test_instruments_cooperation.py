"""A driver in the middle of a call asks whether its caller still waits."""

from __future__ import annotations

import asyncio
import threading

import labmesh
from labmesh.instruments.cooperation import CancelFlag, running, set_current


def test_outside_any_call_nothing_is_cancelled() -> None:
    assert labmesh.cancel_requested() is False


def test_a_driver_sees_the_flag_of_the_call_that_runs() -> None:
    flag = CancelFlag()
    with running(flag):
        assert labmesh.cancel_requested() is False
        flag.set()
        assert labmesh.cancel_requested() is True
        flag.set()
        assert labmesh.cancel_requested() is True
    assert labmesh.cancel_requested() is False


def test_a_call_within_a_call_has_a_flag_of_its_own() -> None:
    outer, inner = CancelFlag(), CancelFlag()
    outer.set()
    with running(outer):
        with running(inner):
            assert labmesh.cancel_requested() is False
        assert labmesh.cancel_requested() is True


def test_a_flag_ends_with_its_block_also_when_the_driver_raises() -> None:
    flag = CancelFlag()
    flag.set()
    try:
        with running(flag):
            raise OSError("the driver failed")
    except OSError:
        assert labmesh.cancel_requested() is False


def test_the_current_flag_can_be_set_and_cleared_without_a_block() -> None:
    flag = CancelFlag()
    set_current(flag)
    flag.set()
    assert labmesh.cancel_requested() is True
    set_current(None)
    assert labmesh.cancel_requested() is False


def test_the_flag_belongs_to_the_thread_of_its_call_and_is_raised_from_another() -> None:
    flag, begun, raised = CancelFlag(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def driver() -> None:
        with running(flag):
            seen.append(labmesh.cancel_requested())
            begun.set()
            assert raised.wait(10)
            seen.append(labmesh.cancel_requested())

    thread = threading.Thread(target=driver)
    thread.start()
    assert begun.wait(10)
    flag.set()
    raised.set()
    thread.join()
    assert seen == [False, True]
    assert labmesh.cancel_requested() is False


def test_a_coroutine_of_the_driver_sees_it_also_on_a_loop_that_is_older_than_the_call() -> None:
    async def ask() -> bool:
        return labmesh.cancel_requested()

    flag = CancelFlag()
    flag.set()
    with asyncio.Runner() as runner:
        assert runner.run(ask()) is False
        with running(flag):
            assert runner.run(ask()) is True
        assert runner.run(ask()) is False
