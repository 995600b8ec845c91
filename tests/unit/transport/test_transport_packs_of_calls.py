"""The calls of a pack are taken together, and each of them is checked and refused by itself."""

from collections.abc import Sequence
from typing import Any

import msgspec

from labmesh.errors import Conflict, Forbidden
from labmesh.protocol.codec import Buffer, Codec
from labmesh.protocol.messages import Call, Failure, Reply, Request
from labmesh.protocol.packs import pack, unpack
from labmesh.transport.answering import Answering, NotTaken, Origin


class Gate:
    """Lets nobody do what is named ``locked``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def check(self, request: Request, user: str) -> None:
        assert isinstance(request, Call)
        self.asked.append((request.id, user))
        if request.method == "locked":
            raise Forbidden(f"{user} may not")

    def told(self, message: Reply, _user: str) -> Reply:
        return message


class Desk(Answering):
    """Takes calls; what is named ``known`` is refused, ``broken`` fails."""

    def __init__(self, gate: Any) -> None:
        super().__init__(
            "Inst-0",
            role="relay",
            requests=(Call,),
            node_id="Inst-0",
            epoch="e1",
            handle=self._alone,
            handle_calls=self._take_them,
            permits=gate,
        )
        self.taken: list[tuple[str, Origin]] = []
        self.sent: list[list[Buffer]] = []

    def _alone(self, request: Request, _body: memoryview | None, origin: Origin) -> None:
        raise AssertionError("these are calls of a pack")

    def _take_them(self, calls: Sequence[Call], origin: Origin, now: float) -> NotTaken:
        faults = {"known": Conflict("it is known"), "broken": ZeroDivisionError()}
        self.taken += [(call.id, origin) for call in calls if call.method not in faults]
        return [(call, faults[call.method]) for call in calls if call.method in faults]

    def _transmit(self, frames: Sequence[Buffer]) -> bool:
        self.sent.append(list(frames))
        return True

    def refused(self) -> dict[str, str]:
        """The ids that were refused, and with which error."""
        ((peer, packed),) = self.sent
        assert peer == b"ada"
        failures = [Codec((Failure,)).decode([each]).message for each in unpack(bytes(packed))]
        return {each.id: each.name for each in failures if isinstance(each, Failure)}


def call(request_id: str, method: str = "measure", **fields: Any) -> bytes:
    usual = Call(id=request_id, method=method, target="Inst-0", epoch="e1", session="s")
    (header,) = Codec(()).encode(msgspec.structs.replace(usual, **fields))
    return bytes(header)


def test_each_call_of_a_pack_is_checked_by_itself_and_all_have_one_origin() -> None:
    gate = Gate()
    desk = Desk(gate)
    calls = [
        call("1"),
        call("2", "locked"),
        call("3", target="Inst-9"),
        call("4", epoch="e0"),
        call("5", "known"),
        call("6", "broken"),
        call("7", deadline=1e-9, session=""),
        call("8"),
    ]
    desk.take([b"ada", pack(calls)], "ada@lab")
    assert gate.asked == [(str(number), "ada@lab") for number in range(1, 9)]
    assert [request_id for request_id, _ in desk.taken] == ["1", "8"]
    first, second = (origin for _, origin in desk.taken)
    assert first is second
    assert (first.peer, first.user, first.json) == (b"ada", "ada@lab", False)
    assert desk.refused() == {
        "2": "forbidden",
        "3": "not_found",
        "4": "stale_epoch",
        "5": "conflict",
        "6": "internal",
        "7": "expired",
    }


def test_where_nobody_is_to_be_kept_out_nobody_is_asked() -> None:
    desk = Desk(None)
    desk.take([b"ada", pack([call("1", "locked"), call("2")])])
    assert [request_id for request_id, _ in desk.taken] == ["1", "2"]
    assert not desk.sent
