"""xarray and pandas: what is put comes back as it was, by way of files that others can read."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from labmesh.content import Packed, packed, unpacked


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; none may be left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def there_and_back(value: Any) -> tuple[Any, str]:
    made = packed(value)
    content = cast("IO[bytes]", made.content).read()
    made.close()
    return unpacked(bytearray(content), made.kind), made.kind


def dataset() -> xr.Dataset:
    made = xr.Dataset(
        {
            "s21": (("gate", "frequency"), np.arange(6.0).reshape(2, 3) * (1 + 2j)),
            "locked": ("gate", [True, False]),
            "label": ("frequency", ["a", "bb", "µ"]),
        },
        coords={
            "gate": ("gate", [0.5, 1.5], {"unit": "V"}),
            "frequency": [1e9, 2e9, 3e9],
            "time": ("gate", pd.to_datetime(["2026-01-31T12:00", "2026-01-31T12:01"])),
        },
        attrs={"sample": "A1", "count": 3, "list": [1, 2, 3]},
    )
    made["s21"].attrs["unit"] = "dB"
    made["s21"].encoding = {"zlib": True, "complevel": 3}
    return made


def test_a_dataset_of_xarray_keeps_coordinates_attributes_and_encoding() -> None:
    read, kind = there_and_back(dataset())
    assert kind == "netcdf"
    assert isinstance(read, xr.Dataset)
    xr.testing.assert_identical(read, dataset())
    assert read["gate"].attrs == {"unit": "V"}
    assert (read["s21"].encoding["zlib"], read["s21"].encoding["complevel"]) == (True, 3)
    again, _ = there_and_back(read)
    xr.testing.assert_identical(again, dataset())


@pytest.mark.parametrize("name", ["s21", None, "frequency"])
def test_a_data_array_comes_back_as_one(name: str | None) -> None:
    array = dataset()["s21"].rename(name) if name != "frequency" else dataset()["frequency"]
    read, kind = there_and_back(array)
    assert kind == "netcdf-array"
    assert isinstance(read, xr.DataArray)
    xr.testing.assert_identical(read, array)
    assert read.name == name


def test_others_read_the_file_of_a_dataset(tmp_path: Path) -> None:
    import h5py

    made = packed(dataset())
    (tmp_path / "a.nc").write_bytes(cast("IO[bytes]", made.content).read())
    made.close()
    with h5py.File(tmp_path / "a.nc") as file:
        np.testing.assert_array_equal(file["gate"][:], [0.5, 1.5])


FRAME = pd.DataFrame(
    {
        "voltage": [0.5, np.nan],
        "count": [1, 2],
        "when": pd.to_datetime(["2026-01-31T12:00", "2026-01-31T13:00"], utc=True),
        "sample": pd.Categorical(["A1", "B2"]),
        "text": ["µ", None],
    },
    index=pd.Index([10, 20], name="point"),
)


def test_a_frame_comes_back_with_its_index_types_and_attributes() -> None:
    frame = FRAME.copy()
    frame.attrs = {"sample": "A1"}
    read, kind = there_and_back(frame)
    assert kind == "parquet"
    pd.testing.assert_frame_equal(read, frame)
    assert read.attrs == {"sample": "A1"}


@pytest.mark.parametrize("name", ["voltage", None])
def test_a_series_comes_back_as_one(name: str | None) -> None:
    series = FRAME["voltage"].rename(name)
    read, kind = there_and_back(series)
    assert kind == "parquet-series"
    assert isinstance(read, pd.Series)
    pd.testing.assert_series_equal(read, series)


def test_what_a_file_cannot_hold_is_said_and_leaves_none() -> None:
    with pytest.raises(TypeError, match=r"Parquet takes text: value\.rename"):
        packed(pd.Series([1], name=7))
    with pytest.raises(TypeError, match="attr"):
        packed(xr.Dataset(attrs={"driver": object()}))


def test_a_kind_is_for_bytes_and_not_for_values() -> None:
    assert packed(b"...", "of my own") == Packed(b"...", "of my own")
    assert packed("text", "text").kind == "text"
    for value in (FRAME, np.zeros(2), {"a": 1}):
        with pytest.raises(ValueError, match="not as 'text'"):
            packed(value, "text")


@pytest.mark.parametrize(
    ("value", "missing", "extra"),
    [
        (dataset(), "h5netcdf", "data"),
        (FRAME, "pyarrow", "tables"),
    ],
)
def test_without_the_library_that_writes_the_extra_is_named(
    value: Any, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {missing}: pip install 'labmesh\[{extra}\]'"):
        packed(value)


@pytest.mark.parametrize(
    ("kind", "missing", "extra"),
    [
        ("netcdf", "xarray", "data"),
        ("netcdf-array", "h5netcdf", "data"),
        ("parquet", "pandas", "tables"),
        ("parquet-series", "pyarrow", "tables"),
    ],
)
def test_without_the_library_that_reads_the_extra_is_named(
    kind: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"needs {missing}: pip install 'labmesh\[{extra}\]'"):
        unpacked(b"", kind)
