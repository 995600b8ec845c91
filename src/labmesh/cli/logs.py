"""The command ``log``: what relays and banks log, wherever they run."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter

from labmesh.cli.options import ClientOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, one_line, printable
from labmesh.cli.running import connected, run
from labmesh.client import DirectorClientAgent
from labmesh.errors import ConfigError
from labmesh.events.listeners import hears
from labmesh.events.log_stream import LogLine, log_level

__all__ = ["log"]

_OPTIONS = ClientOptions()
_WAITING_LINES = 1000


def log(
    *patterns: Annotated[
        str, Parameter(help="Ids of relays or banks, with * and ?. Without one: all.")
    ],
    follow: Annotated[
        bool,
        Parameter(
            name=["--follow", "-f"], negative="", show_default=False, help="Go on, until Ctrl-C."
        ),
    ] = False,
    level: Annotated[
        str, Parameter(help="Leave out what is below: debug, info, warning, error.")
    ] = "info",
    count: Annotated[int | None, Parameter(help="End after so many lines.")] = None,
    options: ClientOptions = _OPTIONS,
) -> int:
    """Print what relays and banks have logged of late, as far as the broker remembers it.

    A node publishes what its log_level lets through ([relay], [bank]).

    For example:

        labmesh log
        labmesh log -f 'Inst-*' --level warning
    """
    if count is not None and count < 1:
        raise ConfigError("--count takes a whole number, 1 or more")
    try:
        least = log_level(level)
    except ValueError as exc:
        raise ConfigError(f"--level: {exc}") from exc
    return run(_Log(patterns or None, least, options).until(count, follow=follow))


class _Log:
    """Prints the lines that the broker remembers, and then those that come."""

    def __init__(
        self, patterns: tuple[str, ...] | None, level: int, options: ClientOptions
    ) -> None:
        self._patterns = patterns
        self._level = level
        self._options = options
        #: what was printed of each node and incarnation
        self._printed: dict[tuple[str, str], int] = {}
        self._left: int | None = None

    async def until(self, count: int | None, *, follow: bool) -> int:
        """Print so many lines; None: all."""
        self._left = count
        coming: asyncio.Queue[LogLine] = asyncio.Queue(_WAITING_LINES)
        async with connected(self._options) as client:
            if follow:
                client.on_log(coming.put, self._patterns, level=self._level)
                await client.subscribed()
            for line in await self._recent(client):
                self._print(line)
            while follow and self._left != 0:
                self._print(await coming.get())
        return DONE

    async def _recent(self, client: DirectorClientAgent) -> list[LogLine]:
        lines: list[LogLine] = []
        for node in await client.list_nodes():
            if hears(self._patterns, node.node_id):
                lines += await client.recent_log(node.node_id)
        return sorted(lines, key=lambda line: line.time)

    def _print(self, line: LogLine) -> None:
        key = (line.node_id, line.epoch)
        is_new = line.sequence > self._printed.get(key, 0)
        if not is_new or line.level_number < self._level or self._left == 0:
            return
        self._printed[key] = line.sequence
        if self._left is not None:
            self._left -= 1
        print_line(line, self._options.out)


def print_line(line: LogLine, out: Output) -> None:
    """A line of a log, for people or programs."""
    if out.json:
        out.record({"event": "log", **asdict(line)})
        return
    clock = datetime.fromtimestamp(line.time).strftime("%H:%M:%S.%f")[:-3]
    if line.dropped:
        out.line(f"{clock}  {line.node_id}  ({line.dropped} lines found no room)")
    out.line(
        f"{clock}  {line.node_id}  {one_line(line.level):7}  {one_line(line.logger)}: "
        f"{one_line(line.text)}"
    )
    for each in line.exception.splitlines():
        out.line(f"    {printable(each)}")
