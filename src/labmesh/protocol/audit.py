"""The lines of an audit journal, each of which holds fast to the one before it.

A line is a JSON object on a line of its own: ``n`` counts from 1, ``prev`` is the SHA-256 of the
line before (without its line end; 64 zeros at the beginning), ``crc`` at the end is the CRC-32 of
what stands before it. So ``sha256sum`` is enough to follow the chain by hand. The checksum finds a
damaged line, the last one too; the chain finds a line that somebody has changed with care.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec import Raw, Struct

__all__ = [
    "BEGINNING",
    "MAX_PARAMETERS",
    "Chain",
    "Entry",
    "Line",
    "Tally",
    "Wanted",
    "clean_text",
    "hash_of",
    "journal_entry",
    "read_line",
    "short_parameters",
]

#: What the first line has as the hash of the one before it.
BEGINNING = "0" * 64
#: Parameters take at most so many bytes of JSON.
MAX_PARAMETERS = 512

_TEXT_CHARS = 300
_ITEM_CHARS = 160
_ITEMS, _DEPTH, _PIECES = 64, 4, 200
_CUT_CHARS = 400
_LINE = re.compile(
    rb'\{"n":([1-9][0-9]{0,15}),"prev":"([0-9a-f]{64})",(.*),"crc":"([0-9a-f]{8})"\}', re.DOTALL
)
_NO_VALUE = Raw(b"null")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that somebody did, or was refused."""

    #: POSIX seconds (UTC): when it was asked for
    time: float
    #: ``call``, ``lease``, ``upload``, ``dataset``, ``request``, ``event``, ``connection``,
    #: ``access`` (the allow-list), ``node`` (it began or ended), ``journal`` (about itself)
    what: str
    #: kind and id of the node whose journal it is
    node: str = ""
    #: who, as the handshake proved it; else what the mode calls everybody
    user: str = ""
    #: where that came from
    address: str = ""
    #: the id of the relay or dataset that was meant
    object: str = ""
    method: str = ""
    #: ``set``: the method is a value, which was set
    access: str = ""
    #: of a batch: its methods
    methods: tuple[str, ...] = ()
    parameters: Raw = _NO_VALUE
    #: ``ok``, ``refused``, ``not_run``, ``failed``, ``running``
    outcome: str = "ok"
    #: the class of the error
    error: str = ""
    text: str = ""
    duration_s: float | None = None
    #: the id of the call
    call: str = ""
    #: so many alike
    count: int = 1


class Line(Struct, frozen=True):
    """What a line says of its own place, and what it is about."""

    n: int
    prev: str
    hash: str
    entry: Entry


def hash_of(line: bytes) -> str:
    """What the next line has as ``prev``; ``line`` is without its line end."""
    return hashlib.sha256(line).hexdigest()


