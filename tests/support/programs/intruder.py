"""Somebody at every door of a mesh, in plain pyzmq: intruder.py OPTIONS.

OPTIONS is JSON: ``doors`` (name → endpoint), ``seconds``, and, for who comes with a key of their
own, ``public`` and ``secret`` and the doors' ``keys`` (name → public key; a key is no secret).
Prints one line of JSON: door → the types of the replies, or the topics of the events, that came.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

import zmq

_FILE = b"from somebody whom nobody invited"
_REQUESTS: dict[str, list[bytes]] = {
    "directory": [json.dumps({"type": "list_nodes", "id": "1"}).encode()],
    "relay": [
        json.dumps({"type": "call", "id": "1", "method": "set_voltage", "args": [29.0]}).encode()
    ],
    "retrieve": [json.dumps({"type": "get_dataset", "id": "1", "dataset_id": "scan-1"}).encode()],
    "ingest": [
        json.dumps(
            {
                "type": "upload_whole",
                "id": "1",
                "dataset_id": "intruders",
                "sha256": hashlib.sha256(_FILE).hexdigest(),
            }
        ).encode(),
        _FILE,
    ],
}
_HEADER = json.dumps({"publisher": "psu-1", "epoch": "forged", "sequence": 1, "time": 1.0}).encode()
_FORGED = b"state.psu-1\0" + len(_HEADER).to_bytes(2, "big") + _HEADER + b'{"forged": true}'


def knock(options: dict[str, Any]) -> dict[str, list[str]]:
    """Ask, listen and publish everywhere at once; what came within the seconds."""
    heard: dict[str, list[str]] = {door: [] for door in options["doors"]}
    with zmq.Context() as context:
        context.setsockopt(zmq.LINGER, 0)
        sockets = {door: _at(context, door, options) for door in options["doors"]}
        poller = zmq.Poller()
        for each in sockets.values():
            poller.register(each, zmq.POLLIN)
        until = time.monotonic() + options["seconds"]
        while (left_s := until - time.monotonic()) > 0:
            if "xsub" in sockets:
                sockets["xsub"].send(_FORGED)
            ready = dict(poller.poll(min(100, left_s * 1000)))
            for door, socket in sockets.items():
                if socket in ready:
                    heard[door].append(_kind(door, socket.recv_multipart()))
        for each in sockets.values():
            each.close()
    return heard


def _at(context: zmq.Context[Any], door: str, options: dict[str, Any]) -> zmq.Socket[bytes]:
    kinds = {"xpub": zmq.SUB, "xsub": zmq.XPUB}
    socket = context.socket(kinds.get(door, zmq.DEALER))
    if "secret" in options:
        socket.curve_serverkey = options["keys"][door].encode()
        socket.curve_publickey = options["public"].encode()
        socket.curve_secretkey = options["secret"].encode()
    socket.connect(options["doors"][door])
    if door == "xpub":
        socket.subscribe(b"")
    elif door in _REQUESTS:
        socket.send_multipart(_REQUESTS[door])
    return socket


def _kind(door: str, frames: list[bytes]) -> str:
    if door in _REQUESTS:
        return str(json.loads(frames[0])["type"])
    return frames[0].partition(b"\0")[0].decode("latin-1")


if __name__ == "__main__":
    print(json.dumps(knock(json.loads(sys.argv[1]))), flush=True)
