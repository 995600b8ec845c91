"""A client of plain ZeroMQ and JSON, as one would write it in another language."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import zmq

__all__ = ["ANSWER_MS", "ByHand", "connected"]

ANSWER_MS = 5000


class ByHand:
    """One connection, and the session that it speaks for (empty: none)."""

    def __init__(self, peer: zmq.Socket[bytes], session: str = "") -> None:
        self._peer = peer
        self._session = {"session": session} if session else {}
        #: "list" (a pack), "dict" (a message) or "JSON": what came in packs and by itself
        self.frames: list[str] = []

    def send(self, kind: str, request_id: str, **fields: Any) -> None:
        """Send a request."""
        message = {"type": kind, "id": request_id, **self._session, **fields}
        self._peer.send(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """The next message that is no sign of life."""
        while True:
            assert self._peer.poll(ANSWER_MS), "no answer"
            message: dict[str, Any] = json.loads(self._peer.recv())
            if message["type"] != "alive":
                return message

    def ask(self, kind: str, request_id: str, **fields: Any) -> dict[str, Any]:
        """Send a request; the next message that comes back."""
        self.send(kind, request_id, **fields)
        return self.receive()

    def answer_to(self, kind: str, request_id: str, **fields: Any) -> dict[str, Any]:
        """Send a request; its answer, past those to other requests that are still open."""
        answer = self.ask(kind, request_id, **fields)
        while answer["id"] != request_id:
            answer = self.receive()
        return answer

    def send_pack(self, *members: Any, delimited: bool = False) -> None:
        """Send several messages in one frame, in MessagePack; a dict gets the session."""
        content = [{**self._session, **each} if type(each) is dict else each for each in members]
        lead = [b""] if delimited else []
        self._peer.send_multipart([*lead, msgspec.msgpack.encode(content)])

    def receive_frame(self) -> list[dict[str, Any]]:
        """The messages of the next frame that has other than signs of life."""
        while True:
            assert self._peer.poll(ANSWER_MS), "no answer"
            *_, frame = self._peer.recv_multipart()
            is_json = frame[:1] == b"{"
            found = json.loads(frame) if is_json else msgspec.msgpack.decode(frame)
            messages = found if isinstance(found, list) else [found]
            if left := [each for each in messages if each["type"] != "alive"]:
                self.frames.append("JSON" if is_json else type(found).__name__)
                return left

    def receive_answers(self, count: int) -> list[dict[str, Any]]:
        """So many messages, in packs or by themselves; :attr:`frames` tells in what they came."""
        self.frames.clear()
        answers: list[dict[str, Any]] = []
        while len(answers) < count:
            answers += self.receive_frame()
        assert len(answers) == count
        return answers

    def hears_nothing(self) -> bool:
        """No message is there now; those that were sent before the last answer would be."""
        return not self._peer.poll(0)


@contextmanager
def connected(endpoint: str, *sessions: str) -> Iterator[list[ByHand]]:
    """A connection for each of these sessions; of one session there may be several."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context:
        peers = [context.socket(zmq.DEALER) for _ in sessions]
        for peer in peers:
            peer.linger = 0
            peer.connect(endpoint)
        try:
            yield [ByHand(*each) for each in zip(peers, sessions, strict=True)]
        finally:
            for peer in peers:
                peer.close()
