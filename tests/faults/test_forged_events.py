"""Forged and replayed events in mode *keys*: nobody hears them, and honest ones all arrive.

    pytest tests/faults/test_forged_events.py -m "soak or not soak" -s

prints how many were tried and delivered, and what became of the honest publisher's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import zmq
from tests.support.keyed import KeyedLab, keyed_socket
from tests.support.peers import until
from tests.support.places import Places
from tests.support.promptness import SLACK_S
from tests.support.wire_events import heard, published

from labmesh.protocol.codec import decode_event, encode_event, encode_value
from labmesh.protocol.messages import Event

LIMIT_S = 120.0
HONEST, RELAY, BANK, REVOKED = "psu-1", "mallory", "bad-bank", "evil"
FORGED = encode_value("forged")
Frames = Sequence[bytes]


class Listener:
    """Whatever the broker delivers, under whatever topic; read by a thread."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._ending = threading.Event()
        self.heard: list[list[bytes]] = []
        self._thread = threading.Thread(target=self._read, name="listener")
        self._thread.start()

    def _read(self) -> None:
        while not self._ending.is_set():
            if self._socket.poll(20):
                self.heard.append(heard(self._socket.recv_multipart()))

    def close(self) -> None:
        self._ending.set()
        self._thread.join()

    def marks(self, topic: str) -> list[tuple[str, int]]:
        """Epoch and sequence of what came under a topic."""
        events = [decode_event(each[1]) for each in self.heard if each[0] == topic.encode()]
        return [(each.epoch, each.sequence) for each in events]


@contextmanager
def listening(lab: KeyedLab, endpoint: str) -> Iterator[Listener]:
    with keyed_socket(zmq.SUB, endpoint, lab.pairs["vera"], lab.broker_pair.public) as socket:
        socket.subscribe(b"")
        listener = Listener(socket)
        try:
            yield listener
        finally:
            listener.close()


def header(publisher: str, sequence: int, epoch: str = "e2") -> bytes:
    return encode_event(
        Event(publisher=publisher, epoch=epoch, sequence=sequence, time=time.time())
    )


def attacks(own: str, captured: Frames) -> list[Callable[[int], Frames]]:
    """What a member with a key of its own may try, each numbered."""
    mine = f"state.{own}" if own != BANK else f"dataset.{own}"
    return [
        lambda n: (f"state.{HONEST}".encode(), header(HONEST, n), FORGED),
        lambda n: (f"state.{HONEST}".encode(), header(own, n), FORGED),
        lambda n: (f"event.{HONEST}".encode(), header(HONEST, 10**6 + n), FORGED),
        lambda n: (f"log.{HONEST}".encode(), header(HONEST, n), FORGED),
        lambda n: (f"tail.{HONEST}".encode(), header(HONEST, n), FORGED),
        lambda n: (b"dataset.bank-0", header("bank-0", n), FORGED),
        lambda n: (f"presence.{HONEST}".encode(), header("broker", n), FORGED),
        lambda n: (b"mark.t1", header("broker", n), FORGED),
        lambda n: tuple(captured),
        lambda n: (mine.encode(), header(HONEST, 10**6 + n), FORGED),
        lambda n: (mine.encode(), header(own, 1), FORGED),
        lambda n: (mine.encode(), header(own, 0), FORGED),
        lambda n: (mine.encode(), header(own, 10**6 + n, epoch="e1"), FORGED),
        lambda n: (mine.encode(), b"\xc1" + header(own, n), FORGED),
        lambda n: (mine.encode(), header(own, 10**6 + n), FORGED, FORGED),
        lambda n: (mine.encode(),),
        lambda n: (mine.encode(), header(own, 10**6 + n), FORGED * 2**16),
        lambda n: (f"{mine}/../x".encode(), header(own, 10**6 + n), FORGED),
    ]


async def admitted(socket: zmq.Socket[bytes]) -> None:
    """The broker has subscribed, so that nothing is lost at the start."""
    await until(lambda: socket.poll(0), what="let in")
    assert socket.recv() == b"\x01"


