from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from labmesh.protocol import dataset_cursor
from labmesh.protocol.dataset_cursor import (
    PAGE,
    AskAfter,
    DatasetCursor,
    FindBegin,
    Place,
    Question,
    SavedCursor,
    SavedPlace,
)
from labmesh.protocol.messages import DatasetRecord

BANK = "bank-0"


def dataset(
    sequence: int, bank_id: str = BANK, name: str = "", created: float = 0.0
) -> DatasetRecord:
    return DatasetRecord(
        dataset_id=name or f"{bank_id}-{sequence}",
        size=1,
        sha256="0" * 64,
        bank_id=bank_id,
        sequence=sequence,
        created=created or float(sequence),
    )


def datasets(*sequences: int) -> list[DatasetRecord]:
    return [dataset(each) for each in sequences]


def handed(cursor: DatasetCursor) -> list[int]:
    numbers = []
    while (record := cursor.next()) is not None:
        numbers.append(record.sequence)
    return numbers


def one(cursor: DatasetCursor) -> Question:
    (question,) = cursor.due()
    assert cursor.due() == []
    return question


def ask(cursor: DatasetCursor) -> AskAfter:
    question = one(cursor)
    assert isinstance(question, AskAfter)
    return question


def begun(last: int = 10, queue: int = 100) -> DatasetCursor:
    """A cursor that has come to a bank's number ``last``, and has nothing to ask."""
    cursor = DatasetCursor(queue=queue)
    cursor.here(BANK)
    question = one(cursor)
    assert isinstance(question, FindBegin)
    cursor.began(question, Place.of(dataset(last)))
    cursor.listed(ask(cursor), [], more=False)
    assert cursor.is_current(BANK)
    return cursor


# ── one after the other ─────────────────────────────────────────────────────────────────────────


def test_what_is_next_is_taken_without_a_question_and_once() -> None:
    cursor = begun(10)
    for each in (11, 12, 12, 11, 5, 13):
        cursor.announced(dataset(each))
    assert len(cursor) == 3
    assert cursor.due() == []
    assert handed(cursor) == [11, 12, 13]
    assert cursor.place(BANK) == Place.of(dataset(13))


def test_a_gap_is_asked_for_and_handed_over_in_order() -> None:
    cursor = begun(10)
    cursor.announced(dataset(13))
    question = ask(cursor)
    assert (question.bank_id, question.after, question.checked) == (BANK, 10, False)
    cursor.announced(dataset(11))
    assert handed(cursor) == []
    cursor.listed(question, datasets(11, 12, 13), more=False)
    assert handed(cursor) == [11, 12, 13]
    # 11 came while the bank was asked: it may have been stored after the bank had looked.
    cursor.listed(ask(cursor), [], more=False)
    assert cursor.is_current(BANK)
    cursor.announced(dataset(14))
    assert handed(cursor) == [14]


def test_numbers_that_are_left_out_are_no_gap_for_ever() -> None:
    cursor = begun(10)
    cursor.announced(dataset(12))
    cursor.listed(ask(cursor), datasets(12), more=False)
    assert handed(cursor) == [12]
    assert cursor.is_current(BANK)


def test_what_was_lost_and_is_gone_meanwhile_is_asked_for_once() -> None:
    cursor = begun(10)
    cursor.missed(BANK)
    cursor.missed("nobody")
    cursor.listed(ask(cursor), [], more=False)
    assert cursor.due() == []


def test_pages_are_asked_for_until_there_are_no_more() -> None:
    cursor = begun(10, queue=2 * PAGE)
    cursor.announced(dataset(PAGE + 500))
    question = ask(cursor)
    assert question.limit == PAGE
    cursor.listed(question, datasets(11, 12), more=True)
    question = ask(cursor)
    assert question.after == 12
    cursor.listed(question, datasets(13), more=False)
    assert handed(cursor) == [11, 12, 13]
    # A bank that says that there is more, and gives nothing new, is not asked without end.
    cursor.missed(BANK)
    cursor.listed(ask(cursor), datasets(12, 13), more=True)
    assert cursor.due() == []


