"""The virtual environments that the peers run in, made by the benchmark itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.candidates import Candidate
from harness.programs import PeerFailed

__all__ = ["Environments", "default_folder", "requirements"]

_BENCHMARKS = Path(__file__).parents[1]
_INSTALL_S = 900.0


def default_folder() -> Path:
    """Where the environments are kept from run to run: in the user's cache."""
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "labmesh-benchmarks"


class Environments:
    """Gives each candidate a Python that has what it needs.

    :param folder: where environments are made, one a version of Python and a list of requirements.
    """

    def __init__(self, folder: Path) -> None:
        # Programs run in folders of their own.
        self._folder = folder.absolute()

    def python(self, candidate: Candidate) -> str:
        """The interpreter for a candidate; what it needs is installed, unless it is there already.

        :raises PeerFailed: that failed; the text has the installer's own words.
        """
        if candidate.home == "here":
            return sys.executable
        home = self._folder / f"{candidate.home}-py{sys.version_info[0]}{sys.version_info[1]}"
        python = _python_of(home)
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(home)], "the virtual environment")
        wanted = requirements(candidate)
        # Of what it needs, not of its name: two benchmarks may have one of the same name.
        stamp = home / f"installed-{'-'.join(candidate.needs)}.txt"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != "\n".join(wanted):
            print(f"installing {', '.join(wanted)} into {home}", file=sys.stderr)
            _run([str(python), "-m", "pip", "install", "--upgrade", *wanted], "pip install")
            stamp.write_text("\n".join(wanted), encoding="utf-8")
        return str(python)


def _python_of(home: Path) -> Path:
    return home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def requirements(candidate: Candidate) -> list[str]:
    """The lines of the requirements file for what a candidate needs."""
    path = _BENCHMARKS / f"requirements-{candidate.home}.txt"
    lines = [
        each
        for each in path.read_text(encoding="utf-8").splitlines()
        if each and not each.startswith("#")
    ]
    return [next(line for line in lines if _project(line) == name) for name in candidate.needs]


def _project(requirement: str) -> str:
    return requirement.split("=")[0].rstrip(">")


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"{what} was not done after {_INSTALL_S:g} s") from None
    except OSError as exc:
        raise PeerFailed(f"{what}: {exc.strerror}") from exc
    if done.returncode != 0:
        said = [each for each in done.stderr.splitlines() if "ERROR" in each] or [done.stderr]
        raise PeerFailed(f"{what}: {said[-1].strip()}")
