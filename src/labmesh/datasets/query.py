"""What people search for, as a request."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, cast

from labmesh.errors import ProtocolError
from labmesh.protocol.ids import did_you_mean, shown
from labmesh.protocol.messages import Condition, SearchDatasets
from labmesh.protocol.query import condition, conditions_of, moment

__all__ = ["Moment", "ids_of", "posix_of", "search_of", "tags_of"]

#: How long ago (``"2h"``, a timedelta), a date or time (text, a datetime), or POSIX seconds.
Moment = str | float | datetime | timedelta

_SORTS = ("sequence", "created", "size", "name")


def search_of(
    text: str = "",
    *,
    name: str | None = None,
    kind: str | None = None,
    relay: str | None = None,
    tags: str | Iterable[str] = (),
    parent: Any = None,
    since: Moment | None = None,
    until: Moment | None = None,
    where: str | Iterable[str | Condition] = (),
    sort: str | None = None,
    newest_first: bool = True,
    **facts: Any,
) -> SearchDatasets:
    """The request of ``bank.search()``.

    :raises ProtocolError: (a ValueError) a condition, time or order that makes no sense.
    """
    fields = {"name": name, "kind": kind, "relay": relay}
    conditions = conditions_of(**{key: each for key, each in fields.items() if each is not None})
    conditions += conditions_of(**facts)
    given = [where] if isinstance(where, str | Condition) else where
    conditions += [condition(each) if isinstance(each, str) else each for each in given]
    for limit, op in ((since, ">="), (until, "<=")):
        if limit is not None:
            conditions.append(Condition(field="created", op=cast("Any", op), value=posix_of(limit)))
    key, descending = _order(sort, newest_first)
    return SearchDatasets(
        id="-",
        where=conditions,
        text=text,
        tags=tags_of(tags),
        parent="" if parent is None else ids_of(parent)[0],
        sort=cast("Any", key),
        descending=descending,
    )


def _order(sort: str | None, newest_first: bool) -> tuple[str, bool]:
    if sort is None:
        return "sequence", newest_first
    key = sort.removeprefix("-")
    if key not in _SORTS:
        guess = did_you_mean(key, _SORTS)
        raise ProtocolError(
            f"datasets are not sorted by {shown(sort)}; {guess + ' ' if guess else ''}"
            f"they are by {', '.join(_SORTS)}, or the other way round with '-' before it"
        )
    return key, sort.startswith("-")


def posix_of(when: Moment) -> float:
    """A moment in POSIX seconds.

    :raises ProtocolError: it is none.
    """
    now = time.time()
    return now - when.total_seconds() if isinstance(when, timedelta) else moment(when, now)


def tags_of(tags: str | Iterable[str]) -> list[str]:
    """One tag, or several, as a list.

    :raises TypeError: one is no text.
    """
    listed = [tags] if isinstance(tags, str) else list(tags)
    for each in listed:
        if not isinstance(each, str):
            raise TypeError(f"a tag is text, not {type(each).__name__}")
        if not 1 <= len(each) <= 64:
            raise ValueError(f"a tag has 1 to 64 characters; {shown(each)} has {len(each)}")
    return listed


def ids_of(datasets: Any) -> list[str]:
    """One dataset, or several, as a list of ids; each an id, or a record of whatever class.

    :raises TypeError: something else.
    """
    several = not isinstance(datasets, str) and not hasattr(datasets, "dataset_id")
    ids = [getattr(each, "dataset_id", each) for each in (datasets if several else [datasets])]
    for each in ids:
        if not isinstance(each, str):
            raise TypeError(f"a dataset is named by its id or record, not by {type(each).__name__}")
    return ids
