"""A broker that is killed while it sends with all its might does not take its listeners along."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.processes import Process, program


@pytest.mark.timeout(120)
@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.soak)])
def test_a_subscriber_survives_kills_in_the_middle_of_a_message(
    tmp_path: Path, rounds: int
) -> None:
    with Process([program("flooded.py"), str(rounds)], cwd=tmp_path) as process:
        # libzmq would abort the process: "Assertion failed: !_more".
        assert process.wait_end(100.0) == 0, process.tail()
    assert f"survived {rounds}" in process.output
