"""What security costs: labmesh open, with a password and with keys, beside raw pyzmq with CURVE.

    python benchmarks/security.py

docs/benchmarks-security.md says what the rows are, and how to read them.
"""

from __future__ import annotations

import sys

from harness.command import main
from harness.security import SECURITY

if __name__ == "__main__":
    sys.exit(main(SECURITY))