def test_a_queue_that_is_full_is_filled_again_from_the_bank() -> None:
    cursor = begun(0, queue=4)
    for each in range(1, 9):
        cursor.announced(dataset(each))
    assert cursor.due() == []  # there is no room
    assert [cursor.next(), cursor.next()] == datasets(1, 2)
    question = ask(cursor)
    assert (question.after, question.limit) == (4, 2)
    cursor.listed(question, datasets(5, 6, 7), more=True)  # more than was asked for
    assert handed(cursor) == [3, 4, 5, 6]
    cursor.listed(ask(cursor), datasets(7, 8), more=False)
    assert handed(cursor) == [7, 8]
    assert cursor.due() == []


def test_a_bank_without_numbers_is_believed_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_cursor, "UNNUMBERED", 2)
    cursor = DatasetCursor(queue=2)
    for name in ("one", "one", "two", "three"):
        cursor.announced(dataset(0, name=name))
    assert cursor.lost == 1
    assert [cursor.next(), cursor.next()] == [dataset(0, name="one"), dataset(0, name="two")]
    cursor.announced(dataset(0, name="three"))
    assert cursor.next() is None
    cursor.announced(dataset(0, name="one"))
    assert cursor.next() is not None  # remembered are the last ones only


# ── beginning ───────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_handed_over_before_the_begin_is_known() -> None:
    cursor = DatasetCursor()
    cursor.announced(dataset(4))  # of a bank that the directory does not know yet
    assert cursor.due() == []
    cursor.here(BANK)
    begin = one(cursor)
    assert isinstance(begin, FindBegin)
    assert begin.after_created is None
    cursor.announced(dataset(5))
    assert handed(cursor) == []
    assert cursor.place(BANK) is None
    assert cursor.place("nobody") is None
    assert not cursor.is_current("nobody")
    cursor.began(begin, Place(sequence=3))
    cursor.began(begin, Place(sequence=0))  # twice is once
    question = ask(cursor)
    assert (question.after, question.checked) == (3, False)
    cursor.listed(question, datasets(4, 5), more=False)
    assert handed(cursor) == [4, 5]


@pytest.mark.parametrize(("found", "begins"), [(3, 7), (9, 9)])
def test_what_was_heard_before_the_begin_is_not_new(found: int, begins: int) -> None:
    cursor = DatasetCursor()
    cursor.here(BANK, heard=Place(sequence=7))
    begin = one(cursor)
    assert isinstance(begin, FindBegin)
    cursor.began(begin, Place(sequence=found))
    assert ask(cursor).after == begins


# ── banks that come and go ──────────────────────────────────────────────────────────────────────


def test_a_bank_that_left_is_asked_when_it_is_back_and_old_answers_count_no_more() -> None:
    cursor = begun(10)
    cursor.announced(dataset(12))
    before = ask(cursor)
    cursor.gone(BANK)
    cursor.gone("nobody")
    assert not cursor.is_open(before)
    cursor.announced(dataset(13))
    assert cursor.due() == []
    cursor.here(BANK)
    question = ask(cursor)
    assert cursor.is_open(question)
    assert (question.after, question.checked) == (9, True)
    cursor.listed(before, datasets(11, 12), more=False)
    assert handed(cursor) == []
    cursor.listed(question, datasets(10, 11, 12, 13), more=False, highest=13)
    assert handed(cursor) == [11, 12, 13]


def test_a_page_with_the_known_one_only_is_no_end() -> None:
    cursor = begun(10)
    cursor.here(BANK)
    cursor.listed(ask(cursor), datasets(10), more=True)
    question = ask(cursor)
    assert (question.after, question.checked) == (10, False)


def test_another_incarnation_is_asked_before_it_is_believed() -> None:
    cursor = begun(10)
    cursor.announced(dataset(11), "e1")
    assert handed(cursor) == [11]
    cursor.announced(dataset(12), "e2")
    assert handed(cursor) == []
    assert ask(cursor).checked


@pytest.mark.parametrize(
    ("listed", "highest"),
    [
        ([dataset(10, name="other"), dataset(11)], 11),
        ([], 9),
    ],
    ids=["the number is another's", "the number was never given"],
)
def test_a_bank_that_began_anew_is_followed_from_what_is_newer(
    listed: list[DatasetRecord], highest: int
) -> None:
    cursor = begun(10)
    cursor.here(BANK)
    cursor.listed(ask(cursor), listed, more=False, highest=highest)
    begin = one(cursor)
    assert isinstance(begin, FindBegin)
    assert begin.after_created == 10.0
    cursor.began(begin, Place(sequence=2))
    cursor.listed(ask(cursor), [dataset(3, name="new")], more=False)
    assert cursor.next() == dataset(3, name="new")


