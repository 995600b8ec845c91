"""Events from a publisher through the broker's proxy to a subscriber, over every break."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import msgspec
import pytest
import zmq
from tests.support.hearing import Heard
from tests.support.peers import PROTECTED, endpoint_of, open_sockets, raw_socket, until
from tests.support.processes import free_ports
from tests.support.promptness import SLACK_S
from tests.support.wire_events import heard, published, stamped

from labmesh import DirectorClientAgent, DirectoryBroker
from labmesh.errors import Conflict, ProtocolError, TooLarge
from labmesh.protocol.addresses import Address
from labmesh.protocol.admission import MAX_TOPICS
from labmesh.protocol.codec import (
    decode_event,
    decode_stamp,
    decode_value,
    encode_event,
    encode_value,
)
from labmesh.protocol.event_frame import MAX_EVENT_BYTES, sealed
from labmesh.protocol.inbox import MAX_BYTES
from labmesh.protocol.messages import Event
from labmesh.transport.proxy import Proxy
from labmesh.transport.publisher import Publisher
from labmesh.transport.sockets import Sockets
from labmesh.transport.subscriber import Lost, Received, Subscriber

LIMIT_S = 20.0
ANYWHERE = "tcp://127.0.0.1:*"


@contextmanager
def proxying(ports: list[int], epoch: str = "b1") -> Iterator[Proxy]:
    """The event path of a broker, at these two ports."""
    with open_sockets(name="broker") as sockets:
        xsub, xpub = (Address("127.0.0.1", port) for port in ports)
        proxy = Proxy(sockets, xsub, xpub, epoch=epoch)
        try:
            yield proxy
        finally:
            proxy.close()


class Ear:
    """A subscriber that remembers what it was given."""

    def __init__(self, sockets: Sockets, port: int, *prefixes: str) -> None:
        self.received: list[Received] = []
        self.lost: list[Lost] = []
        self.links: list[bool] = []
        self._tokens = 0
        self.subscriber = Subscriber(
            sockets,
            f"tcp://127.0.0.1:{port}",
            deliver=self._take,
            on_link=self.links.append,
        )
        for each in prefixes:
            self.subscriber.subscribe(each)

    def _take(self, batch: list[Received | Lost]) -> None:
        self.received += [each for each in batch if isinstance(each, Received)]
        self.lost += [each for each in batch if isinstance(each, Lost)]

    def values(self, topic: str = "") -> list[Any]:
        """The payloads under a topic (or all), in order of arrival."""
        return [
            decode_value(each.payload)
            for each in self.received
            if each.topic.startswith(topic or "state.")
        ]

    async def in_force(self, proxy: Proxy) -> None:
        """Wait until all that was subscribed to so far will come."""
        self._tokens += 1
        token = f"mark.t{self._tokens}"
        self.subscriber.subscribe(token)
        sequence = 0

        def marked() -> bool:
            nonlocal sequence
            sequence += 1
            event = Event(publisher="broker", epoch="b", sequence=sequence, time=time.time())
            proxy.publish(token, encode_event(event), encode_value(None))
            return any(each.topic == token for each in self.received)

        await until(marked, LIMIT_S)
        self.subscriber.unsubscribe(token)


@pytest.fixture
def ports() -> list[int]:
    return free_ports(2)


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    with open_sockets(name="node") as opened:
        yield opened


@asynccontextmanager
async def listening(sockets: Sockets, ports: list[int], *prefixes: str) -> AsyncIterator[Ear]:
    ear = Ear(sockets, ports[1], *prefixes)
    try:
        yield ear
    finally:
        ear.subscriber.close()


@asynccontextmanager
async def publishing(
    sockets: Sockets, ports: list[int], node_id: str = "Inst-0", **options: Any
) -> AsyncIterator[Publisher]:
    publisher = Publisher(
        sockets, f"tcp://127.0.0.1:{ports[0]}", node_id=node_id, epoch="e1", **options
    )
    try:
        yield publisher
    finally:
        publisher.close()


# ── the plain path ──────────────────────────────────────────────────────────────────────────────


async def test_the_very_first_event_of_a_publisher_arrives(
    sockets: Sockets, ports: list[int]
) -> None:
    with proxying(ports) as proxy:
        async with listening(sockets, ports, "state.") as ear:
            await ear.in_force(proxy)
            for number in range(30):
                sent: list[bool] = []

                def first(number: int = number, sent: list[bool] = sent) -> None:
                    sent.append(publisher.publish("state", "state", number))

                async with publishing(sockets, ports, f"Inst-{number}", on_up=first) as publisher:
                    await until(lambda: len(ear.values()) == number + 1)  # noqa: B023
                assert sent == [True]
    assert ear.values() == list(range(30))
    assert {each.event.sequence for each in ear.received if each.topic.startswith("state")} == {1}
    assert {each.missed for each in ear.received} == {0}


async def test_an_event_carries_who_when_and_the_brokers_stamp(
    sockets: Sockets, ports: list[int]
) -> None:
    with proxying(ports, epoch="b7"), raw_socket(zmq.SUB, f"tcp://127.0.0.1:{ports[1]}") as raw:
        raw.subscribe(b"event.")
        async with publishing(sockets, ports) as publisher:
            await until(lambda: publisher.up)
            began = time.time()
            # A raw socket cannot tell when its subscription is in force.
            await until(
                lambda: publisher.publish("event", "alarm", {"limit": 5}) and raw.poll(1), LIMIT_S
            )
        name, header, payload, stamp = heard(raw.recv_multipart())
    event = decode_event(header)
    assert (name, event.publisher, event.epoch, event.kind) == (
        b"event.Inst-0",
        "Inst-0",
        "e1",
        "alarm",
    )
    assert began <= event.time <= decode_stamp(stamp).time <= time.time()
    assert decode_stamp(stamp).broker == "b7"
    assert decode_value(payload) == {"limit": 5}


async def test_what_is_too_large_or_cannot_be_encoded_is_refused_here(
    sockets: Sockets, ports: list[int]
) -> None:
    async with publishing(sockets, ports) as publisher:
        with pytest.raises(TooLarge, match="upload large"):
            publisher.publish("state", "state", bytes(MAX_EVENT_BYTES))
        with pytest.raises(ProtocolError, match="set"):
            publisher.publish("state", "state", {1})
        assert not publisher.publish("state", "state", 1), "nobody is there"


async def test_a_closed_publisher_publishes_nothing_and_closes_twice(
    sockets: Sockets, ports: list[int]
) -> None:
    with proxying(ports):
        async with publishing(sockets, ports) as publisher:
            await until(lambda: publisher.up)
        publisher.close()
        assert not publisher.publish("state", "state", 1)


async def test_a_port_that_is_taken_is_named(ports: list[int]) -> None:
    with proxying(ports), open_sockets() as others:
        free = free_ports(1)[0]
        for taken in ([ports[0], free], [free, ports[1]]):
            addresses = [Address("127.0.0.1", each) for each in taken]
            with pytest.raises(Conflict, match="already in use"):
                Proxy(others, *addresses, epoch="b2")


async def test_a_subscriber_that_does_not_read_costs_the_others_nothing(
    sockets: Sockets, ports: list[int]
) -> None:
    count = 20_000
    with proxying(ports) as proxy, raw_socket(zmq.SUB) as stuck:
        stuck.rcvhwm = 1
        stuck.connect(f"tcp://127.0.0.1:{ports[1]}")
        stuck.subscribe(b"state.")
        async with (
            listening(sockets, ports, "state.") as ear,
            publishing(sockets, ports) as publisher,
        ):
            await until(lambda: publisher.up)
            await ear.in_force(proxy)
            payload = encode_value("x" * 200)
            for sent in range(1, count + 1):
                assert publisher.publish_encoded("state", "tick", payload)
                if sent % 500 == 0:
                    await until(lambda sent=sent: len(ear.values()) == sent, LIMIT_S)
    assert [each.event.sequence for each in ear.received if each.topic == "state.Inst-0"] == list(
        range(1, count + 1)
    )


async def test_a_loop_that_stands_still_gets_the_newest_of_each_state(
    sockets: Sockets, ports: list[int]
) -> None:
    """The socket is read meanwhile, by a thread."""
    with proxying(ports) as proxy:
        async with listening(sockets, ports, "state.", "dataset.") as ear:
            await ear.in_force(proxy)
            inbox = ear.subscriber._arrivals
            event = Event(publisher="bank-0", epoch="e1", sequence=1, time=0.0, kind="dataset")
            proxy.publish("dataset.bank-0", encode_event(event), encode_value("stored"))
            sequence = 0
            while not inbox.conflated:
                for _ in range(100):
                    sequence += 1
                    event = Event(publisher="x", epoch="e1", sequence=sequence, time=0.0)
                    proxy.publish("state.Inst-0", encode_event(event), encode_value(sequence))
            await until(lambda: ear.values()[-1:] == [sequence])
    assert ear.values("dataset.") == ["stored"]
    assert len(ear.values()) + inbox.conflated == sequence
    assert inbox.lost == 0


async def test_a_loop_that_stands_still_is_told_exactly_what_found_no_room(
    sockets: Sockets,
) -> None:
    """Whatever kind an event says that it is of: only states replace each other."""
    large, small = 320, 12_000
    payload = encode_value(bytes(250_000))
    async with hostile_broker(sockets) as (broker, ear):
        # The loop stands still: nothing is awaited until all was read.
        for number in range(1, small + 1):
            header = event_header(sequence=number, kind="state")
            broker.send_multipart(stamped([b"event.psu-1", header, encode_value(number)]))
        for number in range(1, large + 1):
            header = event_header(sequence=number)
            broker.send_multipart(stamped([b"event.cam", header, payload]))
        topics = ear.subscriber._tracker._topics
        deadline = time.monotonic() + LIMIT_S
        while "event.cam" not in topics or topics["event.cam"].current.newest < large:
            assert time.monotonic() < deadline
        assert ear.subscriber._arrivals._inbox._bytes <= MAX_BYTES
        await until(lambda: ear.received and ear.received[-1].event.sequence == large)
    for topic, count in (("event.psu-1", small), ("event.cam", large)):
        came = [each.event.sequence for each in ear.received if each.topic == topic]
        [lost] = [each for each in ear.lost if each.topic == topic]
        assert (lost.first, lost.last, lost.missed) == (1, lost.missed, count - len(came))
        assert came == list(range(lost.missed + 1, count + 1))


# ── breaks ──────────────────────────────────────────────────────────────────────────────────────


async def test_after_a_restart_of_the_broker_events_flow_again_and_gaps_are_counted(
    sockets: Sockets, ports: list[int]
) -> None:
    ups: list[float] = []
    recovered: list[float] = []
    published = 0
    async with (
        listening(sockets, ports, "state.") as ear,
        publishing(sockets, ports, on_up=lambda: ups.append(time.monotonic())) as publisher,
    ):
        for number in range(4):
            with proxying(ports, epoch=f"b{number}") as proxy:
                began = time.monotonic()
                await until(lambda: publisher.up, LIMIT_S)
                await until(lambda number=number: ear.links.count(True) == number + 1, LIMIT_S)
                recovered.append(time.monotonic() - began)
                await ear.in_force(proxy)
                for _ in range(3):
                    published += 1
                    assert publisher.publish("state", "state", published)
                await until(lambda published=published: ear.values()[-1:] == [published])
            await until(lambda: not publisher.up)
            for _ in range(10 * number):
                published += 1
                assert not publisher.publish("state", "state", published)
    print(f"events again after {', '.join(f'{each:.2f}' for each in recovered)} s")
    assert len(ups) == 4
    assert max(recovered) < 2.5 + SLACK_S
    states = [each for each in ear.received if each.topic == "state.Inst-0"]
    assert [each.missed for each in states] == [0, 0, 0, 0, 0, 0, 10, 0, 0, 20, 0, 0]
    assert [each.event.sequence for each in states] == [
        *(1, 2, 3, 4, 5, 6),
        *(17, 18, 19, 40, 41, 42),
    ], "nothing of an outage arrives after it"


async def test_a_publisher_notices_a_restart_that_its_loop_has_slept_through(
    sockets: Sockets, ports: list[int]
) -> None:
    async with (
        listening(sockets, ports, "state.") as ear,
        publishing(sockets, ports) as publisher,
    ):
        with proxying(ports):
            await until(lambda: publisher.up)
        with proxying(ports, epoch="b2") as proxy:
            # The fault itself: the loop stands still, libzmq does not.
            time.sleep(0.7)  # noqa: ASYNC251
            await ear.in_force(proxy)
            await until(
                lambda: publisher.publish("state", "state", 1) and bool(ear.values()), LIMIT_S
            )


@pytest.mark.parametrize("restarts", [2, pytest.param(20, marks=pytest.mark.soak)])
async def test_3000_subscriptions_are_all_back_after_each_restart(
    sockets: Sockets, ports: list[int], restarts: int
) -> None:
    topics = [f"state.Inst-{number}" for number in range(3000)]
    missing = 0
    async with listening(sockets, ports, *topics) as ear:
        for number in range(restarts + 1):
            with proxying(ports, epoch=f"b{number}") as proxy:
                await until(lambda number=number: ear.links.count(True) == number + 1, LIMIT_S)
                await ear.in_force(proxy)
                event = Event(publisher="x", epoch=f"e{number}", sequence=1, time=float(number))
                for topic in topics:
                    proxy.publish(topic, encode_event(event), encode_value(number))
                # What is subscribed to last, which is in force after all the others.
                await until(lambda number=number: ear.values()[-1:] == [number], LIMIT_S)
                last = f"state.Inst-{len(topics) - 1}"
                await until(lambda last=last: ear.received[-1].topic == last, LIMIT_S)
                missing += len(topics) - ear.values().count(number)
    print(f"FC9: {len(topics)} subscriptions, {restarts} restarts: missing {missing}")
    assert missing == 0


async def test_a_prefix_that_is_asked_for_twice_is_taken_back_once(
    sockets: Sockets, ports: list[int]
) -> None:
    with proxying(ports) as proxy:
        async with listening(sockets, ports, "state.", "state.", "event.") as ear:
            await ear.in_force(proxy)
            ear.subscriber.unsubscribe("state.")
            ear.subscriber.unsubscribe("never asked for")
            await ear.in_force(proxy)
            event = Event(publisher="x", epoch="e1", sequence=1, time=0.0)
            proxy.publish("state.Inst-0", encode_event(event), encode_value(1))
            proxy.publish("event.Inst-0", encode_event(event), encode_value(2))
            await until(lambda: ear.values("event."))
            assert ear.values("state.") == []


# ── late joiners ────────────────────────────────────────────────────────────────────────────────


async def test_a_late_joiner_gets_the_last_state_of_every_relay() -> None:
    """Also where they fill several pages."""
    count = 40
    broker = DirectoryBroker(ANYWHERE, ANYWHERE, ANYWHERE, security=PROTECTED)
    with ExitStack() as stack, open_sockets(name="relays") as sockets:
        async with broker:
            publishers = [
                Publisher(sockets, endpoint_of(broker.xsub), node_id=f"Inst-{number}", epoch="e1")
                for number in range(count)
            ]
            for each in publishers:
                stack.callback(each.close)
            await until(lambda: all(each.up for each in publishers))
            for step in ("earlier", "last"):
                for number, each in enumerate(publishers):
                    state = {"number": number, "step": step, "trace": "x" * 10_000}
                    assert each.publish("state", "state", state)
            await until(lambda: broker._proxy.events.forwarded >= 2 * count)

            heard = Heard()
            async with DirectorClientAgent(broker_rpc=str(broker.rpc)) as client:
                client.on_state(heard)
                states = dict(await heard.count(count))
    assert set(states) == {f"Inst-{number}" for number in range(count)}
    assert {each["step"] for each in states.values()} == {"last"}


# ── bad input ───────────────────────────────────────────────────────────────────────────────────


def event_header(**fields: Any) -> bytes:
    known = {"publisher": "Inst-0", "epoch": "e1", "sequence": 1, "time": 0.0}
    return msgspec.msgpack.encode({**known, **fields})


GOOD = encode_value({"voltage": 2.5})
FORGED: dict[str, list[bytes]] = {
    "a topic alone": [b"state.Inst-0"],
    "no room for a length": [b"state.Inst-0\0\1"],
    "a header beyond the end": [b"state.Inst-0\0\xff\xff" + event_header()],
    "the parts as two frames": [b"state.Inst-0", event_header()],
    "a second frame": [b"state.Inst-0", event_header(), GOOD, b"stamp"],
    "a second and a third": [b"state.Inst-0", event_header(), GOOD, b"", b""],
    "a thousand frames": [b"state.Inst-0", b"x", *[b"x"] * 998],
    "an empty topic": [b"", event_header(), GOOD],
    "one empty frame": [b""],
    "no family": [b"Inst-0", event_header(), GOOD],
    "an unknown family": [b"states.Inst-0", event_header(), GOOD],
    "a system family": [b"$sys.Inst-0", event_header(), GOOD],
    "the broker's presence": [b"presence.Inst-0", event_header(), GOOD],
    "the broker's mark": [b"mark.t1", event_header(), GOOD],
    "no id": [b"state.", event_header(), GOOD],
    "wildcards": [b"state.*", event_header(), GOOD],
    "a path": [b"state.../../x", event_header(), GOOD],
    "a line end": [b"state.Inst-0\n", event_header(), GOOD],
    "looks like a subscription": [b"\x01state.", event_header(), GOOD],
    "looks like the end of one": [b"\x00state.", event_header(), GOOD],
    "not UTF-8": [b"state.\xff\xfe", event_header(), GOOD],
    "full-width letters": ["state.ａ".encode(), event_header(), GOOD],  # noqa: RUF001
    "a topic of 64 kB": [b"state." + b"x" * 65_536, event_header(), GOOD],
    "a header of 2 kB": [b"state.Inst-0", event_header(kind="x" * 2000), GOOD],
    "a payload of 300 kB": [b"state.Inst-0", event_header(), bytes(300_000)],
}


async def test_what_nobody_may_publish_is_dropped_by_the_broker_and_counted(
    sockets: Sockets, ports: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with proxying(ports) as proxy, raw_socket(zmq.XPUB, f"tcp://127.0.0.1:{ports[0]}") as forger:
        async with listening(sockets, ports, "") as ear:
            await until(lambda: forger.getsockopt(zmq.EVENTS) & zmq.POLLIN)
            assert forger.recv() == b"\x01"
            await ear.in_force(proxy)
            before = len(ear.received)
            for frames in FORGED.values():
                forger.send_multipart(published(frames))
            forger.send_multipart(published([b"state.Inst-0", event_header(), GOOD]))
            await until(lambda: ear.values() == [{"voltage": 2.5}])
            topics = {each.topic for each in ear.received[before:]}
            assert topics - {"mark.t1"} == {"state.Inst-0"}
            assert proxy.events.dropped == len(FORGED)
            # A frame over the limit of the socket ends the connection, and only that.
            monitor = forger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
            try:
                forger.send_multipart(
                    published([b"state.Inst-0", event_header(), bytes(2 * 2**20)])
                )
                await until(lambda: monitor.getsockopt(zmq.EVENTS) & zmq.POLLIN)
            finally:
                forger.disable_monitor()
                monitor.close()
            async with publishing(sockets, ports, "Inst-1") as publisher:
                await until(lambda: publisher.up)
                publisher.publish("state", "state", "served")
                await until(lambda: ear.values()[-1:] == ["served"])
    lines = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(lines) == 1, "a line a second, not one each"
    assert not proxy._thread.is_alive()


HOSTILE: dict[str, list[bytes]] = {
    "an empty frame": [b""],
    "no stamp": [b"state.a"],
    "a stamp longer than all": [b"state.a\xff\xff"],
    "no event before the stamp": [b"state.a" + sealed(b"stamp")],
    "two frames without a stamp": [b"state.a", event_header()],
    "three frames": [b"state.a", event_header(), GOOD, b"", b""],
    "a thousand frames": [b"state.a"] + [b"x"] * 999,
    "an empty header": [b"state.a", b"", GOOD],
    "no header": [b"state.a", b"junk", GOOD],
    "a header that is a list": [b"state.a", b"\x93\x01\x02\x03", GOOD],
    "half a header": [b"state.a", event_header()[:-3], GOOD],
    "no sequence": [b"state.a", msgspec.msgpack.encode({"publisher": "a"}), GOOD],
    "sequence -1": [b"state.a", event_header(sequence=-1), GOOD],
    "sequence 2**64 - 1": [b"state.a", event_header(sequence=2**64 - 1), GOOD],
    "sequence '5'": [b"state.a", event_header(sequence="5"), GOOD],
    "sequence 1.5": [b"state.a", event_header(sequence=1.5), GOOD],
    "sequence NaN": [b"state.a", event_header(sequence=float("nan")), GOOD],
    "publisher 5": [b"state.a", event_header(publisher=5), GOOD],
    "an epoch of 1 kB": [b"state.a", event_header(epoch="x" * 1000), GOOD],
    "time 'now'": [b"state.a", event_header(time="now"), GOOD],
}


@asynccontextmanager
async def hostile_broker(sockets: Sockets) -> AsyncIterator[tuple[zmq.Socket[bytes], Ear]]:
    """An XPUB that sends what a test wants, and a subscriber to everything of it."""
    with raw_socket(zmq.XPUB) as broker:
        broker.sndhwm = 0
        port = broker.bind_to_random_port("tcp://127.0.0.1")
        async with listening(sockets, [0, port], "") as ear:
            await until(lambda: broker.getsockopt(zmq.EVENTS) & zmq.POLLIN)
            broker.recv()
            yield broker, ear


async def test_a_subscriber_drops_and_counts_what_it_cannot_read(
    sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    async with hostile_broker(sockets) as (broker, ear):
        for frames in HOSTILE.values():
            broker.send_multipart(stamped(frames))
        broker.send_multipart(stamped([b"state.a", event_header(), GOOD]))
        await until(lambda: ear.received)
        assert [each.topic for each in ear.received] == ["state.a"]
        assert ear.subscriber.dropped == len(HOSTILE)
    assert len(caplog.records) == 1


async def test_repeats_and_events_of_before_are_dropped_and_a_jump_is_a_gap(
    sockets: Sockets,
) -> None:
    async with hostile_broker(sockets) as (broker, ear):
        for sequence in (5, 5, 4, 6, 1, 10, 9, 2**53):
            broker.send_multipart(stamped([b"state.a", event_header(sequence=sequence), GOOD]))
        await until(lambda: ear.received and ear.received[-1].event.sequence == 2**53)
    assert [(each.event.sequence, each.missed) for each in ear.received] == [
        (5, 0),
        (6, 0),
        (10, 3),
        (2**53, 2**53 - 11),
    ]


async def test_what_a_topic_that_is_not_text_brings_is_passed_on_as_something_harmless(
    sockets: Sockets,
) -> None:
    async with hostile_broker(sockets) as (broker, ear):
        broker.send_multipart(stamped([b"\xff\xfe", event_header(), GOOD]))
        await until(lambda: ear.received)
        assert ear.received[0].topic == "\ufffd\ufffd"


def test_a_subscriber_whose_loop_was_closed_can_still_be_closed(ports: list[int]) -> None:
    made: list[Callable[[], None]] = []
    with open_sockets() as sockets, proxying(ports):

        async def subscribe() -> None:
            ear = Ear(sockets, ports[1], "state.")
            made.append(ear.subscriber.close)
            await until(lambda: ear.links)

        asyncio.run(subscribe())
        made[0]()
        made[0]()


# ── what the broker holds for others ────────────────────────────────────────────────────────────


async def test_a_bomb_of_subscriptions_is_refused_and_harms_nobody(
    sockets: Sockets, ports: list[int]
) -> None:
    with proxying(ports) as proxy:
        async with listening(sockets, ports, "state.") as ear:
            with raw_socket(zmq.SUB) as bomber:
                bomber.sndhwm = 0
                bomber.connect(f"tcp://127.0.0.1:{ports[1]}")
                await ear.in_force(proxy)
                for number in range(20_000):
                    bomber.setsockopt(zmq.SUBSCRIBE, b"state.bomb-%d" % number)
                most = 0

                def is_ended() -> bool:
                    nonlocal most
                    most = max(most, proxy.subscriptions)
                    return proxy.subscriptions_refused > 1000 and proxy.subscriptions < 10

                ended = "its connection was ended, and what it was subscribed to is forgotten"
                await until(is_ended, LIMIT_S, ended)
                assert most <= MAX_TOPICS + 10
                await ear.in_force(proxy)
            gone = "the topics of the one who left"
            await until(lambda: proxy.subscriptions == 0, LIMIT_S, gone)


async def test_events_of_the_recent_past_can_be_had_again(
    sockets: Sockets, ports: list[int]
) -> None:
    with proxying(ports) as proxy:
        async with publishing(sockets, ports) as publisher:
            await until(lambda: publisher.up)
            for number in range(5):
                publisher.publish("event", "alarm", number)
            await until(lambda: proxy.events.forwarded == 5)
            events, more = proxy.events.replay("event.Inst-0", "e1", 2, 3)
            assert [decode_value(each.payload) for each in events] == [1, 2]
            assert not more
