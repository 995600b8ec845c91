"""Datasets that wait at a relay for a bank: what is kept of each, and what follows a failure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec
from msgspec import Struct

from labmesh.errors import (
    AuthenticationError,
    Conflict,
    Forbidden,
    NoAnswer,
    NotFound,
    ProtocolError,
    StorageError,
)
from labmesh.protocol.ids import check_id
from labmesh.protocol.messages import UploadStart
from labmesh.protocol.meta import check_meta

__all__ = [
    "BankRoom",
    "Place",
    "SpoolEntry",
    "Trouble",
    "check_start",
    "decode_entry",
    "encode_entry",
    "may_be_elsewhere",
    "retry_s",
    "roomiest",
    "trouble_of",
]

#: Where a dataset is put that is not sent: its bank will never take it; the relay ended in the
#: middle of it; its bytes are not what they were.
Place = Literal["refused", "incomplete", "damaged"]
#: What a failure is about: the bank (whatever else is for it has to wait, too), this dataset (the
#: others go on, and it is tried again), or this dataset for good.
Trouble = Literal["bank", "dataset", "refused"]

_BANK_TROUBLE = (AuthenticationError, Forbidden, NoAnswer, NotFound, StorageError)
#: So often a dataset is tried whose failure may be its own fault.
_TRIES = 8
_RETRY_S, _RETRY_MAX_S = 0.25, 10.0


class SpoolEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one dataset in a spool."""

    #: as it is sent; its ``size`` and ``sha256`` are there once the dataset is whole
    start: UploadStart
    #: the bank that it is for; empty: the one with most room
    bank: str = ""
    #: POSIX seconds (UTC)
    began: float = 0.0
    ended: float = 0.0
    #: where it is to be put, for good; empty: it is to be sent
    aside: Place | Literal[""] = ""
    reason: str = ""

    @property
    def is_whole(self) -> bool:
        """All of it was stored; otherwise whoever wrote it was interrupted."""
        return self.start.sha256 is not None and self.start.size is not None


def encode_entry(entry: SpoolEntry) -> bytes:
    """As it stands in a file, for people as well; numbers that are not finite are kept."""
    text = json.dumps(msgspec.to_builtins(entry), indent=1, ensure_ascii=False)
    return text.encode()


def decode_entry(content: bytes) -> SpoolEntry:
    """:func:`encode_entry` the other way.

    :raises ProtocolError: it is none.
    """
    try:
        entry = msgspec.convert(json.loads(content), SpoolEntry)
    except (ValueError, RecursionError) as exc:  # JSONDecodeError, Unicode-, ValidationError
        raise ProtocolError(f"this is not the entry of a spooled dataset: {exc}") from exc
    check_id(entry.start.dataset_id, "dataset id")
    return entry


def check_start(start: UploadStart) -> UploadStart:
    """Refuse, before a byte is stored, what no bank would take; returns it in plain values.

    :raises TooLarge: the meta.
    :raises ProtocolError: an id, text, list or value that breaks its rule.
    """
    check_id(start.dataset_id, "dataset id")
    if start.relay_id:
        check_id(start.relay_id, "relay id")
    check_meta(start.meta)
    try:
        return msgspec.convert(msgspec.to_builtins(start), UploadStart)
    except (TypeError, msgspec.ValidationError) as exc:
        raise ProtocolError(f"this dataset cannot be uploaded: {exc}") from exc


def trouble_of(error: Exception, failures: int) -> Trouble:
    """What a failed attempt to send means.

    :param failures: of this dataset so far, this one included.
    """
    if isinstance(error, Conflict) and "sha256" in error.detail:
        return "refused"
    if isinstance(error, _BANK_TROUBLE) or getattr(error, "retryable", False):
        return "bank"
    return "dataset" if failures < _TRIES else "refused"


def may_be_elsewhere(error: Exception) -> bool:
    """The bank has said that it does not store it, so another bank may."""
    return isinstance(error, StorageError)


def retry_s(failures: int) -> float:
    """Seconds until the next attempt, behind so many failures in a row (1 or more)."""
    return float(min(_RETRY_S * 2.0 ** min(failures - 1, 16), _RETRY_MAX_S))


class BankRoom(NamedTuple):
    """A live bank, and what it has told about its room."""

    bank_id: str
    #: bytes; None: it did not tell
    free_bytes: int | None
    #: it takes nothing for now
    read_only: bool = False

    @classmethod
    def of(cls, bank_id: str, facts: dict[str, Any]) -> BankRoom:
        """From the facts of its status."""
        free = facts.get("free_bytes")
        known = free if isinstance(free, int) and not isinstance(free, bool) else None
        return cls(bank_id, known, bool(facts.get("read_only")))


def roomiest(banks: Iterable[BankRoom], size: int | None) -> str | None:
    """The id of the bank to take for ``size`` bytes (None: not known); None: none takes anything.

    It is the one with most room. A bank that is read-only is passed over. Where no bank has room
    for ``size``, the roomiest says so itself.
    """
    writable = [each for each in banks if not each.read_only]
    fitting = [each for each in writable if (each.free_bytes or 0) >= (size or 0)] or writable
    if not fitting:
        return None
    # Of equals the first by name: every relay then takes the same one.
    best = min(fitting, key=lambda each: (-(each.free_bytes or 0), each.bank_id))
    return best.bank_id
