"""The limit: blocking sockets, a window of 1 MB chunks, and the same work as a bank does.

Both sides take the SHA-256 in a thread of its own while the bytes pass; the server also takes the
CRC-32 of each piece, as a bank does, by which it looks at every piece that it reads again. Files
are written under another name, synced, renamed, and their folder is synced; on the server a record
of each follows by the same rule. What a bank does beyond that is its own: it makes uploads durable
on the way, and has a catalogue. ``…-curve`` encrypts.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import sys
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import zmq
from curved import connect, encrypt
from measuring import announce, end_with_stdin
from moving import CHUNK_BYTES, answer_moves, data_folder, sync_folder

_WINDOW = 8


class _Worker:
    """Does one thing after the other in a thread, at most a window behind."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(_WINDOW)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, function: Any, *arguments: Any) -> None:
        self._queue.put((function, arguments))

    def end(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            function, arguments = item
            function(*arguments)


class _Part:
    """A file that is being written and hashed."""

    def __init__(self, path: Path, *, pieces: bool) -> None:
        self._path = path
        self._file = path.with_suffix(".part").open("wb", buffering=0)
        self._sha256 = hashlib.sha256()
        self._pieces = array("I") if pieces else None
        self._hashing = _Worker()

    def write(self, piece: Any) -> None:
        self._hashing.put(self._hash, piece)
        self._file.write(piece)

    def _hash(self, piece: Any) -> None:
        self._sha256.update(piece)
        if self._pieces is not None:
            self._pieces.append(crc32(piece))

    def finish(self, sha256: str) -> Sequence[int]:
        """Keep it; returns the sums of its pieces."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._hashing.end()
        if self._sha256.hexdigest() != sha256:
            raise ValueError("other bytes arrived than were sent")
        if self._pieces and len(self._pieces) > 1:
            sums = self._path.with_suffix(".sums")
            with sums.open("wb", buffering=0) as file:
                file.write(self._pieces)
                os.fsync(file.fileno())
        self._path.with_suffix(".part").replace(self._path)
        sync_folder(self._path.parent)
        return self._pieces or []


def _keep_record(folder: Path, name: str, sha256: str) -> None:
    draft = folder / f"{name}.tmp"
    with draft.open("wb", buffering=0) as file:
        file.write(json.dumps({"name": name, "sha256": sha256}).encode())
        os.fsync(file.fileno())
    draft.replace(folder / name)
    sync_folder(folder)


def serve(*, encrypted: bool) -> None:
    """Answer until the end of the process."""
    with data_folder() as folder, zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        end_with_stdin(lambda: shutil.rmtree(folder))
        records = folder / "records"
        records.mkdir()
        words = encrypt([router]) if encrypted else []
        router.bind("tcp://127.0.0.1:*")
        announce(" ".join([router.getsockopt_string(zmq.LAST_ENDPOINT), *words]))
        parts: dict[bytes, _Part] = {}
        sums: dict[bytes, Sequence[int]] = {}
        digests: dict[bytes, bytes] = {}
        while True:
            peer, order, name, *rest = router.recv_multipart(copy=False)
            word, key = order.bytes, name.bytes
            path = folder / key.decode()
            answer: Any = b"ok"
            if word == b"start":
                parts[key] = _Part(path, pieces=True)
            elif word == b"chunk":
                parts[key].write(rest[0].buffer)
            elif word == b"commit":
                digests[key] = rest[0].bytes
                sums[key] = parts.pop(key).finish(digests[key].decode())
                _keep_record(records, key.decode(), digests[key].decode())
            elif word == b"size":
                answer = b"%d %s" % (path.stat().st_size, digests[key])
            else:
                answer = _piece(path, int(rest[0].bytes), sums[key])
            router.send_multipart([peer.bytes, answer], copy=False)


def _piece(path: Path, number: int, sums: Sequence[int]) -> bytes:
    with path.open("rb", buffering=0) as file:
        file.seek(number * CHUNK_BYTES)
        piece = file.read(CHUNK_BYTES)
    if crc32(piece) != sums[number]:
        raise ValueError("the file has changed")
    return piece


class _Raw:
    def __init__(self, dealer: zmq.Socket[bytes]) -> None:
        self._dealer = dealer

    def upload(self, path: Path, name: str) -> None:
        key = name.encode()
        sha256 = hashlib.sha256()
        hashing = _Worker()
        under_way = 0
        self._ask(b"start", key)
        with path.open("rb", buffering=0) as file:
            while piece := file.read(CHUNK_BYTES):
                hashing.put(sha256.update, piece)
                if under_way == _WINDOW:
                    self._dealer.recv()
                    under_way -= 1
                self._dealer.send_multipart([b"chunk", key, piece], copy=False)
                under_way += 1
        for _ in range(under_way):
            self._dealer.recv()
        hashing.end()
        self._ask(b"commit", key, sha256.hexdigest().encode())

    def download(self, name: str, path: Path) -> None:
        key = name.encode()
        size, sha256 = self._ask(b"size", key).decode().split()
        count = -(-int(size) // CHUNK_BYTES)
        part = _Part(path, pieces=False)
        asked = 0
        for received in range(count):
            while asked < min(count, received + _WINDOW):
                self._dealer.send_multipart([b"read", key, b"%d" % asked])
                asked += 1
            part.write(self._dealer.recv(copy=False).buffer)
        part.finish(sha256)

    def upload_small(self, contents: Sequence[tuple[str, bytes]], width: int) -> None:
        del width  # one after the other is what a server of one thread can do
        for name, content in contents:
            key = name.encode()
            self._ask(b"start", key)
            self._ask(b"chunk", key, content)
            self._ask(b"commit", key, hashlib.sha256(content).hexdigest().encode())

    def _ask(self, *frames: bytes) -> bytes:
        self._dealer.send_multipart(frames)
        return self._dealer.recv()


@contextmanager
def _opened(address: str) -> Iterator[_Raw]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        connect(dealer, address)
        yield _Raw(dealer)


if __name__ == "__main__":
    if sys.argv[1].startswith("serve"):
        serve(encrypted=sys.argv[1] == "serve-curve")
    else:
        answer_moves(_opened, "pyzmq")
