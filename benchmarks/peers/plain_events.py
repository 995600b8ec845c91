"""Events through plain pyzmq sockets: the publisher and the subscribers of every ZeroMQ broker.

The address is that of the publishers' port and of the subscribers', and, where the broker
encrypts, its public key and the pair of keys that its clients use.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import zmq
from eventing import NODE

__all__ = ["QUEUE", "TOPIC", "audience", "publisher"]

TOPIC = f"event.{NODE}".encode()
#: Events that may wait for one subscriber at the broker, as at labmesh's.
QUEUE = 20_000
_FROM_BROKER = 100_000
_MORE, _NOBLOCK = int(zmq.SNDMORE), int(zmq.NOBLOCK)
_BATCH = 256
_LOOK_MS = 50


def publisher(
    head: bytes | Callable[[], bytes],
) -> Callable[[str], AbstractAsyncContextManager[Callable[[bytes], Awaitable[None]]]]:
    """What publishes events of one frame.

    :param head: what stands before the payload: the same for all, or what makes the next one.
        Empty: the topic is a frame of its own.
    """

    @asynccontextmanager
    async def opened(address: str) -> AsyncIterator[Callable[[bytes], Awaitable[None]]]:
        context = zmq.Context()
        socket = _connected(context, zmq.PUB, address, 0)
        send = socket.send

        async def publish(payload: bytes) -> None:
            if head:
                send((head() if callable(head) else head) + payload, _NOBLOCK)
            else:
                send(TOPIC, _MORE)
                send(payload, _NOBLOCK)

        try:
            yield publish
        finally:
            context.destroy(linger=0)

    return opened


class Listener(Protocol):
    """Hears payloads."""

    def hear(self, event: bytes) -> None:
        """One came. In a thread of its own."""
        ...


def audience(
    skip: int | None, topics: Callable[[int], Sequence[bytes]] = lambda _: [TOPIC]
) -> Callable[[str, Sequence[Listener]], AbstractAsyncContextManager[None]]:
    """Subscribers: SUB sockets that one thread reads.

    :param skip: bytes before what is to be heard of an event's one frame; None: it is the second
        frame.
    :param topics: what the subscriber of this number listens to.
    """

    @asynccontextmanager
    async def opened(address: str, ears: Sequence[Listener]) -> AsyncIterator[None]:
        context = zmq.Context()
        ended = threading.Event()
        hears = {}
        for number, each in enumerate(ears):
            socket = _connected(context, zmq.SUB, address, 1)
            for topic in topics(number):
                socket.subscribe(topic)
            hears[socket] = each.hear
        reader = threading.Thread(target=_read, args=(hears, skip, ended))
        reader.start()
        try:
            yield
        finally:
            ended.set()
            reader.join()
            context.destroy(linger=0)

    return opened


def _connected(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str, port: int
) -> zmq.Socket[bytes]:
    words = address.split()
    socket = context.socket(kind)
    socket.sndhwm = socket.rcvhwm = _FROM_BROKER
    if len(words) > 2:
        keys = [each.encode() for each in words[2:]]
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = keys
    socket.connect(words[port])
    return socket


def _read(
    hears: dict[zmq.Socket[bytes], Callable[[bytes], None]],
    skip: int | None,
    ended: threading.Event,
) -> None:
    poller = zmq.Poller()
    for each in hears:
        poller.register(each, zmq.POLLIN)
    while not ended.is_set():
        for socket, _ in poller.poll(_LOOK_MS):
            _drain(socket, hears[socket], skip)
    for socket in hears:
        socket.close(0)


def _drain(socket: zmq.Socket[bytes], hear: Callable[[bytes], None], skip: int | None) -> None:
    receive = socket.recv
    for _ in range(_BATCH):
        try:
            frame = receive(_NOBLOCK)
        except zmq.Again:
            return
        hear(receive() if skip is None else frame[skip:])
