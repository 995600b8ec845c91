"""A bank without a broker: bank_alone.py '{"data_dir": ..., "ingest_bind": ..., ...}'.

The keywords are those of the constructor; ``limits`` are those of UploadLimits, and ``file_bytes``
bounds the size of its files; ``without`` names file operations that it is to leave out, to see what
they are for. Prints ``serving <ingest> <retrieve>``; the log, at info, goes to
stderr. SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from typing import Any

from labmesh import DataBank
from labmesh.protocol.upload import UploadLimits
from labmesh.storage.fileops import FileOps


def bound_files(size: int) -> None:
    """No file of this process grows beyond ``size``."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def leave_out(operations: list[str]) -> None:
    """These file operations do nothing."""
    for each in operations:
        setattr(FileOps, each, lambda self, *arguments: None)


async def main(options: dict[str, Any]) -> None:
    """Serve until SIGTERM comes."""
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    limits = options.pop("limits", None)
    if (file_bytes := options.pop("file_bytes", None)) is not None:
        bound_files(file_bytes)
    leave_out(options.pop("without", []))
    if limits is not None:
        options["limits"] = UploadLimits(**limits)
    nobody = {"broker_rpc": "tcp://127.0.0.1:9", "broker_xsub": "tcp://127.0.0.1:9"}
    async with DataBank(**{**nobody, **options}) as bank:
        print(f"serving {bank.ingest} {bank.retrieve}")
        await ended.wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main(json.loads(sys.argv[1])))
