"""What is kept of a dataset that waits, and what follows a failure to send it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace
from tests.support.spools import upload_start

from labmesh.errors import (
    AuthenticationError,
    Busy,
    ChecksumMismatch,
    Conflict,
    LinkLost,
    NoAnswer,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    ProtocolError,
    StorageError,
    TooLarge,
)
from labmesh.protocol.spooling import (
    BankRoom,
    SpoolEntry,
    check_start,
    decode_entry,
    encode_entry,
    may_be_elsewhere,
    retry_s,
    roomiest,
    trouble_of,
)

SHA256 = "0" * 64


def test_an_entry_comes_back_as_it_was() -> None:
    meta: dict[str, Any] = {"T": -math.inf, "µ": ["é", None, True, 2**63 - 1], "": {"n": 1.5}}
    start = upload_start("scan-1", size=3, sha256=SHA256, name="scan", meta=meta, tags=["keep"])
    entry = SpoolEntry(start=start, bank="bank-1", began=1.0, ended=2.0)
    assert decode_entry(encode_entry(entry)) == entry
    assert entry.is_whole
    assert not replace(entry, start=replace(start, sha256=None)).is_whole
    assert not replace(entry, start=replace(start, size=None)).is_whole
    nan = SpoolEntry(start=upload_start(meta={"T": math.nan}))
    assert math.isnan(decode_entry(encode_entry(nan)).start.meta["T"])


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"start": {"type": "upload_start"}}', b"[" * 100_000],
)
def test_what_is_no_entry_is_refused(content: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_entry(content)


def test_an_entry_with_a_bad_id_is_refused() -> None:
    content = encode_entry(SpoolEntry(start=upload_start("scan")))
    with pytest.raises(ProtocolError):
        decode_entry(content.replace(b'"scan"', b'"con"'))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"dataset_id": "../x"}, ProtocolError),
        ({"relay_id": "a b"}, ProtocolError),
        ({"name": "n" * 257}, ProtocolError),
        ({"tags": [""]}, ProtocolError),
        ({"parents": ["a/b"]}, ProtocolError),
        ({"tags": [{"not": object()}]}, ProtocolError),
        ({"meta": {"array": b"bytes"}}, ProtocolError),
        ({"meta": {"note": "x" * 300_000}}, TooLarge),
    ],
)
def test_what_no_bank_takes_is_refused_before_it_is_stored(
    fields: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_start(upload_start(**fields))


def test_what_is_checked_is_plain() -> None:
    start = upload_start(relay_id="", meta={"shape": [2, 3]}, tags=["keep"])
    assert check_start(start) == start


@pytest.mark.parametrize(
    ("error", "failures", "trouble"),
    [
        (LinkLost(), 1000, "bank"),
        (NoAnswer(), 1000, "bank"),
        (OutcomeUnknown(), 1000, "bank"),
        (Busy(), 1000, "bank"),
        (NotFound(), 1000, "bank"),
        (NoSpace(), 1000, "bank"),
        (StorageError(), 1000, "bank"),
        (AuthenticationError(), 1000, "bank"),
        (Conflict(sha256=SHA256), 1, "refused"),
        (Conflict(), 7, "dataset"),
        (Conflict(), 8, "refused"),
        (TooLarge(), 1, "dataset"),
        (TooLarge(), 8, "refused"),
        (ChecksumMismatch(), 7, "dataset"),
        (OSError("read"), 8, "refused"),
    ],
)
def test_a_failure_is_the_banks_or_the_datasets(
    error: Exception, failures: int, trouble: str
) -> None:
    assert trouble_of(error, failures) == trouble


def test_only_a_bank_that_has_refused_is_left() -> None:
    assert may_be_elsewhere(NoSpace())
    assert may_be_elsewhere(StorageError())
    assert not may_be_elsewhere(NoAnswer())


def test_retries_back_off_to_ten_seconds() -> None:
    assert [retry_s(n) for n in (1, 2, 3, 6, 7, 10**6)] == [0.25, 0.5, 1.0, 8.0, 10.0, 10.0]


def test_the_roomiest_bank_is_taken() -> None:
    small, large = BankRoom("small", 10), BankRoom("large", 1000)
    shut = BankRoom("shut", 10**9, read_only=True)
    silent = BankRoom("silent", None)
    assert roomiest([], None) is None
    assert roomiest([shut], 1) is None
    assert roomiest([small, large, shut, silent], None) == "large"
    assert roomiest([small, silent], 5) == "small"
    assert roomiest([silent], 5) == "silent"
    # None has room: the one that is asked says so itself.
    assert roomiest([small, large], 10**6) == "large"
    assert roomiest([BankRoom("b", 7), BankRoom("a", 7)], 7) == "a"


def test_a_bank_tells_its_room_in_its_status() -> None:
    facts = {"free_bytes": 7, "read_only": "since 12:00: EIO"}
    assert BankRoom.of("bank-0", facts) == ("bank-0", 7, True)
    assert BankRoom.of("bank-0", {}) == ("bank-0", None, False)
    assert BankRoom.of("bank-0", {"free_bytes": True, "read_only": ""}) == ("bank-0", None, False)
