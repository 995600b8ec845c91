"""Connections that say nothing, more than there are file descriptors (FB12, the trap of libzmq).

    pytest tests/faults/test_idle_connections.py -m "soak or not soak" -s

prints how who was connected is served meanwhile, and when somebody new gets in again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import zmq
from tests.support.keyed_mesh import KeyedMesh, keyed_mesh
from tests.support.knocking import ADMITTED, Knock
from tests.support.peers import until
from tests.support.witness import watching

if sys.platform == "linux":
    import resource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits a process from outside")

#: An unfinished handshake is ended after 5 s; then there is room again.
BACK_S = 15.0
SETTLED_S = 3.0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedMesh]:
    with keyed_mesh(tmp_path_factory.mktemp("keyed")) as running:
        yield running


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def settled(mesh: KeyedMesh) -> bool:
    """The clock has moved on since the list was changed, so that no change can be missed."""
    newest = max(each.stat().st_mtime for each in mesh.lab.at_broker.path.rglob("*"))
    return time.time() - newest > SETTLED_S


def gets_in(mesh: KeyedMesh, within_s: float) -> float:
    """Seconds until somebody new is admitted."""
    began = time.monotonic()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with ExitStack() as opened:
        opened.callback(context.term)
        knock = Knock(context, mesh.endpoints["directory"])
        opened.callback(knock.close)
        knock.knock(mesh.pairs["otto"], mesh.server_key("directory"))
        # What is broken off by the full node is tried again by libzmq.
        while knock.look(100) != ADMITTED:
            knock.became = ""
            assert time.monotonic() < began + within_s, "nobody new got in"
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("connections", "room"),
    [
        (300, 40),
        pytest.param(2000, 40, marks=pytest.mark.soak),
        pytest.param(2000, 900, marks=pytest.mark.soak),
    ],
)
async def test_who_is_connected_is_served_while_silent_strangers_fill_the_node(
    mesh: KeyedMesh, connections: int, room: int
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < connections + 200:
        pytest.skip(f"this process may have {most} files open")
    await until(lambda: settled(mesh), 2 * SETTLED_S)
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    pid = mesh.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    held = descriptors(pid)
    host, _, port = mesh.endpoints["directory"].removeprefix("tcp://").rpartition(":")
    try:
        async with mesh.link("vera", "directory") as link, watching(link, "the full node"):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (held + room, before[1]))
            with ExitStack() as strangers:
                for _ in range(connections):
                    one = strangers.enter_context(socket.socket())
                    one.setblocking(False)
                    one.connect_ex((host, int(port)))
                await asyncio.sleep(1.0)  # what must hold meanwhile, holds for a while
                taken = descriptors(pid) - held
            back_s = await asyncio.to_thread(gets_in, mesh, BACK_S)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, own)
    print(
        f"{connections} silent connections, room for {room}: {taken} were taken; somebody new got "
        f"in {back_s:.2f} s after they had left"
    )
    assert taken > 0
    assert mesh.process.exit_code is None
