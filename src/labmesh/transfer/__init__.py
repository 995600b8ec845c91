"""Uploads and downloads, as relays, banks and clients do them."""

from labmesh.transfer.moving import (
    AskFetch,
    Progress,
    UploadSettings,
    download,
    new_dataset_id,
    upload,
    upload_dataset,
)

__all__ = [
    "AskFetch",
    "Progress",
    "UploadSettings",
    "download",
    "new_dataset_id",
    "upload",
    "upload_dataset",
]
