"""What a relay tells of a call, in words."""

from __future__ import annotations

import pytest

from labmesh.asking.call_status import CallStatus
from labmesh.errors import DriverError, Expired, OutcomeUnknown
from labmesh.protocol.messages import CallState

TOLD = [
    (CallState(id="1", state="queued", age_s=1.0), None, "has waited in the queue for 1.0 s"),
    (CallState(id="1", state="running", age_s=2.5), True, "has been running for 2.5 s"),
    (CallState(id="1", state="returned", kept=True, value=2.5), True, "returned 2.5 0.0 s ago"),
    (
        CallState(id="1", state="returned", age_s=3.0),
        True,
        "returned 3.0 s ago; its result was not kept",
    ),
    (CallState(id="1", state="not_run"), False, "did not run and will not"),
    (CallState(id="1", state="unknown"), None, "nobody knows (any more): look at the instrument"),
]


@pytest.mark.parametrize(("told", "executed", "says"), TOLD)
def test_each_state_says_whether_it_ran(told: CallState, executed: bool | None, says: str) -> None:
    status = CallStatus.of("17", told)
    assert status.executed is executed
    assert status.error is None
    assert repr(status) == f"<call 17: {says}>"


def test_an_error_is_the_one_that_the_call_would_have_raised() -> None:
    told = CallState(
        id="1",
        state="raised",
        method="ramp",
        error=DriverError.name,
        text="channel 3 is gone",
        detail={"exception_type": "ValueError"},
    )
    status = CallStatus.of("17", told)
    assert isinstance(status.error, ValueError)
    assert status.executed is True
    assert repr(status) == "<call 17 of ramp: failed 0.0 s ago: channel 3 is gone>"


def test_a_call_that_failed_in_a_way_that_nobody_knows_stays_unknown() -> None:
    told = CallState(id="1", state="raised", error=OutcomeUnknown.name, text="stopped")
    assert CallStatus.of("17", told).executed is None


def test_why_a_call_did_not_run_is_told() -> None:
    told = CallState(id="1", state="not_run", error=Expired.name, text="too late")
    status = CallStatus.of("17", told)
    assert status.executed is False
    assert repr(status).endswith("did not run and will not: too late>")
