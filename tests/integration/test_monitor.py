"""What tells of connections must never keep libzmq waiting: one thread serves the whole node."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.processes import Process, program

from labmesh.transport.doorway import peer_address

#: libzmq would keep so many events for somebody who does not read them, and then stand still.
KEPT = 2000
LIMIT_S = 15.0


@pytest.mark.parametrize(("scenario", "events"), [("closed", 0), ("unread", KEPT)])
def test_links_that_break_while_nobody_looks_do_not_stop_the_node(
    scenario: str, events: int, tmp_path: Path
) -> None:
    """While a link is taken down; and while a callback blocks the loop that would hear of it."""
    with Process([program("monitored.py"), scenario], cwd=tmp_path) as process:
        waiting = int(process.wait_for(r"^works (\d+)$", LIMIT_S)[1])
        assert waiting >= events


# ── whose connection it was ─────────────────────────────────────────────────────────────────────

Connection = tuple[socket.socket, socket.socket]


@pytest.fixture
def connection() -> Iterator[Connection]:
    """Both ends of a TCP connection; the second one is a server's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
    ):
        far, _ = server.accept()
        with far:
            yield near, far


def test_the_address_behind_a_descriptor_is_found_and_the_connection_left_alone(
    connection: Connection,
) -> None:
    near, far = connection
    assert peer_address(far.fileno()) == "127.0.0.1"
    near.sendall(b"still there")
    assert far.recv(100) == b"still there"


def test_a_descriptor_that_has_become_something_else_gives_no_address(tmp_path: Path) -> None:
    """libzmq closes a connection and tells of it later; the number may be in use again by then."""
    left, right = socket.socketpair()
    with left, right, (tmp_path / "file").open("wb") as file:
        assert peer_address(left.fileno()) == ""
        assert peer_address(file.fileno()) == ""
        with socket.socket() as unconnected:
            assert peer_address(unconnected.fileno()) == ""
        left.sendall(b"still there")
        assert right.recv(100) == b"still there"
        gone = os.dup(file.fileno())
        os.close(gone)
        assert peer_address(gone) == ""
        file.write(b"still open")


def test_with_a_default_timeout_descriptors_are_not_touched(connection: Connection) -> None:
    _, far = connection
    socket.setdefaulttimeout(5.0)
    try:
        assert peer_address(far.fileno()) == ""
        assert os.get_blocking(far.fileno())
    finally:
        socket.setdefaulttimeout(None)
