"""What an error means for a shell: the exit code, and what to try."""

from __future__ import annotations

from typing import NamedTuple

from labmesh.cli.output import Output
from labmesh.errors import (
    AuthenticationError,
    BadArguments,
    Busy,
    Cancelled,
    ChecksumMismatch,
    ConfigError,
    Conflict,
    Damaged,
    DriverError,
    Forbidden,
    InternalError,
    LabmeshError,
    LinkLost,
    Locked,
    NoAnswer,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    StaleEpoch,
    Stopping,
    StorageError,
    TooLarge,
    UnknownMethod,
    UnsupportedVersion,
)

__all__ = [
    "DONE",
    "EXIT_CODES",
    "FAILED",
    "INTERRUPTED",
    "OUTCOMES",
    "USAGE",
    "Outcome",
    "outcome_of",
    "report",
    "usage_error",
]

DONE, FAILED, USAGE, NOT_FOUND, REFUSED, NO_ANSWER, DRIVER_RAISED, CHECKSUM = range(8)
INTERRUPTED = 130

#: Exit code → what it means, for help and documents.
EXIT_CODES: dict[int, str] = {
    DONE: "done",
    FAILED: "another error",
    USAGE: "wrong usage or configuration",
    NOT_FOUND: "not found",
    REFUSED: "refused",
    NO_ANSWER: "no broker, or no answer in time (try again)",
    DRIVER_RAISED: "the driver raised",
    CHECKSUM: "checksum mismatch",
    INTERRUPTED: "interrupted",
}


class Outcome(NamedTuple):
    """The exit code of an error, and what a user can try."""

    exit_code: int
    advice: str


#: Error class → outcome; a class that is not here has the outcome of its nearest base.
OUTCOMES: dict[type[BaseException], Outcome] = {
    LabmeshError: Outcome(FAILED, "run it again with -v to see more, or 'labmesh doctor'"),
    ProtocolError: Outcome(USAGE, "correct what it names; see --help of this command"),
    BadArguments: Outcome(USAGE, "see 'labmesh show RELAY' for the methods and their arguments"),
    TooLarge: Outcome(REFUSED, "store large values as a dataset: 'labmesh data put FILE'"),
    UnsupportedVersion: Outcome(REFUSED, "install the same version of labmesh on both sides"),
    AuthenticationError: Outcome(REFUSED, "'labmesh doctor' finds the cause and names the mend"),
    Forbidden: Outcome(REFUSED, "ask whoever runs this network"),
    NotFound: Outcome(NOT_FOUND, "see 'labmesh ls' and 'labmesh data ls' for what is there"),
    UnknownMethod: Outcome(NOT_FOUND, "see 'labmesh show RELAY' for its methods"),
    NoAnswer: Outcome(NO_ANSWER, "try again with a longer --timeout, or run 'labmesh doctor'"),
    OutcomeUnknown: Outcome(
        NO_ANSWER, "look at the instrument ('labmesh show RELAY') before you call again"
    ),
    LinkLost: Outcome(NO_ANSWER, "check --broker, then run 'labmesh doctor'"),
    Stopping: Outcome(NO_ANSWER, "try again when it is back: 'labmesh ls'"),
    Conflict: Outcome(REFUSED, "give another name, id or port, or stop what holds it"),
    StaleEpoch: Outcome(NO_ANSWER, "try again; it was restarted meanwhile"),
    ChecksumMismatch: Outcome(CHECKSUM, "transfer it again; nothing was kept"),
    Locked: Outcome(
        REFUSED, "wait for its holder, or ask them: 'labmesh show RELAY' tells who that is"
    ),
    Busy: Outcome(NO_ANSWER, "try again in a moment; 'labmesh show RELAY' tells what it does"),
    Cancelled: Outcome(FAILED, "call again; it did not run"),
    StorageError: Outcome(FAILED, "look at the bank's folder, its rights and its disk"),
    Damaged: Outcome(
        CHECKSUM, "store the same content again, from an export or another bank: that mends it"
    ),
    NoSpace: Outcome(FAILED, "make room on the bank's disk"),
    InternalError: Outcome(FAILED, "the log of the node that answered has the traceback"),
    DriverError: Outcome(
        DRIVER_RAISED, "see 'labmesh show RELAY' for what it takes; -v shows the traceback"
    ),
    ConfigError: Outcome(
        USAGE, "see --help, 'labmesh init' for a commented file, 'labmesh doctor' for a check"
    ),
    FileNotFoundError: Outcome(NOT_FOUND, "check the path"),
    PermissionError: Outcome(REFUSED, "check the rights of the file or folder"),
    OSError: Outcome(FAILED, "check the path, the disk and the network"),
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of an expected error.

    :raises KeyError: this error is not expected: a fault of labmesh itself.
    """
    for kind in type(error).__mro__:
        if kind in OUTCOMES:
            return OUTCOMES[kind]
    raise KeyError(type(error).__name__)


def report(error: BaseException, out: Output, *, verbose: int = 0) -> int:
    """Tell of an expected error on stderr; the exit code."""
    exit_code, advice = outcome_of(error)
    facts = {"name": getattr(error, "name", None) or type(error).__name__}
    if isinstance(error, LabmeshError):
        facts["name"] = type(error).name
    text = _text(error)
    traceback = error.remote_traceback if isinstance(error, DriverError) else ""
    if traceback and out.json:
        facts["traceback"] = traceback
    out.error(text, advice, exit_code=exit_code, **facts)
    if traceback and verbose and not out.json:
        out.trouble(traceback.rstrip())
    return exit_code


def _text(error: BaseException) -> str:
    if isinstance(error, DriverError):
        where = ".".join(filter(None, (error.relay_id, error.method))) or "the driver"
        return f"{where} raised {_once(error.exception_type, str(error))}"
    if isinstance(error, OSError) and not isinstance(error, LabmeshError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _once(kind: str, text: str) -> str:
    """``module.Kind: text``, where the text of some errors begins with their kind already."""
    short = kind.rpartition(".")[2]
    rest = "" if text == short else text.removeprefix(f"{short}: ")
    return f"{kind}: {rest}" if rest else kind


def usage_error(text: str, command: str, out: Output) -> int:
    """Tell of wrong usage of a command; the exit code."""
    out.error(text, f"see '{command} --help'", exit_code=USAGE, name="usage")
    return USAGE
