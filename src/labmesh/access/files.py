"""Files of keys: written whole or not at all, durable, and private where they have to be."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from labmesh.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FOLDER_MODE",
    "PUBLIC_MODE",
    "SECRET_MODE",
    "Seen",
    "changing",
    "create_file",
    "files_in",
    "key_errors",
    "lacks_descriptors",
    "look_at",
    "looks_the_same",
    "make_folders",
    "private",
    "read_text",
    "remove_file",
    "replace_file",
]

SECRET_MODE, PUBLIC_MODE, FOLDER_MODE = 0o600, 0o644, 0o700

_BINARY = getattr(os, "O_BINARY", 0)
_MAX_BYTES = 2**20
#: Some file systems count time in steps of two seconds: what is that young may change unseen.
_CLOCK_STEP_NS = 2_500_000_000

#: What was seen of files: path, time, size, inode. None: something was changed so lately that one
#: cannot tell it from what changes next.
Seen = tuple[tuple[str, int, int, int], ...] | None


@contextlib.contextmanager
def key_errors(path: Path, action: str) -> Iterator[None]:
    """Raise a failed operation as one line with the path and the way out."""
    try:
        yield
    except OSError as exc:
        raise ConfigError(
            f"cannot {action} {path} ({exc.strerror or exc}); look at the file and who owns its "
            "folder, or name another folder of keys with LMH_KEYS_DIR",
            file=str(path),
        ) from exc


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Be the only command that changes a folder in several steps; others wait, on Windows nobody.

    Not for use within itself.
    """
    if fcntl is None or not folder.is_dir():
        yield
        return
    with key_errors(folder, "lock"):
        fd = os.open(folder, os.O_RDONLY)
    try:
        with key_errors(folder, "lock"):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def make_folders(*paths: Path) -> None:
    """Have these folders; the ones that are made are their owner's alone."""
    for path in paths:
        with key_errors(path, "make the folder"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def create_file(path: Path, content: str, mode: int) -> None:
    """Create a file, durably.

    :raises ConfigError: it exists, or cannot be written.
    """
    try:
        with key_errors(path, "write"):
            _write(path, content, mode)
            _sync_folder(path.parent)
    except ConfigError as exc:
        if isinstance(exc.__cause__, FileExistsError):
            raise ConfigError(
                f"{path} exists already, and a key is never overwritten; choose another name, or "
                "'labmesh keys rotate' to replace it",
                file=str(path),
            ) from exc
        raise


def replace_file(path: Path, content: str, mode: int) -> None:
    """Write a file anew, durably: at every moment it is the old one or the new one."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    with key_errors(path, "write"):
        try:
            _write(fresh, content, mode)
            os.replace(fresh, path)
        except BaseException:
            # Also Ctrl-C: no half of a key is left beside the whole one.
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        _sync_folder(path.parent)


def read_text(path: Path, *, secret: bool = False) -> str:
    """The text of a file.

    :param secret: refuse a file that others than its owner can read.
    :raises ConfigError: it cannot be read, or must not be used.
    """
    with key_errors(path, "read"), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if secret and not private(mode):
            raise ConfigError(
                f"{path} holds a secret key and others on this computer may read it (mode "
                f"{stat.S_IMODE(mode):o}); make it yours alone: chmod 600 '{path}', and rotate the "
                "key if somebody may have read it: labmesh keys rotate",
                file=str(path),
            )
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path} is too large for a file of keys; move it away", file=str(path))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"{path} is no text file (UTF-8); copy it again from where it was made", file=str(path)
        ) from exc


def private(mode: int) -> bool:
    """Nobody but the owner has any right (Windows has rights of another kind)."""
    return os.name == "nt" or not mode & 0o077


def remove_file(path: Path) -> None:
    """Remove a file, durably; one that is gone already is fine."""
    with key_errors(path, "remove"):
        path.unlink(missing_ok=True)
        _sync_folder(path.parent)


def look_at(folders: Iterable[Path]) -> Seen:
    """What the key files in some folders look like now."""
    now_ns = time.time_ns()
    found: list[tuple[str, int, int, int]] = []
    for folder in folders:
        for path in (folder, *files_in(folder, ".pub")):
            with contextlib.suppress(OSError):
                facts = path.stat()
                found.append((str(path), facts.st_mtime_ns, facts.st_size, facts.st_ino))
    if any(abs(now_ns - each[1]) < _CLOCK_STEP_NS for each in found):
        return None
    return tuple(found)


def looks_the_same(folders: Iterable[Path], seen: Seen) -> bool:
    """Whether nothing was added, changed or removed since :func:`look_at`.

    It opens nothing: for a process that can open nothing any more.
    """
    known = {path: (path, *facts) for path, *facts in seen or ()}
    for path in {*map(str, folders), *known}:
        try:
            facts = os.stat(path)
            now = (path, facts.st_mtime_ns, facts.st_size, facts.st_ino)
        except OSError:
            now = None
        if now != known.get(path):
            return False
    return seen is not None


def lacks_descriptors(exc: BaseException) -> bool:
    """Whether a file could not be read only because this process has too many others open."""
    cause = exc.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE)


def files_in(folder: Path, suffix: str) -> Iterator[Path]:
    """The files of a folder, by name; a folder that is not there has none.

    :raises ConfigError: it is there and cannot be read, is no folder, or a link to nothing: what is
        in it is not known, and that may be who was revoked.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as exc:
        if isinstance(exc, FileNotFoundError) and not folder.is_symlink():
            return
        with key_errors(folder, "read"):
            raise exc
    for name in names:
        # Not what an editor or a copy under way keeps beside a file.
        if name.endswith(suffix) and not name.startswith("."):
            yield folder / name


def _write(path: Path, content: str, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content.encode())
        file.flush()
        os.fsync(fd)


def _sync_folder(path: Path) -> None:
    if os.name == "nt":  # NTFS keeps a journal of names itself
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