@pytest.mark.parametrize("highest", [0, 10, 12])
def test_a_bank_whose_last_known_one_was_deleted_is_the_same(highest: int) -> None:
    cursor = begun(10)
    cursor.here(BANK)
    cursor.listed(ask(cursor), [], more=False, highest=highest)
    assert cursor.is_current(BANK)
    assert cursor.place(BANK) == Place.of(dataset(10))


@pytest.mark.parametrize(
    ("announced", "doubts"),
    [
        (dataset(10), False),
        (dataset(10, name="other"), True),
        (dataset(4), False),
        (dataset(4, name="other", created=99.0), True),
    ],
)
def test_an_old_number_of_something_new_is_looked_into(
    announced: DatasetRecord, doubts: bool
) -> None:
    cursor = begun(10)
    cursor.announced(announced)
    assert [isinstance(each, AskAfter) and each.checked for each in cursor.due()] == [True] * doubts
    assert handed(cursor) == []


# ── what is saved ───────────────────────────────────────────────────────────────────────────────


def test_a_cursor_goes_on_where_it_was_and_knows_what_was_interrupted() -> None:
    saved = SavedCursor(begun=5.0)
    saved.reach(BANK, Place(sequence=3))
    saved.reach(BANK, Place(sequence=9))
    assert saved.places() == {BANK: Place(sequence=3)}
    assert not saved.begin(dataset(4))
    saved.end(dataset(4))
    assert not saved.begin(dataset(5))
    again = msgspec.json.decode(msgspec.json.encode(saved), type=SavedCursor)
    assert again == saved
    assert again.banks == {
        BANK: SavedPlace(done=Place.of(dataset(4)), handing=Place.of(dataset(5)))
    }
    cursor = DatasetCursor(again.places())
    cursor.here(BANK)
    question = ask(cursor)
    assert (question.after, question.checked) == (3, True)
    assert again.begin(dataset(5))
    again.end(dataset(5))
    assert not again.begin(dataset(6))


def test_one_that_was_interrupted_at_another_bank_is_not_forgotten() -> None:
    saved = SavedCursor(begun=5.0)
    assert not saved.begin(dataset(1))
    assert saved.places() == {}
    assert not saved.begin(dataset(1, "bank-1"))
    saved.end(dataset(1, "bank-1"))
    assert saved.places() == {"bank-1": Place.of(dataset(1, "bank-1"))}
    assert saved.begin(dataset(1))


def test_what_has_no_number_is_not_saved() -> None:
    saved = SavedCursor(begun=5.0)
    assert not saved.begin(dataset(0))
    saved.end(dataset(0))
    assert saved == SavedCursor(begun=5.0)


# ── any schedule ────────────────────────────────────────────────────────────────────────────────


