"""What every answering socket does with what arrives: decode it, check it, answer it once."""

from __future__ import annotations

import logging
import time
from asyncio import Future
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from msgspec import Struct

from labmesh.errors import InternalError, LabmeshError, ProtocolError
from labmesh.protocol.callee import admit
from labmesh.protocol.codec import Buffer, Codec, Limits
from labmesh.protocol.messages import Call, Failure, Message, Ping, Pong, Reply, Request
from labmesh.protocol.packs import MAX_PACK, fits, is_pack, pack, read_call, read_calls, unpack
from labmesh.protocol.seldom import Seldom
from labmesh.transport.channel import Frames
from labmesh.transport.permits import Permits
from labmesh.transport.witness import Witness

__all__ = [
    "Answer",
    "Answering",
    "Greet",
    "Handle",
    "HandleCalls",
    "Later",
    "NotTaken",
    "Origin",
    "failure",
]

log = logging.getLogger(__name__)

#: Largest header that each socket decodes, bytes: decoding a mebibyte of nested lists takes half a
#: second, which only a relay's callers have a use for (an upload's header carries its meta).
MAX_HEADER_BYTES = {
    "directory": 64 * 2**10,
    "relay": 2**20 + 64 * 2**10,
    "ingest": 320 * 2**10,
    "retrieve": 16 * 2**10,
}

_MAX_PACKERS = 4096

Answer = Reply | tuple[Reply, Buffer] | None
#: An answer that is not there yet. A future costs less than a coroutine, which is made a task.
Later = Coroutine[Any, Any, Answer] | Future[Answer]
Handle = Callable[[Request, memoryview | None, "Origin"], "Answer | Later"]
#: The calls that were not taken, and why.
NotTaken = list[tuple[Call, Exception]]
HandleCalls = Callable[[Sequence[Call], "Origin", float], NotTaken]
Greet = Callable[[Ping, "Origin"], None]


class Origin(Struct, frozen=True, gc=False):
    """Where an answer goes, and in which form its asker speaks. All calls of a pack share one."""

    #: ZeroMQ's routing id: which connection, not who
    peer: bytes
    #: a REQ socket puts an empty frame first, and wants it back
    delimited: bool
    json: bool
    #: empty: that of a pack
    request_id: str
    #: who it is, as the handshake proved it; empty: nobody knows
    user: str = ""
    #: where it came from; empty where nobody keeps a record
    address: str = ""


