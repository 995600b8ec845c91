"""What a bank answers, for scripts and notebooks: records, and lists of them as tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from labmesh.blocking.cards import byte_size, html_table, plain, table
from labmesh.blocking.session import Session
from labmesh.content.arrays import Index
from labmesh.datasets.arrays import StoredArray
from labmesh.datasets.origin import STATES, origin_lines, state_rows
from labmesh.protocol.messages import Annotation, DatasetRecord, TrashEntry
from labmesh.transfer import Progress

__all__ = ["History", "Provenance", "Record", "Records", "SlicedArray", "Trash"]

_HEADINGS = ("id", "name", "kind", "size", "created (UTC)", "tags", "meta")
#: A longer list is cut in a terminal and a notebook.
_SHOWN = 60


class Home(Protocol):
    """What a record needs of its bank."""

    def read(self, dataset_id: str, *, progress: Progress | None = ...) -> Any: ...
    def array(self, dataset_id: str) -> SlicedArray: ...
    def download(
        self, dataset_id: str, dest: str | PathLike[str], *, progress: Progress | None = ...
    ) -> Path: ...
    def provenance(self, dataset_id: str) -> Provenance: ...
    def history(self, dataset_id: str) -> History: ...
    def children(self, dataset: Any) -> Records: ...
    def tag(self, dataset_id: str, *tags: str) -> Record: ...
    def untag(self, dataset_id: str, *tags: str) -> Record: ...
    def note(self, dataset_id: str, note: str) -> Record: ...
    def delete(self, dataset_id: str, *, why: str = ...) -> None: ...
    def verify(self, dataset_id: str) -> Record: ...


class Record:
    """A stored dataset: ``record.read()`` is the value, ``record.save("scan.npy")`` a file."""

    def __init__(self, bank: Home, record: DatasetRecord) -> None:
        self._bank = bank
        self._record = record

    @property
    def dataset_id(self) -> str:
        """Its id, unique in its bank."""
        return self._record.dataset_id

    @property
    def bank_id(self) -> str:
        """The bank that has it."""
        return self._record.bank_id

    @property
    def relay_id(self) -> str:
        """The relay that uploaded it; empty: no relay did."""
        return self._record.relay_id

    @property
    def name(self) -> str:
        """Its name for people."""
        return self._record.name

    @property
    def kind(self) -> str:
        """What :meth:`read` makes of it: ``npy``, ``netcdf``, ``parquet``, ``text``, ``json``,
        ``bytes``, ...
        """
        return self._record.kind

    @property
    def size(self) -> int:
        """Bytes."""
        return self._record.size

    @property
    def sha256(self) -> str:
        """The digest of its bytes, hexadecimal."""
        return self._record.sha256

    @property
    def created(self) -> datetime:
        """When it was stored, UTC (``.timestamp()`` gives POSIX seconds)."""
        return datetime.fromtimestamp(self._record.created, UTC)

    @property
    def sequence(self) -> int:
        """Its place in the bank's order, from 1."""
        return self._record.sequence

    @property
    def meta(self) -> dict[str, Any]:
        """What its uploader found worth knowing."""
        return dict(self._record.meta)

    @property
    def tags(self) -> list[str]:
        """Its tags, when this record was fetched, or changed by its own methods."""
        return list(self._record.tags)

    @property
    def parents(self) -> list[str]:
        """The ids of the datasets that it was made from."""
        return list(self._record.parents)

    @property
    def provenance(self) -> Provenance:
        """Who stored it, from where, with which settings; fetched now."""
        return self._bank.provenance(self.dataset_id)

    @property
    def history(self) -> History:
        """Its notes and changes of tags, oldest first; fetched now."""
        return self._bank.history(self.dataset_id)

    @property
    def children(self) -> Records:
        """The datasets that were made from it; fetched now."""
        return self._bank.children(self.dataset_id)

    def read(self, *, progress: Progress | None = None) -> Any:
        """The value that was put, verified; bytes, when its kind is unknown here."""
        return self._bank.read(self.dataset_id, progress=progress)

    def array(self) -> SlicedArray:
        """A numpy array, of which only those parts are fetched that are asked for."""
        return self._bank.array(self.dataset_id)

    def save(self, path: str | PathLike[str], *, progress: Progress | None = None) -> Path:
        """Download into a file (a folder: into it, under the dataset's id); its path.

        The file appears whole and verified, or not at all.
        """
        return self._bank.download(self.dataset_id, path, progress=progress)

    def tag(self, *tags: str) -> Record:
        """Add tags; the record as it is now."""
        return self._now(self._bank.tag(self.dataset_id, *tags))

    def untag(self, *tags: str) -> Record:
        """Remove tags; the record as it is now."""
        return self._now(self._bank.untag(self.dataset_id, *tags))

    def note(self, note: str) -> Record:
        """Add a note to its history."""
        return self._now(self._bank.note(self.dataset_id, note))

    def delete(self, *, why: str = "") -> None:
        """Into the trash; ``bank.restore(id)`` brings it back until its grace period ends."""
        self._bank.delete(self.dataset_id, why=why)

    def verify(self) -> Record:
        """Have the bank compare what it has with the SHA-256.

        :raises Damaged: it is not what was stored.
        """
        return self._now(self._bank.verify(self.dataset_id))

    def _now(self, changed: Record) -> Record:
        """This one is as the bank has it now, too."""
        self._record = changed._record
        return changed

    def __repr__(self) -> str:
        return f"<Record {'  '.join(each for each in _row(self) if each)}>"

    def _repr_html_(self) -> str:
        return html_table(_HEADINGS, [_row(self)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and other._record == self._record

    def __hash__(self) -> int:
        return hash((self.bank_id, self.dataset_id))


class Records(list[Record]):
    """Records as a list, which is shown as a table."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        super().__init__(records)

    def __repr__(self) -> str:
        return _table(_HEADINGS, [_row(each) for each in self[:_SHOWN]], len(self))

    def _repr_html_(self) -> str:
        rows = [_row(each) for each in self[:_SHOWN]]
        return html_table(_HEADINGS, rows) + _more_html(len(self))


class History(list[Annotation]):
    """Notes and changes of tags, oldest first, which are shown as a table."""

    _HEADINGS = ("when (UTC)", "who", "tags", "note")

    def __repr__(self) -> str:
        return _table(self._HEADINGS, self._rows(), len(self))

    def _repr_html_(self) -> str:
        return html_table(self._HEADINGS, self._rows()) + _more_html(len(self))

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                _moment(each.time),
                plain(each.who, 60),
                plain(
                    " ".join(
                        [*(f"+{tag}" for tag in each.add_tags)]
                        + [f"-{tag}" for tag in each.remove_tags]
                    )
                ),
                plain(each.note),
            )
            for each in self[:_SHOWN]
        ]


class Trash(list[TrashEntry]):
    """What is in the trash, which is shown as a table."""

    _HEADINGS = ("id", "name", "size", "deleted (UTC)", "gone (UTC)", "who", "why")

    def __repr__(self) -> str:
        return _table(self._HEADINGS, self._rows(), len(self))

    def _repr_html_(self) -> str:
        return html_table(self._HEADINGS, self._rows()) + _more_html(len(self))

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                each.record.dataset_id,
                plain(each.record.name, 60),
                byte_size(each.record.size),
                _moment(each.deleted),
                _moment(each.purge),
                plain(each.who, 60),
                plain(each.why),
            )
            for each in self[:_SHOWN]
        ]


class Provenance(Mapping[str, Any]):
    """Where a dataset comes from, as a dict; ``print`` it to read with which settings it was taken.

    ``provenance["states_at_start"]["Inst-0"]["value"]["voltage"]``
    """

    def __init__(self, record: DatasetRecord) -> None:
        self._record = record

    def __getitem__(self, key: str) -> Any:
        return self._record.provenance[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record.provenance)

    def __len__(self) -> int:
        return len(self._record.provenance)

    def __repr__(self) -> str:
        record = self._record
        lines = [f"{record.dataset_id} {plain(record.name, 60)}".rstrip()]
        lines += [f"  {plain(name, 40)}: {plain(text)}" for name, text in origin_lines(self)]
        for moment, words in STATES.items():
            if rows := self._rows(moment):
                lines += [f"settings {words}:", table(("relay", "value", ""), rows)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        origin = [(plain(name, 40), plain(text)) for name, text in origin_lines(self)]
        parts = [html_table(("", html.escape(self._record.dataset_id)), origin)]
        for moment, words in STATES.items():
            if rows := self._rows(moment):
                parts.append(
                    f"<div>settings {words}</div>{html_table(('relay', 'value', ''), rows)}"
                )
        return "".join(parts)

    def _rows(self, moment: str) -> list[tuple[str, ...]]:
        rows = state_rows(self, moment)
        return [(plain(relay, 40), plain(name, 60), plain(text, 80)) for relay, name, text in rows]


class SlicedArray:
    """A stored numpy array: ``array[10:20, 3]`` fetches only what that needs.

    ``numpy.asarray(array)``, or ``array[...]``, fetches all of it. Nothing is kept: each access
    asks the bank.
    """

    def __init__(self, session: Session, array: StoredArray) -> None:
        self._session = session
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length along each axis."""
        return self._array.shape

    @property
    def dtype(self) -> Any:
        """The numpy dtype of its elements."""
        return self._array.dtype

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """The number of its elements."""
        return self._array.size

    @property
    def nbytes(self) -> int:
        """The bytes of all its elements."""
        return self._array.nbytes

    def __getitem__(self, index: Index) -> Any:
        return self._session.run(self._array.read(index))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no length")
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError("a stored array is fetched: there is always a copy")
        whole = self[...]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __repr__(self) -> str:
        return (
            f"<array in {self._array.record.bank_id}: {self._array.record.dataset_id}  "
            f"shape={self.shape} dtype={self.dtype}  {byte_size(self.nbytes)}>"
        )


def _row(record: Record) -> tuple[str, ...]:
    meta = ", ".join(
        f"{plain(key, 40)}={plain(repr(each), 40)}" for key, each in record.meta.items()
    )
    return (
        record.dataset_id,
        plain(repr(record.name), 60) if record.name else "",
        record.kind,
        byte_size(record.size),
        f"{record.created:%Y-%m-%d %H:%M:%S}",
        plain(" ".join(record.tags), 60),
        plain(meta),
    )


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _table(headings: tuple[str, ...], rows: list[tuple[str, ...]], count: int) -> str:
    if not rows:
        return "(nothing)"
    more = f"\n... {count - len(rows)} more" if count > len(rows) else ""
    return table(headings, rows) + more


def _more_html(count: int) -> str:
    return f"<div>... {count - _SHOWN} more</div>" if count > _SHOWN else ""
