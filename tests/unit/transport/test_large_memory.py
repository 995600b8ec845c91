"""Large blocks that are freed serve the next ones."""

from __future__ import annotations

import platform
import subprocess
import sys

import numpy  # noqa: F401  (it is looked for where it is loaded)
import pytest

from labmesh.transport.large_memory import memory_for

PROGRAM = """
import resource
from labmesh.transport.large_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        first, second, third = bytearray(2**20), bytearray(2**20), bytearray(2**20)
        del first, second, third
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do as they like")
def test_pages_of_blocks_that_were_freed_are_not_fetched_again() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=True
    )
    without, kept = map(int, run.stdout.split())
    # 60 blocks of 1 MiB have 15,360 pages of 4 KiB, and 960 of 64 KiB.
    assert without > 500
    assert kept < 50


@pytest.mark.parametrize("with_numpy", [True, False])
def test_memory_to_read_into_is_claimed_and_not_taken(
    monkeypatch: pytest.MonkeyPatch, with_numpy: bool
) -> None:
    if with_numpy:
        assert "numpy" in sys.modules
    else:
        monkeypatch.delitem(sys.modules, "numpy")
    for size in (2**16, 2**24, 2**24 + 1):
        memory = memory_for(size)
        assert (memory.nbytes, memory.itemsize, memory.readonly) == (size, 1, False)
        memory[-1] = 255
    before = peak_kib()
    claimed = memory_for(2**31)
    claimed[2**30] = 1
    assert peak_kib() - before < 100 * 2**10
    for size in (2**50, 2**62, 2**64 - 1):
        with pytest.raises(MemoryError):
            memory_for(size)


def peak_kib() -> int:
    """The most that this process has had in memory (macOS: bytes)."""
    resource = pytest.importorskip("resource", reason="needs the use of resources")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
