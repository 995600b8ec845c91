"""What the system says of a process: memory, processor time, descriptors. Linux alone tells."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

__all__ = ["Usage"]


@dataclass(frozen=True)
class Usage:
    """What a process uses at one moment."""

    memory_mb: float
    peak_mb: float
    cpu_s: float
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Look; skips the test where the system does not tell."""
        folder = Path(f"/proc/{pid}")
        if not folder.is_dir():
            pytest.skip("this system has no /proc to tell what a process uses")
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text().splitlines() if line
        )
        # Its name, in brackets, may have spaces in it.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        return cls(
            memory_mb=int(status["VmRSS"].split()[0]) / 1024,
            peak_mb=int(status["VmHWM"].split()[0]) / 1024,
            cpu_s=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            descriptors=len(os.listdir(folder / "fd")),
        )
