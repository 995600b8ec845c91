"""How many events one broker carries: labmesh beside ``zmq.proxy`` and beside other systems.

    python benchmarks/events.py --only zmq-proxy,labmesh-broker,labmesh

docs/benchmarks-events.md says what the rows are, and how to read them.
"""

from __future__ import annotations

import sys

from harness.command import main
from harness.events import EVENTS

if __name__ == "__main__":
    sys.exit(main(EVENTS))
