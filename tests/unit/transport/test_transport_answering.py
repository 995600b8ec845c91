"""Packs are taken apart, and what is answered to one at once leaves in one."""

from collections.abc import Sequence

import msgspec
import pytest

from labmesh.protocol.codec import Buffer, Codec
from labmesh.protocol.messages import (
    Cancel,
    Done,
    Failure,
    GetStatus,
    Ping,
    Pong,
    Reply,
    Request,
)
from labmesh.protocol.packs import MAX_PACK, is_pack, pack, unpack
from labmesh.transport import answering
from labmesh.transport.answering import Answering, Origin


class Node(Answering):
    """Answers at once, into a list."""

    def __init__(self) -> None:
        super().__init__(
            "Inst-0",
            role="relay",
            requests=(Ping, GetStatus, Cancel),
            node_id="Inst-0",
            epoch="e1",
            handle=self._done,
        )
        self.sent: list[list[Buffer]] = []
        self.is_there = True

    def _done(self, request: Request, _body: memoryview | None, origin: Origin) -> Reply:
        if isinstance(request, Cancel):
            # Two answers to one message: the other one is to an earlier request.
            self.reply(msgspec.structs.replace(origin, request_id="-"), Done(id="-"))
        if request.id.startswith("long"):
            return Failure(id=request.id, code=500, name="driver", text="x" * 1500)
        return Done(id=request.id)

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        self.sent.append(list(frames))
        return self.is_there

    def answers(self) -> list[tuple[Buffer, list[tuple[str, str]]]]:
        """To whom, and the types and ids of what is in each frame."""
        return [
            (frames[0], [self._read(each) for each in split(frames[-1])]) for frames in self.sent
        ]

    def _read(self, frame: Buffer) -> tuple[str, str]:
        reply = Codec((Done, Failure, Pong)).decode([frame]).message
        assert isinstance(reply, Reply)
        return type(reply).__name__, reply.id


def split(frame: Buffer) -> list[bytes]:
    return unpack(frame) if is_pack(frame) else [bytes(frame)]


def header(request: Request) -> bytes:
    (only,) = Codec(()).encode(request)
    return bytes(only)


def asking(*request_ids: str) -> bytes:
    return bytes(pack([header(GetStatus(id=each)) for each in request_ids]))


@pytest.fixture
def node() -> Node:
    return Node()


def test_each_message_of_a_pack_is_taken_by_itself_and_all_are_answered_in_one(node: Node) -> None:
    one, three = header(GetStatus(id="1")), header(Ping(id="3"))
    node.take([b"ada", bytes(pack([one, b"\x80", three]))])
    assert node.answers() == [(b"ada", [("Done", "1"), ("Failure", ""), ("Pong", "3")])]
    assert node.dropped == 1


def test_a_pack_that_is_none_is_refused_once(node: Node) -> None:
    node.take([b"ada", asking("1", "2") + b"\xc0"])
    assert node.answers() == [(b"ada", [("Failure", "")])]
    assert node.dropped == 1
    assert not node._packers


def test_who_has_sent_a_pack_can_read_them(node: Node) -> None:
    node.take([b"ada", asking("1", "2")])
    node.take([b"bob", b"", asking("1", "2")])
    node.take([b"cleo", header(GetStatus(id="1"))])
    assert node._packers == {b"ada"}
    assert [len(split(frames[-1])) for frames in node.sent] == [2, 1, 1, 1]
    assert [frames[1:-1] for frames in node.sent] == [[], [b""], [b""], []]


def test_an_answer_that_fits_no_pack_keeps_its_place(node: Node) -> None:
    node.take([b"ada", asking("1", "2", "long", "4", "long too", "6")])
    assert [[request_id for _, request_id in each] for _, each in node.answers()] == [
        ["1", "2"],
        ["long"],
        ["4"],
        ["long too"],
        ["6"],
    ]


def test_more_answers_than_a_pack_has_room_for_are_several_packs(node: Node) -> None:
    cancel = header(Cancel(id="1", call="2"))
    node.take([b"ada", bytes(pack([cancel] * MAX_PACK))])
    assert [len(each) for _, each in node.answers()] == [MAX_PACK, MAX_PACK]


def test_an_answer_to_somebody_else_is_not_packed(node: Node) -> None:
    other = Origin(b"bob", False, False, "-")

    class Forwarding(Node):
        def _done(self, request: Request, body: memoryview | None, origin: Origin) -> Reply:
            self.reply(other, Done(id="-"))
            return super()._done(request, body, origin)

    forwarding = Forwarding()
    forwarding.take([b"ada", asking("1", "2")])
    assert forwarding.answers() == [
        (b"bob", [("Done", "-")]),
        (b"bob", [("Done", "-")]),
        (b"ada", [("Done", "1"), ("Done", "2")]),
    ]


def test_each_answer_of_a_pack_that_nobody_takes_is_counted(node: Node) -> None:
    node.is_there = False
    node.take([b"ada", asking("1", "2", "3")])
    assert node.dropped == 3


def test_what_comes_after_a_pack_is_answered_by_itself(node: Node) -> None:
    node.take([b"ada", asking("1", "2")])
    for request_id in ("3", "4"):
        node.take([b"ada", header(GetStatus(id=request_id))])
    assert [len(each) for _, each in node.answers()] == [2, 1, 1]


def test_a_pack_with_a_buffer_behind_it_is_no_pack(node: Node) -> None:
    node.take([b"ada", asking("1", "2"), b"x"])
    assert node.answers() == [(b"ada", [("Failure", "")])]


def test_so_many_are_remembered_and_no_more(node: Node) -> None:
    for number in range(answering._MAX_PACKERS + 1):
        node.take([b"%d" % number, asking("1", "2")])
        assert len(node._packers) <= answering._MAX_PACKERS
    assert node._packers == {b"%d" % answering._MAX_PACKERS}
