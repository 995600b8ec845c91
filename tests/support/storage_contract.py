"""What every catalog is held to; blob_contract.py has what every blob store is held to.

A test module makes a class of it that says how the pair is opened::

    class TestMemoryStorage(StorageContract):
        @pytest.fixture
        def storage(self): ...
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import msgspec
import pytest
from tests.support.blob_contract import CONTENT, put, sha256_of

from labmesh.errors import Conflict, NotFound, ProtocolError
from labmesh.protocol.messages import (
    Annotation,
    Condition,
    DatasetId,
    DatasetRecord,
    SearchDatasets,
    TrashEntry,
)
from labmesh.storage.base import BlobStore, Catalog

__all__ = ["CONTENT", "Storage", "StorageContract", "put", "record_of", "sha256_of"]

Storage = tuple[BlobStore, Catalog]


def record_of(dataset_id: str, content: bytes = CONTENT, **facts: object) -> DatasetRecord:
    fields = {
        "dataset_id": dataset_id,
        "size": len(content),
        "sha256": sha256_of(content),
        "bank_id": "bank-0",
        **facts,
    }
    return msgspec.convert(fields, DatasetRecord)


def entry_of(dataset_id: str, **facts: object) -> TrashEntry:
    """What a bank gives the trash: only the id of the record counts."""
    fields = {"record": record_of(dataset_id), "deleted": 100.0, "purge": 200.0, **facts}
    return msgspec.convert(fields, TrashEntry)


def search_of(*where: Condition, **facts: object) -> SearchDatasets:
    return SearchDatasets(id="1", where=list(where), **facts)  # type: ignore[arg-type]


class StorageContract:
    @pytest.fixture
    def storage(self) -> Iterator[Storage]:
        raise NotImplementedError

    @pytest.fixture
    def catalog(self, storage: Storage) -> Catalog:
        return storage[1]

    # ── records ──

    def test_a_new_catalog_is_empty(self, catalog: Catalog) -> None:
        assert catalog.count() == 0
        assert catalog.last_sequence() == 0
        assert catalog.get("scan-1") is None
        assert catalog.page() == ([], False)

    def test_a_record_is_kept_as_it_was_and_numbered(self, catalog: Catalog) -> None:
        record = record_of(
            "scan-1",
            relay_id="Inst-0",
            name="µ-sweep",
            kind="npy",
            created=1_700_000_000.25,
            meta={"T": 4.2, "on": True, "none": None, "deep": [{"Ω": [1, -(2**63), "a\nb\x00"]}]},
        )
        stored = catalog.add(record)
        assert stored == msgspec.structs.replace(record, sequence=1)
        assert catalog.get("scan-1") == stored
        assert (catalog.count(), catalog.last_sequence()) == (1, 1)

    def test_not_a_number_is_kept_too(self, catalog: Catalog) -> None:
        catalog.add(record_of("scan-1", meta={"nan": math.nan, "inf": [math.inf, -math.inf]}))
        stored = catalog.get("scan-1")
        assert stored is not None
        assert math.isnan(stored.meta["nan"])
        assert stored.meta["inf"] == [math.inf, -math.inf]

    def test_adding_the_same_content_again_is_harmless(self, catalog: Catalog) -> None:
        first = catalog.add(record_of("scan-1", created=1.0, meta={"try": 1}))
        again = catalog.add(record_of("scan-1", created=2.0, meta={"try": 2}))
        assert again == first
        assert catalog.count() == 1

    @pytest.mark.parametrize("other", [b"other", CONTENT + b"\0"])
    def test_an_id_is_never_given_to_other_content(self, catalog: Catalog, other: bytes) -> None:
        first = catalog.add(record_of("scan-1"))
        with pytest.raises(Conflict, match="already stored with other content") as caught:
            catalog.add(record_of("scan-1", other))
        assert caught.value.detail["sha256"] == first.sha256
        assert catalog.get("scan-1") == first
        assert catalog.count() == 1

    @pytest.mark.parametrize("dataset_id", ["../evil", "a/b", "", ".", "nul"])
    def test_an_id_that_breaks_the_rule_is_refused(self, catalog: Catalog, dataset_id: str) -> None:
        record = msgspec.structs.replace(record_of("scan-1"), dataset_id=DatasetId(dataset_id))
        with pytest.raises(ProtocolError, match="the rule"):
            catalog.add(record)
        assert catalog.count() == 0

    def test_pages_follow_the_order_of_commits(self, catalog: Catalog) -> None:
        for number in (3, 1, 2, 5, 4):
            catalog.add(record_of(f"scan-{number}"))

        def page(**choice: int) -> tuple[list[str], bool]:
            records, more = catalog.page(**choice)
            return [record.dataset_id[-1] for record in records], more

        assert page() == (["3", "1", "2", "5", "4"], False)
        assert page(limit=2) == (["3", "1"], True)
        assert page(after=2, limit=2) == (["2", "5"], True)
        assert page(after=4, limit=2) == (["4"], False)
        assert page(after=5) == ([], False)
        assert page(after=2**60) == ([], False)
        assert page(newest_first=True) == (["4", "5", "2", "1", "3"], False)
        assert page(newest_first=True, limit=2) == (["4", "5"], True)
        assert page(newest_first=True, limit=2, after=4) == (["2", "1"], True)
        assert page(newest_first=True, limit=2, after=2) == (["3"], False)
        assert page(newest_first=True, after=1) == ([], False)

    def test_whoever_has_seen_a_sequence_has_missed_none_before_it(self, catalog: Catalog) -> None:
        def add(number: int) -> int:
            return catalog.add(record_of(f"scan-{number}")).sequence

        seen: list[int] = []
        with ThreadPoolExecutor(8) as pool:
            adding = [pool.submit(add, number) for number in range(40)]
            for added in as_completed(adding):
                while records := catalog.page(after=seen[-1] if seen else 0, limit=7).records:
                    seen += [record.sequence for record in records]
                assert added.result() in seen
        assert seen == sorted(added.result() for added in adding)
        assert len(set(seen)) == 40

    def test_one_id_from_many_threads_has_one_winner(self, catalog: Catalog) -> None:
        def add(number: int) -> str:
            try:
                return catalog.add(record_of("scan-1", bytes([number % 4]))).sha256
            except Conflict:
                return "conflict"

        with ThreadPoolExecutor(8) as pool:
            outcomes = list(pool.map(add, range(20)))
        winner = catalog.get("scan-1")
        assert winner is not None
        assert set(outcomes) == {winner.sha256, "conflict"}
        assert outcomes.count(winner.sha256) == 5
        assert catalog.count() == 1

    def test_provenance_comes_with_the_full_record_alone(self, catalog: Catalog) -> None:
        record = record_of("scan-1", provenance={"user": "ada", "T": math.inf}, tags=["new"])
        brief = msgspec.structs.replace(record, sequence=1, provenance={})
        assert catalog.add(record) == brief
        assert catalog.add(record) == brief
        assert catalog.get("scan-1") == brief
        assert catalog.page().records == [brief]
        assert catalog.search(search_of()).records == [brief]
        assert catalog.full("scan-1") == msgspec.structs.replace(record, sequence=1)
        assert catalog.full("scan-2") is None

    # ── notes and tags ──

    def test_annotations_change_the_tags_and_are_kept(self, catalog: Catalog) -> None:
        catalog.add(record_of("scan-1", tags=["new", "raw"], provenance={"user": "ada"}))
        notes = [
            Annotation(time=1.0, who="ada", add_tags=["good", "raw"], note="line\nµ"),
            Annotation(time=2.0, who="bob", remove_tags=["new", "none"]),
            Annotation(time=3.0, note="no tags"),
        ]
        tags = [catalog.annotate("scan-1", each).tags for each in notes]
        assert tags == [["new", "raw", "good"], ["raw", "good"], ["raw", "good"]]
        assert catalog.history("scan-1") == notes
        for found in (catalog.get("scan-1"), catalog.full("scan-1"), catalog.page().records[0]):
            assert found is not None
            assert found.tags == ["raw", "good"]
        assert catalog.search(search_of(tags=["good", "raw"])).records == catalog.page().records
        assert catalog.search(search_of(tags=["new"])).records == []
        assert catalog.search(search_of(text="GOOD")).records == catalog.page().records

    def test_a_dataset_has_at_most_64_tags(self, catalog: Catalog) -> None:
        catalog.add(record_of("scan-1", tags=[str(number) for number in range(63)]))
        catalog.annotate("scan-1", Annotation(time=1.0, add_tags=["63"]))
        with pytest.raises(ProtocolError, match="at most 64"):
            catalog.annotate("scan-1", Annotation(time=2.0, add_tags=["64"]))
        catalog.annotate("scan-1", Annotation(time=3.0, add_tags=["64"], remove_tags=["0"]))
        assert len(catalog.history("scan-1")) == 2

    def test_what_is_not_there_cannot_be_changed(self, catalog: Catalog) -> None:
        catalog.add(record_of("scan-1"))
        for change in (
            lambda: catalog.annotate("scan-2", Annotation(time=1.0)),
            lambda: catalog.history("scan-2"),
            lambda: catalog.trash(entry_of("scan-2")),
            lambda: catalog.restore("scan-1"),
            lambda: catalog.purge("scan-1"),
        ):
            with pytest.raises(NotFound, match="scan"):
                change()
        assert catalog.count() == 1

    # ── the trash ──

    def test_the_trash_takes_gives_back_and_forgets(self, catalog: Catalog) -> None:
        for number in (1, 2, 3):
            content = bytes(number)
            catalog.add(
                record_of(f"scan-{number}", content, provenance={"user": "ada"}, tags=["raw"])
            )
        catalog.annotate("scan-2", Annotation(time=1.0, add_tags=["good"]))
        before, full = catalog.get("scan-2"), catalog.full("scan-2")
        assert before is not None
        entry = entry_of("scan-2", who="ada", why="noise")
        catalog.trash(entry)
        assert catalog.get("scan-2") is None
        assert catalog.full("scan-2") is None
        assert [each.sequence for each in catalog.page().records] == [1, 3]
        assert len(catalog.search(search_of(tags=["raw"])).records) == 2
        assert catalog.trashed() == [msgspec.structs.replace(entry, record=before)]
        assert (catalog.count(), catalog.total_bytes()) == (2, 6)
        assert catalog.refers(before.sha256)
        with pytest.raises(Conflict, match="in the trash"):
            catalog.add(record_of("scan-2", bytes(2)))
        assert catalog.restore("scan-2") == before
        assert catalog.full("scan-2") == full
        assert [each.sequence for each in catalog.page().records] == [1, 2, 3]
        assert len(catalog.history("scan-2")) == 1
        catalog.trash(entry)
        catalog.purge("scan-2")
        assert catalog.trashed() == []
        assert not catalog.refers(before.sha256)
        assert catalog.total_bytes() == 4
        again = catalog.add(record_of("scan-2", bytes(2)))
        assert (again.sequence, again.tags, catalog.history("scan-2")) == (4, [], [])

    def test_the_trash_is_listed_by_id_and_in_pages(self, catalog: Catalog) -> None:
        for name in ("c", "a", "d", "b"):
            catalog.add(record_of(name))
            catalog.trash(entry_of(name))

        def page(**choice: object) -> str:
            return "".join(each.record.dataset_id for each in catalog.trashed(**choice))  # type: ignore[arg-type]

        assert page() == "abcd"
        assert page(limit=2) == "ab"
        assert page(after="b", limit=1) == "c"
        assert page(after="d") == ""
        assert (catalog.count(), catalog.last_sequence()) == (0, 0)
        assert catalog.highest_given() >= 1
        assert catalog.add(record_of("e")).sequence == 5

    def test_an_object_is_needed_as_long_as_one_record_has_it(self, catalog: Catalog) -> None:
        catalog.add(record_of("scan-1"))
        catalog.add(record_of("scan-2"))
        assert not catalog.refers("0" * 64)
        for name in ("scan-1", "scan-2"):
            assert catalog.refers(record_of("x").sha256)
            catalog.trash(entry_of(name))
            assert catalog.refers(record_of("x").sha256)
            catalog.purge(name)
        assert not catalog.refers(record_of("x").sha256)

    # ── searching ──

    def test_a_search_goes_on_where_it_stopped_whatever_is_added(self, catalog: Catalog) -> None:
        for number in range(7):
            catalog.add(record_of(f"scan-{number}", name="ab"[number % 2], meta={"n": number}))
        query = search_of(Condition(field="meta.n", op="<", value=6), sort="name", limit=4)
        first = catalog.search(query)
        assert [each.dataset_id[-1] for each in first.records] == list("5314")
        catalog.add(record_of("scan-9", name="b", meta={"n": 0}))
        catalog.trash(entry_of("scan-4"))
        second = catalog.search(msgspec.structs.replace(query, after=first.next))
        assert ([each.dataset_id[-1] for each in second.records], second.next) == (list("20"), "")

    def test_children_are_found_by_their_parent(self, catalog: Catalog) -> None:
        catalog.add(record_of("raw"))
        catalog.add(record_of("fit", parents=["raw", "dark"]))
        assert [each.dataset_id for each in catalog.search(search_of(parent="raw")).records] == [
            "fit"
        ]
        assert catalog.search(search_of(parent="fit")).records == []

    @pytest.mark.parametrize(
        "query",
        [
            search_of(Condition(field="colour", value=1)),
            search_of(Condition(field="size", op="<", value="big")),
            search_of(after="sequence-1"),
        ],
    )
    def test_a_search_that_makes_no_sense_is_refused(
        self, catalog: Catalog, query: SearchDatasets
    ) -> None:
        with pytest.raises(ProtocolError):
            catalog.search(query)

    def test_marks_are_numbers_with_names(self, catalog: Catalog) -> None:
        assert catalog.mark("announced") == 0
        catalog.set_mark("announced", 7)
        catalog.set_mark("other", 1)
        catalog.set_mark("announced", 5)
        assert (catalog.mark("announced"), catalog.mark("other")) == (5, 1)
