"""The kinds of content: how a value becomes the bytes of a dataset, and comes back from them.

========================= ================ ====================================================
value                     kind             stored as
========================= ================ ====================================================
numpy array               npy              ``.npy``, in C order
xarray Dataset            netcdf           netCDF 4, written and read by h5netcdf
xarray DataArray          netcdf-array     the same
pandas DataFrame          parquet          Parquet, written and read by pyarrow
pandas Series             parquet-series   the same
text                      text             UTF-8
number, dict, list, tuple json             JSON, UTF-8 (a tuple comes back as a list)
bytes, file, iterator     bytes            as it is
========================= ================ ====================================================

A file given by its path has the kind of its suffix and its first bytes. An unknown kind, of another
version or a program of one's own, comes back as bytes.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from labmesh.content import frames
from labmesh.content.arrays import npy_header
from labmesh.content.sources import Content, JoinedFile, Piece

__all__ = [
    "FILE_KINDS",
    "KINDS",
    "Packed",
    "array_dtype",
    "kind_of_file",
    "packed",
    "suffix_of",
    "unpacked",
    "unpacked_file",
]

#: kind → suffix of a file of it
KINDS = {
    "npy": ".npy",
    "netcdf": ".nc",
    "netcdf-array": ".nc",
    "parquet": ".parquet",
    "parquet-series": ".parquet",
    "text": ".txt",
    "json": ".json",
}

#: suffix → kind, and how a file of it begins
_SUFFIXES: dict[str, tuple[str, bytes]] = {
    ".npy": ("npy", b"\x93NUMPY"),
    ".nc": ("netcdf", b"\x89HDF\r\n\x1a\n"),
    ".parquet": ("parquet", b"PAR1"),
    ".txt": ("text", b""),
    ".json": ("json", b""),
}
_PIECE_BYTES = 2**20
_JSON_BYTES = 64 * 2**20


class Packed(NamedTuple):
    """What is uploaded, and its kind; :meth:`close` it when that is done."""

    content: Content
    kind: str
    #: a temporary file, which ends with its closing
    temporary: io.BufferedIOBase | io.RawIOBase | None = None

    def close(self) -> None:
        """Remove what was made for it."""
        if self.temporary is not None:
            self.temporary.close()


def packed(value: Any, kind: str | None = None) -> Packed:
    """A value as what is stored, and its kind; it may block.

    Text is text here, not a path. xarray's and pandas' values go by way of a temporary file.

    :param kind: of bytes, a file or an iterator; None: by the value, or the suffix of the path.
    :raises TypeError: a value that no kind can hold.
    :raises ValueError: ``kind`` is not that of the value.
    :raises ImportError: the library that writes this kind is not installed.
    """
    made = _packed_value(value)
    if made is None:
        if kind is None:
            kind = kind_of_file(value) if isinstance(value, os.PathLike) else "bytes"
        return Packed(value, kind)
    if kind not in (None, made.kind):
        made.close()
        raise ValueError(
            f"a {type(value).__name__} is stored as {made.kind!r}, not as {kind!r}; kind= is for "
            "bytes, files and iterators"
        )
    return made


def _packed_value(value: Any) -> Packed | None:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        return _packed_array(value)
    for library, pack in (("xarray", frames.pack_xarray), ("pandas", frames.pack_pandas)):
        if library in sys.modules and (made := pack(value)) is not None:
            return Packed(made[0], made[1], made[0])
    if isinstance(value, str):
        return Packed(value.encode(), "text")
    if isinstance(value, dict | list | tuple | int | float):
        return Packed(_json_bytes(value), "json")
    return None


def _packed_array(array: Any) -> Packed:
    """Its header and its own memory: nothing is copied, where it is in C order."""
    import numpy

    if array.dtype.hasobject:
        raise ValueError(
            "an array of Python objects is not stored: only pickle could read it; convert it, for "
            "example by .astype(float) or .astype(str)"
        )
    if isinstance(array, numpy.ma.MaskedArray) or hasattr(array, "unit") or hasattr(array, "units"):
        raise ValueError(
            f"the mask or unit of a {type(array).__name__} would be lost; put .filled(numpy.nan) "
            "or numpy.asarray(...) of it, and the mask as an array or the unit in meta"
        )
    plain = numpy.asarray(array)
    ordered = numpy.ascontiguousarray(plain).reshape(plain.shape)
    fields = numpy.lib.format.header_data_from_array_1_0(ordered)
    header = io.BytesIO()
    try:
        numpy.lib.format.write_array_header_1_0(header, fields)
    except ValueError:  # fields by the thousand, or with names that Latin 1 lacks
        whole = io.BytesIO()
        numpy.save(whole, ordered, allow_pickle=False)
        return Packed(whole, "npy", whole)
    elements: Any = ordered.reshape(-1).view(numpy.uint8) if ordered.nbytes else b""
    file = JoinedFile(header.getvalue(), memoryview(elements))
    return Packed(file, "npy", file)


def _json_bytes(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError) as exc:
        raise TypeError(
            f"this {type(value).__name__} cannot be stored as JSON: {exc}; store arrays as "
            "datasets of their own, and make the rest numbers, text, lists and dicts"
        ) from exc


def unpacked(content: Piece, kind: str) -> Any:
    """:func:`packed` the other way; an unknown kind comes back as bytes. It may block.

    An array uses the memory of ``content``, where that can be written.

    :raises ImportError: the library that reads this kind is not installed; the text names it.
    :raises ValueError: the bytes are not of this kind.
    """
    unpack = _UNPACK.get(kind)
    return bytes(content) if unpack is None else unpack(content)


def unpacked_file(path: Path, kind: str) -> Any:
    """:func:`unpacked` from a file, for the kinds in :data:`FILE_KINDS`."""
    return _UNPACK_FILE[kind](path)


def _unpacked_array(content: Piece) -> Any:
    numpy = _numpy()
    header = npy_header(content)
    order: Any = "F" if header.fortran_order else "C"
    try:
        return numpy.ndarray(
            header.shape, array_dtype(header.descr), content, header.offset, order=order
        )
    except TypeError as exc:
        raise ValueError("this .npy file is cut short; read it as bytes") from exc


def array_dtype(descr: Any) -> Any:
    """The dtype of a stored array.

    :raises ValueError: it holds Python objects, or is none that numpy knows.
    :raises ImportError: numpy is not installed.
    """
    numpy = _numpy()
    try:
        dtype = numpy.lib.format.descr_to_dtype(descr)
    except (TypeError, ValueError, KeyError, IndexError) as exc:
        raise ValueError(f"numpy knows no dtype {str(descr)[:60]!r}; read it as bytes") from exc
    if dtype.hasobject:
        raise ValueError(
            "this array holds Python objects, which only pickle can read (allow_pickle=False); it "
            "could run any code, so it is not read: fetch it as bytes"
        )
    return dtype


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as exc:
        raise ImportError(
            "this dataset is an array, which needs numpy: pip install 'labmesh[data]'"
        ) from exc
    return numpy


def _from_memory(unpack: Callable[[Any], Any]) -> Callable[[Piece], Any]:
    return lambda content: unpack(io.BytesIO(content))


_UNPACK_FILE: dict[str, Callable[[Any], Any]] = {
    "netcdf": frames.unpack_dataset,
    "netcdf-array": frames.unpack_data_array,
    "parquet": frames.unpack_frame,
    "parquet-series": frames.unpack_series,
}
#: Kinds that a library reads from a file: a large one is not to be in memory as bytes, too.
FILE_KINDS = frozenset(_UNPACK_FILE)

_UNPACK: dict[str, Callable[[Piece], Any]] = {
    "npy": _unpacked_array,
    "text": lambda content: bytes(content).decode(),
    "json": lambda content: json.loads(bytes(content)),
    **{kind: _from_memory(unpack) for kind, unpack in _UNPACK_FILE.items()},
}


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def suffix_of(kind: str, name: str) -> str:
    """The suffix of a file of this kind and name: ``.npy``; may be empty."""
    known = KINDS.get(kind)
    if known is not None and not name.lower().endswith(known):
        return known
    suffix = Path(name.replace("\\", "/")).suffix
    harmless = 1 < len(suffix) <= 9 and suffix[1:].isascii() and suffix[1:].isalnum()
    return suffix if harmless else ""


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """The kind of a file, by its suffix, where its content agrees; else ``bytes``. It blocks.

    :raises OSError: it cannot be read.
    """
    place = Path(os.fspath(path))
    kind, magic = _SUFFIXES.get(place.suffix.lower(), ("bytes", b""))
    if kind == "bytes":
        return kind
    with place.open("rb") as file:
        if magic:
            return kind if file.read(len(magic)) == magic else "bytes"
        return kind if _is_text(file, parse=kind == "json") else "bytes"


def _is_text(file: io.BufferedReader, *, parse: bool) -> bool:
    if parse and os.fstat(file.fileno()).st_size <= _JSON_BYTES:
        try:
            json.load(file)
        except (ValueError, RecursionError):
            return False
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while piece := file.read(_PIECE_BYTES):
            decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
