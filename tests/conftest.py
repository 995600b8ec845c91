"""What holds for all tests."""

from __future__ import annotations

import os

# Most people have asyncio's own loop; those tests that are about the other one ask for it.
os.environ.setdefault("LMH_UVLOOP", "0")
