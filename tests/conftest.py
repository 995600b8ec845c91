"""What holds for all tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

import pytest

# Most people have asyncio's own loop; those tests that are about the other one ask for it.
os.environ.setdefault("LMH_UVLOOP", "0")

with contextlib.suppress(ImportError):
    import uvloop

    # The first of its loops opens a pipe that all others share and none closes: that is no leak.
    uvloop.new_event_loop().close()


def pytest_configure(config: pytest.Config) -> None:
    """Programs that tests start share compiled modules, also where none are written by default.

    Hundreds of them would compile labmesh, each for itself.
    """
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        folder = tempfile.mkdtemp(prefix="labmesh-tests-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        # Processes of pytest-xdist inherit both.
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        del os.environ["PYTHONDONTWRITEBYTECODE"]
