"""A relay whose driver writes down what it runs: recording_relay.py JOURNAL OPTIONS [again].

OPTIONS are the keywords of RelayAgent as JSON. Prints ``ready`` when it serves. With ``again`` the
relay is a child of this process, ``relay <pid>`` is printed, and when it dies there is another one
at once: it needs no imports.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from labmesh import RelayAgent, expose

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.support.history import note


class Recorder:
    """An instrument whose methods return their tags."""

    def __init__(self, path: str) -> None:
        self._journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def move(self, tag: str) -> str:
        """Once at most."""
        note(self._journal, tag)
        return tag

    def busy(self, seconds: float) -> None:
        """What comes meanwhile waits in the queue."""
        time.sleep(seconds)

    @expose(idempotent=True)
    def put(self, tag: str) -> str:
        """As often as it takes."""
        note(self._journal, tag)
        return tag

    def hold(self, tag: str, pid: int) -> str:
        """In the process ``pid`` it lasts as long as that; once at most."""
        note(self._journal, tag)
        return _last(tag, pid)

    @expose(idempotent=True)
    def hold_put(self, tag: str, pid: int) -> str:
        """In the process ``pid`` it lasts as long as that; as often as it takes."""
        note(self._journal, tag)
        return _last(tag, pid)


def _last(tag: str, pid: int) -> str:
    if os.getpid() == pid:
        threading.Event().wait()
    return tag


def say(text: str) -> None:
    """A line in one piece: parent and child write to the same pipe."""
    os.write(sys.stdout.fileno(), f"{text}\n".encode())


async def serve(journal: str, options: dict[str, Any], parent: int | None = None) -> None:
    """One relay, until it is ended; with its parent, if it has one."""
    if parent is not None:
        asyncio.get_running_loop().add_reader(parent, os._exit, 1)
    relay = RelayAgent(options.pop("relay_id"), Recorder(journal), **options)
    async with relay:
        say("ready")
        await asyncio.Event().wait()


def serve_again_and_again(journal: str, options: dict[str, Any]) -> None:
    """A relay, and the next one whenever it has died."""
    alive, this_one_is_alive = os.pipe()
    while True:
        pid = os.fork()
        if pid == 0:
            os.close(this_one_is_alive)
            asyncio.run(serve(journal, options, alive))
        say(f"relay {pid}")
        os.waitpid(pid, 0)


if __name__ == "__main__":
    _, path, keywords, *how = sys.argv
    if how == ["again"]:
        serve_again_and_again(path, json.loads(keywords))
    else:
        asyncio.run(serve(path, json.loads(keywords)))
