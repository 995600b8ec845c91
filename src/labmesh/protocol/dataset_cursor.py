"""How far somebody has come in the datasets of each bank, so that each is handed over once.

A bank numbers its datasets in the order in which they become visible, and lists them by number.
The list is the truth, an announcement is a hint: one whose number is the next is taken as it is,
any other leads to a question. So nothing has to be put in order, and nothing has to be remembered
but the number of the last one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from msgspec import Struct

from labmesh.protocol.messages import DatasetRecord

__all__ = [
    "AskAfter",
    "DatasetCursor",
    "FindBegin",
    "Place",
    "Question",
    "SavedCursor",
    "SavedPlace",
]

#: Records of a page.
PAGE = 500
#: Datasets without a number, of banks that give none, which are remembered by their ids.
UNNUMBERED = 10_000


class Place(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A place in a bank's order: what was committed up to here was handed over, or is gone."""

    sequence: int
    #: of the dataset that has this number, and when it was committed (POSIX seconds at the bank);
    #: empty and 0: not known
    dataset_id: str = ""
    created: float = 0.0

    @classmethod
    def of(cls, record: DatasetRecord) -> Place:
        """The place of a dataset."""
        return cls(sequence=record.sequence, dataset_id=record.dataset_id, created=record.created)


class SavedPlace(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is saved of one bank."""

    #: up to where datasets were handed over, and their callbacks ended; None: nothing of it yet
    done: Place | None = None
    #: of the one that is being handed over
    handing: Place | None = None


class SavedCursor(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a cursor keeps between two processes."""

    #: POSIX seconds at whom the cursor belongs to: datasets of before are none of its business
    begun: float
    banks: dict[str, SavedPlace] = {}
    version: int = 1

    def begin(self, record: DatasetRecord) -> bool:
        """A dataset is about to be handed over; True: this was begun once before, and nobody knows
        how far it came.
        """
        if not record.sequence:
            return False
        place = Place.of(record)
        saved = self.banks.setdefault(record.bank_id, SavedPlace())
        repeated = saved.handing == place
        saved.handing = place
        return repeated

    def end(self, record: DatasetRecord) -> None:
        """It was handed over."""
        if record.sequence:
            self.banks[record.bank_id] = SavedPlace(done=Place.of(record))

    def reach(self, bank_id: str, place: Place) -> None:
        """This is where a bank's datasets begin, unless some were handed over already."""
        saved = self.banks.setdefault(bank_id, SavedPlace())
        if saved.done is None:
            saved.done = place

    def places(self) -> dict[str, Place]:
        """The banks whose places are known."""
        return {bank_id: each.done for bank_id, each in self.banks.items() if each.done is not None}


@dataclass(frozen=True, slots=True, eq=False)
class FindBegin:
    """Find the place behind which a bank's datasets begin: :meth:`DatasetCursor.began`.

    They are those that were committed since the cursor began; or, where ``after_created`` is given,
    later than that (POSIX seconds in the bank's clock).
    """

    bank_id: str
    after_created: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AskAfter:
    """Ask a bank for the records behind ``after``, at most ``limit``, in the order of their
    numbers: :meth:`DatasetCursor.listed`.
    """

    bank_id: str
    after: int
    limit: int
    #: the first record is to be the last one that was taken
    checked: bool = False


Question: TypeAlias = FindBegin | AskAfter


@dataclass(slots=True)
class _Bank:
    """What is known of one bank."""

    place: Place | None = None
    #: in the directory
    present: bool = False
    #: there is something to ask, once nothing is under way
    wanted: bool = True
    #: whether it is still the same order is to be asked, too
    doubtful: bool = True
    open: Question | None = None
    #: the bank's incarnation that announced something last
    epoch: str = ""
    #: what was heard last before the cursor began
    floor: Place | None = None
    #: the bank began anew: what was committed later than this is new
    after_created: float | None = None


class DatasetCursor:
    """What one subscriber is handed, once each, in each bank's order of commits.

    Records wait in a bounded queue. Where it has no room they stay at the bank, and are asked for
    when it has been read.

    A bank whose order is another one (its folder was replaced, or an old copy of it was put back)
    is recognised when it returns: its number of a known dataset is another's, or it never gave a
    number as high. Then what it committed later than the last dataset that was taken is new.

    :param places: where to go on at banks that are known from before.
    :param queue: records that wait, at most.
    """

    def __init__(self, places: Mapping[str, Place] | None = None, *, queue: int = 2000) -> None:
        self._places = dict(places or {})
        self._queue = queue
        self._waiting: deque[DatasetRecord] = deque()
        self._banks: dict[str, _Bank] = {}
        self._unnumbered: OrderedDict[tuple[str, str], None] = OrderedDict()
        #: datasets without a number that found no room
        self.lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    # ── who is there ────────────────────────────────────────────────────────────────────────────

    def here(self, bank_id: str, *, heard: Place | None = None) -> None:
        """A bank is in the directory, or it is back, or something of it may have been missed: it is
        asked.

        :param heard: the last dataset that was heard of it before the cursor began.
        """
        bank = self._banks.get(bank_id)
        if bank is None:
            bank = self._banks[bank_id] = _Bank(self._places.get(bank_id), floor=heard)
        bank.present = bank.wanted = bank.doubtful = True
        # Whoever waits for an answer may be asking the one who is gone.
        bank.open = None

    def gone(self, bank_id: str) -> None:
        """A bank left the directory: it is not asked until it is back."""
        bank = self._banks.get(bank_id)
        if bank is not None:
            bank.present, bank.wanted, bank.open = False, True, None

    def missed(self, bank_id: str) -> None:
        """Announcements of a bank were lost."""
        if bank_id in self._banks:
            self._banks[bank_id].wanted = True

    # ── what is heard ───────────────────────────────────────────────────────────────────────────

    def announced(self, record: DatasetRecord, epoch: str = "") -> None:
        """A bank announces a dataset.

        :param epoch: the bank's incarnation.
        """
        if not record.sequence:
            self._take_unnumbered(record)
            return
        bank = self._banks.get(record.bank_id)
        if bank is None:
            return  # it is asked as soon as the directory knows it
        if bank.epoch not in ("", epoch):
            bank.wanted = bank.doubtful = True
        bank.epoch = epoch
        place = bank.place
        if place is None:
            bank.wanted = True
        elif record.sequence <= place.sequence:
            if _is_strange(record, place):
                bank.wanted = bank.doubtful = True
        elif bank.wanted or bank.open or record.sequence > place.sequence + 1 or not self._room:
            bank.wanted = True
        else:
            self._take(bank, record)

    def due(self) -> list[Question]:
        """The questions to ask now; each counts as under way from then on."""
        questions: list[Question] = []
        for bank_id, bank in self._banks.items():
            if not bank.present or not bank.wanted or bank.open is not None:
                continue
            if bank.place is None:
                bank.open = FindBegin(bank_id, bank.after_created)
            elif 2 * self._room < self._queue:
                continue
            else:
                checked = bank.doubtful and bool(bank.place.dataset_id)
                after = bank.place.sequence - checked
                bank.open = AskAfter(bank_id, after, min(PAGE, self._room) + checked, checked)
            bank.wanted = False
            questions.append(bank.open)
        return questions

    def is_open(self, question: Question) -> bool:
        """Whether an answer is still waited for."""
        return self._banks[question.bank_id].open is question

    def began(self, question: FindBegin, place: Place) -> None:
        """The answer to :class:`FindBegin`."""
        bank = self._banks[question.bank_id]
        if bank.open is question:
            bank.open = bank.after_created = None
            # What comes next was committed before this was asked, or announced since.
            bank.wanted, bank.doubtful = True, False
            is_behind = bank.floor is not None and bank.floor.sequence > place.sequence
            bank.place = bank.floor if is_behind else place

    def listed(
        self, question: AskAfter, records: Sequence[DatasetRecord], *, more: bool, highest: int = 0
    ) -> None:
        """The answer to :class:`AskAfter`.

        :param more: others follow.
        :param highest: the highest number that the bank ever gave; 0: it does not say.
        """
        bank = self._banks[question.bank_id]
        place = bank.place
        if bank.open is not question or place is None:
            return
        bank.open = None
        if question.checked:
            bank.doubtful = False
            if _is_another(place, records, highest):
                self._begin_anew(bank, place)
                return
        before = place
        for record in records:
            if record.sequence > place.sequence:
                if not self._room:
                    bank.wanted = True
                    return
                place = self._take(bank, record)
        if more and (question.checked or place is not before):
            bank.wanted = True

    # ── what is handed over ─────────────────────────────────────────────────────────────────────

    def next(self) -> DatasetRecord | None:
        """The next record to hand over; None: there is none now."""
        return self._waiting.popleft() if self._waiting else None

    def place(self, bank_id: str) -> Place | None:
        """Up to where the datasets of a bank were taken."""
        bank = self._banks.get(bank_id)
        return None if bank is None else bank.place

    def is_current(self, bank_id: str) -> bool:
        """Whether there is nothing to ask a bank, as far as is known."""
        bank = self._banks.get(bank_id)
        return bank is not None and bank.open is None and not bank.wanted

    # ── inside ──────────────────────────────────────────────────────────────────────────────────

    @property
    def _room(self) -> int:
        return self._queue - len(self._waiting)

    def _take(self, bank: _Bank, record: DatasetRecord) -> Place:
        self._waiting.append(record)
        bank.place = Place.of(record)
        return bank.place

    def _begin_anew(self, bank: _Bank, place: Place) -> None:
        bank.place = bank.floor = None
        bank.wanted, bank.after_created = True, place.created

    def _take_unnumbered(self, record: DatasetRecord) -> None:
        """Of such a bank nothing can be asked: what is announced is all there is."""
        key = (record.bank_id, record.dataset_id)
        if key in self._unnumbered:
            return
        self._unnumbered[key] = None
        if len(self._unnumbered) > UNNUMBERED:
            self._unnumbered.popitem(last=False)
        if self._room:
            self._waiting.append(record)
        else:
            self.lost += 1


def _is_strange(record: DatasetRecord, place: Place) -> bool:
    """Whether an announcement of something old shows that it is not the old one."""
    if record.sequence == place.sequence and place.dataset_id:
        return record.dataset_id != place.dataset_id
    return 0 < place.created < record.created


def _is_another(place: Place, records: Sequence[DatasetRecord], highest: int) -> bool:
    """Whether these records, from ``place`` on, are of another order than it is."""
    if records and records[0].sequence == place.sequence:
        return records[0].dataset_id != place.dataset_id
    # It was deleted there; or it never was there.
    return 0 < highest < place.sequence
