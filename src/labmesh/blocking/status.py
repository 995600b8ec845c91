"""How an instrument is: link, relay, driver, lease and instrument, each with its age."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from labmesh.asking.remote import LinkHealth
from labmesh.blocking.cards import ago, duration, plain
from labmesh.errors import LabmeshError
from labmesh.events.reading import STALE_INTERVALS
from labmesh.protocol.messages import Status

__all__ = ["InstrumentStatus", "LeaseStatus", "SpoolStatus"]


class LeaseStatus(NamedTuple):
    """Who alone may write, since when, and why."""

    holder: str
    note: str
    age_s: float
    #: seconds until it ends, unless its holder renews it
    left_s: float
    fence: int

    def __str__(self) -> str:
        why = f": {plain(self.note, 80)}" if self.note else ""
        return (
            f"{plain(self.holder, 64) or 'somebody'} alone may write, since "
            f"{duration(self.age_s)}{why} (ends in {duration(self.left_s)} unless renewed)"
        )


class SpoolStatus(NamedTuple):
    """What waits at the relay until a bank has it."""

    datasets: int
    #: bytes of these
    size: int
    #: seconds that the oldest has waited; None: none waits
    oldest_age_s: float | None
    #: why they are not sent; empty: they are
    error: str
    #: how many were put aside in the spool's folder, and are not sent
    refused: int
    incomplete: int
    damaged: int

    def __str__(self) -> str:
        words = ["empty"]
        if self.datasets:
            age_s = duration(self.oldest_age_s or 0)
            words = [f"{self.datasets} datasets ({self.size} bytes) wait, the oldest for {age_s}"]
        for place in ("refused", "incomplete", "damaged"):
            if count := getattr(self, place):
                words.append(f"{count} {place.upper()}")
        if self.error:
            words.append(f"NOT SENT: {plain(self.error, 300)}")
        return ", ".join(words)


@dataclass(frozen=True)
class InstrumentStatus:
    """How an instrument was when it was asked for. Ages are in seconds; None: not known."""

    relay_id: str
    #: the relay can be reached
    up: bool
    #: since the last message that came back
    link_age_s: float | None
    #: why it cannot be reached
    trouble: str
    #: the broker lists the relay, as far as the relay knows
    registered: bool | None = None
    heartbeat_age_s: float | None = None
    uptime_s: float | None = None
    driver: str = ""
    #: the method that runs now, and for how long; None: the driver is idle
    busy_with: str | None = None
    busy_s: float | None = None
    #: who called it; empty: not known
    busy_by: str = ""
    #: it has run longer than it may, and does not return
    stuck: bool = False
    queued: int = 0
    #: None: everybody may write
    lease: LeaseStatus | None = None
    #: since the last good ``poll()`` of the driver
    state_age_s: float | None = None
    #: seconds between two states; None: the driver has no ``poll()``
    state_interval_s: float | None = None
    #: why the last ``poll()`` failed; empty: it did not
    state_error: str = ""
    #: None: uploads are not kept at the relay
    spool: SpoolStatus | None = None
    #: everything that the relay said
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        relay_id: str,
        health: LinkHealth,
        status: Status | None,
        trouble: LabmeshError | None,
    ) -> Self:
        """What a link and a relay say; without a status, ``trouble`` says why there is none."""
        heard_at = health.heard_at
        age_s = None if heard_at is None else max(0.0, time.monotonic() - heard_at)
        if status is None:
            return cls(relay_id, up=False, link_age_s=age_s, trouble=str(trouble))
        facts = status.facts
        return cls(
            relay_id,
            up=True,
            link_age_s=age_s,
            trouble="",
            registered=bool(facts.get("registered")),
            heartbeat_age_s=_number(facts, "heartbeat_age_s"),
            uptime_s=status.uptime_s,
            driver=str(facts.get("driver", "")),
            busy_with=None if facts.get("busy_with") is None else str(facts["busy_with"]),
            busy_s=_number(facts, "busy_s"),
            busy_by=str(facts.get("busy_by") or ""),
            stuck=facts.get("stuck") is True,
            queued=int(_number(facts, "queued") or 0),
            lease=_lease(facts.get("lease")),
            state_age_s=_number(facts, "state_age_s"),
            state_interval_s=_number(facts, "state_interval_s"),
            state_error=str(facts.get("state_error", "")),
            spool=_spool(facts.get("spool")),
            facts=facts,
        )

    @property
    def stale(self) -> bool:
        """A state is due each interval, and none came for three."""
        if self.state_interval_s is None:
            return False
        limit_s = STALE_INTERVALS * self.state_interval_s
        age_s = self.uptime_s if self.state_age_s is None else self.state_age_s
        return age_s is not None and age_s > limit_s

    def lines(self) -> list[str]:
        """One line for each part; a relay that does not answer says nothing of what is behind."""
        lines = [f"link        {self._link()}"]
        if self.up:
            lines += [
                f"relay       {self._relay()}",
                f"driver      {self._driver()}",
                *([f"lease       {self.lease}"] if self.lease is not None else []),
                f"instrument  {self._instrument()}",
                *([f"spool       {self.spool}"] if self.spool is not None else []),
            ]
        return lines

    def __repr__(self) -> str:
        heading = f"{self.relay_id}: {plain(self.driver, 60) or 'not reached'}"
        return "\n".join([heading, *(f"  {line}" for line in self.lines())])

    def _link(self) -> str:
        heard = f"last message {ago(self.link_age_s)}"
        return f"up, {heard}" if self.up else f"DOWN, {heard}: {plain(self.trouble, 400)}"

    def _relay(self) -> str:
        listed = "registered" if self.registered else "NOT REGISTERED with the broker"
        uptime = "?" if self.uptime_s is None else duration(self.uptime_s)
        return f"{listed}, heartbeat {ago(self.heartbeat_age_s)}, up for {uptime}"

    def _driver(self) -> str:
        queued = f"{self.queued} queued"
        if self.busy_with is None:
            return f"idle, {queued}"
        by = f" (called by {plain(self.busy_by, 64)})" if self.busy_by else ""
        since = f"{plain(self.busy_with, 64)} for {duration(self.busy_s or 0)}{by}, {queued}"
        if not self.stuck:
            return f"busy with {since}"
        return f"STUCK in {since}; if it never returns, restart the relay"

    def _instrument(self) -> str:
        if self.state_interval_s is None:
            return "no poll(): its state is not watched"
        words = [f"last good state {ago(self.state_age_s)}"]
        if self.stale:
            words.insert(0, f"STALE (one is due each {duration(self.state_interval_s)})")
        if self.state_error:
            words.append(f"poll() FAILED: {plain(self.state_error)}")
        elif self.stale and self.busy_with is not None:
            words.append("the driver is busy")
        return ", ".join(words)


def _spool(told: object) -> SpoolStatus | None:
    if not isinstance(told, Mapping):
        return None
    return SpoolStatus(
        datasets=int(_number(told, "datasets") or 0),
        size=int(_number(told, "bytes") or 0),
        oldest_age_s=_number(told, "oldest_age_s"),
        error=str(told.get("error") or ""),
        refused=int(_number(told, "refused") or 0),
        incomplete=int(_number(told, "incomplete") or 0),
        damaged=int(_number(told, "damaged") or 0),
    )


def _lease(told: object) -> LeaseStatus | None:
    if not isinstance(told, Mapping):
        return None
    return LeaseStatus(
        holder=str(told.get("holder") or ""),
        note=str(told.get("note") or ""),
        age_s=_number(told, "age_s") or 0.0,
        left_s=_number(told, "left_s") or 0.0,
        fence=int(_number(told, "fence") or 0),
    )


def _number(facts: Mapping[str, Any], name: str) -> float | None:
    """A fact from another machine, perhaps of another version: only a number will do."""
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
