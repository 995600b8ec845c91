"""How commands run: a client for as long as a question takes, nodes until they are told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from labmesh.cli import assembly
from labmesh.cli.options import BrokerOptions
from labmesh.cli.outcomes import DONE
from labmesh.cli.output import Output, printable
from labmesh.config import Config
from labmesh.discovery import BrokerCandidate
from labmesh.errors import ConfigError, Conflict, LinkLost, StorageError
from labmesh.events.log_stream import log_level
from labmesh.loops import new_loop
from labmesh.node import Node

if TYPE_CHECKING:
    from labmesh.client import DirectorClientAgent

__all__ = ["connected", "hold", "hold_open", "log_to_stderr", "on_sigterm", "run"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE_S = 1.5
#: What is met where no broker is, nor one that is slow.
_NO_BROKER = ("nobody", "no such host", "other", "ZeroMQ")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end.

    :raises KeyboardInterrupt: Ctrl-C, after everything was closed.
    """
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)


@asynccontextmanager
async def connected(options: BrokerOptions) -> AsyncIterator[DirectorClientAgent]:
    """A client that is connected to the broker of these options.

    :raises LinkLost: no broker; the text says where it was looked for, and who named that place.
    """
    candidate = options.candidate
    try:
        client = await _connect(candidate, options)
    except LinkLost as exc:
        text = f"{exc} (the address is from {candidate.source})"
        raise type(exc)(text, **exc.detail) from exc
    try:
        yield client
    finally:
        await client.close()


async def _connect(candidate: BrokerCandidate, options: BrokerOptions) -> DirectorClientAgent:
    """A broker that is just being started is waited for; not so one that is certainly none."""
    from labmesh.client import DirectorClientAgent  # commands that run nodes need none

    def client() -> DirectorClientAgent:
        return DirectorClientAgent(
            broker_rpc=candidate.rpc,
            broker_xpub=candidate.xpub,
            spare_broker=candidate.spare,
            local_address=options.settings.client.default_address,
            call_limit=options.settings.client.call_limit,
            security=options.security,
        )

    left_s = options.patience_s - options.certain_s
    try:
        return await client().connect(timeout=options.certain_s)
    except LinkLost as exc:
        if left_s <= 0 or exc.detail.get("met") in _NO_BROKER:
            raise
        log.warning("still waiting for the broker: %s", exc)
    return await client().connect(timeout=left_s)


async def hold_open(
    factories: Sequence[Callable[[], Node]],
    ready: Callable[[], None],
    out: Output,
) -> None:
    """Make and start nodes in order, call ``ready`` when all are, and keep them until SIGTERM.

    When a node fails later, that is said, and the others go on; not without the first one. They
    stop in reverse order.

    :raises LabmeshError: a node could not be started or registered (then none of them stays up),
        or the first one failed.
    """
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.callback(on_sigterm(stop.set))
        nodes: list[Node] = []
        for make in factories:
            nodes.append(await stack.enter_async_context(make()))
        stopped = asyncio.ensure_future(stop.wait())
        try:
            if await _all_ready(nodes, stopped, out):
                ready()
                await _until_over(nodes, stopped, out)
        finally:
            stopped.cancel()


async def _all_ready(nodes: Sequence[Node], stopped: asyncio.Future[Any], out: Output) -> bool:
    """Wait until every node is registered; False: it was stopped before."""
    waiting = asyncio.ensure_future(_each_ready(nodes))
    try:
        done, _ = await asyncio.wait(
            [stopped, waiting], timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            out.say("no broker yet; serving meanwhile, and trying on (Ctrl-C stops it)")
        await asyncio.wait([stopped, waiting], return_when=asyncio.FIRST_COMPLETED)
        if stopped.done():
            return False
        await waiting
        return True
    finally:
        waiting.cancel()


async def _each_ready(nodes: Sequence[Node]) -> None:
    for node in nodes:
        await node.ready


async def _until_over(nodes: Sequence[Node], stopped: asyncio.Future[Any], out: Output) -> None:
    ends = {asyncio.ensure_future(node.wait_ended()): node for node in nodes}
    try:
        while not stopped.done():
            await asyncio.wait([stopped, *ends], return_when=asyncio.FIRST_COMPLETED)
            for end in [each for each in ends if each.done()]:
                node = ends.pop(end)
                if node is nodes[0]:
                    await end
                    return
                out.trouble(f"{node.kind} {node.node_id} has ended: {end.exception()}")
    finally:
        for end in ends:
            end.cancel()


def on_sigterm(stop: Callable[[], object]) -> Callable[[], object]:
    """Have SIGTERM call ``stop``; what is returned undoes it."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(signal.SIGTERM, stop)
    except NotImplementedError:  # Windows ends a process without asking it
        return lambda: None
    return lambda: loop.remove_signal_handler(signal.SIGTERM)


def hold(
    factories: Sequence[Callable[[], Node]], ready: Callable[[], None], out: Output, config: Config
) -> int:
    """:func:`hold_open` as a command: Ctrl-C and SIGTERM are its normal end.

    :raises LabmeshError: as there; what is wrong with the configuration names its file.
    """
    _let_through(config)
    try:
        run(hold_open(factories, ready, out))
    except KeyboardInterrupt:
        out.say("stopped")
    except Conflict as exc:
        keys = assembly.keys_of_port(config, exc.detail.get("port"))
        if not keys:
            raise
        place = ": ".join(filter(None, (str(config.path or ""), " and ".join(keys))))
        raise Conflict(f"{place}: {exc}", **exc.detail) from exc
    except (ConfigError, StorageError) as exc:
        if config.path is None:
            raise
        raise type(exc)(f"{config.path}: {exc}", **exc.detail) from exc
    return DONE


class _OneLine(logging.Formatter):
    """What others sent must not steer the terminal by way of a log line either."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _let_through(config: Config) -> None:
    """What nodes are to publish of the log has to be made, also where stderr does not show it."""
    levels = [each for each in (config.relay.log_level, config.bank.log_level) if each != "off"]
    root = logging.getLogger()
    root.setLevel(min([root.level, *map(log_level, levels)]))


@contextmanager
def log_to_stderr(verbose: int, quiet: bool) -> Iterator[None]:
    """Show the log: warnings, or more with ``-v`` and ``-vv``, or errors only with ``-q``.

    As long as the block lasts: a program that runs a command inside itself has its log, and may
    have another stderr, afterwards.
    """
    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    handler.setLevel(logging.ERROR if quiet else levels[min(verbose, 2)])
    root = logging.getLogger()
    level_before = root.level
    root.addHandler(handler)
    root.setLevel(handler.level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level_before)
