"""What is made of libzmq's events."""

from __future__ import annotations

import re
from typing import Literal, get_args

import pytest
import zmq

from labmesh.errors import AuthenticationError, LabmeshError, LinkLost
from labmesh.transport.greeting import Found, Greeting
from labmesh.transport.keys import Mode
from labmesh.transport.monitor import Health, News

ENDPOINT = "tcp://lab-pc:5750"
BROKER = f"the broker at {ENDPOINT}"
OWN = "client:ana#1f3a56bc90de1278"
MECHANISM_MISMATCH = 0x11000002

Outcome = News | Literal["broken"] | None


class Watched:
    """A connecting socket to which things happen."""

    def __init__(self, mode: Mode = "open", *, more_keys: bool = False) -> None:
        self.health = Health(BROKER, mode=mode, own=OWN, more_keys=more_keys)
        self.now = 100.0

    def happens(self, event: int, *, value: int = 0, after_s: float = 0.0) -> Outcome:
        self.now += after_s
        return self.health.take(event, value, self.now)

    def handshake_breaks(self, *, after_s: float) -> Outcome:
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


KEY = "LMH_SECURITY=open|labmesh keys (init|join|invite)"
WORD = "set LMH_NETWORK_PASSWORD|LMH_NETWORK_PASSWORD and LMH_NETWORK must be the same"
AUTH, PROTOCOL = zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

#: mode here, what libzmq tells, with which value → kind of error, cause, mend
REFUSALS: list[tuple[Mode, int, int, type[LabmeshError], str, str]] = [
    ("keys", AUTH, 400, AuthenticationError, "not on the allow-list, was revoked", KEY),
    ("keys", AUTH, 400, AuthenticationError, r"client ana \(1f3a56bc90de1278\)", KEY),
    ("password", AUTH, 400, AuthenticationError, "wrong network password", WORD),
    ("open", AUTH, 400, AuthenticationError, "protected mode", WORD),
    ("open", AUTH, 400, AuthenticationError, "protected mode", "LMH_INSECURE=1"),
    ("keys", AUTH, 500, AuthenticationError, "authenticator failed", "restart it"),
    (
        *("keys", PROTOCOL, MECHANISM_MISMATCH, AuthenticationError),
        *("runs without keys and without a password", KEY),
    ),
    (
        *("password", PROTOCOL, MECHANISM_MISMATCH, AuthenticationError),
        *("runs without a password, but LMH_NETWORK_PASSWORD is set here", "unset it here"),
    ),
    (
        *("open", PROTOCOL, MECHANISM_MISMATCH, AuthenticationError),
        *("wants the network password, or a key", WORD),
    ),
    ("open", PROTOCOL, MECHANISM_MISMATCH, AuthenticationError, "or a key", KEY),
    (
        *("open", PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_UNSPECIFIED, LinkLost),
        *("does not speak labmesh", "5750"),
    ),
]


@pytest.mark.parametrize(("mode", "event", "value", "kind", "cause", "mend"), REFUSALS)
def test_each_refusal_has_its_own_sentence_and_the_socket_is_given_up(
    mode: Mode, event: int, value: int, kind: type[LabmeshError], cause: str, mend: str
) -> None:
    watched = Watched(mode)
    watched.happens(zmq.EVENT_CONNECTED)
    assert watched.happens(event, value=value) == "refused"
    assert type(watched.trouble) is kind
    assert BROKER in str(watched.trouble)
    assert re.search(cause, str(watched.trouble))
    assert re.search(mend, str(watched.trouble))


