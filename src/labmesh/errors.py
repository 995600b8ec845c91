"""Every exception of labmesh, with its code on the wire.

::

                                          code  name
    LabmeshError (RuntimeError)            500  error
    ├── ProtocolError (ValueError)             400  bad_request      not executed
    │   ├── BadArguments (TypeError)           400  bad_arguments    not executed
    │   ├── TooLarge                           413  too_large        not executed
    │   └── UnsupportedVersion                 415  unsupported      not executed
    ├── AuthenticationError (PermissionError)  401  unauthenticated  not executed
    ├── Forbidden (PermissionError)            403  forbidden        not executed
    ├── NotFound (KeyError)                    404  not_found        not executed
    ├── UnknownMethod (AttributeError)         404  unknown_method   not executed
    ├── NoAnswer (TimeoutError)                408  no_answer
    │   ├── Expired                            408  expired          not executed
    │   └── OutcomeUnknown                     408  outcome_unknown
    ├── LinkLost (ConnectionError)             503  link_lost
    │   ├── NotSent                            503  not_sent         not executed
    │   └── Stopping                           503  stopping         not executed
    ├── Conflict                               409  conflict         not executed
    │   └── StaleEpoch                         410  stale_epoch      not executed
    ├── ChecksumMismatch (ValueError)          422  checksum
    ├── Locked (PermissionError)               423  locked           not executed
    ├── Busy                                   429  busy             not executed
    ├── Cancelled                              499  cancelled        not executed
    ├── StorageError (OSError)                 500  storage
    │   ├── Damaged                            422  damaged
    │   └── NoSpace                            507  no_space
    ├── InternalError                          500  internal
    ├── DriverError                            500  driver           executed
    └── ConfigError (ValueError)               400  config           not executed

*not executed*: nothing ran and nothing was changed, trying again is safe; *executed*: it did run.
Where neither is said, nobody knows, or nothing was to be run.

Each error is a :class:`RuntimeError` and also the builtin that it resembles, so that an existing
``except TimeoutError`` works. A driver's own exception arrives as a :class:`DriverError` that also
inherits the builtin type that the driver raised (``except ValueError`` works across the network).
The code and name on the class are the design of h2's ``exceptions.py``.
"""

from __future__ import annotations

import builtins
from typing import Any, ClassVar

__all__ = [
    "AuthenticationError",
    "BadArguments",
    "Busy",
    "Cancelled",
    "ChecksumMismatch",
    "ConfigError",
    "Conflict",
    "Damaged",
    "DriverError",
    "Expired",
    "Forbidden",
    "InternalError",
    "LabmeshError",
    "LinkLost",
    "Locked",
    "NoAnswer",
    "NoSpace",
    "NotFound",
    "NotSent",
    "OutcomeUnknown",
    "ProtocolError",
    "StaleEpoch",
    "Stopping",
    "StorageError",
    "TooLarge",
    "UnknownMethod",
    "UnsupportedVersion",
    "error_from_wire",
    "wire_names",
]


class LabmeshError(RuntimeError):
    """Root of the tree.

    :param text: one sentence for a person: what happened, and what to try.
    :param detail: small facts for a program (they cross the wire): ids, offsets, who holds what.
    """

    code: ClassVar[int] = 500
    name: ClassVar[str] = "error"
    #: False: the call did not run. True: it ran. None: nobody knows, or nothing was to be run.
    executed: ClassVar[bool | None] = None
    #: Trying the same thing again can help.
    retryable: ClassVar[bool] = False

    def __init__(self, text: str = "", **detail: Any) -> None:
        super().__init__(text)
        self.text = text or type(self).__name__
        self.detail = detail

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.text, self.detail), self.__dict__


def _rebuild(kind: type[LabmeshError], text: str, detail: dict[str, Any]) -> LabmeshError:
    return kind(text, **detail)


class ProtocolError(LabmeshError, ValueError):
    """A message that cannot be decoded, or that is not allowed here. Nothing was changed."""

    code = 400
    name = "bad_request"
    executed = False


class BadArguments(ProtocolError, TypeError):
    """The arguments do not fit the method's signature. The driver was not called."""

    name = "bad_arguments"


class TooLarge(ProtocolError):
    """A message, value or dataset over a limit; the text names the limit."""

    code = 413
    name = "too_large"


class UnsupportedVersion(ProtocolError):
    """Another protocol version or encoding; the text names the supported ones."""

    code = 415
    name = "unsupported"


class AuthenticationError(LabmeshError, PermissionError):
    """The other side does not accept this password, key or host (or this side not its)."""

    code = 401
    name = "unauthenticated"
    executed = False


class Forbidden(LabmeshError, PermissionError):
    """Known, but not allowed to do this."""

    code = 403
    name = "forbidden"
    executed = False


class NotFound(LabmeshError, KeyError):
    """No node or dataset of this id; the text names the closest ones."""

    code = 404
    name = "not_found"
    executed = False


class UnknownMethod(LabmeshError, AttributeError):
    """The driver has no public method of this name."""

    code = 404
    name = "unknown_method"  # type: ignore[misc]  # AttributeError has a ``name`` as well
    executed = False


class NoAnswer(LabmeshError, TimeoutError):
    """Nothing came back in time."""

    code = 408
    name = "no_answer"
    retryable = True


class Expired(NoAnswer):
    """The deadline passed before the call began: it did not run and it will not."""

    name = "expired"
    executed = False


class OutcomeUnknown(NoAnswer):
    """The call was sent and then nothing more was heard: it may have run, or may be running.

    Look at the instrument before you send it again.
    """

    name = "outcome_unknown"
    retryable = False


