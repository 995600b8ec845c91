"""An audit journal on disk: lines are only ever added, and each holds fast to the one before.

The file ``NAME.jsonl`` grows to ``MAX_BYTES``; then it is called ``NAME@<number of its last
line>.jsonl``, and the chain goes on in a new one. ``NAME.head`` has the number and the hash of the
last line that is on the disk. Whoever writes holds the lock of ``NAME.lock`` and looks at the end
of the file first, so that a command may write into the journal of a node that runs.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from labmesh.errors import ConfigError
from labmesh.protocol.audit import Chain, Entry, Line, journal_entry, read_line
from labmesh.storage.journal_reading import end_of_former, lock_file

__all__ = ["MAX_BYTES", "Journal"]

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**20
#: Lines that wait for the disk; beyond them they are lost, and counted.
MAX_WAITING = 10_000

#: What comes within this time is written together.
_GATHER_S = 0.1
_SYNC_S = 1.0
#: So often it is asked what time has brought about.
_LOOK_S = 10.0
#: A disk that refuses is tried again so often.
_RETRY_S = 1.0
#: No line is longer.
_TAIL_BYTES = 64 * 2**10
_TELL_HEAD_S = 600.0
_APPEND = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)


class Journal:
    """Adds lines to one journal; a thread of its own writes them.

    Nothing is opened before the first line, apart from a look whether the folder can be used. A
    disk that refuses holds nobody up: lines wait, and those that find no room are counted.

    :param path: ``NAME.jsonl``.
    :param write: what writes to a file descriptor.
    :param more: asked for lines that time has brought about, every few seconds while there is
        a thread, and at the end.
    :raises ConfigError: the folder cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = MAX_BYTES,
        max_waiting: int = MAX_WAITING,
        write: Callable[[int, bytes], int] = os.write,
        clock: Callable[[], float] = time.time,
        more: Callable[[], Sequence[Entry]] = list,
    ) -> None:
        self.path = path
        self._max_bytes, self._max_waiting = max_bytes, max_waiting
        self._write_to, self._clock, self._more = write, clock, more
        self._lock_path = path.with_suffix(".lock")
        self._waiting: deque[Entry] = deque()
        self._guard = threading.Lock()
        self._filled, self._ending = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        #: lines that were lost, because they found no room; ``untold``: no line tells of them yet
        self.lost = self._untold = 0
        #: lines that this object has written
        self.written = 0
        self._fd = -1
        self._chain = Chain()
        #: the file as this object left it: inode, bytes
        self._left_as = (0, -1)
        self._is_dirty = False
        self._synced_at = self._head_told_at = 0.0
        self._in_trouble = False
        self._make_folder()

    def put(self, entry: Entry) -> None:
        """Have a line written soon, within 0.2 s where the disk lets us. In any thread."""
        if len(self._waiting) >= self._max_waiting or self._ending.is_set():
            with self._guard:
                self.lost += 1
                self._untold += 1
            return
        self._waiting.append(entry)
        if not self._filled.is_set():
            self._wake()

    def append(self, entries: Sequence[Entry]) -> None:
        """Write lines now, durably; for a command, which has no thread for it.

        :raises OSError: they are not written.
        """
        try:
            with self._locked():
                self._add(entries)
                self._sync()
                self._rotate_if_large()
        finally:
            self._close_file()

    def close(self) -> None:
        """Write what waits, durably; what cannot be written by now is lost. Twice is fine."""
        self._ending.set()
        self._filled.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # ── the thread ──────────────────────────────────────────────────────────────────────────────

    def _wake(self) -> None:
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name=f"journal {self.path.stem}", daemon=True
                )
                self._thread.start()
        self._filled.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._filled.wait(_SYNC_S if self._is_dirty else _LOOK_S)
            self._ending.wait(_GATHER_S)
            self._filled.clear()
            if not self._work(is_last=False):
                self._ending.wait(_RETRY_S)
                self._filled.set()
        while self._work(is_last=True) and self._waiting:
            pass
        if self._waiting:
            with self._guard:
                self.lost += len(self._waiting)
            log.error("%s: %d lines are lost at the end", self.path, len(self._waiting))
            self._waiting.clear()
        self._close_file()

    def _work(self, *, is_last: bool) -> bool:
        """Write what waits, and make it durable when that is due; False: the disk refuses."""
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        batch += self._more()
        if not batch and not self._is_dirty:
            return True
        try:
            with self._locked():
                if batch:
                    self._add_all(batch)
                    batch = []
                    self._rotate_if_large()
                if self._is_dirty and (is_last or time.monotonic() - self._synced_at >= _SYNC_S):
                    self._sync()
        except OSError as exc:
            self._waiting.extendleft(reversed(batch))
            self._left_as = (0, -1)
            if not self._in_trouble:
                log.error(
                    "the audit journal %s cannot be written (%s): make room, or see to its rights; "
                    "%d lines wait, later ones will be lost",
                    self.path,
                    exc.strerror or exc,
                    len(self._waiting),
                )
            self._in_trouble = True
            return False
        if self._in_trouble:
            log.warning("the audit journal %s is written again", self.path)
        self._in_trouble = False
        return True

    def _add_all(self, batch: Sequence[Entry]) -> None:
        untold = self._untold
        notice = [journal_entry(self._clock(), "lost", lines=untold)] if untold else []
        self._add([*notice, *batch])
        with self._guard:
            self._untold -= untold

    # ── the file, under the lock ────────────────────────────────────────────────────────────────

    def _add(self, entries: Sequence[Entry]) -> None:
        self._open_file()
        before = os.fstat(self._fd).st_size
        former = self._chain.n, self._chain.hash
        lines = b"".join([self._chain.add(each) for each in entries])
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[self._write_to(self._fd, bytes(rest)) :]
        except OSError:
            self._chain = Chain(*former)
            # All of them or none: half a line would look like a crash.
            with suppress(OSError):
                os.ftruncate(self._fd, before)
            raise
        self.written += len(entries)
        self._is_dirty = True
        self._left_as = (os.fstat(self._fd).st_ino, before + len(lines))

    def _open_file(self) -> None:
        """Have the file open, and know its end."""
        try:
            found = os.stat(self.path)
            if (found.st_ino, found.st_size) == self._left_as and self._fd >= 0:
                return
        except FileNotFoundError:
            pass
        self._close_file()
        fd = os.open(self.path, _APPEND, 0o600)
        self._fd = fd
        size = os.fstat(fd).st_size
        if size:
            self._read_end(fd, size)
        else:
            self._chain = end_of_former(self.path)
            _sync_folder(self.path.parent)

    def _read_end(self, fd: int, size: int) -> None:
        """Go on behind the last line; one that is not whole is kept, and a line says so."""
        begin = max(0, size - _TAIL_BYTES)
        tail = _read(fd, begin, size - begin)
        whole = tail.endswith(b"\n")
        pieces = tail.removesuffix(b"\n").split(b"\n")
        last = read_line(pieces[-1])
        if isinstance(last, Line):
            self._chain = Chain(last.n, last.hash)
            if not whole:
                os.write(fd, b"\n")
            return
        good = next(
            (each for each in map(read_line, pieces[-2::-1]) if isinstance(each, Line)), None
        )
        former = end_of_former(self.path) if good is None else Chain(good.n, good.hash)
        after = former.hash
        former.skip(pieces[-1])
        self._chain = former
        method = "damaged" if whole else "torn"
        log.warning("%s: its last line is not whole; it is kept as it is", self.path)
        notice = journal_entry(self._clock(), method, after=after, bytes=len(pieces[-1]))
        start = b"" if whole else b"\n"
        os.write(fd, start + self._chain.add(notice))

    def _rotate_if_large(self) -> None:
        if self._left_as[1] < self._max_bytes:
            return
        self._sync()
        self._tell_head()
        self._close_file()
        os.rename(self.path, _rotated(self.path, self._chain.n))
        _sync_folder(self.path.parent)

    def _sync(self) -> None:
        if self._fd < 0:
            return
        os.fsync(self._fd)
        self._is_dirty = False
        now = self._synced_at = time.monotonic()
        self._write_head()
        if now - self._head_told_at >= _TELL_HEAD_S:
            self._tell_head()

    def _write_head(self) -> None:
        head = {"n": self._chain.n, "hash": self._chain.hash, "time": round(self._clock(), 3)}
        target = self.path.with_suffix(".head")
        fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write(json.dumps(head) + "\n")
        os.replace(fresh, target)

    def _tell_head(self) -> None:
        """Into the log, which others keep as well."""
        self._head_told_at = time.monotonic()
        log.info("audit %s: line %d has hash %s", self.path.stem, self._chain.n, self._chain.hash)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._left_as = -1, (0, -1)

    def _make_folder(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600))
            if not os.access(self.path if self.path.exists() else self.path.parent, os.W_OK):
                raise PermissionError(13, "no right to write there")
        except OSError as exc:
            raise ConfigError(
                f"the audit journal {self.path} cannot be written ({exc.strerror or exc}): see to "
                "the rights of its folder, or name another one: LMH_AUDIT_DIR, or audit_dir in the "
                '[security] table ("off": no journal)',
                file=str(self.path),
            ) from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            lock_file(fd, is_shared=False)
            yield
        finally:
            os.close(fd)


def _rotated(path: Path, n: int) -> Path:
    return path.with_name(f"{path.stem}@{n:012d}.jsonl")


def _read(fd: int, offset: int, size: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    pieces = []
    while size and (piece := os.read(fd, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # NTFS keeps a journal of names itself
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
