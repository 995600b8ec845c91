"""What a batch asks for, and what became of it: the lists inside ``Batch`` and ``BatchResult``.

They are plain lists on the wire, since their arrays travel as those of a call do. So what the
codec checks in other messages is checked here: whatever a peer sent becomes the structs below, or
one error whose text names the entry (people count from 1; ``detail`` has its ``index``, from 0).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from labmesh.errors import (
    BadArguments,
    LabmeshError,
    OutcomeUnknown,
    ProtocolError,
    TooLarge,
    error_from_wire,
)
from labmesh.protocol.messages import MAX_BATCH, Access

__all__ = [
    "BatchEntry",
    "Outcome",
    "read_entries",
    "read_outcomes",
    "write_entries",
    "write_outcomes",
]

_MAX_METHOD: Final = 256
#: As in Failure; what a relay cuts the text of an error to is shorter.
_MAX_NAME, _MAX_TEXT = 64, 65_536
_SENT_TEXT: Final = 2000
_ACCESS: Final[dict[str, Access]] = {"call": "call", "get": "get", "set": "set"}


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One call of a batch; its fields are those of ``Call``."""

    method: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    access: Access = "call"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call of a batch ended: with an error, or else with a value (which may be None)."""

    value: Any = None
    error: LabmeshError | None = None


# ── what is asked ───────────────────────────────────────────────────────────────────────────────


def write_entries(entries: Sequence[BatchEntry]) -> list[Any]:
    """``Batch.calls`` of these entries.

    :raises TooLarge: more than ``MAX_BATCH``; nothing was sent.
    """
    _check_count(len(entries))
    return [[each.method, each.args, each.kwargs, each.access] for each in entries]


def read_entries(calls: Sequence[Any]) -> list[BatchEntry]:
    """The entries in ``Batch.calls``. At the end of an entry what is left out has its default.

    :raises TooLarge: more than ``MAX_BATCH``.
    :raises BadArguments: the arguments of an entry are no list, or no map with text keys.
    :raises ProtocolError: anything else that is wrong.
    """
    _check_count(len(calls))
    return [_read_entry(index, each) for index, each in enumerate(calls)]


def _check_count(count: int) -> None:
    if count > MAX_BATCH:
        raise TooLarge(
            f"a batch of {count} calls; the limit is {MAX_BATCH}: send several batches",
            limit=MAX_BATCH,
        )


def _read_entry(index: int, entry: Any) -> BatchEntry:
    if not isinstance(entry, list) or not 1 <= len(entry) <= 4:
        _refuse(ProtocolError, index, f"is {_shown(entry)}, not [method, args, kwargs, access]")
    defaults: tuple[Any, ...] = ("", [], {}, "call")
    method, args, kwargs, access = (*entry, *defaults[len(entry) :])
    if not isinstance(method, str):
        _refuse(ProtocolError, index, f"names a method by {_shown(method)}; it must be text")
    if len(method) > _MAX_METHOD:
        shown = f"{len(method)} characters; the limit is {_MAX_METHOD}"
        _refuse(ProtocolError, index, f"names a method of {shown}")
    if not isinstance(args, list):
        _refuse(BadArguments, index, f"has {_shown(args)} as its args; they must be a list")
    if not isinstance(kwargs, dict):
        _refuse(BadArguments, index, f"has {_shown(kwargs)} as its kwargs; they must be a map")
    if not all(isinstance(key, str) for key in kwargs):
        _refuse(BadArguments, index, "has a key in its kwargs that is no text")
    if not isinstance(access, str) or access not in _ACCESS:
        _refuse(ProtocolError, index, "has an access that is none of: call, get, set")
    return BatchEntry(method, args, kwargs, _ACCESS[access])


def _refuse(kind: type[ProtocolError], index: int, problem: str) -> NoReturn:
    raise kind(f"call {index + 1} of this batch {problem}; nothing of it was run", index=index)


def _shown(value: Any) -> str:
    """A peer's value in a word or two, of a length that does not depend on it."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


# ── what became of it ───────────────────────────────────────────────────────────────────────────


def write_outcomes(outcomes: Iterable[Outcome]) -> list[Any]:
    """``BatchResult.outcomes`` of these outcomes; the text of an error is cut as in a Failure."""
    return [_written(each) for each in outcomes]


def _written(outcome: Outcome) -> list[Any]:
    error = outcome.error
    if error is None:
        return [outcome.value]
    return [error.name, error.text[:_SENT_TEXT], error.detail]


def read_outcomes(outcomes: Sequence[Any], count: int, where: str = "the relay") -> list[Outcome]:
    """The outcomes in ``BatchResult.outcomes``; what is missing at the end did not run.

    :param count: how many calls the batch had.
    :param where: who answered, for the text of an error.
    :raises OutcomeUnknown: it cannot be read; the calls may well have run.
    """
    if len(outcomes) > count:
        raise OutcomeUnknown(
            f"{where} answered a batch of {count} calls with {len(outcomes)} outcomes: do both "
            "sides run the same version of labmesh? Look at the instrument"
        )
    return [_read_outcome(index, each, where) for index, each in enumerate(outcomes)]


def _read_outcome(index: int, outcome: Any, where: str) -> Outcome:
    match outcome:
        case [value]:
            return Outcome(value)
        case [str(name), str(text), dict(detail)] if _is_error(name, text, detail):
            return Outcome(error=error_from_wire(name, text, detail))
    raise OutcomeUnknown(
        f"{where} answered call {index + 1} of a batch with {_shown(outcome)}, which is neither "
        "[value] nor [name, text, detail]: do both sides run the same version of labmesh? Look at "
        "the instrument",
        index=index,
    )


def _is_error(name: str, text: str, detail: dict[Any, Any]) -> bool:
    return (
        0 < len(name) <= _MAX_NAME
        and len(text) <= _MAX_TEXT
        and all(isinstance(key, str) for key in detail)
    )
