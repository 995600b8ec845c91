"""What became of a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labmesh.errors import LabmeshError, error_from_wire
from labmesh.protocol.messages import CallOutcome, CallState

__all__ = ["CallStatus"]


@dataclass(frozen=True, slots=True, repr=False)
class CallStatus:
    """How a call stands at its relay, or how it ended."""

    call_id: str
    #: ``queued``, ``running``, ``returned``, ``raised``, ``not_run`` (and will not), ``unknown``
    state: CallOutcome
    #: True: it ran, or runs. False: it did not and will not. None: it waits, or nobody knows
    executed: bool | None
    method: str
    #: what it returned, where that was ``kept``
    value: Any
    kept: bool
    #: what it raised, or why it did not run
    error: LabmeshError | None
    #: seconds since it began to wait, to run, or ended
    age_s: float

    @classmethod
    def of(cls, call_id: str, told: CallState) -> CallStatus:
        """What a relay told."""
        error = error_from_wire(told.error, told.text, told.detail) if told.error else None
        executed = _EXECUTED[told.state]
        if told.state == "raised" and error is not None:
            executed = error.executed
        return cls(
            call_id=call_id,
            state=told.state,
            executed=executed,
            method=told.method,
            value=told.value,
            kept=told.kept,
            error=error,
            age_s=told.age_s,
        )

    def __repr__(self) -> str:
        return f"<call {self.call_id}{self.method and f' of {self.method}'}: {self._story()}>"

    def _story(self) -> str:
        match self.state:
            case "queued":
                return f"has waited in the queue for {self.age_s:.1f} s"
            case "running":
                return f"has been running for {self.age_s:.1f} s"
            case "returned" if self.kept:
                return f"returned {self.value!r} {self.age_s:.1f} s ago"
            case "returned":
                return f"returned {self.age_s:.1f} s ago; its result was not kept"
            case "raised":
                return f"failed {self.age_s:.1f} s ago: {self.error}"
            case "not_run":
                return f"did not run and will not{'' if self.error is None else f': {self.error}'}"
            case _:
                return "nobody knows (any more): look at the instrument"


_EXECUTED: dict[CallOutcome, bool | None] = {
    "queued": None,
    "running": True,
    "returned": True,
    "raised": True,
    "not_run": False,
    "unknown": None,
}
