"""What a mesh calls back: presence, datasets, events, logs, gaps."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

from labmesh.blocking.session import Session
from labmesh.datasets.query import Moment
from labmesh.events.feed import Ids
from labmesh.events.healing import Gap
from labmesh.events.listening import Subscription
from labmesh.events.log_stream import LogLine

__all__ = ["News"]


class News:
    """The callbacks of a mesh.

    Each is called in the mesh's own thread: return soon, and make no blocking call of this mesh
    there. Cancel what is returned to end it.
    """

    _session: Session

    def on_presence(self, callback: Callable[[dict[str, Any]], object]) -> Subscription:
        """Call ``callback(change)`` when a node joins, falls silent, comes back or leaves.

        The change has ``node_id``, ``kind``, ``change`` (``joined``, ``suspect``, ``back``,
        ``left``), ``reason`` and the node's ``endpoints``, ``title``, ``host``, ``pid``.

        It is called in the mesh's own thread: return soon, and make no blocking call of this mesh
        there. Cancel what is returned to end it.
        """
        return self._session.subscribe(self._session.client.on_presence, callback)

    def on_dataset(
        self,
        callback: Callable[[dict[str, Any]], object],
        *,
        cursor: str | PathLike[str] | None = None,
        since: Moment | None = None,
    ) -> Subscription:
        """Call ``callback(record)`` once for each dataset that a bank stores from now on; all else
        is as of :meth:`DirectorClientAgent.on_dataset`. Threads as in :meth:`on_presence`.

        :param cursor: a file that keeps how far this has come, also when the program ends.
        :param since: also those that were stored since then: ``"2h"`` ago, a date or time, 0: all.
        """
        return self._session.subscribe(
            self._session.client.on_dataset, callback, cursor=cursor, since=since
        )

    def on_event(
        self, callback: Callable[[str, str, Any], object], relay_id: Ids = None
    ) -> Subscription:
        """Call ``callback(relay_id, kind, value)`` for what relays and their drivers tell beside
        states: see :meth:`DirectorClientAgent.on_event`. Threads as in :meth:`on_presence`.

        :param relay_id: an id, a pattern, or several of them; None: all relays.
        """
        return self._session.subscribe(self._session.client.on_event, callback, relay_id)

    def on_log(
        self,
        callback: Callable[[LogLine], object],
        node_id: Ids = None,
        *,
        level: str | int = "INFO",
    ) -> Subscription:
        """Call ``callback(line)`` for what relays and banks log from this level on. Threads as in
        :meth:`on_presence`.
        """
        return self._session.subscribe(self._session.client.on_log, callback, node_id, level=level)

    def on_gap(self, callback: Callable[[Gap], object]) -> Subscription:
        """Call ``callback(gap)`` for each loss among the events that this mesh listens to: exactly
        how many, of which node; :attr:`Gap.recovered` of them were delivered late. Threads as in
        :meth:`on_presence`.
        """
        return self._session.subscribe(self._session.client.on_gap, callback)
