"""The receiving end of events: a SUB socket read by a thread of its own.

A callback that blocks the loop must not keep the socket from being read, and a SUB socket makes its
subscriptions again after a reconnect only while it is read.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable

import zmq

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost, ProtocolError, TooLarge
from labmesh.protocol.addresses import parse_connect
from labmesh.protocol.arrivals import Arrivals, Lost, Received
from labmesh.protocol.codec import Buffer, decode_event, decode_value
from labmesh.protocol.event_frame import parted, unsealed
from labmesh.protocol.events import Tracker
from labmesh.protocol.messages import Event, LastEvent
from labmesh.protocol.seldom import Seldom
from labmesh.protocol.topics import split
from labmesh.transport.channel import receive, skip
from labmesh.transport.monitor import EVENTS, Health, health_of, read_event
from labmesh.transport.sockets import Sockets

__all__ = ["Lost", "Received", "Subscriber"]

log = logging.getLogger(__name__)

_BATCH = 512
#: Topics that are known to be asked for.
_COVERED = 10_000
_REBUILD_S = 0.5
_STOP = b""
_TURN = b">"
_POKE_MS = 500
_TAIL, _MARK, _PRESENCE = "tail.", "mark.", "presence."


class Subscriber:
    """Receives events and hands them, in batches, to the loop that made it.

    :param deliver: called on the loop with each batch, in order of arrival.
    :param on_link: called on the loop with True when the link to the broker is up, else False.
    :raises ProtocolError: ``endpoint`` is none.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        *,
        deliver: Callable[[list[Received | Lost]], None],
        on_link: Callable[[bool], None],
    ) -> None:
        self._sockets = sockets
        # Looked at here, not in the thread, where nobody would hear that it is none.
        self._endpoint = str(parse_connect(endpoint))
        #: where it is to be connected to, as the loop knows it
        self._aim = self._endpoint
        self._where = f"the broker's event port at {endpoint}"
        self._deliver = deliver
        self._on_link = on_link
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._tracker = Tracker()
        self._arrivals = Arrivals()
        self._untold = 0
        self._scheduled = False
        self._prefixes: set[bytes] = set()
        #: the same as text, and topics that were found to begin with one of them
        self._covers: tuple[str, ...] = ()
        self._covered: set[str] = set()
        self._closed = False
        self._has_turned = False
        self._warnings = Seldom()
        #: messages that could not be read
        self.dropped = 0
        self.trouble: LabmeshError | None = None
        self._control, self._far = sockets.pair()
        self._thread = threading.Thread(
            target=self._run, name=f"{sockets.name}-events", daemon=True
        )
        self._thread.start()

    def subscribe(self, prefix: str) -> None:
        """Ask for all topics that begin with ``prefix``; asked once however often it is said."""
        self._command(b"+" + prefix.encode())

    def unsubscribe(self, prefix: str) -> None:
        """Take :meth:`subscribe` back. What comes of these topics when somebody subscribes to them
        again has lost nothing before it.
        """
        self._command(b"-" + prefix.encode())

    def turn_to(self, endpoint: str) -> None:
        """Go on at another broker, with the same subscriptions.

        Publishers number their events alike at both, so that none comes twice and what is lost on
        the way is counted. What a broker publishes itself has numbers of its own.
        """
        self._aim = str(parse_connect(endpoint))
        self._command(_TURN + self._aim.encode())

    def offer(self, events: Iterable[LastEvent]) -> None:
        """Take the broker's memory of last events: what is news is delivered."""
        with self._lock:
            for last in events:
                self._accept(last.topic, last.header, last.payload, snapshot=True)
        self._schedule()

    def close(self) -> None:
        """End the thread; twice is fine. Nothing is delivered after it."""
        if self._closed:
            return
        self._closed = True
        self._control.send(_STOP)
        self._thread.join()
        self._sockets.close(self._control)
        self._sockets.close(self._far)

    # ── on the loop ─────────────────────────────────────────────────────────────────────────────

    def _command(self, command: bytes) -> None:
        if not self._closed:
            self._control.send(command)

    def _flush(self) -> None:
        with self._lock:
            self._scheduled = False
            batch = self._arrivals.take()
            untold, self._untold = self._arrivals.untold - self._untold, self._arrivals.untold
        if untold:
            log.warning("%d events of countless topics found no room and are lost", untold)
        if batch and not self._closed:
            self._deliver(batch)

    def _tell(self, up: bool, endpoint: str) -> None:
        # News of the broker that was left before are of no interest any more.
        if not self._closed and endpoint == self._aim:
            self._on_link(up)

    # ── in the thread ───────────────────────────────────────────────────────────────────────────

    def _call_loop(self, function: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _schedule(self) -> None:
        if not self._scheduled and len(self._arrivals):
            self._scheduled = True
            self._call_loop(self._flush)

    def _run(self) -> None:
        again = True
        while again:
            try:
                socket, monitor = self._sockets.connect(zmq.SUB, self._endpoint, EVENTS)
            except (LinkLost, AuthenticationError) as exc:
                log.warning("%s", exc)
                self.trouble = exc
                again = not self._far.poll(_POKE_MS) or self._obey(None)
            else:
                again = self._run_socket(socket, monitor)

    def _run_socket(self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> bool:
        """Read one socket until it must be rebuilt (True) or the end (False)."""
        self._has_turned = False
        health = health_of(self._where, self._sockets.security)
        for prefix in self._prefixes:
            socket.setsockopt(zmq.SUBSCRIBE, prefix)
        poller = zmq.Poller()
        for each in (socket, monitor, self._far):
            poller.register(each, zmq.POLLIN)
        rebuild_at: float | None = None
        try:
            while True:
                ready = dict(poller.poll(_POKE_MS if rebuild_at else None))
                if socket in ready:
                    self._read(socket)
                if self._far in ready and not self._obey(socket):
                    return False
                if self._has_turned:
                    return True
                if monitor in ready and self._watch(monitor, health) and rebuild_at is None:
                    self._sockets.give_up(socket, self._endpoint, is_other_key=health.is_other_key)
                    rebuild_at = time.monotonic() + _REBUILD_S
                if rebuild_at is not None and time.monotonic() >= rebuild_at:
                    return True
        finally:
            self._sockets.close(socket)

    def _obey(self, socket: zmq.Socket[bytes] | None) -> bool:
        """Take one command; False: the end."""
        command = self._far.recv()
        if command == _STOP:
            return False
        prefix = command[1:]
        if command[:1] == _TURN:
            self._turn(prefix.decode())
        elif command[:1] == b"+" and prefix not in self._prefixes:
            self._prefixes.add(prefix)
            if socket is not None:
                socket.setsockopt(zmq.SUBSCRIBE, prefix)
            self._cover()
        elif command[:1] == b"-" and prefix in self._prefixes:
            self._prefixes.discard(prefix)
            if socket is not None:
                socket.setsockopt(zmq.UNSUBSCRIBE, prefix)
            self._cover()
            self._forget(prefix.decode())
        return True

    def _turn(self, endpoint: str) -> None:
        self._endpoint, self._has_turned = endpoint, True
        self._where = f"the broker's event port at {endpoint}"
        with self._lock:
            self._tracker.forget_all(_PRESENCE)

    def _cover(self) -> None:
        with self._lock:
            self._covers = tuple(each.decode() for each in self._prefixes)
            self._covered.clear()

    def _forget(self, prefix: str) -> None:
        with self._lock:
            if prefix.startswith(_MARK):
                self._tracker.forget(prefix)
            else:
                self._tracker.keep_only(self._covers)

    def _is_covered(self, name: str) -> bool:
        """An event may have been in the socket when its subscription ended."""
        if name in self._covered:
            return True
        if not name.startswith(self._covers):
            return False
        if len(self._covered) >= _COVERED:
            self._covered.clear()
        self._covered.add(name)
        return True

    def _watch(self, monitor: zmq.Socket[bytes], health: Health) -> bool:
        """Follow the link; True: it was refused, and the socket must be built anew."""
        event, value = read_event(list(monitor.recv_multipart()))
        news = health.take(event, value, time.monotonic())
        self.trouble = health.trouble
        # What breaks the handshakes is not asked here; to try another key harms nobody.
        health.is_other_key = news == "broken"
        if news is not None:
            self._call_loop(self._tell, news == "up", self._endpoint)
        return news in ("refused", "broken")

    def _read(self, socket: zmq.Socket[bytes]) -> None:
        with self._lock:
            for _ in range(_BATCH):
                try:
                    frames = receive(socket)
                except zmq.Again:
                    break
                except TooLarge:
                    skip(socket)
                    self.dropped += 1
                    continue
                try:
                    topic, header, payload = parted(unsealed(frames)[0])
                except ProtocolError as exc:
                    self._drop(exc)
                else:
                    self._accept(topic.decode("utf-8", "replace"), header, payload)
            self._schedule()

    def _accept(
        self,
        name: str,
        header: Buffer,
        payload: Buffer,
        *,
        snapshot: bool = False,
    ) -> None:
        if not self._is_covered(name):
            return
        try:
            event = decode_event(header)
            seen = self._tracker.seen(name, event, snapshot=snapshot)
            if name.startswith(_TAIL):
                if seen.new:
                    self._take_tail(name, event, payload)
                return
        except ProtocolError as exc:
            self._drop(exc)
            return
        if seen.missed:
            last = event.sequence - 1
            self._arrivals.put_lost(Lost(name, event.epoch, seen.first, last, seen.missed))
        if seen.new:
            heard_at = None if snapshot else time.monotonic()
            self._arrivals.put(Received(name, event, payload, seen.missed, heard_at))

    def _drop(self, exc: ProtocolError) -> None:
        self.dropped += 1
        if self._warnings.due(time.monotonic()) is not None:
            log.warning("%s sent an event that cannot be read: %s", self._where, exc)

    def _take_tail(self, name: str, event: Event, payload: Buffer) -> None:
        """A publisher tells the last sequence of each of its topics.

        :raises ProtocolError: it tells something else.
        """
        node_id = name.removeprefix(_TAIL)
        told = decode_value(payload)
        if not isinstance(told, dict):
            raise ProtocolError("a tail is a table of topics and sequences")
        for topic, last in told.items():
            of_its_own = isinstance(topic, str) and split(topic)[1] == node_id
            if not of_its_own or not isinstance(last, int):
                raise ProtocolError("a tail names topics of its publisher, and sequences")
            seen = self._tracker.tail(topic, event.epoch, last)
            if seen.missed:
                self._arrivals.put_lost(Lost(topic, event.epoch, seen.first, last, seen.missed))
