"""Lines of nodes' logs as clients get them."""

from __future__ import annotations

from labmesh.events.log_stream import LogLine
from labmesh.protocol.codec import decode_event, decode_value
from labmesh.protocol.messages import LastEvents, NodeRecord, Replay
from labmesh.protocol.topics import split, topic
from labmesh.transport.broker_link import BrokerLink
from labmesh.transport.subscriber import Received

__all__ = ["line_of", "remembered"]

_REQUEST_S = 2.0
#: Pages of a replay; the broker remembers no more than so many.
_MAX_PAGES = 100


def line_of(received: Received) -> LogLine:
    """The line of a log in an event.

    :raises ProtocolError: it is none.
    """
    _, node_id = split(received.topic)
    event = received.event
    return LogLine.of(node_id, decode_value(received.payload), event.epoch, event.sequence)


async def remembered(broker: BrokerLink, node: NodeRecord) -> list[LogLine]:
    """What the broker remembers of a node's log, the oldest line first.

    :raises ConnectionError: the broker does not answer.
    """
    lines: list[LogLine] = []
    name, first = topic("log", node.node_id), 1
    for _ in range(_MAX_PAGES):
        request = Replay(id="-", topic=name, node_epoch=node.epoch, first=first, last=2**53)
        page = await broker.request(request, LastEvents, timeout=_REQUEST_S)
        for each in page.events:
            lines.append(line_of(Received(name, decode_event(each.header), each.payload)))
        if not page.more or not page.events:
            break
        first = lines[-1].sequence + 1
    return lines
