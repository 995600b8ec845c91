"""A search finds the same in every catalogue: the one in files against its twin in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.support.storage_contract import record_of

from labmesh.errors import ProtocolError
from labmesh.protocol.messages import Condition, DatasetRecord, SearchDatasets
from labmesh.storage import sqlite_search
from labmesh.storage.base import Catalog
from labmesh.storage.catalog import FileCatalog
from labmesh.storage.memory import MemoryCatalog

#: Few and short, so that they meet; with what databases, patterns and folding of case mind.
TEXTS = st.sampled_from(
    ["", "a", "A", "ab", "aB*", "[a]", "a?b", 'say "abc"', "Straße", "STRASSE", "µ", "K", "k",
     "İ", "\0", "a\0b", "x\ny", "scan-42", "Scan 42", "scan", "can", "\U0001f52c", "''", "%", "_"]
)  # fmt: skip
INTEGERS = [0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
FLOATS = [-0.0, 1.0, 4.2, 2.0**53, 1e-300, math.nan, math.inf, -math.inf]
NUMBERS = st.sampled_from([*INTEGERS, *FLOATS])
SCALARS = st.one_of(TEXTS, NUMBERS, st.booleans(), st.none())
KEYS = st.sampled_from(["a", "b", "a.b", "", "µ"])
METAS = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=2),
        max_leaves=5,
    ),
    max_size=3,
)
RECORDS = st.builds(
    dict,
    name=TEXTS,
    kind=st.sampled_from(["npy", "text"]),
    relay_id=st.sampled_from(["", "Inst-0", "inst-0"]),
    size=st.sampled_from([0, 1, 2, 10**9]),
    created=st.sampled_from([0.0, 1.5, 1.5e9, math.inf, math.nan]),
    meta=METAS,
    tags=st.lists(st.sampled_from(["good", "bad", "Good"]), max_size=2, unique=True),
    parents=st.lists(st.sampled_from(["scan-0", "scan-1"]), max_size=2),
)
COLUMNS = ["name", "kind", "relay_id", "size", "created", "dataset_id", "tags"]
KEY_NAMES = ["meta.a", "meta.b", "meta.a.b", "meta.a.a", "meta.", "meta.µ", "meta.none"]
FIELDS = st.sampled_from([*COLUMNS, *KEY_NAMES])
CONDITIONS = st.builds(
    Condition,
    field=FIELDS,
    op=st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "like", "in"]),
    value=st.one_of(SCALARS, st.sampled_from(["*a*", "s?an*", "scan-1", "Inst-*"])),
)
WORDS = st.sampled_from(
    ["", "a", "an", "scan", "SCAN-1", "straße", '"abc"', "42 scan", "k", "µ", "''"]
)
SEARCHES = st.builds(
    SearchDatasets,
    id=st.just("1"),
    where=st.lists(CONDITIONS, max_size=3),
    text=WORDS,
    tags=st.lists(st.sampled_from(["good", "bad"]), max_size=1),
    parent=st.sampled_from(["", "", "scan-0", "nobody"]),
    sort=st.sampled_from(["sequence", "created", "size", "name"]),
    descending=st.booleans(),
    limit=st.sampled_from([3, 50]),
)


def records_of(facts: list[dict[str, Any]]) -> list[DatasetRecord]:
    return [replace(record_of(f"scan-{number}"), **each) for number, each in enumerate(facts)]


def found(catalog: Catalog, query: SearchDatasets) -> list[str] | str:
    """The ids on all pages, or the reason why there are none."""
    ids: list[str] = []
    try:
        while True:
            page = catalog.search(query)
            ids += [each.dataset_id for each in page.records]
            if not page.next:
                return ids
            assert len(page.records) == query.limit
            query = replace(query, after=page.next)
    except ProtocolError as error:
        return str(error)


@pytest.fixture(
    scope="module",
    params=[(True, 5000), (True, 3), (False, 3)],
    ids=["few are enough to drive", "most are walked", "without an index of words"],
)
def both(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[MemoryCatalog, FileCatalog]]:
    """A catalogue of seventy datasets in memory, and the same in files."""
    full_text, few = request.param
    corpus: list[list[dict[str, Any]]] = []

    @settings(max_examples=14, database=None, derandomize=True)
    @given(st.lists(RECORDS, min_size=5, max_size=5))
    def collect(facts: list[dict[str, Any]]) -> None:
        corpus.append(facts)

    collect()
    memory = MemoryCatalog()
    files = FileCatalog(tmp_path_factory.mktemp("bank"), full_text=full_text)
    for record in records_of([each for facts in corpus for each in facts]):
        assert memory.add(record).sequence == files.add(record).sequence
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_search, "_FEW", few)
        yield memory, files
    files.close()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(query=SEARCHES)
@example(
    query=SearchDatasets(id="1", where=[Condition(field="size", op="!=", value=math.nan)], limit=3)
)
def test_both_catalogues_find_the_same_in_the_same_order(
    both: tuple[MemoryCatalog, FileCatalog], query: SearchDatasets
) -> None:
    memory, files = both
    expected = found(memory, query)
    assert found(files, query) == expected
