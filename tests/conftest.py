"""What holds for all tests."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

# How many examples a property is tried with that does not say so itself; the same ones each time,
# so that whoever changes something else gets no failure of chance. The second is for a run that may
# take its time, with other examples each time: LABMESH_EXAMPLES=thorough.
settings.register_profile("quick", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("LABMESH_EXAMPLES", "quick"))

# Most people have asyncio's own loop; those tests that are about the other one ask for it.
os.environ.setdefault("LMH_UVLOOP", "0")

with contextlib.suppress(ImportError):
    import uvloop

    # The first of its loops opens a pipe that all others share and none closes: that is no leak.
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """Commands that hold nodes have the log let through what these publish of it."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


def pytest_configure(config: pytest.Config) -> None:
    _forget_the_keys_of_this_user(config)
    _share_compiled_modules(config)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Thousands of tests are objects that stay: the garbage collector need not look at them.

    It would stop a process for a fifth of a second each time, also where a test has a deadline.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _forget_the_keys_of_this_user(config: pytest.Config) -> None:
    """Who runs the tests may have keys of a network of their own: no node here is to use them."""
    named = ("LMH_KEYS_DIR", "LMH_IDENTITY", "LMH_SECURITY", "LMH_NETWORK", "LMH_AUDIT_DIR")
    for name in named:
        os.environ.pop(name, None)
    folder = tempfile.mkdtemp(prefix="labmesh-tests-config-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["XDG_CONFIG_HOME"] = folder
    os.environ["XDG_STATE_HOME"] = f"{folder}/state"


def _share_compiled_modules(config: pytest.Config) -> None:
    """Programs that tests start share compiled modules, also where none are written by default.

    Hundreds of them would compile labmesh, each for itself.
    """
    if "PYTHONDONTWRITEBYTECODE" in os.environ:
        folder = tempfile.mkdtemp(prefix="labmesh-tests-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        # Processes of pytest-xdist inherit both.
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        del os.environ["PYTHONDONTWRITEBYTECODE"]
