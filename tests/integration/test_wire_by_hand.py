"""What docs/wire.md promises to a client that is written by hand, on plain sockets in JSON."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.by_hand import ByHand, connected

from labmesh import expose
from labmesh.testing import LocalMesh

ADA, BOB = "0123456789abcdef", "fedcba9876543210"
LIMIT_S = 10.0


class Instrument:
    """Counts what it is made to do."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.closed, self.safe = threading.Event(), threading.Event()

    def count(self, step: int = 1) -> int:
        self.runs += step
        return self.runs

    def hold(self) -> int:
        self.runs += 1
        self.begun.set()
        assert self.may_end.wait(LIMIT_S)
        return self.runs

    def large(self) -> str:
        self.runs += 1
        return "x" * 100_000

    def fail(self) -> None:
        self.runs += 1
        raise OSError("the probe is not connected")

    @expose(read_only=True)
    def look(self) -> int:
        return self.runs

    def numbers(self, count: int) -> Iterator[int]:
        try:
            yield from range(count)
        finally:
            self.closed.set()
        return "end"

    def safe_state(self) -> None:
        self.safe.set()


Talk = Callable[..., None]


async def talk(instrument: Instrument, conversation: Talk, *sessions: str, **options: Any) -> None:
    """Hold a conversation over a connection for each of these sessions.

    :param options: of the relay.
    """
    async with LocalMesh(banks=0) as mesh:
        relay = await mesh.start_relay("Inst-0", instrument, **options)

        def converse() -> None:
            with connected(str(relay.rpc), *sessions) as clients:
                conversation(*clients)

        await asyncio.to_thread(converse)


def refused(answer: dict[str, Any]) -> str:
    """The name of the error that this answer is."""
    assert answer["type"] == "error", answer
    return str(answer["name"])


# ── a call that is sent again ───────────────────────────────────────────────────────────────────


async def test_what_has_ended_is_answered_again_over_another_connection() -> None:
    instrument = Instrument()

    def conversation(first: ByHand, second: ByHand) -> None:
        for _ in range(3):
            for client in (first, second):
                assert client.ask("call", "1", method="count")["value"] == 1
        outcomes = [client.ask("batch", "2", calls=[["count"]]) for client in (first, second)]
        assert [each["outcomes"] for each in outcomes] == [[[2]], [[2]]]
        assert first.ask("call", "3", method="count")["value"] == 3

    await talk(instrument, conversation, ADA, ADA)
    assert instrument.runs == 3


async def test_an_open_call_is_answered_where_it_was_sent_last() -> None:
    instrument = Instrument()

    def conversation(first: ByHand, second: ByHand) -> None:
        first.send("call", "1", method="hold")
        assert instrument.begun.wait(LIMIT_S)
        second.send("call", "1", method="hold")
        # Answers keep their order: with this one the relay has read the one before it.
        assert second.ask("get_call", "2", call="1")["state"] == "running"
        instrument.may_end.set()
        assert second.receive()["value"] == 1
        assert first.ask("ping", "3")["type"] == "pong"
        assert first.hears_nothing()

    await talk(instrument, conversation, ADA, ADA)
    assert instrument.runs == 1


async def test_a_call_that_comes_again_after_its_deadline_is_not_said_to_have_not_run() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        deadline = client.ask("ping", "1")["clock"] + 0.3
        client.send("call", "2", method="hold", deadline=deadline)
        assert instrument.begun.wait(LIMIT_S)
        while client.ask("ping", "3")["clock"] <= deadline:
            continue
        client.send("call", "2", method="hold", deadline=deadline)
        assert client.ask("get_call", "4", call="2")["state"] == "running"
        instrument.may_end.set()
        assert client.receive()["value"] == 1
        again = client.ask("call", "2", method="hold", deadline=deadline)
        assert again["value"] == 1
        assert refused(client.ask("call", "5", method="hold", deadline=deadline)) == "expired"
        assert refused(client.ask("call", "5", method="hold")) == "cancelled"

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 1


async def test_a_call_that_was_taken_and_had_no_room_did_not_run() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        client.send("call", "1", method="hold")
        assert instrument.begun.wait(LIMIT_S)
        client.send("call", "2", method="count")
        for _ in range(2):
            assert client.ask("get_call", "9", call="2")["state"] == "queued"
        assert refused(client.ask("call", "3", method="count")) == "busy"
        assert client.ask("get_call", "9", call="3")["state"] == "not_run"
        assert refused(client.ask("call", "3", method="count")) == "cancelled"
        instrument.may_end.set()
        assert [client.receive()["value"] for _ in range(2)] == [1, 2]

    await talk(instrument, conversation, ADA, max_queue=1)
    assert instrument.runs == 2


