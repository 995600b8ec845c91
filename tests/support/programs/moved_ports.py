"""Run a program whose nodes use the default ports at other ports: moved_ports.py MAP PROGRAM.

MAP is JSON: default port → the port to use. Nothing else of the program changes.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from typing import Any

from labmesh import DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent


def move_ports(ports: dict[str, int]) -> None:
    """Change the defaults of the nodes' constructors."""

    def moved(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return re.sub(r":(\d+)$", lambda found: f":{ports.get(found[1], found[1])}", value)

    for kind in (DataBank, DirectorClientAgent, DirectoryBroker, RelayAgent):
        constructor: Any = kind.__init__
        constructor.__defaults__ = tuple(map(moved, constructor.__defaults__ or ()))
        keywords = constructor.__kwdefaults__ or {}
        constructor.__kwdefaults__ = {name: moved(value) for name, value in keywords.items()}


if __name__ == "__main__":
    move_ports(json.loads(sys.argv[1]))
    runpy.run_path(sys.argv[2], run_name="__main__")
