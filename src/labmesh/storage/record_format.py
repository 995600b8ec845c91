"""How the files of records are written: JSON that any program can read, and people too."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec.structs import asdict

from labmesh.protocol.messages import DatasetRecord, TrashEntry

__all__ = ["RECORD_FORMAT", "decoded_entry", "decoded_record", "encoded_entry", "encoded_record"]

#: The layout of record files; a file of another format is left alone.
RECORD_FORMAT = 1

#: What SQLite and every program that reads JSON can count to.
_MAX_SEQUENCE = 2**53


class _Deleted(msgspec.Struct, frozen=True, omit_defaults=True):
    deleted: float
    purge: float
    who: str = ""
    why: str = ""


class _RecordFile(DatasetRecord, frozen=True, kw_only=True, omit_defaults=True):
    format: int
    trash: _Deleted | None = None


_FIELDS = DatasetRecord.__struct_fields__
_decoder = msgspec.json.Decoder(_RecordFile)


def encoded_record(record: DatasetRecord) -> bytes:
    """The content of the file of a record."""
    return _encoded(record, None)


def encoded_entry(entry: TrashEntry) -> bytes:
    """The content of a file in the trash: that of the record, and when it went there."""
    return _encoded(entry.record, _Deleted(entry.deleted, entry.purge, entry.who, entry.why))


def _encoded(record: DatasetRecord, deleted: _Deleted | None) -> bytes:
    fields = _RecordFile(format=RECORD_FORMAT, trash=deleted, **asdict(record))
    content = msgspec.json.encode(fields)
    if b"null" in content:
        # NaN and infinities, which a laboratory has, are written as Python's json does.
        builtins: dict[str, Any] = msgspec.to_builtins(fields)
        return (json.dumps(builtins, ensure_ascii=False, indent=1) + "\n").encode()
    return msgspec.json.format(content, indent=1) + b"\n"


def decoded_record(content: bytes, dataset_id: str) -> DatasetRecord:
    """:raises ValueError: with the reason (as are msgspec's errors and those of json)."""
    return _record(_decoded(content, dataset_id))


def decoded_entry(content: bytes, dataset_id: str) -> TrashEntry:
    """:raises ValueError: as :func:`decoded_record`."""
    read = _decoded(content, dataset_id)
    trash = read.trash
    if trash is None:
        raise ValueError("it does not say when it was deleted")
    return TrashEntry(
        record=_record(read),
        deleted=trash.deleted,
        purge=trash.purge,
        who=trash.who,
        why=trash.why,
    )


def _decoded(content: bytes, dataset_id: str) -> _RecordFile:
    try:
        read = _decoder.decode(content)
    except msgspec.MsgspecError:
        read = _slowly_decoded(content)
    if read.format != RECORD_FORMAT:
        raise _other_format()
    if read.dataset_id != dataset_id:
        raise ValueError(f"it is the record of {read.dataset_id}")
    if not 0 < read.sequence < _MAX_SEQUENCE:
        raise ValueError("it has no sequence")
    return read


def _record(read: _RecordFile) -> DatasetRecord:
    record = DatasetRecord(**{name: getattr(read, name) for name in _FIELDS})
    # What no message can carry, such as half a character, is found here and not by a reader.
    msgspec.msgpack.encode(record)
    return record


def _slowly_decoded(content: bytes) -> _RecordFile:
    """By Python's json, which knows NaN and infinities."""
    fields = json.loads(content)
    if not isinstance(fields, dict):
        raise ValueError("it is not a JSON object")
    if fields.get("format") != RECORD_FORMAT:
        raise _other_format()
    return msgspec.convert(fields, _RecordFile)


def _other_format() -> ValueError:
    return ValueError(f"its format is not {RECORD_FORMAT}: another version of labmesh wrote it")
