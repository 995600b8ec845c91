"""How an instrument is, in words: link, relay, driver, lease, instrument, each with its age."""

from __future__ import annotations

import time
from typing import Any

import pytest

from labmesh.asking.remote import LinkHealth
from labmesh.blocking.status import InstrumentStatus
from labmesh.errors import LinkLost
from labmesh.protocol.messages import Status

LEASE = {"holder": "anna@lab-3", "note": "T sweep", "age_s": 252.0, "left_s": 8.0, "fence": 3}


def told(**facts: Any) -> InstrumentStatus:
    """What a relay says of itself, with these facts instead of those of an idle driver."""
    usual = {
        "registered": True,
        "heartbeat_age_s": 2.0,
        "driver": "PowerSupply",
        "busy_with": None,
        "busy_s": None,
        "busy_by": "",
        "stuck": False,
        "queued": 0,
        "lease": None,
        "state_age_s": 0.4,
        "state_interval_s": 0.5,
        "state_error": "",
    }
    status = Status(
        id="1",
        node_id="Inst-0",
        kind="relay",
        epoch="e1",
        uptime_s=7930.0,
        facts={**usual, **facts},
    )
    health = LinkHealth("tcp://10.0.0.3:5801", True, time.monotonic(), None)
    return InstrumentStatus.of("Inst-0", health, status, None)


def test_an_idle_instrument() -> None:
    assert repr(told()) == (
        "Inst-0: PowerSupply\n"
        "  link        up, last message 0 s ago\n"
        "  relay       registered, heartbeat 2 s ago, up for 2 h 12 min\n"
        "  driver      idle, 0 queued\n"
        "  instrument  last good state 0.4 s ago"
    )


def test_a_busy_one_says_with_what_since_when_and_for_whom() -> None:
    status = told(busy_with="ramp", busy_s=12.0, busy_by="anna@lab-3", queued=2, state_age_s=12.0)
    assert "driver      busy with ramp for 12 s (called by anna@lab-3), 2 queued" in repr(status)
    assert status.stale
    assert "STALE (one is due each 0.5 s), last good state 12 s ago, the driver is busy" in repr(
        status
    )


def test_a_stuck_one_says_what_to_do() -> None:
    status = told(busy_with="ramp", busy_s=190.0, stuck=True)
    assert status.stuck
    assert "STUCK in ramp for 3 min 10 s, 0 queued; if it never returns, restart" in repr(status)


def test_a_lease_says_who_since_when_and_why() -> None:
    status = told(lease=LEASE)
    assert status.lease is not None
    assert (status.lease.holder, status.lease.fence) == ("anna@lab-3", 3)
    assert (
        "lease       anna@lab-3 alone may write, since 4 min 12 s: T sweep "
        "(ends in 8 s unless renewed)"
    ) in repr(status)


def test_a_relay_that_cannot_be_reached() -> None:
    health = LinkHealth("tcp://10.0.0.3:5801", False, time.monotonic() - 40, None)
    status = InstrumentStatus.of("Inst-0", health, None, LinkLost("nobody listens there"))
    assert not status.stale
    assert repr(status) == (
        "Inst-0: not reached\n  link        DOWN, last message 40 s ago: nobody listens there"
    )


@pytest.mark.parametrize(
    "facts",
    [
        {"queued": "many", "busy_s": True, "lease": "mine", "busy_by": None},
        {"queued": float("nan"), "state_age_s": float("inf"), "lease": {"age_s": None}},
        {"driver": "\x1b[2J", "busy_with": "\x1b[2J", "state_error": "\x1b[2J", "busy_by": "\x1b"},
        {"lease": {"holder": "\x1b[2J", "note": "\x1b[2J"}},
    ],
)
def test_facts_of_another_version_or_of_a_stranger_do_no_harm(facts: dict[str, Any]) -> None:
    assert "\x1b" not in repr(told(**facts))


def test_an_instrument_without_poll_is_never_stale() -> None:
    status = told(state_interval_s=None, state_age_s=None)
    assert not status.stale
    assert "no poll()" in repr(status)


def test_an_instrument_that_never_gave_a_state_is_stale_by_the_age_of_its_relay() -> None:
    status = told(state_age_s=None, state_error="OSError: no answer from COM3")
    assert status.stale
    assert "poll() FAILED: OSError: no answer from COM3" in repr(status)


def test_what_waits_in_the_spool_is_said() -> None:
    spool = {"datasets": 3, "bytes": 1200, "oldest_age_s": 7200.0, "error": "no bank", "refused": 1}
    shown = repr(told(spool=spool))
    assert "spool       3 datasets (1200 bytes) wait, the oldest for 2 h" in shown
    assert "1 REFUSED, NOT SENT: no bank" in shown
    assert "spool       empty" in repr(told(spool={"datasets": 0, "refused": 0}))
    assert "spool" not in repr(told(spool=None))
