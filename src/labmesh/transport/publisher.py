"""The publishing end of events: connected to the broker's XSUB, and to that of the spare."""

from __future__ import annotations

import time
from collections.abc import Callable

from labmesh.errors import LabmeshError, TooLarge
from labmesh.protocol.codec import encode_event, encode_value
from labmesh.protocol.event_frame import MAX_EVENT_BYTES, joined
from labmesh.protocol.events import Sequencer
from labmesh.protocol.topics import topic
from labmesh.transport.event_outlet import EventOutlet
from labmesh.transport.sockets import Sockets

__all__ = ["Publisher"]


class Publisher:
    """Publishes one node's events on the running loop, to one broker or to two.

    Both get each event under the same sequence. Nothing is queued while a broker is away: an event
    of the past must not arrive as if it were of now. The sequence goes on counting, so subscribers
    see what they missed.

    :param on_up: called each time a broker has (again) subscribed.
    """

    def __init__(
        self,
        sockets: Sockets,
        endpoint: str,
        *,
        node_id: str,
        epoch: str,
        on_up: Callable[[], None] | None = None,
    ) -> None:
        self._sockets = sockets
        self._node_id = node_id
        self._on_up = on_up
        self._sequencer = Sequencer(node_id, epoch)
        self._outlets = [EventOutlet(sockets, endpoint, self._heard)]

    @property
    def up(self) -> bool:
        """A broker takes events."""
        return any(each.up for each in self._outlets)

    @property
    def trouble(self) -> LabmeshError | None:
        """Why events do not get through; None: they do, or nothing is known yet."""
        return None if self.up else self._outlets[0].trouble

    def publish_to(self, endpoint: str, instead_of: str = "") -> None:
        """Publish to this broker as well; or to it, and no longer to another one."""
        for each in [each for each in self._outlets if each.endpoint == instead_of != endpoint]:
            each.close(0)
            self._outlets.remove(each)
        if all(each.endpoint != endpoint for each in self._outlets):
            self._outlets.append(EventOutlet(self._sockets, endpoint, self._heard))

    def is_up_at(self, endpoint: str) -> bool:
        """The broker at this address takes events."""
        return any(each.up for each in self._outlets if each.endpoint == endpoint)

    def publish(self, family: str, kind: str, value: object) -> bool:
        """Publish a value under ``<family>.<node id>``; False: the broker is away, it is lost.

        :raises ProtocolError: the value cannot be encoded.
        :raises TooLarge: it is larger than 256 KiB.
        """
        return self.publish_encoded(family, kind, encode_value(value))

    def publish_encoded(
        self, family: str, kind: str, payload: bytes, interval_s: float = 0.0
    ) -> bool:
        """:meth:`publish` for a value that was encoded elsewhere.

        :param interval_s: seconds after which the next one is due; 0: nobody can tell.
        """
        if len(payload) > MAX_EVENT_BYTES:
            raise TooLarge(
                f"an event of {len(payload)} bytes; the limit is {MAX_EVENT_BYTES}: upload large "
                "results as datasets"
            )
        name = topic(family, self._node_id)
        event = self._sequencer.next(name, time.time(), kind, interval_s)
        frames: tuple[bytes, ...] = ()
        is_sent = False
        for each in self._outlets:
            if each.up:
                frames = frames or (joined(name.encode(), encode_event(event), payload),)
                is_sent |= each.send(frames)
        return is_sent

    def publish_tail(self) -> None:
        """Tell how far each topic has come, so that a loss at the end of one is noticed."""
        last = self._sequencer.last()
        last.pop(topic("tail", self._node_id), None)
        if last:
            self.publish("tail", "tail", last)

    def close(self, linger_ms: int = 200) -> None:
        """Let the last events leave, and close; twice is fine."""
        for each in self._outlets:
            each.close(linger_ms)

    def _heard(self) -> None:
        if self._on_up is not None:
            self._on_up()