class Chain:
    """The end of a journal: the number of its last line, and that line's hash."""

    __slots__ = ("hash", "n")

    def __init__(self, n: int = 0, hash: str = BEGINNING) -> None:
        self.n = n
        self.hash = hash

    def add(self, entry: Entry) -> bytes:
        """The next line, with its line end; the chain goes on behind it."""
        body = _encode(entry)
        head = b'{"n":%d,"prev":"%s",%s' % (self.n + 1, self.hash.encode(), body[1:-1])
        line = b'%s,"crc":"%08x"}' % (head, zlib.crc32(head))
        self.n += 1
        self.hash = hash_of(line)
        return line + b"\n"

    def skip(self, piece: bytes) -> None:
        """Go on behind a line that is not whole, as if it counted."""
        self.n += 1
        self.hash = hash_of(piece)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def read_line(line: bytes) -> Line | str:
    """A line without its line end, or what is wrong with it."""
    found = _LINE.fullmatch(line)
    if found is None:
        return "it does not have the form of a line of a journal"
    number, prev, body, crc = found.groups()
    if b"%08x" % zlib.crc32(line[: found.end(3)]) != crc:
        return "its checksum does not fit: it was changed or damaged"
    try:
        entry = _decode(b"{%s}" % body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "it is not what labmesh writes"
    return Line(int(number), prev.decode(), hash_of(line), entry)


def journal_entry(time: float, method: str, **parameters: Any) -> Entry:
    """A line in which a journal speaks of itself."""
    raw = short_parameters(kwargs=parameters)
    return Entry(time=time, what="journal", method=method, parameters=raw)


# ── parameters ──────────────────────────────────────────────────────────────────────────────────


def short_parameters(args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Raw:
    """Arguments as at most ``MAX_PARAMETERS`` bytes of JSON.

    By position only: a list; by name only: an object; both: ``{"args": […], "kwargs": {…}}``. What
    is large is cut and tells its size; bytes and arrays tell their size alone.
    """
    walk = _Walk()
    by_name = {str(key): each for key, each in (kwargs or {}).items()}
    if args and by_name:
        plain = {"args": walk.plain(list(args), 0), "kwargs": walk.plain(by_name, 0)}
    elif args:
        plain = walk.plain(list(args), 0)
    elif by_name:
        plain = walk.plain(by_name, 0)
    else:
        return _NO_VALUE
    encoded = _encode(plain)
    return Raw(encoded if len(encoded) <= MAX_PARAMETERS else _cut(encoded))


def clean_text(text: str, limit: int = _TEXT_CHARS) -> str:
    """A text that JSON can hold, cut to ``limit`` characters."""
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return _SURROGATES.sub("?", cut)


def _cut(encoded: bytes) -> bytes:
    """The beginning of a JSON text, as a value that says so."""
    chars = _CUT_CHARS
    while True:
        begin = encoded[:chars].decode("utf-8", "ignore")
        short: bytes = _encode({"begin": begin, "bytes": len(encoded)})
        if len(short) <= MAX_PARAMETERS:
            return short
        chars //= 2


class _Walk:
    """Copies values into what JSON has, as far as its pieces last."""

    def __init__(self) -> None:
        self._left = _PIECES

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1
        kind = type(value)
        if kind is float:
            return value if math.isfinite(value) else str(value)
        if kind is bool or value is None:
            return value
        if kind is int:
            return value if -(2**63) <= value < 2**63 else "<a number of more than 64 bits>"
        if kind is str:
            long = len(value) > _ITEM_CHARS
            text = clean_text(value, _ITEM_CHARS)
            return f"{text} ({len(value)} characters)" if long else text
        if kind in (bytes, bytearray, memoryview):
            return f"<{len(value)} bytes>"
        if kind in (list, tuple, dict):
            if depth == _DEPTH or self._left <= 0:
                return f"<{len(value)} items>"
            return self._table(value, depth) if kind is dict else self._list(value, depth)
        return _named(value)

    def _list(self, values: Sequence[Any], depth: int) -> list[Any]:
        kept = []
        for each in values[:_ITEMS]:
            if self._left <= 0:
                break
            kept.append(self.plain(each, depth + 1))
        if len(kept) < len(values):
            kept.append(f"<{len(values)} items>")
        return kept

    def _table(self, table: dict[Any, Any], depth: int) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, each in table.items():
            if self._left <= 0 or len(kept) == _ITEMS:
                kept["…"] = f"<{len(table)} items>"
                break
            kept[clean_text(str(key), _ITEM_CHARS)] = self.plain(each, depth + 1)
        return kept


def _named(value: Any) -> str:
    """Something else: its kind, and its shape where it has one."""
    shape = getattr(value, "shape", None)
    size = " " + "x".join(map(str, shape)) if isinstance(shape, tuple) else ""
    return f"<{type(value).__name__}{size}>"


# ── what comes often ────────────────────────────────────────────────────────────────────────────


class Tally:
    """Lets the first few of a kind through, and counts the others, which are told of together:
    whoever is refused may try again for ever, and must not fill a disk.

    :param first: so many of a kind are told of one by one in each window.
    """

    def __init__(self, first: int = 1, *, window_s: float = 60.0, kinds: int = 1000) -> None:
        self._first, self._window_s, self._kinds = first, window_s, kinds
        #: kind → end of its window, how many so far
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def takes(self, kind: tuple[str, ...], now: float) -> bool:
        """Whether this one is told of by itself."""
        if kind not in self._seen and len(self._seen) >= self._kinds:
            kind = tuple("…" for _ in kind)
        until, count = self._seen.get(kind, (now + self._window_s, 0))
        self._seen[kind] = until, count + 1
        return count < self._first

    def due(self, now: float) -> list[tuple[tuple[str, ...], int]]:
        """Kinds whose window is over, and how many of each were only counted."""
        over = [kind for kind, (until, _) in self._seen.items() if until <= now]
        counts = [(kind, self._seen.pop(kind)[1] - self._first) for kind in over]
        return [(kind, count) for kind, count in counts if count > 0]

    def all_due(self) -> list[tuple[tuple[str, ...], int]]:
        """The same of every kind: this is the end."""
        return self.due(math.inf)


# ── looking for something ───────────────────────────────────────────────────────────────────────


class Wanted(Struct, frozen=True, kw_only=True):
    """Which lines somebody wants to see; patterns with ``*`` and ``?``, empty: all."""

    node: str = ""
    user: str = ""
    method: str = ""
    since: float | None = None
    refused: bool = False

    def fits(self, entry: Entry) -> bool:
        """Whether it is one of them. The parts of a user (kind, name, fingerprint) count alone,
        too: ``ana`` finds ``client:ana#1f3a56bc90de1278``.
        """
        methods = (entry.method, *entry.methods)
        return (
            (self.since is None or entry.time >= self.since)
            and (not self.refused or entry.outcome == "refused")
            and (not self.node or any(fnmatchcase(each, self.node) for each in _parts(entry.node)))
            and (not self.user or any(fnmatchcase(each, self.user) for each in _parts(entry.user)))
            and (not self.method or any(fnmatchcase(each, self.method) for each in methods))
        )


def _parts(name: str) -> list[str]:
    return [name, *re.split("[ :#]", name), name.partition("#")[0]]
