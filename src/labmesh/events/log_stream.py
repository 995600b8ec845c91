"""A node's log as a stream of events: what its program logs is published under ``log.<id>``.

Logging must harm nobody: a record is put into a bounded queue by whichever thread writes it, and
the node's loop publishes from there, at a bounded rate. What publishing itself logs is not
published.

Several nodes may share a program. A record that was written in a task or driver's thread of one
node is that node's alone; one that belongs to no node is in the log of each.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from labmesh.errors import LabmeshError, ProtocolError
from labmesh.instruments.handover import node_here
from labmesh.protocol.codec import encode_value

__all__ = ["LogLine", "LogStream", "log_level", "owner"]

#: The node to which what runs here belongs: its id, or None.
owner: ContextVar[str | None] = ContextVar("labmesh_owner", default=None)

_QUEUE = 1000
_BATCH = 100
_PERIOD_S = 0.05
_TEXT_CHARACTERS = 8000
_TRACE_CHARACTERS = 16_000
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(frozen=True, slots=True)
class LogLine:
    """One record of a node's log."""

    node_id: str
    #: ``DEBUG``, ``INFO``, ``WARNING``, ``ERROR``, ``CRITICAL``, or one of the driver's own
    level: str
    #: who wrote it, such as ``labmesh.serving.states`` or a module of the driver's
    logger: str
    text: str
    #: POSIX seconds, by the clock of the node's machine
    time: float
    thread: str = ""
    #: the traceback, where there was an exception
    exception: str = ""
    #: records right before this one that found no room in the node
    dropped: int = 0
    #: of the event: its node's incarnation and its place in the log
    epoch: str = ""
    sequence: int = 0

    @property
    def level_number(self) -> int:
        """As the module ``logging`` has it; a level of the sender's own counts as INFO."""
        return logging.getLevelNamesMapping().get(self.level, logging.INFO)

    @classmethod
    def of(cls, node_id: str, value: object, epoch: str, sequence: int) -> LogLine:
        """The line in the payload of an event.

        :raises ProtocolError: it is none.
        """
        if not isinstance(value, Mapping):
            raise ProtocolError("a line of a log is a table")
        time, dropped = value.get("time"), value.get("dropped", 0)
        return cls(
            node_id=node_id,
            level=str(value.get("level", "INFO")),
            logger=str(value.get("logger", "")),
            text=str(value.get("text", "")),
            time=float(time) if isinstance(time, int | float) else 0.0,
            thread=str(value.get("thread", "")),
            exception=str(value.get("exception", "")),
            dropped=dropped if isinstance(dropped, int) else 0,
            epoch=epoch,
            sequence=sequence,
        )


def log_level(level: str | int) -> int:
    """The number of a level, by name (in any case) or number.

    :raises ValueError: no such level.
    """
    if isinstance(level, bool) or not isinstance(level, str | int):
        raise ValueError(f"a log level is a name such as INFO, not {level!r}")
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None and level.isdecimal():
        number = int(level)
    if number is None:
        raise ValueError(f"there is no log level {level!r}; there are {', '.join(_LEVELS)}")
    return number


class LogStream(logging.Handler):
    """Publishes a node's log, on the running loop, from :meth:`open` to :meth:`close`.

    While the broker is away the newest records wait, for they say why it is: each has its own time.

    :param node_id: the node.
    :param publish: publishes an encoded record; False: the broker is away.
    :param level: records below it are left alone.
    """

    def __init__(self, node_id: str, publish: Callable[[bytes], bool], level: int) -> None:
        super().__init__(level)
        self._node_id = node_id
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._records: deque[dict[str, Any]] = deque()
        self._guard = threading.Lock()
        self._dropped = 0
        self._is_scheduled = False
        self._publishing_in: int | None = None
        self._is_open = False

    def open(self) -> None:
        """Begin to take records, of every logger of this process."""
        self._is_open = True
        logging.getLogger().addHandler(self)

    def close(self) -> None:
        """Publish what waits, and end; twice is fine."""
        if self._is_open:
            self._is_open = False
            logging.getLogger().removeHandler(self)
            self._flush()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record; in any thread, and it waits for nobody."""
        if self._publishing_in == threading.get_ident() or not self._is_ours():
            return
        try:
            line = _line(record)
        except Exception:
            # A record whose arguments do not fit its text: the module reports it, as always.
            self.handleError(record)
            return
        with self._guard:
            if len(self._records) >= _QUEUE:
                self._records.popleft()
                self._dropped += 1
            self._records.append(line)
            is_scheduled, self._is_scheduled = self._is_scheduled, True
        if not is_scheduled:
            self._wake()

    def flush_soon(self) -> None:
        """The broker takes events (again); on the loop."""
        with self._guard:
            self._is_scheduled = True
        self._loop.call_soon(self._flush)

    def _is_ours(self) -> bool:
        whose = node_here() or owner.get()
        return whose is None or whose == self._node_id

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._loop.call_later, _PERIOD_S, self._flush)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    # ── on the loop ─────────────────────────────────────────────────────────────────────────────

    def _flush(self) -> None:
        """Publish a batch; the rest follows a little later."""
        self._publishing_in = threading.get_ident()
        try:
            is_done = self._publish_some()
        finally:
            self._publishing_in = None
        with self._guard:
            self._is_scheduled = self._is_open and not is_done and bool(self._records)
            again = self._is_scheduled
        if again:
            self._loop.call_later(_PERIOD_S, self._flush)

    def _publish_some(self) -> bool:
        """True: nothing more can be done now."""
        for _ in range(_BATCH):
            with self._guard:
                if not self._records:
                    return True
                line = self._records.popleft()
                dropped = self._dropped
            if dropped:
                line["dropped"] = dropped
            try:
                is_sent = self._publish(encode_value(line))
            except LabmeshError:
                continue  # a record that cannot be encoded is no reason to lose the next one
            with self._guard:
                if not is_sent:
                    self._records.appendleft(line)
                    return True
                self._dropped -= dropped
        return False


def _line(record: logging.LogRecord) -> dict[str, Any]:
    # ``extra={"published": ...}``: what others may read in the place of the record's own text.
    text = getattr(record, "published", None)
    line: dict[str, Any] = {
        "level": record.levelname,
        "logger": record.name,
        "text": _cut(text if isinstance(text, str) else record.getMessage(), _TEXT_CHARACTERS),
        "time": record.created,
        "thread": record.threadName or "",
    }
    if record.exc_info and record.exc_info[0] is not None:
        trace = logging.Formatter().formatException(record.exc_info)
        # The end of a traceback is what says most.
        line["exception"] = trace[-_TRACE_CHARACTERS:]
    return line


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]} ..."
