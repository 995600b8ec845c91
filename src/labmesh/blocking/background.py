"""An event loop in a thread of its own, for callers that block."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

from labmesh.errors import LabmeshError, LinkLost, NotSent
from labmesh.loops import new_loop

__all__ = ["BackgroundLoop"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Where a wait cannot be interrupted (Windows), Ctrl-C is noticed this much later at most.
_LOOK_S = 0.25
#: Work that is open at the end is cancelled and has so long to clean up.
_FINISH_S = 2.0
_JOIN_S = 15.0

#: Loops that run, in the order of their start; the interpreter's exit closes them.
_running: dict[BackgroundLoop, None] = {}


@dataclass(slots=True)
class _Job:
    """Work that was handed over, and may be given up by whoever waits for it."""

    task: asyncio.Task[Any] | None = None
    abandoned: bool = False

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()


class BackgroundLoop:
    """Runs coroutines for other threads, in a thread that never keeps the process from ending.

    It is closed at the interpreter's exit at the latest.

    :param name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closing = False
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        self._open: set[asyncio.Task[Any]] = set()
        # Not what a policy may give: ZeroMQ needs add_reader, which Windows' own default lacks.
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()
        _running[self] = None

    @property
    def closed(self) -> bool:
        """It takes no more work."""
        return self._closing or self._process != os.getpid()

    def serves_here(self) -> bool:
        """Whether this thread may have it do something: else :meth:`run` says why not."""
        return not (
            self._closing
            or threading.get_ident() == self._thread.ident
            or self._process != os.getpid()
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for what it returns or raises.

        The coroutine brings its own deadline. Ctrl-C, and whatever else a signal handler raises in
        the waiting thread, cancels it and is raised at once.

        :raises NotSent: the loop was closed before.
        :raises LinkLost: the loop was closed meanwhile.
        """
        # Made before the work is handed over: whatever moment Ctrl-C comes at, it can be cancelled.
        job = _Job()
        ended = threading.Event()
        try:
            future = self._submit(work, job)
            future.add_done_callback(lambda _: ended.set())
            while not ended.wait(_LOOK_S):
                self._check_alive(future)
            return future.result()
        except CancelledError:
            raise LinkLost(
                "the mesh was closed while this was open, and its outcome is unknown"
            ) from None
        except LabmeshError as error:
            # Which coroutine of which thread raised it says nothing to whoever called this.
            raise error.with_traceback(None)  # noqa: B904  (it is the same error)
        except BaseException:
            # Such as Ctrl-C: nobody waits for the work any more, so it ends as well.
            job.abandoned = True
            self._post(job.cancel)
            raise

    def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Enter a context manager on the loop, which leaves it at its end (the last one first)."""
        return self.run(self._stack.enter_async_context(context))

    def request_close(self) -> None:
        """Have the loop end, without waiting for it; in any thread, also from a finalizer."""
        if self._process != os.getpid():
            return
        self._closing = True
        self._post(self._stop.set)

    def close(self) -> None:
        """End open work, leave the contexts, end the thread. Twice is fine."""
        if self._process != os.getpid():
            return  # a fork has the object, but not the thread
        with self._lock:
            self.request_close()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(_JOIN_S)
        if self._thread.is_alive():
            log.warning("thread %s did not end in %g s and is left behind", self.name, _JOIN_S)

    # ── for waiting threads ─────────────────────────────────────────────────────────────────────

    def _submit(self, work: Coroutine[Any, Any, T], job: _Job) -> Future[T]:
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError(
                "a callback runs on the mesh's own thread, where a blocking call would wait for "
                "itself: do it in another thread"
            )
        if self._process != os.getpid():
            work.close()
            raise NotSent(
                "this mesh was connected in the process that this one was forked from: connect "
                "again, in this process"
            )
        # Under the lock, so that nothing is handed over behind the order to stop.
        with self._lock:
            if not self._closing:
                return asyncio.run_coroutine_threadsafe(self._owned(work, job), self._loop)
        work.close()
        raise NotSent("this mesh is closed; connect again")

    def _post(self, callback: Callable[[], object]) -> None:
        # No lock: a finalizer may run in the middle of anything.
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _check_alive(self, future: Future[Any]) -> None:
        if not self._thread.is_alive() and not future.done():
            raise LinkLost("the thread of this mesh has ended; connect again")

    # ── in the thread ───────────────────────────────────────────────────────────────────────────

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._closing = True
            # No executor is waited for: at the interpreter's exit no thread can be started for it.
            self._loop.close()
            _running.pop(self, None)

    async def _main(self) -> None:
        async with self._stack:
            await self._stop.wait()
            await self._end_open()
        await self._loop.shutdown_asyncgens()

    async def _owned(self, work: Coroutine[Any, Any, T], job: _Job) -> T:
        task = job.task = asyncio.current_task()
        assert task is not None
        if job.abandoned:
            task.cancel()
        self._open.add(task)
        try:
            return await work
        finally:
            self._open.discard(task)

    async def _end_open(self) -> None:
        for task in self._open:
            if not task.cancelling():  # else it is cleaning up already
                task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=_FINISH_S)


def _close_all() -> None:
    for loop in reversed(list(_running)):
        loop.close()


atexit.register(_close_all)