class LinkLost(LabmeshError, ConnectionError):
    """The other side cannot be reached, or the link to it broke."""

    code = 503
    name = "link_lost"
    retryable = True


class NotSent(LinkLost):
    """There was no link before the deadline: the call never left this process."""

    name = "not_sent"
    executed = False


class Stopping(LinkLost):
    """The node is shutting down and takes nothing new."""

    name = "stopping"
    executed = False


class Conflict(LabmeshError):
    """An id, an address or a dataset is already taken, with other content."""

    code = 409
    name = "conflict"
    executed = False


class StaleEpoch(Conflict):
    """The node was restarted since the caller last spoke to it; the call was not run."""

    code = 410
    name = "stale_epoch"
    retryable = True


class ChecksumMismatch(LabmeshError, ValueError):
    """Size or SHA-256 differ from what was announced; nothing was kept."""

    code = 422
    name = "checksum"


class Locked(LabmeshError, PermissionError):
    """Another client holds the lease, or one's own has ended; the call was not run.

    Attributes in ``detail``: ``holder``, ``note``, ``left_s``, ``fence``.
    """

    code = 423
    name = "locked"
    executed = False
    retryable = True


class Busy(LabmeshError):
    """A queue or quota is full, or somebody else's call runs on; nothing was run or granted."""

    code = 429
    name = "busy"
    executed = False
    retryable = True


class Cancelled(LabmeshError):
    """Cancelled while it waited in the queue: it did not run."""

    code = 499
    name = "cancelled"
    executed = False


class StorageError(LabmeshError, OSError):
    """The bank's disk refused; the dataset is not stored."""

    code = 500
    name = "storage"


class Damaged(StorageError):
    """Stored bytes are no longer what was stored; they are set aside and never served."""

    code = 422
    name = "damaged"


class NoSpace(StorageError):
    """The bank's disk or quota is full."""

    code = 507
    name = "no_space"
    retryable = True


class InternalError(LabmeshError):
    """A fault of labmesh itself, in the node that answered; its log has the traceback."""

    code = 500
    name = "internal"


class ConfigError(LabmeshError, ValueError):
    """A configuration file or option that cannot be used: file, table, key, and the way out."""

    code = 400
    name = "config"
    executed = False


class DriverError(LabmeshError):
    """The driver's method raised.

    The instance also inherits the builtin exception that the driver raised, when it is one.
    Attributes: ``exception_type`` (its name), ``remote_traceback`` (text), ``relay_id``,
    ``method``.
    """

    code = 500
    name = "driver"
    executed = True

    def __init__(self, text: str = "", **detail: Any) -> None:
        super().__init__(text, **detail)
        self.exception_type: str = str(detail.get("exception_type", "Exception"))
        self.remote_traceback: str = str(detail.get("remote_traceback", ""))
        self.relay_id: str = str(detail.get("relay_id", ""))
        self.method: str = str(detail.get("method", ""))
        if self.remote_traceback:
            self.add_note(f"Traceback on {self.relay_id or 'the relay'}:\n{self.remote_traceback}")

    def __reduce__(self) -> tuple[Any, ...]:
        return driver_error, (self.text, self.detail), self.__dict__


#: These steer a program, or cannot be made of a text alone.
_NEVER_MIRRORED = (StopIteration, StopAsyncIteration, ExceptionGroup, UnicodeError)


#: builtin exception → the driver error that is one of it, made when first needed.
_MIRRORS: dict[type[Exception], type[DriverError]] = {}


def _mirroring(builtin: type[Exception]) -> type[DriverError]:
    if builtin not in _MIRRORS:
        content: dict[str, Any] = {"__module__": __name__}
        if issubclass(builtin, SyntaxError):
            # A traceback shows a SyntaxError by its ``msg``, not by str().
            content["msg"] = property(str)
        _MIRRORS[builtin] = type(f"Driver{builtin.__name__}", (DriverError, builtin), content)
    return _MIRRORS[builtin]


def _driver_error_class(exception_type: str) -> type[DriverError]:
    builtin = vars(builtins).get(exception_type)
    if (
        not isinstance(builtin, type)
        or not issubclass(builtin, Exception)
        or issubclass(builtin, _NEVER_MIRRORED)
        or issubclass(DriverError, builtin)
    ):
        return DriverError
    return _mirroring(builtin)


def driver_error(text: str, detail: dict[str, Any]) -> DriverError:
    """Make the error of a driver that raised ``detail["exception_type"]``."""
    return _driver_error_class(str(detail.get("exception_type", "Exception")))(text, **detail)


def _walk(kind: type[LabmeshError]) -> list[type[LabmeshError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _walk(child))]


#: name on the wire → class; the mirrored driver errors, made later, share DriverError's name.
_BY_NAME: dict[str, type[LabmeshError]] = {kind.name: kind for kind in _walk(LabmeshError)}


def wire_names() -> dict[str, type[LabmeshError]]:
    """Every error name that can cross the wire, with its class."""
    return dict(_BY_NAME)


def error_from_wire(name: str, text: str, detail: dict[str, Any] | None = None) -> LabmeshError:
    """Rebuild an error that crossed the wire; an unknown name becomes a plain LabmeshError."""
    facts = {key: value for key, value in (detail or {}).items() if key.isidentifier()}
    facts.pop("self", None)
    facts.pop("text", None)
    if name == DriverError.name:
        return driver_error(text, facts)
    return _BY_NAME.get(name, LabmeshError)(text, **facts)