async def test_what_was_not_kept_is_not_run_again() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        assert len(client.ask("call", "1", method="large")["value"]) == 100_000
        again = client.ask("call", "1", method="large")
        assert refused(again) == "outcome_unknown"
        assert again["detail"]["state"] == "returned"
        state = client.ask("get_call", "2", call="1")
        assert (state["state"], state["method"]) == ("returned", "large")
        assert "kept" not in state

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 1


async def test_what_was_refused_needs_a_new_id() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        assert refused(client.ask("call", "1", method="count", args=[1, 2])) == "bad_arguments"
        assert refused(client.ask("call", "1", method="count")) == "cancelled"
        assert client.ask("call", "2", method="count")["value"] == 1

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 1


async def test_what_was_asked_about_before_it_came_never_runs() -> None:
    instrument = Instrument()

    def conversation(first: ByHand, second: ByHand) -> None:
        assert first.ask("get_call", "1", call="7")["state"] == "not_run"
        assert refused(second.ask("call", "7", method="count")) == "cancelled"
        assert second.ask("call", "8", method="count")["value"] == 1

    await talk(instrument, conversation, ADA, ADA)
    assert instrument.runs == 1


async def test_an_id_is_one_call() -> None:
    instrument = Instrument()

    def conversation(ada: ByHand, bob: ByHand) -> None:
        assert ada.ask("call", "1", method="count")["value"] == 1
        assert refused(ada.ask("call", "1", method="look")) == "conflict"
        assert refused(ada.ask("batch", "1", calls=[["count"]])) == "conflict"
        # Another session has ids of its own, and cannot ask for those of others.
        assert bob.ask("call", "1", method="look")["value"] == 1
        assert ada.ask("get_call", "2", call="1")["method"] == "count"
        assert bob.ask("get_call", "2", call="1")["method"] == "look"
        for wrong in ("abc", "-1", "0", "007", "1" * 20):
            assert refused(ada.ask("call", wrong, method="count")) == "bad_request"

    await talk(instrument, conversation, ADA, BOB)
    assert instrument.runs == 1


async def test_without_a_session_a_repeated_id_is_a_new_call() -> None:
    instrument = Instrument()

    def conversation(first: ByHand, second: ByHand) -> None:
        runs = [first.ask("call", "1", method="count")["value"] for _ in range(3)]
        assert runs == [1, 2, 3]
        assert first.ask("get_call", "2", call="1")["state"] == "unknown"
        first.send("call", "1", method="hold")
        assert instrument.begun.wait(LIMIT_S)
        assert first.ask("get_call", "2", call="1")["state"] == "running"
        assert refused(first.ask("call", "1", method="hold")) == "conflict"
        second.send("call", "1", method="count")
        instrument.may_end.set()
        assert first.receive()["value"] == 4
        assert second.receive()["value"] == 5

    await talk(instrument, conversation, "", "")
    assert instrument.runs == 5


async def test_another_incarnation_runs_nothing() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        epoch = client.ask("ping", "1")["epoch"]
        assert refused(client.ask("call", "2", method="count", epoch="older")) == "stale_epoch"
        assert client.ask("call", "3", method="count", epoch=epoch)["value"] == 1

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 1


# ── several messages in one frame ───────────────────────────────────────────────────────────────


def a_call(number: int, method: str = "count", **fields: Any) -> dict[str, Any]:
    return {"type": "call", "id": str(number), "method": method, **fields}


