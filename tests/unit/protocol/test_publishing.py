"""Which events a broker takes from whom."""

from __future__ import annotations

import pytest
from tests.support.keyed import key_of

from labmesh.protocol.access import Grant
from labmesh.protocol.codec import encode_event
from labmesh.protocol.messages import Event
from labmesh.protocol.publishing import Publications, Refused

TOPIC = b"state.psu-1"


def grant(name: str = "psu-1", role: str = "relay", **limits: object) -> Grant:
    return Grant(name=name, role=role, key=key_of(name), **limits)


class Broker:
    """The publications of a broker, whose list may change."""

    def __init__(self, *grants: Grant, **options: float) -> None:
        self.list = {each.user: each for each in grants}
        self.publications = Publications(self.list.get, **options)

    def take(
        self, by: Grant, sequence: int, epoch: str = "e1", topic: bytes = TOPIC, **more: object
    ) -> str:
        """Why it was refused; empty: it is forwarded."""
        publisher = str(more.get("publisher", by.name))
        header = more.get("header") or encode_event(
            Event(publisher=publisher, epoch=epoch, sequence=sequence, time=1.0)
        )
        now = float(more.get("now", 0.0))
        wall = float(more.get("wall", 1000.0))
        try:
            self.publications.take(by.user, topic, header, now, wall)
        except Refused as exc:
            named = str(exc).startswith(by.user.partition("#")[0])
            return exc.why if named else f"without saying who: {exc}"
        return ""


def test_each_event_of_a_topic_is_taken_once_and_in_order() -> None:
    psu = grant()
    broker = Broker(psu)
    told = [(1, ""), (2, ""), (2, "replayed"), (1, "replayed"), (7, ""), (6, "replayed")]
    assert [broker.take(psu, sequence) for sequence, _ in told] == [why for _, why in told]
    assert broker.take(psu, 1, topic=b"log.psu-1") == "", "each topic has a count of its own"
    assert broker.publications.refused["replayed"] == 3


def test_a_start_that_was_followed_by_another_does_not_come_back() -> None:
    psu = grant()
    broker = Broker(psu)
    for number in range(100):
        assert broker.take(psu, 0, f"e{number}") == ""
    assert [broker.take(psu, 9, f"e{number}") for number in (99, 98, 36)] == ["", *["replayed"] * 2]
    assert broker.take(psu, 9, "e3") == "", "there is an end to what is remembered"


@pytest.mark.parametrize(
    ("role", "name", "topic", "publisher", "why"),
    [
        ("relay", "psu-1", b"state.psu-1", "psu-1", ""),
        ("relay", "psu-1", b"tail.psu-1", "psu-1", ""),
        ("relay", "psu-1", b"state.psu-2", "psu-1", "forged"),
        ("relay", "psu-1", b"state.psu-2", "psu-2", "forged"),
        ("relay", "psu-1", b"state.psu-1", "psu-2", "forged"),
        ("relay", "psu-1", b"dataset.psu-1", "psu-1", "forged"),
        ("bank", "psu-1", b"dataset.psu-1", "psu-1", ""),
        ("bank", "psu-1", b"state.psu-1", "psu-1", "forged"),
        ("operator", "psu-1", b"state.psu-1", "psu-1", "forged"),
    ],
)
def test_a_node_publishes_under_its_own_id_and_families(
    role: str, name: str, topic: bytes, publisher: str, why: str
) -> None:
    who = grant(name, role)
    assert Broker(who).take(who, 1, topic=topic, publisher=publisher) == why


def test_a_header_may_be_json_and_what_is_none_is_refused() -> None:
    psu = grant()
    broker = Broker(psu)
    header = b'{"publisher":"psu-1","epoch":"e1","sequence":3,"time":1.5}'
    assert broker.take(psu, 0, header=header) == ""
    assert broker.take(psu, 0, header=header) == "replayed"
    for bad in (b"{", b"\xc1", b"x" * 10, b'{"publisher":1}'):
        assert broker.take(psu, 0, header=bad) == "forged"


def test_who_is_not_on_the_list_any_more_is_not_heard() -> None:
    psu, old = grant(), grant("psu-2", not_after=1000.0)
    broker = Broker(psu, old)
    assert broker.take(psu, 1) == ""
    assert broker.take(old, 1, topic=b"state.psu-2") == ""
    assert broker.take(old, 2, topic=b"state.psu-2", wall=1000.5) == "unknown"
    del broker.list[psu.user]
    broker.publications.list_changed()
    assert broker.take(psu, 2) == "unknown"
    broker.list[psu.user] = psu
    broker.publications.list_changed()
    assert broker.take(psu, 3) == ""


def test_who_forges_again_and_again_is_muted_for_a_while() -> None:
    mallory, psu = grant("mallory"), grant()
    broker = Broker(mallory, psu, mute_after=3, window_s=10.0, mute_s=20.0)

    def forge(now: float) -> str:
        return broker.take(mallory, 1, now=now)

    assert [forge(0.0), forge(1.0), forge(11.5), forge(12.0)] == ["forged"] * 4
    assert broker.publications.muted(12.0) == []
    assert forge(13.0) == "forged"
    assert broker.publications.muted(13.0) == [mallory.user]
    assert broker.take(mallory, 1, topic=b"state.mallory", now=14.0) == "muted"
    assert broker.take(psu, 1, now=14.0) == "", "nobody else is"
    assert broker.take(mallory, 1, topic=b"state.mallory", now=33.0) == ""
    assert broker.publications.refused["muted"] == 1
