"""Large blocks that are freed serve the next ones."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
