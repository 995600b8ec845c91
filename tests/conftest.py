"""What holds for all tests."""

from __future__ import annotations

import contextlib
import os

# Most people have asyncio's own loop; those tests that are about the other one ask for it.
os.environ.setdefault("LMH_UVLOOP", "0")

with contextlib.suppress(ImportError):
    import uvloop

    # The first of its loops opens a pipe that all others share and none closes: that is no leak.
    uvloop.new_event_loop().close()
