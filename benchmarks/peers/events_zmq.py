"""Plain ZeroMQ: ``zmq.proxy``, which is C, in a thread; it looks at nothing and keeps nothing.

``…-curve`` encrypts. ``…-bare`` sends a topic and a payload, as two frames, as a program without
labmesh would send them; else an event is one frame, as long as that of labmesh.
"""

from __future__ import annotations

import asyncio
import sys
import threading

import zmq
from eventing import answer_events, serve_publisher
from measuring import announce, end_with_stdin
from plain_events import QUEUE, TOPIC, audience, publisher

_ROLE, _, _KIND = sys.argv[1].partition("-")
#: As long as that of labmesh.
_HEAD = b"" if _KIND == "bare" else TOPIC + bytes(64)


def _serve() -> None:
    context = zmq.Context()
    server, client = zmq.curve_keypair(), zmq.curve_keypair()
    ends = [context.socket(zmq.XSUB), context.socket(zmq.XPUB)]
    for each in ends:
        each.sndhwm = QUEUE
        if _KIND == "curve":
            each.curve_server = True
            each.curve_publickey, each.curve_secretkey = server
        each.bind("tcp://127.0.0.1:*")
    words = [each.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0") for each in ends]
    if _KIND == "curve":
        words += [each.decode() for each in (server[0], *client)]
    threading.Thread(target=zmq.proxy, args=ends, daemon=True).start()
    end_with_stdin()
    announce(" ".join(words))
    threading.Event().wait()


if __name__ == "__main__":
    match _ROLE:
        case "broker":
            _serve()
        case "publish":
            asyncio.run(serve_publisher(publisher(_HEAD)))
        case _:
            answer_events(audience(len(_HEAD) or None), "pyzmq")