class Answering:
    """Turns the messages of one ROUTER socket into requests, and answers into messages.

    :param name: for the log.
    :param role: which socket this is (``directory``, ``relay``, ``ingest``, ``retrieve``).
    :param requests: the messages that this socket takes.
    :param handle: gets each admitted request. It returns the reply, or None when it will call
        :meth:`reply` later; what it raises becomes the reply.
    :param handle_calls: gets the admitted calls of a pack, with the time when the pack was read. It
        returns those that it does not take; what it gives as the reason becomes the reply.
    :param permits: asked before each request is handled; None: everybody may do everything.
    :param greet: told of each ping; None: who asks makes no difference.
    """

    def __init__(
        self,
        name: str,
        *,
        role: str,
        requests: Sequence[type[Message]],
        node_id: str,
        epoch: str,
        handle: Handle,
        permits: Permits | None = None,
        handle_calls: HandleCalls | None = None,
        greet: Greet | None = None,
    ) -> None:
        self._name = name
        self._requests = Codec(requests, limits=Limits(max_header_bytes=MAX_HEADER_BYTES[role]))
        self._answers = Codec(())
        self._node_id, self._epoch = node_id, epoch
        self._handle = handle
        self._handle_calls = handle_calls
        self._greet = greet
        self._permits = permits
        #: told of what was asked, for a record; None: nobody keeps one
        self._witness: Witness | None = None
        #: where the message came from that is being taken; only for the witness
        self._address = ""
        self._warnings = Seldom()
        #: connections that have sent packs
        self._packers: set[bytes] = set()
        #: whose pack is being taken, and the short answers to it: as many messages that leave as
        #: messages that came would be more than ZeroMQ has room for
        self._packer = b""
        self._collected: list[Buffer] = []
        #: replies that their asker did not take, or messages that could not be read
        self.dropped = 0

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        """Send one message now; False: its receiver is gone, or does not read."""
        raise NotImplementedError

    def _answer_later(self, origin: Origin, answer: Later) -> None:
        """Take over an answer that is not there yet."""
        raise NotImplementedError

    def reply(self, origin: Origin, answer: Answer) -> bool:
        """Send a reply; False: its asker is gone, or does not read.

        :raises ProtocolError: a value in the reply cannot be encoded; nothing was sent.
        """
        if answer is None:
            return True
        return self.send(origin, self.encode(origin, answer))

    def encode(self, origin: Origin, answer: Reply | tuple[Reply, Buffer]) -> list[Buffer]:
        """The frames of a reply, in the form that its asker speaks."""
        message, body = answer if isinstance(answer, tuple) else (answer, None)
        if self._permits is not None:
            message = self._permits.told(message, origin.user)
        return self._answers.encode(message, body, json=origin.json)

    def send(self, origin: Origin, encoded: Sequence[Buffer]) -> bool:
        """Send a reply that was encoded before."""
        if self._packer and origin.peer == self._packer:
            if len(encoded) == 1 and not origin.delimited and fits(encoded[0]):
                self._collected.append(encoded[0])
                if len(self._collected) == MAX_PACK:
                    self._send_collected()
                return True
            self._send_collected()
        envelope = [origin.peer, b""] if origin.delimited else [origin.peer]
        delivered = self._transmit([*envelope, *encoded])
        self.dropped += not delivered
        return delivered

    def refuse(self, origin: Origin, error: LabmeshError, request_id: str = "") -> None:
        """Answer with an error."""
        self.send(origin, self.encode_error(origin, error, request_id))

    def encode_error(
        self, origin: Origin, error: LabmeshError, request_id: str = ""
    ) -> list[Buffer]:
        """The frames of an error.

        :param request_id: of the request that ends with it; by default the origin's.
        """
        request_id = request_id or origin.request_id
        try:
            return self.encode(origin, failure(request_id, error))
        except ProtocolError:
            # A driver may have put a value into the detail that no message can carry.
            return self.encode(origin, failure(request_id, type(error)(str(error))))

    def take(self, frames: Frames, user: str = "") -> None:
        """One message that arrived; whatever is wrong with it is answered."""
        peer = bytes(frames[0])
        delimited = len(frames) > 1 and len(frames[1]) == 0
        payload = frames[2:] if delimited else frames[1:]
        call = None
        if len(payload) == 1:
            if is_pack(payload[0]):
                self._take_pack(peer, delimited, payload[0], user)
                return
            if self._handle_calls is not None:
                call = read_call(payload[0])
        if call is not None:
            origin = Origin(peer, delimited, False, call.id, user, self._address)
            self._take_calls((call,), origin)
        else:
            self._take_message(peer, delimited, payload, user)

    def _take_pack(self, peer: bytes, delimited: bool, frame: Buffer, user: str) -> None:
        origin = Origin(peer, delimited, False, "", user, self._address)
        calls = None if self._handle_calls is None else read_calls(frame)
        headers: list[bytes] = []
        if calls is None:
            try:
                headers = unpack(frame)
            except ProtocolError as exc:
                self._warn(exc)
                self.refuse(origin, exc)
                return
        if not delimited:
            # It can read packs as well.
            if len(self._packers) >= _MAX_PACKERS:
                self._packers.clear()
            self._packers.add(peer)
            self._packer = peer
        try:
            if calls is not None:
                self._take_calls(calls, origin)
            for each in headers:
                self._take_message(peer, delimited, [each], user)
        finally:
            self._send_collected()
            self._packer = b""

    def _take_calls(self, calls: Sequence[Call], origin: Origin) -> None:
        """Plain calls that came in one frame, whose times are finite."""
        assert self._handle_calls is not None
        permits, node_id, epoch = self._permits, self._node_id, self._epoch
        # They have all arrived; when each of them may begin is looked at again.
        now = time.monotonic()
        admitted: list[Call] = []
        refused: NotTaken = []
        for call in calls:
            try:
                if permits is not None:
                    permits.check(call, origin.user)
                if call.target != node_id or call.epoch != epoch or not call.session:
                    admit(call, node_id=node_id, epoch=epoch, now=now)
            except Exception as exc:
                refused.append((call, exc))
            else:
                admitted.append(call)
        if admitted:
            refused += self._handle_calls(admitted, origin, now)
        for call, reason in refused:
            self._not_taken(call, origin, reason)
            # They hold the frame in which it is kept.
            reason.__traceback__ = reason.__context__ = reason.__cause__ = None

    def _send_collected(self) -> None:
        headers, self._collected = self._collected, []
        if headers and not self._transmit([self._packer, pack(headers)]):
            self.dropped += len(headers)

    def _take_message(self, peer: bytes, delimited: bool, payload: Frames, user: str) -> None:
        try:
            decoded = self._requests.decode(payload)
        except ProtocolError as exc:
            request_id = str(exc.detail.get("id", ""))
            is_json = bool(exc.detail.get("json"))
            origin = Origin(peer, delimited, is_json, request_id, user, self._address)
            self._warn(exc)
            self.refuse(origin, exc)
            return
        request: Any = decoded.message
        origin = Origin(peer, delimited, decoded.json, request.id, user, self._address)
        self._take_request(request, decoded.body, origin)

    def _take_request(self, request: Any, body: memoryview | None, origin: Origin) -> None:
        try:
            if self._permits is not None:
                self._permits.check(request, origin.user)
                request = self._permits.signed(request, origin.user)
            now = time.monotonic()
            admit(request, node_id=self._node_id, epoch=self._epoch, now=now)
            if isinstance(request, Ping):
                if self._greet is not None:
                    self._greet(request, origin)
                pong = Pong(id=request.id, node_id=self._node_id, epoch=self._epoch, clock=now)
                self.reply(origin, pong)
                return
            answer = self._handle(request, body, origin)
            if self._witness is not None:
                answer = self._witness.watched(request, origin, answer, now)
            if answer is None:
                return
            if isinstance(answer, Coroutine | Future):
                self._answer_later(origin, answer)
            else:
                self.reply(origin, answer)
        except Exception as exc:
            self._not_taken(request, origin, exc)

    def _not_taken(self, request: Request, origin: Origin, reason: Exception) -> None:
        """Answer a request that ends with this."""
        if not isinstance(reason, LabmeshError):
            self._fault(origin, request, reason)
            return
        if self._witness is not None:
            self._witness.refused(request, origin, reason)
        self.refuse(origin, reason, request.id)

    def _fault(self, origin: Origin, request: Request | None, exc: Exception) -> None:
        """A fault of our own: the asker is told, the log has the rest, the node lives."""
        what = type(request).__name__ if request is not None else "request"
        request_id = origin.request_id if request is None else request.id
        log.error("%s: %s %s failed", self._name, what, request_id, exc_info=exc)
        error = InternalError(
            f"{self._name} failed inside ({type(exc).__name__}): this is a fault of labmesh; "
            "its log has the traceback"
        )
        self.refuse(origin, error, request_id)

    def _warn(self, exc: ProtocolError) -> None:
        """Bad input is worth a line, not a line each."""
        self.dropped += 1
        held_back = self._warnings.due(time.monotonic())
        if held_back is not None:
            log.warning("%s: bad input (%d more since): %s", self._name, held_back, exc)


def failure(request_id: str, error: LabmeshError) -> Failure:
    """An error as the message that carries it."""
    detail: dict[str, Any] = {
        key: value for key, value in error.detail.items() if key not in ("id", "json")
    }
    return Failure(
        id=request_id,
        code=error.code,
        name=error.name,
        text=error.text[:2000],
        retryable=error.retryable,
        detail=detail,
    )