class World:
    """Two banks, a network that drops, repeats and reorders, and a subscriber with a cursor."""

    def __init__(self, seed: int, queue: int) -> None:
        self.chance = random.Random(seed)
        self.queue = queue
        self.stored: dict[str, list[DatasetRecord]] = {BANK: [], "bank-1": []}
        self.highest = dict.fromkeys(self.stored, 0)
        self.epochs = dict.fromkeys(self.stored, 0)
        self.air: list[tuple[DatasetRecord, str]] = []
        self.questions: list[Question] = []
        self.answers: list[tuple[Question, Place | list[DatasetRecord], bool, int]] = []
        self.saved = SavedCursor(begun=0.0)
        self.disk = msgspec.json.encode(self.saved)
        self.told: list[DatasetRecord] = []
        self.repeats = 0
        for bank_id in self.stored:
            for _ in range(3):
                self.store(bank_id)
        self.old = {bank_id: len(each) for bank_id, each in self.stored.items()}
        self.start()

    def store(self, bank_id: str) -> None:
        self.highest[bank_id] += self.chance.choice((1, 1, 1, 2))  # numbers may be left out
        self.stored[bank_id].append(dataset(self.highest[bank_id], bank_id))

    # what can happen

    def start(self) -> None:
        """The subscriber's process begins, (again)."""
        self.saved = msgspec.json.decode(self.disk, type=SavedCursor)
        self.cursor = DatasetCursor(self.saved.places(), queue=self.queue)
        self.questions, self.answers = [], []
        for bank_id in self.stored:
            self.cursor.here(bank_id)

    def kill(self) -> None:
        """It dies: while a callback runs, or between two."""
        if self.chance.random() < 0.5 and (record := self.cursor.next()) is not None:
            self.hand_over(record, killed=True)
        self.start()

    def commit(self) -> None:
        bank_id = self.chance.choice(list(self.stored))
        self.store(bank_id)
        announcement = (self.stored[bank_id][-1], str(self.epochs[bank_id]))
        self.air += [announcement] * self.chance.choice((0, 1, 1, 1, 2))

    def hear(self) -> None:
        if self.air:
            self.cursor.announced(*self.air.pop(self.chance.randrange(len(self.air))))

    def hear_first(self) -> None:
        if self.air:
            self.cursor.announced(*self.air.pop(0))

    def restart_bank(self) -> None:
        bank_id = self.chance.choice(list(self.stored))
        self.epochs[bank_id] += 1
        self.cursor.gone(bank_id)
        self.air += [(each, str(self.epochs[bank_id])) for each in self.stored[bank_id][-2:]]
        self.cursor.here(bank_id)

    def reconnect(self) -> None:
        self.cursor.here(self.chance.choice(list(self.stored)))

    def lose(self) -> None:
        self.air.clear()
        for bank_id in self.stored:
            self.cursor.missed(bank_id)

    def ask(self) -> None:
        self.questions += self.cursor.due()

    def answer(self) -> None:
        """A bank looks; its answer is under way."""
        if not self.questions:
            return
        question = self.questions.pop(self.chance.randrange(len(self.questions)))
        records = self.stored[question.bank_id]
        highest = self.highest[question.bank_id]
        if isinstance(question, FindBegin):
            place = Place.of(records[self.old[question.bank_id] - 1])
            self.answers.append((question, place, False, highest))
            return
        found = [each for each in records if each.sequence > question.after]
        count = min(question.limit, self.chance.choice((1, 2, 500)))
        self.answers.append((question, found[:count], len(found) > count, highest))

    def get_answer(self) -> None:
        if not self.answers:
            return
        question, found, more, highest = self.answers.pop(self.chance.randrange(len(self.answers)))
        if isinstance(question, AskAfter):
            assert isinstance(found, list)
            self.cursor.listed(question, found, more=more, highest=highest)
        elif self.cursor.is_open(question):
            assert isinstance(found, Place)
            self.cursor.began(question, found)
            self.saved.reach(question.bank_id, found)

    def call_back(self) -> None:
        if (record := self.cursor.next()) is not None:
            self.hand_over(record)

    def hand_over(self, record: DatasetRecord, *, killed: bool = False) -> None:
        repeated = self.saved.begin(record)
        self.disk = msgspec.json.encode(self.saved)
        if repeated:
            self.repeats += 1
            assert record in self.told
        else:
            self.told.append(record)
        if not killed:
            self.saved.end(record)
            self.disk = msgspec.json.encode(self.saved)

    def settle(self) -> None:
        for bank_id in self.stored:
            self.cursor.missed(bank_id)
        while True:
            self.ask()
            if not self.questions and not self.answers and not len(self.cursor):
                return
            self.answer()
            self.get_answer()
            self.call_back()


#: what happens how often
STEPS = {
    **dict.fromkeys(("commit", "hear", "hear_first", "ask", "answer", "get_answer"), 12),
    **{"call_back": 8, "kill": 2, "restart_bank": 1, "reconnect": 1, "lose": 1},
}


@given(count=st.integers(0, 400), seed=st.integers(0, 2**32), queue=st.sampled_from((1, 2, 3, 50)))
@settings(max_examples=200, deadline=None)
def test_any_schedule_hands_each_over_once_and_in_order(count: int, seed: int, queue: int) -> None:
    world = World(seed, queue)
    steps = world.chance.choices(list(STEPS), list(STEPS.values()), k=count)
    for each in steps:
        getattr(world, each)()
        assert len(world.cursor) <= queue
    world.settle()
    for bank_id, stored in world.stored.items():
        told = [each for each in world.told if each.bank_id == bank_id]
        assert told == stored[world.old[bank_id] :]
    assert world.repeats <= steps.count("kill")


def test_the_place_of_a_record_is_its_own() -> None:
    record = dataset(3)
    assert Place.of(record) == Place(sequence=3, dataset_id="bank-0-3", created=3.0)
    assert Place.of(replace(record, sequence=4)) != Place.of(record)
