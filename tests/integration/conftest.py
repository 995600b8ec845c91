"""Every test here uses real sockets, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.leaks import Held, assert_nothing_more, warm_up
from tests.support.places import Places


@pytest.fixture(scope="session", autouse=True)
def _what_pyzmq_keeps() -> None:
    warm_up()


@pytest.fixture(autouse=True)
async def no_leaks(_what_pyzmq_keeps: None) -> AsyncIterator[None]:
    """Fails a test that leaves a task, a thread, a socket or a file descriptor behind."""
    before = Held.now()
    yield
    await assert_nothing_more(before)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Where nodes are to be."""
    return Places(tmp_path)
