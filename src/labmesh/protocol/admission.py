"""Which subscriptions the broker takes: known families, ids, and not without end.

ZeroMQ keeps each distinct subscription of a network in a tree of its own, about 3 kB each: a
hundred thousand invented ones would take 300 MB of the broker.
"""

from __future__ import annotations

import re

from labmesh.protocol.ids import MAX_ID_LENGTH
from labmesh.protocol.topics import FAMILIES

__all__ = ["MAX_TOPICS", "Admission"]

#: Distinct subscriptions that a broker keeps besides whole families.
MAX_TOPICS = 5000
#: Marks live for one round trip; they have room of their own, for nobody is in step without one.
_MAX_MARKS = 1000
_MARK = b"mark."

#: A whole family, or all of them.
_FAMILY = re.compile(rf"(?:(?:{'|'.join(FAMILIES)})\.)?".encode())
_TOPIC = re.compile(rf"(?:{'|'.join(FAMILIES)})\.[A-Za-z0-9._-]{{0,{MAX_ID_LENGTH}}}".encode())


class Admission:
    """The subscriptions that are in force, by what the broker's socket tells.

    :param max_topics: distinct ones besides whole families, which are always taken.
    """

    def __init__(self, *, max_topics: int = MAX_TOPICS) -> None:
        self._max_topics = max_topics
        self._topics: set[bytes] = set()
        self._marks: set[bytes] = set()
        #: subscriptions that were not taken
        self.refused = 0

    def __len__(self) -> int:
        return len(self._topics) + len(self._marks)

    def admits(self, topic: bytes) -> bool:
        """Somebody subscribes to what begins with ``topic``; False: it is not to be taken."""
        if _FAMILY.fullmatch(topic):
            return True
        known, limit = self._room(topic)
        if topic not in known and (len(known) >= limit or not _TOPIC.fullmatch(topic)):
            self.refused += 1
            return False
        known.add(topic)
        return True

    def ended(self, topic: bytes) -> None:
        """Nobody subscribes to it any more."""
        self._room(topic)[0].discard(topic)

    def _room(self, topic: bytes) -> tuple[set[bytes], int]:
        if topic.startswith(_MARK):
            return self._marks, _MAX_MARKS
        return self._topics, self._max_topics
