"""Many calls at once, between processes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.support.networks import Network
from tests.support.processes import Start

CALLS = 1000
BLOCKED_S = 60.0
LIMIT_S = 20.0


async def test_many_calls_while_another_relay_blocks(start: Start, tmp_path: Path) -> None:
    """1,000 calls at once are all answered, each with its own answer, while a call blocks."""
    network = Network(start, tmp_path)
    network.broker()
    network.ready_nodes(network.relay("quick"))
    network.ready_nodes(network.relay("blocked"))
    async with (
        network.client() as client,
        network.client() as other,
        asyncio.TaskGroup() as tasks,
    ):
        quick = await client.get_relay_agent("quick")
        blocked = await other.get_relay_agent("blocked")
        blocking = tasks.create_task(blocked.call("block", BLOCKED_S))
        while (await blocked.status()).facts["busy_with"] != "block":
            assert not blocking.done()
        began = time.monotonic()
        answers = await asyncio.gather(
            *(quick.call("square", number, timeout=LIMIT_S) for number in range(CALLS)),
            return_exceptions=True,
        )
        took_s = time.monotonic() - began
        assert not blocking.done()
        lost = [each for each in answers if isinstance(each, BaseException)]
        mixed_up = [
            number
            for number, each in enumerate(answers)
            if not isinstance(each, BaseException) and each != number * number
        ]
        print(
            f"{CALLS} calls in {took_s:.2f} s: {len(lost)} lost or late, {len(mixed_up)} mixed up"
        )
        assert lost == []
        assert mixed_up == []
        blocking.cancel()
