"""Names of files that are made from what others sent: harmless on every system. Pure."""

from __future__ import annotations

import re

from labmesh.content import suffix_of

__all__ = ["file_name", "folder_name"]

_MAX_BYTES = 150
#: What some system reads as part of a path, a drive, a stream or a pattern.
_UNSAFE = re.compile(
    r'[\x00-\x1f\x7f-\x9f<>:"|?*\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9]|conin\$|conout\$)(?:\..*)?", re.I)
#: The other files of an export.
_TAKEN = ("record.json", "sha256sums", "readme.txt")


def file_name(name: str, kind: str, dataset_id: str) -> str:
    """The name of a dataset's file: that of its record, made harmless, with the suffix of its kind.

    It has no folder in it, does not begin with a dot and is not the name of a device; a record
    without a usable name gives the dataset's id.
    """
    last = re.split(r"[/\\]", name)[-1]
    stem = _UNSAFE.sub("_", last).strip().lstrip(".").rstrip(". ")
    if not stem or _DEVICE.fullmatch(stem):
        stem = dataset_id
    suffix = suffix_of(kind, stem)
    stem = stem[: -len(suffix)] if suffix and stem.lower().endswith(suffix.lower()) else stem
    stem = stem.encode()[:_MAX_BYTES].decode(errors="ignore").rstrip(". ") or dataset_id
    made = f"{stem}{suffix}"
    return f"_{made}" if made.lower() in _TAKEN else made


def folder_name(dataset_id: str) -> str:
    """The folder of a dataset: its id, which is safe by its rule, unless a file has that name."""
    return f"{dataset_id}_" if dataset_id.lower() in _TAKEN else dataset_id
