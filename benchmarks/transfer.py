"""How fast datasets move: labmesh beside raw pyzmq with the same work, and beside other systems.

    python benchmarks/transfer.py --only raw,labmesh,cp

docs/benchmarks.md says what the rows are, and how to read them.
"""

from __future__ import annotations

import sys

from harness.command import main
from harness.transfers import TRANSFERS

if __name__ == "__main__":
    sys.exit(main(TRANSFERS))
