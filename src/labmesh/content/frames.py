"""xarray's and pandas' values as files: netCDF 4 through h5netcdf, Parquet through pyarrow.

The libraries are imported when they are first needed. Values are written into a temporary file, so
that a large one is not in memory twice; the file has no name any more when it is uploaded.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = [
    "pack_pandas",
    "pack_xarray",
    "unpack_data_array",
    "unpack_dataset",
    "unpack_frame",
    "unpack_series",
]

#: The column of a Series without a name, or with one that Parquet cannot hold.
_SERIES = "__labmesh_series__"


def pack_xarray(value: Any) -> tuple[io.BufferedReader, str] | None:
    """A Dataset or DataArray as a file, and its kind; None: it is neither."""
    xarray = sys.modules["xarray"]
    if isinstance(value, xarray.Dataset):
        kind = "netcdf"
    elif isinstance(value, xarray.DataArray):
        kind = "netcdf-array"
    else:
        return None
    _needs("h5netcdf", "an xarray value", "data")
    return _written(lambda path: value.to_netcdf(path, engine="h5netcdf"), ".nc"), kind


def unpack_dataset(file: Any) -> Any:
    """The Dataset in a file or path, loaded."""
    return _xarray().load_dataset(file, engine="h5netcdf")


def unpack_data_array(file: Any) -> Any:
    """The DataArray in a file or path, loaded."""
    return _xarray().load_dataarray(file, engine="h5netcdf")


def pack_pandas(value: Any) -> tuple[io.BufferedReader, str] | None:
    """A DataFrame or Series as a file, and its kind; None: it is neither."""
    pandas = sys.modules["pandas"]
    if isinstance(value, pandas.Series):
        frame = value.to_frame(value.name if isinstance(value.name, str) else _SERIES)
        if value.name is not None and not isinstance(value.name, str):
            raise TypeError(
                f"the name of this Series is a {type(value.name).__name__}; Parquet takes text: "
                "value.rename('...')"
            )
        kind = "parquet-series"
    elif isinstance(value, pandas.DataFrame):
        frame, kind = value, "parquet"
    else:
        return None
    _needs("pyarrow", "a pandas value", "tables")
    return _written(lambda path: frame.to_parquet(path, engine="pyarrow"), ".parquet"), kind


def unpack_frame(file: Any) -> Any:
    """The DataFrame in a file or path."""
    return _pandas().read_parquet(file, engine="pyarrow")


def unpack_series(file: Any) -> Any:
    """The Series in a file or path."""
    series = unpack_frame(file).iloc[:, 0]
    return series.rename(None) if series.name == _SERIES else series


def _xarray() -> Any:
    _needs("xarray", "this dataset is netCDF, which", "data")
    _needs("h5netcdf", "this dataset is netCDF, which", "data")
    import xarray

    return xarray


def _pandas() -> Any:
    _needs("pandas", "this dataset is a table, which", "tables")
    _needs("pyarrow", "this dataset is a table, which", "tables")
    import pandas

    return pandas


def _needs(library: str, what: str, extra: str) -> None:
    try:
        __import__(library)
    except ImportError as exc:
        raise ImportError(f"{what} needs {library}: pip install 'labmesh[{extra}]'") from exc


def _written(write: Callable[[str], None], suffix: str) -> io.BufferedReader:
    """The file that ``write`` makes, open for reading; it is removed when it is closed."""
    descriptor, name = tempfile.mkstemp(prefix="labmesh-", suffix=suffix)
    os.close(descriptor)
    try:
        write(name)
        if sys.platform == "win32":  # an open file cannot be removed there
            return _RemovedAfterwards(name)
        return open(name, "rb")
    finally:
        if sys.platform != "win32":
            Path(name).unlink()


class _RemovedAfterwards(io.BufferedReader):
    def __init__(self, name: str) -> None:
        super().__init__(io.FileIO(name))

    def close(self) -> None:
        super().close()
        Path(self.name).unlink(missing_ok=True)
