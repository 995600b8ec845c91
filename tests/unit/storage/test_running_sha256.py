"""The SHA-256 that is taken beside the writing."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

from labmesh.storage.running_sha256 import RunningSha256

_MIB = 2**20


def test_pieces_of_every_size_are_hashed_in_their_order_also_while_the_threads_end():
    for sizes in ([], [1], [_MIB] * 20, [1, _MIB, 5, 9 * _MIB, 2, 3], [200_000] * 90):
        threads = ThreadPoolExecutor(1)
        running, expected = RunningSha256(threads), hashlib.sha256()
        for number, size in enumerate(sizes):
            piece = bytes([number]) * size
            running.update(memoryview(piece))
            expected.update(piece)
        threads.shutdown(wait=False)
        assert running.hexdigest() == expected.hexdigest(), sizes


def test_who_is_too_far_ahead_waits_until_some_of_it_is_hashed():
    threads, busy, free = ThreadPoolExecutor(1), threading.Event(), threading.Event()

    def occupy() -> None:
        busy.set()
        free.wait()

    threads.submit(occupy)
    assert busy.wait(10)
    running, given = RunningSha256(threads), []
    full = threading.Event()

    def give() -> None:
        for number in range(8):
            running.update(memoryview(bytes(_MIB)))
            given.append(number)
            if number == 3:
                full.set()

    giver = threading.Thread(target=give)
    giver.start()
    assert full.wait(10)
    giver.join(0.05)
    assert len(given) == 4
    free.set()
    giver.join(10)
    assert running.hexdigest() == hashlib.sha256(bytes(8 * _MIB)).hexdigest()
    threads.shutdown()
