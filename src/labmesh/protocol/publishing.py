"""Which events a broker takes from whom, where the mode proves who publishes.

A node publishes under its own id and its families alone, and each event of a topic once: its
sequence grows, and an incarnation that was followed by another one does not come back. What is
refused was never forwarded, so it is nobody's gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from labmesh.errors import ProtocolError
from labmesh.protocol.access import Grant, may_publish
from labmesh.protocol.codec import decode_event
from labmesh.protocol.ids import shown

__all__ = ["Publications", "Refused", "Why"]

#: ``forged``: somebody else's topic, a header that lies about its publisher, or what is no event.
#: ``replayed``: not newer than what came before. ``unknown``: no grant (any more). ``muted``.
Why = Literal["forged", "replayed", "unknown", "muted"]

#: Incarnations of a node that are remembered, so that none of them comes back.
_PAST_EPOCHS = 64


class Refused(Exception):
    """An event that is not to be forwarded; ``why`` is one of :data:`Why`."""

    def __init__(self, why: Why, text: str) -> None:
        super().__init__(text)
        self.why = why


class _Mark(Struct, frozen=True):
    """What of an event's header tells its place in the stream: it is decoded with each event."""

    publisher: Annotated[str, Meta(max_length=128)]
    epoch: Annotated[str, Meta(max_length=64)]
    sequence: Annotated[int, Meta(ge=0, le=2**53)]


_read_mark = msgspec.msgpack.Decoder(_Mark).decode
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class _Flow:
    """The events of one publisher under one topic."""

    __slots__ = ("allowed_by", "epoch", "last", "name", "past", "until")

    def __init__(self) -> None:
        #: the list by its number that was asked last whether this may be published
        self.allowed_by = 0
        self.name = ""
        self.until: float | None = None
        self.epoch = ""
        self.last = 0
        #: earlier epochs, the oldest first
        self.past: dict[str, None] = {}

    def turn_to(self, epoch: str) -> bool:
        """Follow a new incarnation; False: it is an earlier one."""
        if epoch in self.past:
            return False
        if self.epoch:
            self.past[self.epoch] = None
            if len(self.past) > _PAST_EPOCHS:
                del self.past[next(iter(self.past))]
        self.epoch, self.last = epoch, -1
        return True


class Publications:
    """The publishers of one broker.

    Not safe for use from two threads by itself.

    :param grant_of: what a user may, by the list that holds now; None: nothing.
    :param mute_after: so many forged events within ``window_s`` mute their sender for ``mute_s``.
    """

    def __init__(
        self,
        grant_of: Callable[[str], Grant | None],
        *,
        mute_after: int = 100,
        window_s: float = 60.0,
        mute_s: float = 60.0,
    ) -> None:
        self._grant_of = grant_of
        #: the number of the list that holds
        self._list = 1
        self._mute_after, self._window_s, self._mute_s = mute_after, window_s, mute_s
        self._flows: dict[tuple[str, bytes], _Flow] = {}
        #: user → beginning of the window, violations in it
        self._windows: dict[str, tuple[float, int]] = {}
        #: user → until when
        self._muted: dict[str, float] = {}
        #: how many events were refused, by reason
        self.refused: dict[Why, int] = dict.fromkeys(("forged", "replayed", "unknown", "muted"), 0)

    def list_changed(self) -> None:
        """Another list holds from now on."""
        self._list += 1
        for key in [each for each in self._flows if self._grant_of(each[0]) is None]:
            del self._flows[key]

    def muted(self, now: float) -> list[str]:
        """Who is not heard at present."""
        return [user for user, until in self._muted.items() if until > now]

    def take(self, user: str, topic: bytes, header: bytes, now: float, wall: float) -> None:
        """An event came; it may be forwarded.

        :param user: who the handshake proved it to be.
        :param now: monotonic seconds.
        :param wall: POSIX seconds, for grants that end.
        :raises Refused: it may not; the text is for the log.
        """
        if self._muted and self._is_muted(user, now):
            raise self._no("muted", user, "is muted")
        flow = self._flows.get((user, topic))
        if flow is None or flow.allowed_by != self._list:
            flow = self._allowed(user, topic, now)
        if flow.until is not None and wall > flow.until:
            raise self._no("unknown", user, "has a key whose time is over")
        try:
            mark = _read_mark(header) if header[:1] != b"{" else decode_event(header)
        except (*_FAULTS, ProtocolError) as exc:
            self.violated(user, now)
            raise self._no("forged", user, f"sent what is no event ({exc})") from exc
        if mark.publisher != flow.name:
            self.violated(user, now)
            raise self._no("forged", user, f"calls itself {shown(mark.publisher)} in an event")
        if mark.epoch != flow.epoch and not flow.turn_to(mark.epoch):
            raise self._no("replayed", user, f"sent an event of an earlier start to {topic!r}")
        if mark.sequence <= flow.last:
            raise self._no("replayed", user, f"sent event {mark.sequence} of {topic!r} again")
        flow.last = mark.sequence

    def violated(self, user: str, now: float) -> bool:
        """Count an event that was forged or malformed; True: its sender is muted from now on."""
        began, count = self._windows.get(user, (now, 0))
        if now - began > self._window_s:
            began, count = now, 0
        count += 1
        self._windows[user] = began, count
        if count < self._mute_after:
            return False
        del self._windows[user]
        self._muted[user] = now + self._mute_s
        return True

    def _is_muted(self, user: str, now: float) -> bool:
        until = self._muted.get(user)
        if until is None:
            return False
        if now < until:
            return True
        del self._muted[user]
        return False

    def _allowed(self, user: str, topic: bytes, now: float) -> _Flow:
        grant = self._grant_of(user)
        if grant is None:
            raise self._no("unknown", user, "is not on the allow-list (any more)")
        if not may_publish(grant, topic):
            self.violated(user, now)
            raise self._no("forged", user, f"may not publish under {topic[:200]!r}")
        flow = self._flows.setdefault((user, topic), _Flow())
        flow.allowed_by, flow.name, flow.until = self._list, grant.name, grant.not_after
        return flow

    def _no(self, why: Why, user: str, text: str) -> Refused:
        self.refused[why] += 1
        return Refused(why, f"{user.partition('#')[0]} {text}")
