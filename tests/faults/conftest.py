"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.support.history import Journal
from tests.support.leaks import Held, assert_nothing_more, warm_up
from tests.support.places import Places
from tests.support.recorder import Recorder

from labmesh.blocking.background import BackgroundLoop


@pytest.fixture
async def no_leaks() -> AsyncIterator[None]:
    """Fails a test that leaves a task, a thread, a socket or a file descriptor behind."""
    warm_up()
    before = Held.now()
    yield
    await assert_nothing_more(before)


@pytest.fixture
def places(no_leaks: None, tmp_path: Path) -> Places:
    """Where nodes are to be."""
    return Places(tmp_path)


@pytest.fixture
def journal(no_leaks: None, tmp_path: Path) -> Journal:
    """What a driver ran; in no process's memory."""
    return Journal(tmp_path / "journal")


@pytest.fixture
def driver(journal: Journal) -> Iterator[Recorder]:
    """A driver in this process."""
    recorder = Recorder(journal)
    yield recorder
    recorder.close()


@pytest.fixture
def nodes(no_leaks: None) -> Iterator[BackgroundLoop]:
    """The loop of the nodes, for tests that block."""
    loop = BackgroundLoop("nodes")
    yield loop
    loop.close()
