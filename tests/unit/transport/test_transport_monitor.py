"""What is made of libzmq's events."""

from __future__ import annotations

from typing import Literal

import pytest
import zmq

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost
from labmesh.transport.monitor import Health, News

BROKER = "the broker at tcp://10.0.0.5:5750"
MECHANISM_MISMATCH = 0x11000002

Found = News | Literal["broken"] | None


class Watched:
    """A connecting socket to which things happen."""

    def __init__(self, *, encrypted: bool = False) -> None:
        self.health = Health(BROKER, encrypted=encrypted)
        self.now = 100.0

    def happens(self, event: int, *, value: int = 0, after_s: float = 0.0) -> Found:
        self.now += after_s
        return self.health.take(event, value, self.now)

    def handshake_breaks(self, *, after_s: float) -> Found:
        assert self.happens(zmq.EVENT_CONNECTED, after_s=0.1) is None
        news = self.happens(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, after_s=after_s)
        assert self.happens(zmq.EVENT_DISCONNECTED) is None
        return news

    @property
    def trouble(self) -> LabmeshError | None:
        return self.health.trouble


def test_a_link_goes_up_and_down() -> None:
    watched = Watched()
    assert watched.happens(zmq.EVENT_CONNECTED) is None
    assert not watched.health.up
    assert watched.happens(zmq.EVENT_HANDSHAKE_SUCCEEDED) == "up"
    assert watched.health.up
    assert watched.happens(zmq.EVENT_DISCONNECTED) == "down"
    assert not watched.health.up
    assert watched.trouble is None


def test_a_connection_that_never_was_up_does_not_go_down() -> None:
    watched = Watched()
    watched.happens(zmq.EVENT_CONNECTED)
    assert watched.happens(zmq.EVENT_DISCONNECTED) is None


def test_nobody_there_is_said_once_and_forgotten_when_there_is() -> None:
    watched = Watched()
    assert watched.happens(zmq.EVENT_CONNECT_RETRIED) is None
    first = watched.trouble
    assert type(first) is LinkLost
    assert f"nobody answers at {BROKER}" in str(first)
    watched.happens(zmq.EVENT_CONNECT_RETRIED)
    assert watched.trouble is first
    watched.happens(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    assert watched.trouble is None


def test_a_reason_is_not_replaced_by_nobody_being_there_later() -> None:
    watched = Watched()
    watched.happens(zmq.EVENT_HANDSHAKE_FAILED_AUTH, value=400)
    watched.happens(zmq.EVENT_CONNECT_RETRIED)
    assert isinstance(watched.trouble, AuthenticationError)


@pytest.mark.parametrize(
    ("encrypted", "event", "value", "kind", "says"),
    [
        (True, zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400, AuthenticationError, "wrong network password"),
        (False, zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400, AuthenticationError, "protected mode"),
        (
            True,
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            MECHANISM_MISMATCH,
            AuthenticationError,
            "runs without a password, but LMH_NETWORK_PASSWORD is set here",
        ),
        (
            False,
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            MECHANISM_MISMATCH,
            AuthenticationError,
            "wants the network password",
        ),
        (
            False,
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            zmq.PROTOCOL_ERROR_ZMTP_UNSPECIFIED,
            LinkLost,
            "does not speak labmesh",
        ),
    ],
)
def test_each_refusal_has_its_own_sentence_and_the_socket_is_given_up(
    encrypted: bool, event: int, value: int, kind: type[LabmeshError], says: str
) -> None:
    watched = Watched(encrypted=encrypted)
    watched.happens(zmq.EVENT_CONNECTED)
    assert watched.happens(event, value=value) == "refused"
    assert type(watched.trouble) is kind
    assert BROKER in str(watched.trouble)
    assert says in str(watched.trouble)


@pytest.mark.parametrize(
    ("encrypted", "greeting", "news", "kind", "says"),
    [
        (True, "CURVE", "refused", AuthenticationError, "has another network password"),
        (True, "NULL", "refused", AuthenticationError, "runs without a password"),
        (True, "", None, LinkLost, "another program using this port"),
        (True, "PLAIN", None, LinkLost, "another program using this port"),
        (False, "CURVE", "refused", AuthenticationError, "wants the network password"),
        (False, "NULL", None, LinkLost, "another program using this port"),
        (False, "", None, LinkLost, "nothing behind it yet"),
    ],
)
def test_handshakes_that_break_at_once_again_and_again_are_explained_by_the_greeting(
    encrypted: bool, greeting: str, news: News | None, kind: type[LabmeshError], says: str
) -> None:
    watched = Watched(encrypted=encrypted)
    for _ in range(2):
        assert watched.handshake_breaks(after_s=0.01) is None
        assert watched.trouble is None
    assert watched.handshake_breaks(after_s=0.01) == "broken"
    assert watched.health.explain(greeting) == news
    assert type(watched.trouble) is kind
    assert BROKER in str(watched.trouble)
    assert says in str(watched.trouble)


def test_an_explanation_that_comes_too_late_is_none() -> None:
    watched = Watched(encrypted=True)
    watched.happens(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    assert watched.health.explain("CURVE") is None
    assert watched.trouble is None


def test_while_the_greeting_explains_nothing_it_is_looked_at_again() -> None:
    watched = Watched()
    answers = [watched.handshake_breaks(after_s=0.01) for _ in range(6)]
    assert answers == [None, None, "broken"] * 2


def test_a_server_that_stands_still_is_not_taken_for_one_with_another_password() -> None:
    watched = Watched(encrypted=True)
    for _ in range(20):
        assert watched.handshake_breaks(after_s=5.0) is None
    assert watched.trouble is None


def test_a_handshake_that_succeeds_wipes_the_broken_ones_out() -> None:
    watched = Watched(encrypted=True)
    for _ in range(2):
        watched.handshake_breaks(after_s=0.01)
    watched.happens(zmq.EVENT_CONNECTED)
    watched.happens(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    watched.happens(zmq.EVENT_DISCONNECTED)
    for _ in range(2):
        assert watched.handshake_breaks(after_s=0.01) is None
    assert watched.trouble is None


def test_other_events_say_nothing() -> None:
    watched = Watched()
    assert watched.happens(zmq.EVENT_CONNECT_DELAYED) is None
    assert (watched.health.up, watched.trouble) == (False, None)
