"""What a disk may hold after a power cut: file operations are recorded, and every state that a
crash may leave is built from the record.

The disk is one that promises what POSIX does, and no more:

- bytes are safe once their file was synced; before that they are there, or lost, or torn at a
  multiple of 4096 bytes, or there as zeros;
- a name is safe once its folder was synced; before that each change of a name may have happened
  or not, in any order. A rename happens whole or not at all, as file systems with a journal do it.

SQLite does not go through the recorder. Its files are copied at every operation, and a state has
them as they were then, as they were earlier, as rubbish, or not at all.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from labmesh.storage.fileops import Access, FileOps

__all__ = ["CrashState", "Disk", "Event", "Recorder", "crash_states", "prefixes"]

_BLOCK = 4096
#: Files of SQLite begin so; they are derived.
DERIVED = "catalog.sqlite"

Derived: TypeAlias = dict[str, bytes]
_KINDS = ("as it was", "absent", "stale", "rubbish")
_RUBBISH = bytes(each ^ 0xA5 for each in range(256))

#: What became of bytes that were not synced.
Unsynced: TypeAlias = Literal["kept", "lost", "torn", "zeros"]
FATES: tuple[Unsynced, ...] = ("kept", "lost", "torn", "zeros")


@dataclass(frozen=True, slots=True)
class Create:
    """A name for a new file (``folder``: a new folder)."""

    path: str
    inode: int
    folder: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """All bytes of a file, as they are from now on for whoever reads it."""

    inode: int
    content: bytes
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Sync:
    """The bytes of a file are safe."""

    inode: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A file is found under another name."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name is gone."""

    path: str


@dataclass(frozen=True, slots=True)
class SyncFolder:
    """The names in a folder are safe."""

    path: str


@dataclass(frozen=True, slots=True)
class Derive:
    """The files of SQLite have changed."""

    files: Derived


@dataclass(frozen=True, slots=True)
class Promise:
    """Something that the test notes: what was begun, or acknowledged, at this moment."""

    what: Any


Event: TypeAlias = Create | Content | Sync | Rename | Unlink | SyncFolder | Derive | Promise


