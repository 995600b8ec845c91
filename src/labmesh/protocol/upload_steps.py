"""What a bank's shell has to do for the uploads that its receiver accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from labmesh.protocol.messages import DatasetRecord, Reply

__all__ = ["Discard", "Effect", "Finish", "Open", "Step", "Store", "UploadKey", "Write"]


class UploadKey(NamedTuple):
    """One upload. The number tells two of the same id apart."""

    dataset_id: str
    number: int


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a part for ``size`` bytes (None: not known yet).

    ``instead_of``: an upload whose sender has gone quiet; drop its part first.
    """

    size: int | None
    instead_of: UploadKey | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Write the body of the request, ``size`` bytes, at ``offset`` of the part."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Verify the part, make it durable, add ``record`` to the catalog, which numbers it."""

    record: DatasetRecord


@dataclass(frozen=True, slots=True)
class Store:
    """All of it at once: the body of the request is the dataset. Look for a record of its id first
    (the same content is stored already, other content is a conflict); then begin a part, write,
    finish, and add ``record``.

    ``instead_of``: as of :class:`Open`.
    """

    record: DatasetRecord
    instead_of: UploadKey | None = None


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop the part, if there is one."""


Effect: TypeAlias = Open | Write | Finish | Store | Discard


@dataclass(frozen=True, slots=True)
class Step:
    """One accepted request: what is to be done, and then said.

    The shell takes the steps of one key in the order in which they were given (those of different
    keys may overlap), and for each: ``receiver.check(step)``, performs ``effect`` (None: there is
    nothing to do, but the reply is true only in its turn), ``receiver.performed(step, now)``, sends
    ``reply``. After a Finish or Store it sends ``Committed`` with the record that the catalog
    returned. When one of these raises, it takes the step that ``receiver.failed(key)`` returns and
    answers the request with the error.
    """

    key: UploadKey
    effect: Effect | None
    reply: Reply | None
