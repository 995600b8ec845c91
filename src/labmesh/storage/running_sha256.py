"""The SHA-256 of the bytes of a part, taken in another thread while they are written."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from concurrent.futures import Executor
from contextlib import suppress

__all__ = ["RunningSha256"]

#: Bytes that may wait to be hashed; who gives more waits. They are held in memory meanwhile.
_WAITING_BYTES = 4 * 2**20
#: Smaller pieces are hashed faster than another thread is woken.
_BESIDE_BYTES = 2**17
#: Hashed in one go, before other parts have their turn.
_TURN_BYTES = 8 * 2**20


class RunningSha256:
    """Takes pieces in order. They must not change until they are hashed.

    Not for two threads at a time; its own one aside.

    :param threads: where large pieces are hashed.
    """

    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._sha256 = hashlib.sha256()
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._running = False
        self._changed = threading.Condition()

    def update(self, view: memoryview) -> None:
        """Take the next bytes; waits where the hashing is too far behind."""
        with self._changed:
            if not self._running and len(view) < _BESIDE_BYTES:
                self._sha256.update(view)
                return
            while self._waiting and self._waiting_bytes + len(view) > _WAITING_BYTES:
                self._changed.wait()
            if not self._running:
                self._threads.submit(self._run)
                self._running = True
            self._waiting.append(view)
            self._waiting_bytes += len(view)

    def update_here(self, view: memoryview) -> None:
        """Take the next bytes in this thread; nothing may wait to be hashed."""
        self._sha256.update(view)

    def hexdigest(self) -> str:
        """Of all bytes so far."""
        with self._changed:
            while self._running:
                self._changed.wait()
            return self._sha256.hexdigest()

    def _run(self) -> None:
        left = _TURN_BYTES
        done = 0
        while True:
            with self._changed:
                if done:
                    self._waiting.popleft()
                    self._waiting_bytes -= done
                    left -= done
                if not self._waiting:
                    self._running = False
                    self._changed.notify_all()
                    return
                view = self._waiting[0]
                self._changed.notify_all()
            if left <= 0:
                # While the store is closing nothing more is taken there: then it goes on here.
                with suppress(RuntimeError):
                    self._threads.submit(self._run)
                    return
            self._sha256.update(view)
            done = len(view)
