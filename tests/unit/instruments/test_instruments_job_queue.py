"""What waits for a driver's thread: in which order it goes, and what may go in between."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from labmesh.instruments.exposure import BoundCall
from labmesh.instruments.job_queue import JobQueue, busy
from labmesh.instruments.jobs import Job
from labmesh.instruments.thread_runner import RunningCall


class Named(Job):
    """A job that is nothing but its name, and whose it is."""

    def __init__(
        self, name: str, *, client: str = "", read_only: bool = False, yields: bool = False
    ) -> None:
        super().__init__(BoundCall(name, int, (), {}, read_only=read_only, yields=yields))
        self._client = client

    @property
    def client(self) -> Hashable:
        return self._client


class Alone(Named):
    alone = True


@pytest.fixture
def queue() -> JobQueue:
    return JobQueue()


def popped(queue: JobQueue) -> list[str]:
    names = []
    while (job := queue.pop()) is not None:
        names.append(job.method)
    return names


def test_an_empty_queue_has_nothing(queue: JobQueue) -> None:
    assert queue.is_empty
    assert queue.pop() is queue.pop_harmless() is None
    assert queue.clear() == []


def test_urgent_jobs_go_first_then_calls_as_they_came_then_the_poll(queue: JobQueue) -> None:
    assert queue.push_poll(Named("poll"))
    queue.push(Named("first"))
    queue.push(Named("second"))
    queue.push_urgent(Named("safe_state"))
    assert not queue.is_empty
    assert popped(queue) == ["safe_state", "first", "second", "poll"]
    assert queue.is_empty


def test_beside_a_job_that_is_to_be_alone_goes_only_what_changes_nothing(queue: JobQueue) -> None:
    alone, read = Alone("safe_state"), Named("measure", client="bob", read_only=True)
    queue.push_poll(Named("poll"))
    queue.push(Named("set_voltage", client="ann"))
    queue.push(read)
    queue.push_urgent(alone)
    queue.push_urgent(Named("another one"))
    assert [queue.pop(), queue.pop(), queue.pop(), queue.pop_harmless()] == [
        alone,
        read,
        None,
        None,
    ]
    assert [job.method for job in queue.clear()] == ["another one", "set_voltage", "poll"]
    queue.push(Named("set_voltage", client="ann"))
    assert not queue.was_alone(read)
    assert queue.pop() is None
    assert queue.was_alone(alone)
    assert not queue.was_alone(alone)
    assert popped(queue) == ["set_voltage"]


def test_a_poll_that_is_asked_for_again_is_due_and_goes_before_the_calls(queue: JobQueue) -> None:
    assert queue.push_poll(Named("poll"))
    queue.push(Named("call"))
    assert not queue.push_poll(Named("another poll"))
    assert popped(queue) == ["poll", "call"]


def test_there_is_another_poll_only_when_the_one_before_was_delivered(queue: JobQueue) -> None:
    poll, call = Named("poll"), Named("call")
    queue.push_poll(poll)
    assert queue.pop() is poll
    queue.ended(call)
    assert not queue.push_poll(Named("another poll"))
    queue.ended(poll)
    assert queue.push_poll(Named("another poll"))


def test_a_call_can_be_taken_out_until_it_goes(queue: JobQueue) -> None:
    one, other = Named("one"), Named("other")
    queue.push(one)
    queue.push(other)
    assert queue.remove(one)
    assert not queue.remove(one)
    assert queue.pop() is other
    assert not queue.remove(other)


def test_what_changes_nothing_may_go_in_the_middle_of_a_long_call(queue: JobQueue) -> None:
    queue.push(Named("set_voltage", client="ann"))
    queue.push(Named("measure", client="ann", read_only=True))
    queue.push(Named("samples", client="bob", read_only=True, yields=True))
    queue.push(Named("status", client="cid", read_only=True))
    queue.push_poll(Named("poll"))
    between = [queue.pop_harmless(), queue.pop_harmless(), queue.pop_harmless()]
    # Ann means to read what she wrote, and a stream would be a long call inside a long call.
    assert [job and job.method for job in between] == ["poll", "status", None]
    assert popped(queue) == ["set_voltage", "measure", "samples"]


def test_all_that_waits_is_taken_out_at_the_end(queue: JobQueue) -> None:
    queue.push(Named("call"))
    queue.push_urgent(Named("safe_state"))
    queue.push_poll(Named("poll"))
    assert [job.method for job in queue.clear()] == ["safe_state", "call", "poll"]
    assert queue.is_empty


def test_a_poll_that_runs_does_not_wait(queue: JobQueue) -> None:
    queue.push_poll(Named("poll"))
    queue.pop()
    assert queue.clear() == []


def test_who_is_refused_learns_behind_what() -> None:
    assert str(busy("Inst-0", 3, None, 10.0)) == (
        "Inst-0 is busy: 3 calls wait, the limit; try again later"
    )
    error = busy("Inst-0", 3, RunningCall("sweep", since=7.5, job=Named("sweep")), 10.0)
    assert "behind sweep, which has run for 2.5 s" in str(error)
    assert error.detail == {"queued": 3, "running": "sweep", "running_s": 2.5, "running_by": ""}
