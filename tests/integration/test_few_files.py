"""A process that has as many files open as it may: typed errors, and it heals when it may more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.support.peers import (
    LOOPBACK,
    PROTECTED,
    endpoint_of,
    open_sockets,
    until,
    with_password,
)
from tests.support.processes import Process, free_ports, program

from labmesh.errors import AuthenticationError, LinkLost
from labmesh.protocol.addresses import Address
from labmesh.protocol.messages import DIRECTORY_REQUESTS, Done, Request
from labmesh.transport.event_outlet import EventOutlet
from labmesh.transport.link import Link
from labmesh.transport.proxy import Proxy
from labmesh.transport.service import Answer, Origin, Service
from labmesh.transport.sockets import Sockets
from labmesh.transport.subscriber import Subscriber

resource = pytest.importorskip("resource", reason="needs limits of resources")


@contextmanager
def no_more_files() -> Iterator[None]:
    """No descriptor can be opened meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def sockets() -> Iterator[Sockets]:
    """Those of a node without a password."""
    with open_sockets(PROTECTED, "node") as opened:
        yield opened


@pytest.fixture
async def broker() -> AsyncIterator[tuple[str, str, str]]:
    """Where a broker with a password is: requests, publishers, subscribers. It refuses the node."""

    def answer(request: Request, _body: memoryview | None, _origin: Origin) -> Answer:
        return Done(id=request.id)

    with open_sockets(with_password(), "broker") as opened:
        ports = [Address("127.0.0.1", each) for each in free_ports(2)]
        proxy = Proxy(opened, *ports, epoch="b1")
        service = Service(
            opened,
            LOOPBACK,
            role="directory",
            requests=DIRECTORY_REQUESTS,
            node_id="broker",
            kind="broker",
            epoch="b1",
            handle=answer,
        )
        yield endpoint_of(service.address), endpoint_of(ports[0]), endpoint_of(ports[1])
        await service.close()
        proxy.close()


def test_a_new_node_is_refused_while_the_process_lives(tmp_path: Path) -> None:
    """In a process of its own, whose hard limit is lowered step by step."""
    with Process([program("few_files.py")], cwd=tmp_path) as process:
        assert process.wait_end(20) == 0, process.tail()
    outcomes = [each.text for each in process.lines if each.stream == "out"]
    assert outcomes[0] == "open"
    assert outcomes[-1] == "refused"
    assert set(outcomes) == {"open", "refused"}


@pytest.mark.parametrize("spare", range(3))
async def test_a_new_link_is_refused_and_leaves_nothing_open(sockets: Sockets, spare: int) -> None:
    before = sockets.pair()
    held = [os.dup(0) for _ in range(spare)]
    with no_more_files():
        for each in held:
            os.close(each)
        with pytest.raises(LinkLost, match="allow more open files"):
            Link(sockets, "tcp://127.0.0.1:9", where="the node")
    assert sockets._sockets == list(before)
    Link(sockets, "tcp://127.0.0.1:9", where="the node").close()


async def exhaust(held: list[int]) -> None:
    """Take what is free, and what sockets that were closed just now give back."""
    for _ in range(20):
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("what", ["link", "publisher"])
async def test_who_finds_no_socket_tries_again(
    sockets: Sockets, broker: tuple[str, str, str], what: str
) -> None:
    held: list[int] = []
    opened: Link | EventOutlet
    if what == "link":
        opened = Link(sockets, broker[0], where="the broker")
    else:
        opened = EventOutlet(sockets, broker[1], on_up=lambda: None)
    await until(lambda: isinstance(opened.trouble, AuthenticationError))
    with no_more_files():
        opened._teardown()
        await exhaust(held)
        opened._build_again()
        assert type(opened.trouble) is LinkLost
        assert "allow more open files" in str(opened.trouble)
    for each in held:
        os.close(each)
    await until(lambda: isinstance(opened.trouble, AuthenticationError))
    opened.close()


async def test_a_subscriber_that_finds_no_socket_tries_again(sockets: Sockets) -> None:
    sockets.close(sockets.pair()[0])  # the context runs
    with open_sockets(name="broker") as brokers:
        ports = [Address("127.0.0.1", each) for each in free_ports(2)]
        proxy = Proxy(brokers, *ports, epoch="b1")
        links: list[bool] = []
        held = [os.dup(0) for _ in range(2)]
        with no_more_files():
            for each in held:
                os.close(each)
            # Its two control sockets find room, the one for events does not.
            subscriber = Subscriber(
                sockets, endpoint_of(ports[1]), deliver=lambda _: None, on_link=links.append
            )
            await until(lambda: type(subscriber.trouble) is LinkLost)
            subscriber.subscribe("state.")
            subscriber.subscribe("event.")
            subscriber.unsubscribe("event.")
        await until(lambda: links == [True])
        assert subscriber._prefixes == {b"state."}
        subscriber.close()
        proxy.close()


async def test_a_subscriber_without_a_socket_can_be_closed(sockets: Sockets) -> None:
    sockets.close(sockets.pair()[0])
    held = [os.dup(0) for _ in range(2)]
    with no_more_files():
        for each in held:
            os.close(each)
        subscriber = Subscriber(
            sockets, "tcp://127.0.0.1:9", deliver=lambda _: None, on_link=lambda _: None
        )
        await until(lambda: type(subscriber.trouble) is LinkLost)
        subscriber.close()
