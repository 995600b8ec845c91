"""The event loop that labmesh makes where it makes one: the command line, the blocking mesh."""

from __future__ import annotations

import asyncio
import os
import sys

__all__ = ["VARIABLE", "new_loop"]

#: ``0``: asyncio's own loop, also where uvloop is installed.
VARIABLE = "LMH_UVLOOP"


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's event loop where it is installed (``pip install 'labmesh[speed]'``), else asyncio's.

    On Windows it is the selector loop: ZeroMQ's sockets need one that watches descriptors. No
    policy is set: what a program's own ``asyncio.run()`` uses is the program's business.
    """
    if sys.platform != "win32" and os.environ.get(VARIABLE) != "0":
        try:
            import uvloop
        except ImportError:
            return asyncio.SelectorEventLoop()
        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()
