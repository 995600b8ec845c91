"""Datasets for a relay's spool."""

from __future__ import annotations

from typing import Any

from labmesh.protocol.messages import DatasetId, UploadStart


def upload_start(dataset_id: str = "scan", **fields: Any) -> UploadStart:
    """What begins the upload of a dataset."""
    given = {"id": "-", "session": "0123456789abcdef", "relay_id": "Inst-0", **fields}
    return UploadStart(dataset_id=DatasetId(dataset_id), **given)