class Recorder(FileOps):
    """The real operations in one folder, each of which leaves an event in ``events``.

    :param root: the folder; nothing outside it is recorded.
    """

    #: What it knows. An operation that is new in FileOps must be taught here.
    KNOWN = frozenset(
        {"open", "read", "write", "fsync", "close", "rename", "unlink", "mkdir", "fsync_dir"}
        | {"listdir", "scan", "stat", "fstat", "exists", "truncate", "reserve", "touch"}
        | {"make_private", "lock", "free_bytes"}
    )

    def __init__(self, root: Path) -> None:
        unknown = {name for name in dir(FileOps) if not name.startswith("_")} - self.KNOWN
        assert not unknown, f"the recorder must be taught what these operations do: {unknown}"
        self.root = root
        self.events: list[Event] = []
        self.paths: dict[int, Path] = {}
        self.syncs: list[tuple[int, str, bool]] = []
        self._names: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._numbers = itertools.count(1)
        self._derived: tuple[object, ...] = ()
        self.turn = threading.RLock()

    def adopt(self) -> None:
        """Take what is in the folder now as safe."""
        for path in sorted(self.root.rglob("*")):
            name = self._name(path)
            if name is None:
                continue
            inode = self._names[name] = next(self._numbers)
            self.events.append(Create(name, inode, folder=path.is_dir()))
            if path.is_file():
                mtime_ns = path.stat().st_mtime_ns
                self.events += [Content(inode, path.read_bytes(), mtime_ns), Sync(inode)]
        folders = {each.path for each in self.events if isinstance(each, Create) and each.folder}
        self.events += [SyncFolder(each) for each in sorted({"", *folders})]
        self._look_at_derived()

    # ── what the test notes ──

    def note(self, what: Any) -> None:
        """Put a promise between the operations."""
        with self.turn:
            self._look_at_derived()
            self.events.append(Promise(what))

    # ── operations ──

    def open(self, path: Path, access: Access) -> int:
        with self.turn:
            self._look_at_derived()
            name = self._name(path)
            there = os.path.lexists(path)
            fd = super().open(path, access)
            self.paths[fd] = path
            if name is not None:
                if not there:
                    self._names[name] = next(self._numbers)
                    self.events.append(Create(name, self._names[name]))
                    self._changed(fd, self._names[name])
                self._open[fd] = self._names[name]
            return fd

    def write(self, fd: int, offset: int, piece: memoryview) -> int:
        with self.turn:
            self._look_at_derived()
            written = super().write(fd, offset, piece)
            self._changed(fd, self._open.get(fd))
            return written

    def truncate(self, fd: int, size: int) -> None:
        with self.turn:
            super().truncate(fd, size)
            self._changed(fd, self._open.get(fd))

    def touch(self, fd: int) -> None:
        with self.turn:
            super().touch(fd)
            self._changed(fd, self._open.get(fd))

    def fsync(self, fd: int) -> None:
        with self.turn:
            self._look_at_derived()
            inode = self._open.get(fd)
            self._note_sync(fd, False)
            super().fsync(fd)
            self._note_sync(fd, True)
            if inode is not None:
                self.events.append(Sync(inode))

    def _note_sync(self, fd: int, worked: bool) -> None:
        if worked:
            self.syncs.pop()
        self.syncs.append((self._open.get(fd, 0), str(self.paths.get(fd)), worked))

    def close(self, fd: int) -> None:
        with self.turn:
            self._open.pop(fd, None)
            self.paths.pop(fd, None)
            super().close(fd)

    def rename(self, source: Path, target: Path) -> None:
        with self.turn:
            self._look_at_derived()
            super().rename(source, target)
            before, after = self._name(source), self._name(target)
            assert before is not None
            assert after is not None
            self._names[after] = self._names.pop(before)
            self.events.append(Rename(before, after))

    def unlink(self, path: Path) -> None:
        with self.turn:
            self._look_at_derived()
            super().unlink(path)
            name = self._name(path)
            if name is not None and self._names.pop(name, None) is not None:
                self.events.append(Unlink(name))

    def mkdir(self, path: Path) -> None:
        with self.turn:
            super().mkdir(path)
            name = self._name(path)
            if name:
                self._names[name] = next(self._numbers)
                self.events.append(Create(name, self._names[name], folder=True))

    def fsync_dir(self, path: Path) -> None:
        with self.turn:
            self._look_at_derived()
            super().fsync_dir(path)
            name = self._name(path)
            if name is not None:
                self.events.append(SyncFolder(name))

    # ── looking ──

    def _name(self, path: Path) -> str | None:
        """Relative to the root, which is the empty name; None: elsewhere, or derived."""
        try:
            name = path.relative_to(self.root).as_posix()
        except ValueError:
            return None
        return None if name.startswith(DERIVED) else name.removeprefix(".").lstrip("/") or ""

    def _changed(self, fd: int, inode: int | None) -> None:
        if inode is None:
            return
        # By its descriptor: it may have no name any more.
        content = Path(f"/proc/self/fd/{fd}").read_bytes()
        self.events.append(Content(inode, content, os.fstat(fd).st_mtime_ns))

    def _look_at_derived(self) -> None:
        files: list[tuple[str, int, int]] = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith(DERIVED):
                    there = entry.stat()
                    files.append((entry.name, there.st_mtime_ns, there.st_size))
        if tuple(files) != self._derived:
            self._derived = tuple(files)
            copies = {name: _read(self.root / name) for name, *_ in files}
            # The shared memory of SQLite is rebuilt; it does not outlive a crash.
            kept = {name: each for name, each in copies.items() if not name.endswith("-shm")}
            self.events.append(Derive(kept))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@dataclass(slots=True)