def in_brief(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Id → the value of a result, the name of an error, or the type of another answer."""
    brief = {
        each["id"]: each.get("value")
        if each["type"] == "result"
        else each.get("name", each["type"])
        for each in answers
    }
    assert len(brief) == len(answers)
    return brief


@pytest.mark.parametrize("delimited", [False, True], ids=["as DEALER", "as REQ"])
async def test_each_message_of_a_pack_is_answered_by_itself(delimited: bool) -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        for number in (1, 2):
            client.send_pack(
                {"type": "ping", "id": "9"},
                a_call(10 * number),
                a_call(10 * number + 1, "fail"),
                a_call(10 * number + 2, "nothing"),
                {"type": "get_call", "id": "8", "call": "99"},
                delimited=delimited,
            )
            assert in_brief(client.receive_answers(5)) == {
                "9": "pong",
                f"{10 * number}": 2 * number - 1,
                f"{10 * number + 1}": "driver",
                f"{10 * number + 2}": "unknown_method",
                "8": "call_state",
            }
        assert client.hears_nothing()

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 4


async def test_a_bad_message_in_a_pack_harms_none_of_its_neighbours() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        client.send_pack(
            a_call(1),
            {"type": "nonsense", "id": "2"},
            {"type": "ping", "id": "3", "version": 99},
            a_call(4),
            {"id": "5"},
            a_call(6, args=[[[[1]]], 2]),
            a_call(7, deadline=float("nan")),
            {},
            a_call(8),
        )
        assert in_brief(client.receive_answers(9)) == {
            "1": 1,
            "2": "bad_request",
            "3": "unsupported",
            "4": 2,
            "5": "bad_request",
            "6": "bad_arguments",
            "7": "bad_request",
            "": "bad_request",
            "8": 3,
        }

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 3


@pytest.mark.parametrize("member", ["text", None, 123, [a_call(2)], b'{"type":"ping","id":"2"}'])
async def test_what_has_more_than_messages_in_it_is_no_pack(member: Any) -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        client.send_pack(a_call(1), member, a_call(3))
        assert in_brief(client.receive_answers(1)) == {"": "bad_request"}
        assert client.ask("call", "1", method="count")["value"] == 1
        assert client.hears_nothing()

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 1


async def test_who_sends_no_packs_gets_none_and_who_does_gets_all_in_order() -> None:
    """Behind a call that waits, so that there is much to answer in one moment."""
    instrument = Instrument()

    def conversation(packs: ByHand, plain: ByHand) -> None:
        # From now on the relay knows that these are quick, and answers several of them at a time.
        for number, method in enumerate(["count", "large"], 1):
            plain.ask("call", str(number), method=method)
        plain.send("call", "3", method="hold")
        assert instrument.begun.wait(LIMIT_S)
        methods = ["count", "count", "large", "count", "count"]
        packs.send_pack(*(a_call(number, each) for number, each in enumerate(methods, 1)))
        packs.send("call", "6", method="count")
        packs.send_pack(a_call(7), a_call(8), a_call(9))
        assert packs.ask("get_call", "99", call="9")["state"] == "queued"
        for number in range(4, 9):
            plain.send("call", str(number), method="count")
        assert plain.ask("get_call", "99", call="8")["state"] == "queued"
        instrument.may_end.set()
        assert [each["id"] for each in packs.receive_answers(9)] == list("123456789")
        assert "list" in packs.frames
        assert packs.frames.count("JSON") == 1
        assert [each["id"] for each in plain.receive_answers(6)] == list("345678")
        assert plain.frames == ["JSON"] * 6

    await talk(instrument, conversation, ADA, BOB)
    assert instrument.runs == 17


# ── methods that yield ──────────────────────────────────────────────────────────────────────────


async def test_items_come_as_they_are_allowed_and_then_the_result() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        client.send("call", "1", method="numbers", args=[5], credit=2)
        items = [client.receive() for _ in range(2)]
        assert client.ask("ping", "2")["type"] == "pong"
        assert client.hears_nothing()
        client.send("more", "3", call="1", credit=8)
        answers = [client.receive() for _ in range(5)]
        assert [each["id"] for each in answers].count("3") == 1
        *rest, result = [each for each in answers if each["id"] == "1"]
        assert [(each["index"], each["value"]) for each in items + rest] == [
            (number, number) for number in range(5)
        ]
        assert (result["type"], result["value"]) == ("result", "end")
        assert refused(client.ask("more", "4", call="1", credit=1)) == "not_found"
        assert refused(client.ask("call", "5", method="numbers", args=[5])) == "bad_arguments"

    await talk(instrument, conversation, ADA)


@pytest.mark.parametrize("ending", ["cancel", "break"])
async def test_a_stream_that_nobody_reads_is_closed(ending: str) -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        first = client.ask("call", "1", method="numbers", args=[10**6], credit=1)
        assert first["index"] == 0
        if ending == "cancel":
            client.send("cancel", "2", call="1")
            answers = {each["id"]: each for each in (client.receive(), client.receive())}
            assert refused(answers["2"]) == "conflict"
            assert refused(answers["1"]) == "driver"
            assert answers["1"]["text"] == "Interrupted: its caller took it back"
            assert instrument.closed.wait(LIMIT_S)

    await talk(instrument, conversation, ADA)
    assert await asyncio.to_thread(instrument.closed.wait, LIMIT_S)


# ── batches ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("keep_going", [False, True])
async def test_a_batch_has_an_outcome_for_each_that_ran(keep_going: bool) -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        calls = [["count"], ["count", [2]], ["fail"], ["look"], ["count", [], {"step": 10}]]
        done, again, failed, *behind = client.ask("batch", "1", calls=calls, keep_going=keep_going)[
            "outcomes"
        ]
        assert (done, again) == ([1], [3])
        name, text, detail = failed
        assert (name, text) == ("driver", "the probe is not connected")
        assert (detail["exception_type"], detail["method"]) == ("OSError", "fail")
        assert behind == ([[4], [14]] if keep_going else [])

    await talk(instrument, conversation, ADA)
    assert instrument.runs == (14 if keep_going else 4)


async def test_a_batch_is_checked_before_it_begins() -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        for number, (wrong, name) in enumerate(
            [
                (["nothing"], "unknown_method"),
                (["count", [1, 2]], "bad_arguments"),
                (["count", 1], "bad_arguments"),
                ([1], "bad_request"),
                (["numbers", [3]], "bad_arguments"),
            ]
        ):
            calls = [["count"], wrong]
            answer = client.ask("batch", str(number + 1), calls=calls)
            assert refused(answer) == name
            assert answer["detail"]["index"] == 1
            assert "call 2 of this batch" in answer["text"]

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 0


# ── leases ──────────────────────────────────────────────────────────────────────────────────────


async def test_one_client_writes_and_all_read() -> None:
    instrument = Instrument()

    def conversation(ada: ByHand, bob: ByHand) -> None:
        lease = ada.ask("acquire", "1", ttl_s=60, note="T sweep", holder="ada")
        fence = lease["fence"]
        assert (lease["type"], lease["holder"], lease["note"]) == ("lease", "ada", "T sweep")
        assert ada.ask("call", "2", method="count", fence=fence)["value"] == 1
        locked = bob.ask("call", "1", method="count")
        assert refused(locked) == "locked"
        assert (locked["detail"]["holder"], locked["detail"]["fence"]) == ("ada", fence)
        assert refused(bob.ask("call", "2", method="count", fence=fence)) == "locked"
        assert refused(bob.ask("batch", "3", calls=[["look"], ["count"]])) == "locked"
        assert refused(bob.ask("acquire", "4")) == "locked"
        assert bob.ask("call", "5", method="look")["value"] == 1
        assert bob.ask("batch", "6", calls=[["look"]])["outcomes"] == [[1]]
        assert refused(ada.ask("call", "3", method="count")) == "locked"
        assert ada.ask("renew", "4", fence=fence)["left_s"] == 60
        assert refused(bob.ask("renew", "7", fence=fence)) == "locked"
        assert bob.ask("release", "8", fence=fence)["type"] == "done"
        assert ada.ask("renew", "5", fence=fence)["fence"] == fence
        assert ada.ask("release", "6", fence=fence)["type"] == "done"
        assert bob.ask("call", "9", method="count")["value"] == 2
        assert refused(ada.ask("call", "7", method="count", fence=fence)) == "locked"
        assert bob.ask("acquire", "10")["fence"] > fence

    await talk(instrument, conversation, ADA, BOB)
    assert instrument.runs == 2
    assert not instrument.safe.is_set()


async def test_a_broken_lease_is_over_for_its_holder() -> None:
    instrument = Instrument()

    def conversation(ada: ByHand, bob: ByHand) -> None:
        assert refused(bob.ask("break_lease", "1")) == "not_found"
        fence = ada.ask("acquire", "1")["fence"]
        assert refused(bob.ask("break_lease", "2", fence=fence + 1)) == "conflict"
        assert bob.ask("break_lease", "3", fence=fence, reason="fire", by="bob")["type"] == "done"
        late = ada.ask("call", "2", method="count", fence=fence)
        assert refused(late) == "locked"
        assert "fire" in late["text"]

    await talk(instrument, conversation, ADA, BOB)
    assert instrument.runs == 0
    assert not instrument.safe.is_set()


@pytest.mark.parametrize("ending", ["abandoned", "expired"])
async def test_a_lease_that_ends_in_the_middle_of_its_work_leaves_a_safe_state(ending: str) -> None:
    instrument = Instrument()

    def conversation(client: ByHand) -> None:
        lease = client.ask("acquire", "1", ttl_s=0.2 if ending == "expired" else 60)
        if ending == "abandoned":
            client.send("release", "2", fence=lease["fence"], abandoned=True)
            assert client.receive()["type"] == "done"
        assert instrument.safe.wait(LIMIT_S)
        assert refused(client.ask("call", "3", method="count", fence=lease["fence"])) == "locked"

    await talk(instrument, conversation, ADA)
    assert instrument.runs == 0
