"""A peer that hangs up while more of its messages wait to be read than may."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys, time, zmq
from labmesh.protocol.addresses import parse_bind
from labmesh.transport.keys import Security
from labmesh.transport.sockets import Sockets

kind, role, peer = sys.argv[1:]
sockets = Sockets(Security("open"), "test")
server, address = sockets.bind(
    getattr(zmq, kind), parse_bind("tcp://127.0.0.1:*"), role=role, owner="test"
)
others = zmq.Context()
many = others.socket(getattr(zmq, peer))
many.sndhwm = 0
many.connect(str(address))
for number in range(20_000):
    text = b"%d" % number + b"x" * 1000
    many.send(text) if peer == "DEALER" else many.setsockopt(zmq.SUBSCRIBE, text)
server.poll(10_000, zmq.POLLIN)
many.close(0)
others.term()
# Twice as long as it was between two pings of a server, the second of which was the end.
time.sleep(2.2)
count = 0
while server.poll(200, zmq.POLLIN):
    server.recv_multipart()
    count += 1
sockets.close_all()
print("read", count)
"""


@pytest.mark.parametrize(
    ("kind", "role", "peer"), [("ROUTER", "relay", "DEALER"), ("XPUB", "xpub", "SUB")]
)
def test_a_server_outlives_a_flooding_peer_that_hangs_up(kind: str, role: str, peer: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, kind, role, peer],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    read = int(ended.stdout.split()[1])
    assert 0 < read < 20_000, "the limit was not reached: this test shows nothing"