class _File:
    """A file: what a reader sees, and what is safe."""

    folder: bool
    seen: bytes = b""
    safe: bytes = b""
    mtime_ns: int = 0

    def after(self, fate: Unsynced) -> bytes:
        """Its bytes after a power cut."""
        if fate == "kept" or self.seen == self.safe:
            return self.seen
        if fate == "lost":
            return self.safe
        if fate == "torn":
            middle = (len(self.safe) + len(self.seen)) // 2
            return self.seen[: max(middle - middle % _BLOCK, len(self.safe))]
        longer = max(0, len(self.seen) - len(self.safe))
        return self.safe[: len(self.seen)] + bytes(longer)


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of names that is not safe yet: ``gone`` is no name any more, ``path`` is one."""

    path: str = ""
    inode: int = 0
    gone: str = ""

    @property
    def folders(self) -> set[str]:
        return {os.path.dirname(each) for each in (self.path, self.gone) if each}

    def do(self, names: dict[str, int]) -> None:
        if self.gone:
            names.pop(self.gone, None)
        if self.path:
            names[self.path] = self.inode


@dataclass(slots=True)
class Disk:
    """The model: what is safe, and what is not, after some events."""

    files: dict[int, _File] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    safe_names: dict[str, int] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)
    derived: Derived = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        """Do what happened."""
        match event:
            case Create(path, inode, folder):
                self.files[inode] = _File(folder)
                self._change(_Change(path, inode))
            case Content(inode, content, mtime_ns):
                self.files[inode].seen = content
                self.files[inode].mtime_ns = mtime_ns
            case Sync(inode):
                self.files[inode].safe = self.files[inode].seen
            case Rename(source, target):
                self._change(_Change(target, self.names[source], source))
            case Unlink(path):
                self._change(_Change(gone=path))
            case SyncFolder(path):
                self._sync_folder(path)
            case Derive(files):
                self.derived = files
            case Promise():
                pass

    def _change(self, change: _Change) -> None:
        change.do(self.names)
        self.pending.append(change)

    def _sync_folder(self, path: str) -> None:
        for each in self.pending:
            if path in each.folders:
                each.do(self.safe_names)
        self.pending = [each for each in self.pending if path not in each.folders]


@dataclass(frozen=True)
class CrashState:
    """A tree that a crash may leave, and what was promised before it."""

    #: how many events came before
    at: int
    #: path → bytes (None: a folder), and the time of the last change
    tree: dict[str, tuple[bytes | None, int]]
    derived: Derived
    #: which changes of names happened, what became of unsynced bytes, which SQLite: for people
    story: str

    def key(self) -> object:
        """Equal for states of which one need be tried."""
        files = frozenset((path, content) for path, (content, _) in self.tree.items())
        return (files, frozenset(self.derived.items()))

    def build(self, root: Path) -> None:
        """Make ``root`` this tree, and nothing else."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for path in sorted(self.tree):
            content, mtime_ns = self.tree[path]
            if content is None:
                (root / path).mkdir()
            else:
                (root / path).write_bytes(content)
                os.utime(root / path, ns=(mtime_ns, mtime_ns))
        for name, content in self.derived.items():
            (root / name).write_bytes(content)


def prefixes(events: Sequence[Event]) -> Iterator[tuple[int, Disk]]:
    """The disk after each event; the same object, which the next step changes."""
    disk = Disk()
    yield 0, disk
    for number, event in enumerate(events, 1):
        disk.apply(event)
        yield number, disk


