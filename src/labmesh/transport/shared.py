"""The answering side without an event loop: a ROUTER socket that threads take turns to use.

A request that arrives at an event loop and is run in another thread costs two hand-offs, each as
much as half of the round trip itself. Here the thread that will run it reads it from the socket and
answers it there. Whoever holds :attr:`SharedService.lock` has the socket, and all that belongs to
it: this is the exclusive use with a memory barrier that ZeroMQ asks for. Nobody holds it while a
driver runs, or while it waits for the socket's descriptor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence

import zmq

from labmesh.errors import TooLarge
from labmesh.protocol.addresses import Address
from labmesh.protocol.codec import Buffer
from labmesh.protocol.messages import Message, Request
from labmesh.protocol.packs import fits, pack
from labmesh.transport.answering import Answer, Answering, Greet, HandleCalls, Later, Origin
from labmesh.transport.channel import (
    NOBLOCK,
    POLLIN,
    Frames,
    events_of,
    proved,
    receive_rest,
    send,
    skip,
)
from labmesh.transport.permits import Permits
from labmesh.transport.sockets import Sockets
from labmesh.transport.spinning import Spin
from labmesh.transport.waking import Bell
from labmesh.transport.witness import address_of

__all__ = ["SharedService"]

log = logging.getLogger(__name__)

_SKIPPED = 2000
_READ = 256
_SELDOM = 7
#: Replies that are sent together; more would leave their receivers without work meanwhile.
_TOGETHER = 32


class SharedService(Answering):
    """Answers the requests of one ROUTER socket, in whichever thread reads it.

    Hold :attr:`lock` for everything but :meth:`wait`, :meth:`ring` and :meth:`close`.

    :param handle: gets each admitted request, under the lock. It returns the reply, or None when it
        will call :meth:`reply` later; what it raises becomes the reply.
    :param handle_calls: gets the admitted calls of a pack, under the lock; see :class:`Answering`.
    :param greet: is told of each ping, under the lock.
    """

    def __init__(
        self,
        sockets: Sockets,
        address: Address,
        *,
        role: str,
        requests: Sequence[type[Message]],
        node_id: str,
        kind: str,
        epoch: str,
        handle: Callable[[Request, memoryview | None, Origin], Answer],
        lock: threading.RLock,
        permits: Permits | None = None,
        handle_calls: HandleCalls | None = None,
        greet: Greet | None = None,
    ) -> None:
        owner = f"{kind} {node_id}"
        super().__init__(
            f"{owner} ({role})",
            role=role,
            requests=requests,
            node_id=node_id,
            epoch=epoch,
            handle=handle,
            permits=permits,
            handle_calls=handle_calls,
            greet=greet,
        )
        self.lock = lock
        self._socket, self.address = sockets.bind(zmq.ROUTER, address, role=role, owner=owner)
        self._sockets = sockets
        self._witness = sockets.witness
        self._is_proved = sockets.security.guard is not None
        self._bell = Bell(self._socket.FD)
        self._spin = Spin()
        #: since when it is waited for the next message; 0: it is not
        self._quiet_since = 0.0
        self._skipping = False
        #: nothing was there when it was last looked, and nothing was sent since
        self._found_empty = False
        #: replies that wait to be sent: in packs, by who gets them, or as they are
        self._packs: dict[bytes, list[Buffer]] = {}
        #: whose reply was put into a pack just now, while its next one can follow it, and that pack
        self._last_origin: Origin | None = None
        self._last_pack: list[Buffer] = []
        #: how many
        self._waiting = 0
        self._outbox: list[list[Buffer]] = []
        self.listened = False
        #: whether several messages were there when it was last looked for more than one
        self._several = False
        self._looks = 0
        self._closed = False
        self._intake = sockets.intake(self._socket)
        self._intake.on_question(self._answer_intake)

    def close(self, linger_ms: int = 200) -> None:
        """Let the last replies leave; nothing can be sent any more. Twice is fine.

        Whoever waits is woken before; what waits later returns at once.
        """
        with self.lock:
            if self._closed:
                return
            self.flush()
            self._closed = True
            self._bell.ring()
            self._sockets.close(self._socket, linger_ms)

    def dispose(self) -> None:
        """Give back what the waiting took; call it when nobody waits any more."""
        self._bell.close()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until there may be something to read, or :meth:`ring`. Without the lock.

        The descriptor tells once that something changed: look with :meth:`read` before waiting.
        """
        if self._closed:
            return
        since = self._quiet_since
        if not since:
            since = self._quiet_since = time.monotonic()
        if not (self._spin.pays and self._bell.look(self._spin, since)):
            self._bell.wait(timeout_s)

    def ring(self) -> None:
        """End the wait; in any thread."""
        if not self._closed:
            self._bell.ring()

    def read(self) -> bool:
        """Take what is there, up to a bound; False: nothing was."""
        self._found_empty = False
        since = self._quiet_since
        if self._closed:
            return self._find_empty()
        if since and not self._skipping:
            # Who has waited for it finds it: to read it costs less than to ask for it before.
            now = time.monotonic()
            taken = self._take_one()
            if not taken and not self._skipping:
                return self._find_empty()
            self._spin.came(now - since)
        elif not events_of(self._socket) & POLLIN:
            return self._find_empty()
        elif self._skipping:
            # A hundred thousand frames take a tenth of a second: in slices, others get theirs.
            self._skipping = not skip(self._socket, _SKIPPED)
            taken = False
        else:
            taken = self._take_one()
        self._quiet_since = 0.0
        if not taken:
            return True
        # A look costs as much as a short method: while calls come one at a time, one in a few.
        self._looks += 1
        if not self._several and self._looks & _SELDOM:
            return True
        self._several = bool(events_of(self._socket) & POLLIN)
        if self._several:
            # From here on it is cheaper to be told that there are no more.
            for _ in range(_READ):
                if not self._take_one():
                    break
        return True

    def _answer_intake(self) -> None:
        """Was everything taken that has arrived? In any thread."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            if not self._closed:
                question = self._intake.question
                if not events_of(self._socket) & POLLIN:
                    self._intake.emptied(question)
                # The descriptor may have told of a message just now; who waits for it must look.
                self._bell.ring()
        finally:
            self.lock.release()

    def _find_empty(self) -> bool:
        self._found_empty = True
        return False

    def _take_one(self) -> bool:
        """One message; False: none was there, or an endless one is."""
        try:
            frames, user = self._receive()
        except zmq.Again:
            return False
        except TooLarge as exc:
            self._skipping = True
            self.dropped += 1
            if self._warnings.due(time.monotonic()) is not None:
                log.warning("%s: dropped %s (%d so far)", self._name, exc, self.dropped)
            return False
        try:
            self.take(frames, user)
        except Exception:
            # The reader outlives every fault of what it feeds; the fault is ours, so say so.
            log.exception("%s: a message was not handled", self._name)
        return True

    def send_soon(self, origin: Origin, encoded: Sequence[Buffer]) -> None:
        """Send a reply with others: :meth:`flush` does. Each wake-up of ZeroMQ's own thread costs
        as much as all else of a small reply."""
        header = encoded[0]
        if origin is self._last_origin and len(encoded) == 1 and fits(header):
            self._last_pack.append(header)
            self._waiting += 1
            if self._waiting >= _TOGETHER:
                self.flush()
            return
        peer = origin.peer
        is_short = len(encoded) == 1 and not origin.delimited and peer in self._packers
        if is_short and fits(header):
            if self._outbox and any(frames[0] == peer for frames in self._outbox):
                self.flush()
            headers = self._packs.get(peer)
            if headers is None:
                headers = self._packs[peer] = []
            headers.append(header)
            self._last_origin, self._last_pack = origin, headers
        else:
            self._last_origin = None
            if peer in self._packs:
                self.flush()
            self._outbox.append([peer, b"", *encoded] if origin.delimited else [peer, *encoded])
        self._waiting += 1
        if self._waiting >= _TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Send what waits to be sent: to who can read packs, in packs. Each gets its own in order.

        What waits is never more than one pack.
        """
        if not self._waiting:
            return
        self._waiting = 0
        if self._packs:
            self._last_origin = None
            packs, self._packs = self._packs, {}
            for peer, headers in packs.items():
                if not self._transmit_now([peer, pack(headers)]):
                    self.dropped += len(headers)
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            for frames in outbox:
                self.dropped += not self._transmit_now(frames)

    def _receive(self) -> tuple[Frames, str]:
        """One whole message, and who sent it, as the handshake proved it.

        Looked up for each message: a routing id is no proof, since a peer may choose one that
        belonged to another connection before.
        """
        peer = self._socket.recv(NOBLOCK)
        header = self._socket.recv(NOBLOCK, copy=False)
        if self._intake.suspects:
            self._intake.heard(header)
        frames: Frames = [peer, header.bytes]
        if self._witness is not None:
            self._address = address_of(header)
        if header.more:
            receive_rest(self._socket, frames)
        return frames, proved(header) if self._is_proved else ""

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        self.flush()
        return self._transmit_now(frames)

    def _transmit_now(self, frames: Sequence[Buffer]) -> bool:
        if self._closed:
            return False
        try:
            send(self._socket, frames)
            if self.listened and events_of(self._socket) & POLLIN:
                # The descriptor tells once of what came in, and this send has used that up.
                self._bell.ring()
        except zmq.ZMQError as exc:
            if exc.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        finally:
            if self._found_empty:
                # The descriptor tells of a message once, and a send may be what it told: whoever
                # waits, or is about to, must look again.
                self._found_empty = False
                self._bell.ring()
        return True

    def _answer_later(self, origin: Origin, answer: Later) -> None:
        if isinstance(answer, Coroutine):
            answer.close()
        raise TypeError("there is no event loop here to await an answer on")
