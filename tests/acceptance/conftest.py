"""Processes that end with their test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.support.processes import Process, Start


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start a process (arguments as of :class:`Process`); a failed test shows its last lines."""
    started: list[Process] = []
    with ExitStack() as processes:

        def start_one(*arguments: Any, **options: Any) -> Process:
            process = processes.enter_context(Process(*arguments, **options))
            started.append(process)
            return process

        yield start_one
    tails = "\n".join(each.tail() for each in started)
    request.node.add_report_section("teardown", "processes", tails)