def crash_states(
    events: Sequence[Event],
    *,
    seed: int = 0,
    most_changes: int = 5,
    all_derived: bool = False,
    last_only: bool = False,
) -> Iterator[CrashState]:
    """Every state, each but once for what was promised at that moment.

    :param most_changes: of up to so many changes of names every subset is tried, of more a choice.
    :param all_derived: each with every kind of SQLite, not with one of them.
    :param last_only: those of the last moment.
    """
    chance = random.Random(seed)
    earlier: list[Derived] = [{}]
    promised = 0
    seen: set[object] = set()
    for at, disk in prefixes(events):
        if at and isinstance(events[at - 1], Promise):
            promised = at
        if disk.derived not in earlier[-1:]:
            earlier.append(disk.derived)
        if last_only and at < len(events):
            continue
        for names, names_story in _name_states(disk, most_changes, chance):
            for tree, bytes_story in _byte_states(disk, names, chance):
                for derived, derived_story in _derived_states(earlier, chance, all_derived):
                    story = f"event {at}: {names_story}; {bytes_story}; SQLite {derived_story}"
                    state = CrashState(at, tree, derived, story)
                    key = (promised, state.key())
                    if key not in seen:
                        seen.add(key)
                        yield state


def _name_states(
    disk: Disk, most: int, chance: random.Random
) -> Iterator[tuple[dict[str, int], str]]:
    count = len(disk.pending)
    for kept in _subsets(count, most, chance):
        names = dict(disk.safe_names)
        lost: list[str] = []
        for number, each in enumerate(disk.pending):
            if number in kept:
                each.do(names)
            else:
                lost.append(each.path or f"removal of {each.gone}")
        story = f"{len(kept)} of {count} changes of names"
        yield names, f"{story} (not: {', '.join(lost)})" if lost else story


def _subsets(count: int, most: int, chance: random.Random) -> Iterable[frozenset[int]]:
    every = range(count)
    if count <= most:
        return [
            frozenset(chosen)
            for size in range(count + 1)
            for chosen in itertools.combinations(every, size)
        ]
    chosen = {frozenset(range(size)) for size in range(count + 1)}
    chosen |= {frozenset(every) - {each} for each in every}
    chosen |= {frozenset({each}) for each in every}
    for _ in range(2**most - len(chosen)):
        chosen.add(frozenset(each for each in every if chance.random() < 0.5))
    return sorted(chosen, key=sorted)


def _byte_states(
    disk: Disk, names: dict[str, int], chance: random.Random
) -> Iterator[tuple[dict[str, tuple[bytes | None, int]], str]]:
    folders = {path for path, inode in names.items() if disk.files[inode].folder} | {""}
    reachable = {
        path: inode
        for path, inode in names.items()
        if _is_reachable(os.path.dirname(path), folders)
    }
    unsynced = sorted(
        {inode for inode in reachable.values() if disk.files[inode].seen != disk.files[inode].safe}
    )
    choices: list[tuple[Unsynced, ...]] = (
        list(itertools.product(FATES, repeat=len(unsynced)))
        if len(unsynced) <= 2
        else [(fate,) * len(unsynced) for fate in FATES]
        + [tuple(chance.choice(FATES) for _ in unsynced) for _ in range(12)]
    )
    for fates in choices:
        fate_of = dict(zip(unsynced, fates, strict=True))
        tree: dict[str, tuple[bytes | None, int]] = {}
        for path, inode in reachable.items():
            file = disk.files[inode]
            content = None if file.folder else file.after(fate_of.get(inode, "kept"))
            tree[path] = (content, file.mtime_ns)
        yield tree, f"unsynced bytes {', '.join(fates) or 'none'}"


def _is_reachable(folder: str, folders: set[str]) -> bool:
    while folder:
        if folder not in folders:
            return False
        folder = os.path.dirname(folder)
    return True


def _derived_states(
    earlier: list[Derived], chance: random.Random, every: bool
) -> list[tuple[Derived, str]]:
    now = earlier[-1]
    if not now:
        return [(now, "absent")]
    chosen = _KINDS if every else chance.choices(_KINDS, weights=(4, 1, 2, 1))
    return [(_derived(kind, earlier, chance), kind) for kind in chosen]


def _derived(kind: str, earlier: list[Derived], chance: random.Random) -> Derived:
    match kind:
        case "as it was":
            return earlier[-1]
        case "stale":
            return chance.choice(earlier)
        case "rubbish":
            return {
                name: content[:_BLOCK].translate(_RUBBISH) for name, content in earlier[-1].items()
            }
        case _:
            return {}
