"""Units, limits and marks of a driver's methods and values, in words."""

from __future__ import annotations

from collections.abc import Mapping

from labmesh.protocol.messages import MethodInfo, ValueInfo, ValueLimits

__all__ = ["limits_text", "method_doc", "method_marks", "value_marks"]

_RETURNED = "return"
_HEADING = "Units and limits"
_FEW_CHOICES = 12


def limits_text(limits: ValueLimits) -> str:
    """``V, 0 to 30``, ``at least 1``, ``one of 'C', 'F', 'K'``; empty: nothing is said."""
    return ", ".join(filter(None, (limits.unit, _range(limits), _choices(limits.choices))))


def _range(limits: ValueLimits) -> str:
    lowest, highest = limits.lowest, limits.highest
    if lowest is None:
        return "" if highest is None else f"at most {highest:.12g}"
    return f"at least {lowest:.12g}" if highest is None else f"{lowest:.12g} to {highest:.12g}"


def _choices(choices: list[str]) -> str:
    if not choices:
        return ""
    more = f" and {len(choices) - _FEW_CHOICES} more" if len(choices) > _FEW_CHOICES else ""
    return f"one of {', '.join(choices[:_FEW_CHOICES])}{more}"


def method_doc(method: MethodInfo) -> str:
    """The driver's docstring, and below it a paragraph with units and limits, where it has any."""
    said = _paragraph(method.limits)
    return "\n\n".join(filter(None, (method.doc.rstrip(), said)))


def _paragraph(limits: Mapping[str, ValueLimits]) -> str:
    lines = [
        f"    {'returns' if name == _RETURNED else name}: {text}"
        for name, each in sorted(limits.items(), key=lambda pair: pair[0] == _RETURNED)
        if (text := limits_text(each))
    ]
    return "\n".join([_HEADING, *lines]) if lines else ""


def method_marks(method: MethodInfo) -> list[str]:
    """``read-only``, ``yields``, ``idempotent``, ``at most 30 s``: what a caller should know."""
    marks = [
        name
        for name, holds in (
            ("read-only", method.read_only),
            ("yields", method.yields),
            ("idempotent", method.idempotent),
        )
        if holds
    ]
    return [*marks, f"at most {method.timeout_s:g} s"] if method.timeout_s > 0 else marks


def value_marks(value: ValueInfo) -> list[str]:
    """Unit and limits, and ``read-only``, ``settable`` or ``write-only``."""
    access = "settable" if value.settable else "read-only"
    if not value.gettable:
        access = "write-only"
    return [*filter(None, (limits_text(value.limits),)), access]
