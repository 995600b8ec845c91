"""The specification's four programs, unchanged, run until they have converged."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.support.processes import (
    Process,
    program,
    specification_folder,
    specification_toml,
)

from labmesh.util import read_toml_config

_LIMIT_S = 20.0
_UPLOAD_BYTES, _UPLOAD_SEED = 200_000, 42

#: What the fifth process uploads.
CONTENT = random.Random(_UPLOAD_SEED).randbytes(_UPLOAD_BYTES)


class SpecifiedPrograms:
    """A folder with a file of free ports, in which they run. Skips where they are not named."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._toml = specification_toml(folder)
        self._tables: dict[str, Any] = read_toml_config(self._toml)

    @property
    def ports(self) -> set[int]:
        """Every port that one of them binds."""
        binds = [
            bind for table in self._tables.values() for key, bind in table.items() if "bind" in key
        ]
        return {int(each.rpartition(":")[2]) for each in binds}

    def converge(self, environ: Mapping[str, str]) -> float:
        """Run all four with these variables, until the client has downloaded; the seconds."""
        began = time.monotonic()
        with ExitStack() as stack:

            def start(*arguments: Any) -> Process:
                process = Process(arguments, cwd=self._folder, environ=environ)
                return stack.enter_context(process)

            programs = {
                name: start(specification_folder() / f"{name}.py", "--toml", self._toml)
                for name in ("broker", "bank", "relay", "client")
            }
            client = programs["client"]
            client.wait_for(r"\[state\] Inst-0: .*'voltage': 2\.5\b", _LIMIT_S)
            ingest = self._tables["bank"]["ingest_bind"].replace("*", "127.0.0.1")
            uploader = start(program("upload.py"), ingest, str(_UPLOAD_BYTES), str(_UPLOAD_SEED))
            dataset_id = uploader.wait_for(r"^uploaded (\S+)$", _LIMIT_S)[1]
            client.wait_for(rf"^\[downloaded\].*{dataset_id}", _LIMIT_S)
            assert (self._folder / f"download_{dataset_id}.bin").read_bytes() == CONTENT
            assert client.errors == ""
        return time.monotonic() - began