#: mode here, what is met → news, kind of error, cause, mend
MET: list[tuple[Mode, Greeting, News | None, type[LabmeshError], str, str]] = [
    (
        *("keys", Greeting("ZeroMQ", "CURVE"), "refused", AuthenticationError),
        *("has another key than the one that is trusted here", "trusted/broker.pub"),
    ),
    (
        *("password", Greeting("ZeroMQ", "CURVE"), "refused", AuthenticationError),
        *("has another network password .*, or keys in place", WORD),
    ),
    ("open", Greeting("ZeroMQ", "CURVE"), "refused", AuthenticationError, "wants the", WORD),
    ("keys", Greeting("ZeroMQ", "NULL"), "refused", AuthenticationError, "without keys", KEY),
    (
        *("password", Greeting("ZeroMQ", "NULL"), "refused", AuthenticationError),
        *("runs without a password", "unset it"),
    ),
    ("open", Greeting("ZeroMQ", "NULL"), "refused", LinkLost, "another one, such as", "5750"),
    ("keys", Greeting("ZeroMQ", "PLAIN"), "refused", LinkLost, "breaks every handshake", "5750"),
    ("open", Greeting("other", said="HTTP/1.1 400"), "refused", LinkLost, "says 'HTTP", "5750"),
    ("open", Greeting("closed"), None, LinkLost, "breaks every", "nothing behind it yet"),
    ("open", Greeting("silence"), None, LinkLost, "says nothing", "stands still"),
    ("open", Greeting("nobody"), None, LinkLost, "nobody answers", "is it running"),
    ("keys", Greeting("no way"), None, LinkLost, "nothing comes back", "firewall"),
    ("open", Greeting("no way", said="no route to host"), None, LinkLost, "no route", "firewall"),
    (
        *("password", Greeting("no such host", said="unknown"), None, LinkLost),
        *(r"host name 'lab-pc' .* is not known here \(DNS: unknown\)", "spelled right"),
    ),
    ("open", Greeting("no name server"), None, LinkLost, "no name server", "in numbers"),
]


@pytest.mark.parametrize(("mode", "met", "news", "kind", "cause", "mend"), MET)
def test_handshakes_that_break_at_once_again_and_again_are_explained_by_what_is_met(
    mode: Mode,
    met: Greeting,
    news: News | None,
    kind: type[LabmeshError],
    cause: str,
    mend: str,
) -> None:
    watched = Watched(mode)
    for _ in range(2):
        assert watched.handshake_breaks(after_s=0.01) is None
        assert watched.trouble is None
    assert watched.handshake_breaks(after_s=0.01) == "broken"
    assert watched.health.explain(met, ENDPOINT, broken=True) == news
    assert type(watched.trouble) is kind
    assert BROKER in str(watched.trouble)
    assert re.search(cause, str(watched.trouble))
    assert re.search(mend, str(watched.trouble))
    first = watched.trouble
    if news is None:
        watched.health.explain(met, ENDPOINT, broken=True)
        assert watched.trouble is first, "the same once more is no news"


def test_everything_that_can_be_met_has_a_sentence_of_its_own() -> None:
    texts = set()
    for found in get_args(Found):
        watched = Watched()
        watched.happens(zmq.EVENT_DISCONNECTED)
        watched.health.explain(Greeting(found), ENDPOINT, broken=False)
        texts.add(str(watched.trouble))
    assert len(texts) == len(get_args(Found))


@pytest.mark.parametrize(("mode", "mechanism"), [("open", "NULL"), ("keys", "CURVE")])
def test_who_is_slow_is_not_taken_for_another(mode: Mode, mechanism: str) -> None:
    watched = Watched(mode)
    watched.happens(zmq.EVENT_CONNECTED)
    met = Greeting("ZeroMQ", mechanism)
    assert watched.health.explain(met, ENDPOINT, broken=False) is None
    assert watched.trouble is None
    watched.happens(zmq.EVENT_DISCONNECTED)
    assert watched.health.explain(met, ENDPOINT, broken=False) == "refused"
    assert type(watched.trouble) is LinkLost, "one hang-up is no proof of another key"


def test_of_two_keys_that_a_server_may_have_the_other_one_is_tried() -> None:
    watched = Watched("keys", more_keys=True)
    met = Greeting("ZeroMQ", "CURVE")
    assert watched.health.explain(met, ENDPOINT, broken=True) == "refused"
    assert watched.health.is_other_key
    assert "the next one is tried" in str(watched.trouble)


def test_an_explanation_that_comes_too_late_is_none() -> None:
    watched = Watched("password")
    watched.happens(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    assert watched.health.explain(Greeting("ZeroMQ", "CURVE"), ENDPOINT, broken=True) is None
    assert watched.trouble is None


def test_while_the_greeting_explains_nothing_it_is_looked_at_again() -> None:
    watched = Watched()
    answers = [watched.handshake_breaks(after_s=0.01) for _ in range(6)]
    assert answers == [None, None, "broken"] * 2


def test_a_server_that_stands_still_is_not_taken_for_one_with_another_password() -> None:
    watched = Watched("password")
    for _ in range(20):
        assert watched.handshake_breaks(after_s=5.0) is None
    assert watched.trouble is None


def test_a_handshake_that_succeeds_wipes_the_broken_ones_out() -> None:
    watched = Watched("password")
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
