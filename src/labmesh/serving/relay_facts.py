"""What a relay tells of its driver and of itself, and what goes with the datasets that it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from labmesh.instruments.cooperation import current
from labmesh.instruments.exposure import MethodTable
from labmesh.protocol.codec import decode_value
from labmesh.protocol.messages import Description, Status
from labmesh.protocol.open_call import OpenCall
from labmesh.provenance import driver_facts, plain_facts, sender_facts
from labmesh.serving.calls import CallDesk
from labmesh.serving.states import StateStream

__all__ = ["RelayFacts"]

#: What a dataset keeps of the state of its driver.
_STATE_BYTES = 16 * 2**10


class RelayFacts:
    """The facts of one relay, from its start to its end."""

    def __init__(
        self,
        relay_id: str,
        epoch: str,
        driver: type,
        table: MethodTable,
        desk: CallDesk,
        states: StateStream,
    ) -> None:
        self._relay_id = relay_id
        self._epoch = epoch
        self._driver = driver
        self._table = table
        self._desk = desk
        self._states = states

    def description(self, request_id: str) -> Description:
        """What can be called, and how often a state comes."""
        return Description(
            id=request_id,
            node_id=self._relay_id,
            epoch=self._epoch,
            driver=self._table.driver_name,
            doc=self._table.doc,
            methods=self._table.describe(),
            values=self._table.values(),
            state_interval_s=self._states.due_s if self._table.has_poll else 0.0,
        )

    def status(
        self,
        request_id: str,
        uptime_s: float,
        membership: Mapping[str, Any],
        spool: Mapping[str, Any] | None,
    ) -> Status:
        """How it stands now; under the desk's lock.

        :param membership: what every member tells about its registration.
        :param spool: how its spool stands; None: it has none.
        """
        now = time.monotonic()
        worker = self._desk.worker
        running = worker.running
        polled_at = self._states.polled_at
        facts = {
            **membership,
            "driver": self._table.driver_name,
            "busy_with": None if running is None else running.method,
            "busy_s": None if running is None else now - running.since,
            "busy_by": "" if running is None else running.job.caller,
            "stuck": self._desk.stuck(now),
            "queued": worker.queued,
            "lease": self._desk.leases.facts(),
            "state_age_s": None if polled_at is None else now - polled_at,
            "state_error": self._states.error,
            "state_interval_s": self._states.interval_s if self._table.has_poll else None,
            "spool": spool,
        }
        return Status(
            id=request_id,
            node_id=self._relay_id,
            kind="relay",
            epoch=self._epoch,
            uptime_s=uptime_s,
            facts=facts,
        )

    def provenance(self) -> dict[str, Any]:
        """What is known of a dataset that is taken now, in this thread; it may block."""
        relay: dict[str, Any] = {"id": self._relay_id, **driver_facts(self._driver)}
        states = self._states
        if states.polled_at is not None and states.last is not None:
            relay["state"] = plain_facts(decode_value(states.last), _STATE_BYTES)
            relay["state_age_s"] = time.monotonic() - states.polled_at
        with self._desk.lock:
            lease = self._desk.leases.facts()
        opened = getattr(current(), "opened", None)
        call = None
        if isinstance(opened, OpenCall):
            call = {"id": opened.id, "method": opened.method, "user": opened.origin.user}
        facts = {"relay": relay, "lease": plain_facts(lease, _STATE_BYTES), "call": call}
        return sender_facts() | {key: each for key, each in facts.items() if each is not None}
