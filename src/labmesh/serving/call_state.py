"""What a relay says of a call about which its caller asks again."""

from __future__ import annotations

from labmesh.errors import OutcomeUnknown
from labmesh.protocol.callee import Callee
from labmesh.protocol.messages import CallState, GetCall
from labmesh.protocol.open_call import OpenCall, Owner
from labmesh.serving.served import kept_value

__all__ = ["state_of"]


def state_of(callee: Callee, request: GetCall, owner: Owner, now: float) -> CallState:
    """How far the call has come, and what it returned, as far as that is known here."""
    try:
        known = callee.look_up(owner, request.call, request.age_s, now, kept=bool(request.session))
    except OutcomeUnknown as exc:
        return CallState(id=request.id, state="unknown", text=str(exc))
    if known is None:
        text = "it never arrived here, and will not run"
        return CallState(id=request.id, state="not_run", text=text)
    return _told(request.id, known, now)


def _told(request_id: str, opened: OpenCall, now: float) -> CallState:
    error, value, kept = opened.error, None, False
    if opened.ended == "returned" and opened.reply is not None:
        value, kept = kept_value(opened), True
    return CallState(
        id=request_id,
        state=opened.state,
        method=opened.method,
        age_s=max(0.0, now - opened.since),
        value=value,
        kept=kept,
        error="" if error is None else error.name,
        text="" if error is None else str(error),
        detail={} if error is None else error.detail,
    )