async def first_events(socket: zmq.Socket[bytes], own: str) -> None:
    """Two starts of a node of its own, of which the first must not come back."""
    topic = f"state.{own}" if own != BANK else f"dataset.{own}"
    for epoch in ("e1", "e2"):
        socket.send_multipart(
            published([topic.encode(), header(own, 1, epoch), encode_value("good")])
        )


@pytest.mark.parametrize("mutes", [False, True], ids=["each is judged", "they are muted"])
@pytest.mark.parametrize("tries", [2000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_nobody_hears_what_was_forged_or_replayed(
    places: Places, tries: int, mutes: bool
) -> None:
    lab = KeyedLab(places.folder / "keys")
    honest = lab.admit(HONEST, "relay")
    for name, role in ((RELAY, "relay"), (BANK, "bank"), (REVOKED, "relay"), ("vera", "viewer")):
        lab.admit(name, role)
    async with (
        places.broker(security=lab.broker) as broker,
        places.relay(HONEST, security=honest, state_interval=0.5) as relay,
    ):
        proxy = broker._proxy
        assert proxy._publications is not None
        if not mutes:
            proxy._publications._mute_after = 10**9
        await relay.ready
        with ExitStack() as opened:
            listener = opened.enter_context(listening(lab, str(broker.xpub)))
            attackers = {
                name: opened.enter_context(
                    keyed_socket(
                        zmq.XPUB, str(broker.xsub), lab.pairs[name], lab.broker_pair.public
                    )
                )
                for name in (RELAY, BANK, REVOKED)
            }
            # Not before it hears something does it hear everything.
            await until(lambda: listener.marks(f"state.{HONEST}"), 10.0)
            for name, socket in attackers.items():
                await admitted(socket)
                await first_events(socket, name)
            await until(lambda: relay._publisher is not None and relay._publisher.up)
            published = 0
            while not listener.marks(f"event.{HONEST}"):
                published += await relay.publish("message", published)
                await asyncio.sleep(0.01)
            captured = next(each for each in listener.heard if each[0] == b"event.psu-1")[:3]
            lab.revoke(REVOKED)
            guard = broker._sockets.security.guard
            assert guard is not None
            evil = lab.grant(REVOKED, "relay").user
            await until(lambda: guard.grant_of(evil) is None, 1.0 + SLACK_S, "revoked")
            dropped = proxy.events.dropped
            began = time.monotonic()
            forging = [
                asyncio.create_task(
                    asyncio.to_thread(attack, socket, name, captured, tries // len(attackers))
                )
                for name, socket in attackers.items()
            ]
            done = len(attackers) * (tries // len(attackers))
            while proxy.events.dropped < dropped + done:
                assert time.monotonic() < began + LIMIT_S, proxy.refused
                published += await relay.publish("message", published)
                await asyncio.sleep(0.001)
            took_s = time.monotonic() - began
            await asyncio.gather(*forging)
            last = published
            await until(
                lambda: listener.marks(f"event.{HONEST}")[-1][1] == last, 10.0, "the last one"
            )
        topics = Counter(each[0].decode() for each in listener.heard)
        delivered = [each for each in listener.heard if FORGED in each[2]]
        sequences = [sequence for _, sequence in listener.marks(f"event.{HONEST}")]
        first = sequences[0]
        lost = len(range(first, published + 1)) - len(set(sequences))
        twice = len(sequences) - len(set(sequences))
        print(
            f"forged or replayed {done} in {took_s:.1f} s, delivered {len(delivered) + twice}; "
            f"honest {published}, lost {lost}; refused {proxy.refused}"
        )
        assert (delivered, twice, lost) == ([], 0, 0)
        assert sequences == sorted(sequences)
        assert proxy.events.dropped == dropped + done
        assert topics[f"state.{RELAY}"] == topics[f"dataset.{BANK}"] == 2
        if mutes:
            assert proxy.refused["muted"] > 0.5 * done / len(attackers)
        else:
            assert proxy.refused["muted"] == 0
            assert min(proxy.refused[why] for why in ("forged", "replayed", "unknown")) > 50


def attack(socket: zmq.Socket[bytes], own: str, captured: Frames, tries: int) -> None:
    ways = attacks(own, captured)
    for number in range(tries):
        socket.send_multipart(published(ways[number % len(ways)](number)))
