"""How fast calls are: labmesh beside raw pyzmq and beside other systems, in one run.

    python benchmarks/rpc.py --only raw,labmesh-blocking,labmesh-async

docs/benchmarks.md says what the rows are, and how to read them.
"""

from __future__ import annotations

import sys

from harness.calls import CALLS
from harness.command import main

if __name__ == "__main__":
    sys.exit(main(CALLS))
