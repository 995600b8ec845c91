"""One lifecycle for every node: its context, its tasks, its end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, ClassVar, Self, TypeVar

from labmesh.access.audit import Audit, audit_of
from labmesh.access.guard import guard_of
from labmesh.errors import Stopping
from labmesh.events.log_stream import owner
from labmesh.protocol.ids import check_id
from labmesh.transport.keys import Security
from labmesh.transport.sockets import Sockets
from labmesh.transport.watchdog import watch_authenticator
from labmesh.version import __version__

__all__ = ["Node", "in_words", "seconds", "security_of_node"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A node that is asked to stop finishes or refuses what is in flight within this time.
STOP_S = 5.0
_CANCELS_SURVIVED = 1


class _Ready(Awaitable[None]):
    """``await node.ready``, as often as one likes."""

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, None]:
        return self._wait().__await__()


class Node:
    """A node of the mesh.

    Made outside or inside an event loop; it belongs to the loop that starts it. Use it as an async
    context manager, or hold it open with :meth:`serve`. After its end it can be started again; that
    is another incarnation.

    :param node_id: its id on the network.
    :param security: how its sockets are secured; by default what the environment says.
    """

    kind: ClassVar[str] = "node"

    def __init__(self, node_id: str, *, security: Security | None = None) -> None:
        self.node_id = check_id(node_id, f"{self.kind} id")
        #: this incarnation; another one after each start
        self.epoch = _new_epoch()
        self._security = security
        #: who did what here, since the last start; None: nobody keeps a record
        self.audit: Audit | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lent: set[asyncio.Task[Any]] = set()
        self._started_at: float | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._terminated = False
        self._is_ready = asyncio.Event()
        self._ended = asyncio.Event()

    # ── what users call ─────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Open the node's sockets and begin its work. What fails leaves nothing open.

        :raises Conflict: a port is taken.
        :raises ConfigError: an address or the security settings cannot be used.
        """
        security = security_of_node(self._security, self.kind, self.node_id)
        self._begin()
        self.audit = audit_of(security, self.kind, self.node_id)
        self._sockets = Sockets(security, self.node_id)
        if self.audit is not None:
            self._sockets.witness = self.audit
            self.audit.begin(security, __version__)
        if security.guard is not None:
            security.guard.open()
        # Tasks and callbacks that are made here take it along: what they log is this node's.
        token = owner.set(self.node_id)
        try:
            await self._open()
            if self._sockets.is_server:
                self._spawn(watch_authenticator(self._sockets), "authenticator")
        except BaseException as exc:
            self._failure = exc
            await self.stop()
            raise
        finally:
            owner.reset(token)
        log.info("%s %s is up (%s)", self.kind, self.node_id, in_words(security))

    async def stop(self) -> None:
        """End gracefully, within about 5 s: say goodbye, end tasks, then sockets. Twice is fine.

        Who is cancelled in it no longer waits for the end, which comes all the same.
        """
        if self._started_at is None:
            return
        if self._stopping is None:
            # A task of its own: it also ends callbacks, and one of them may have called this.
            self._stopping = asyncio.get_running_loop().create_task(
                self._end(), name=f"{self.node_id}: end"
            )
        await asyncio.shield(self._stopping)

    async def serve(self) -> None:
        """Start, and work until stopped or cancelled.

        SIGTERM ends it gracefully and then the program, by ``SystemExit(0)`` out of the loop, when
        this runs in the main thread and nobody else handles that signal.

        :raises Conflict: the id or a port is taken by another live node.
        :raises AuthenticationError: the broker does not accept this node.
        """
        async with self:
            restore = self._listen_for_sigterm()
            try:
                await self.wait_ended()
            finally:
                restore()
        if self._terminated:
            await _exit()

    async def run(self) -> None:
        """The same as :meth:`serve`."""
        await self.serve()

    async def wait_ended(self) -> None:
        """Wait until the node has stopped; raises what made it fail. (Start it first.)"""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def ready(self) -> Awaitable[None]:
        """Awaitable: the node can be found and used. Raises what made it fail.

        It can be awaited before the start. Of a node that was stopped it raises ``Stopping``.
        """
        return _Ready(self._wait_ready)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __repr__(self) -> str:
        if self._started_at is None:
            state = "not started"
        elif self._stopping is not None:
            state = "stopped"
        else:
            state = "up"
        return f"<{type(self).__name__} {self.node_id}: {state}>"

    # ── what the kinds of node fill in ──────────────────────────────────────────────────────────

    async def _open(self) -> None:
        """Bind sockets, start tasks."""
        raise NotImplementedError

    async def _leave(self) -> None:
        """Take nothing new, finish what is in flight, say goodbye."""

    async def _close(self) -> None:
        """Close channels and threads; called once, whatever happened before."""

    # ── for the kinds of node ───────────────────────────────────────────────────────────────────

    @property
    def fingerprint(self) -> str:
        """Of this node's own key; empty where it has none. (Start it first.)"""
        guard = self._sockets.security.guard
        return "" if guard is None else guard.identity.fingerprint

    @property
    def uptime_s(self) -> float:
        """Seconds since start."""
        return 0.0 if self._started_at is None else time.monotonic() - self._started_at

    def _begin(self) -> None:
        if self._started_at is not None:
            if not (self._stopping is not None and self._stopping.done()):
                raise RuntimeError(f"{self!r} is running already")
            self.epoch = _new_epoch()
            # New ones, since this may be another loop. (At the first start some may wait already.)
            self._is_ready = asyncio.Event()
            self._ended = asyncio.Event()
        self._started_at = time.monotonic()
        self._stopping = self._failure = None
        self._terminated = False

    async def _end(self) -> None:
        """Each phase runs whatever became of the one before."""
        try:
            await self._leave_in_time()
        finally:
            try:
                await self._end_tasks()
            finally:
                try:
                    await self._close()
                finally:
                    if (guard := self._sockets.security.guard) is not None:
                        guard.close()
                    self._sockets.close_all()
                    if self.audit is not None:
                        self.audit.close()
                    self._ended.set()
                    self._is_ready.set()
                    log.info("%s %s has stopped", self.kind, self.node_id)

    async def _leave_in_time(self) -> None:
        """A loop that ends cancels every task once, this one too, and then waits for them."""
        task = asyncio.current_task()
        assert task is not None
        for _ in range(_CANCELS_SURVIVED + 1):
            try:
                async with asyncio.timeout(STOP_S):
                    await self._leave()
            except TimeoutError:
                log.warning("%s %s did not leave in time", self.kind, self.node_id)
            except asyncio.CancelledError:
                task.uncancel()
                continue
            return

    def _set_ready(self) -> None:
        self._is_ready.set()

    def _spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task that this node owns. If it fails, the node fails."""
        task = asyncio.get_running_loop().create_task(work, name=f"{self.node_id}: {name}")
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._fail(failure)

    def _fail(self, failure: BaseException) -> None:
        """The node cannot go on: ``serve()`` and ``ready`` raise this."""
        if self._failure is None:
            self._failure = failure
            log.error("%s %s failed: %s", self.kind, self.node_id, failure)
        self._is_ready.set()
        self._ended.set()

    async def _lend(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Do work of a user's that needs this node's sockets; it ends before they are closed.

        :raises Stopping: the node ended first.
        """
        task = asyncio.get_running_loop().create_task(work, name=f"{self.node_id}: {name}")
        self._lent.add(task)
        task.add_done_callback(self._lent.discard)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise Stopping(f"{self.kind} {self.node_id} was stopped while this was open") from None

    async def _end_tasks(self) -> None:
        tasks = [*self._tasks, *self._lent]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_ready(self) -> None:
        await self._is_ready.wait()
        if self._failure is not None:
            raise self._failure
        if self._stopping is not None:
            raise Stopping(f"{self.kind} {self.node_id} has stopped")

    def _listen_for_sigterm(self) -> Any:
        loop = asyncio.get_running_loop()
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        ):
            return lambda: None
        try:
            loop.add_signal_handler(signal.SIGTERM, self._terminate)
        except NotImplementedError:  # Windows has no such signal
            return lambda: None
        return lambda: loop.remove_signal_handler(signal.SIGTERM)

    def _terminate(self) -> None:
        log.info("%s %s: SIGTERM, stopping", self.kind, self.node_id)
        self._terminated = True
        self._ended.set()


def security_of_node(security: Security | None, kind: str, node_id: str) -> Security:
    """How a node is secured, with its own key where it has one; None: by the environment.

    :raises ConfigError: the settings or the key cannot be used.
    """
    return (security or Security.resolve()).for_node(kind, node_id, guard_of)


def in_words(security: Security) -> str:
    """The mode, and the fingerprint of the node's own key."""
    if security.guard is None:
        return security.mode
    return f"{security.mode}, fingerprint {security.guard.identity.fingerprint}"


def seconds(value: object, what: str) -> float:
    """A duration that somebody gave.

    :raises ValueError: not a number, not above 0, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{what} is a number of seconds above 0, not {value!r}")
    return float(value)


async def _exit() -> None:
    """End the program, through the loop: an exception in a task would be reported as unhandled."""
    loop = asyncio.get_running_loop()
    loop.call_soon(_raise_exit)
    await loop.create_future()


def _raise_exit() -> None:
    raise SystemExit(0)


def _new_epoch() -> str:
    return f"{time.time_ns():x}.{os.urandom(4).hex()}"
