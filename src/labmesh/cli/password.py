"""The command ``password new``: a network password that nobody guesses."""

from __future__ import annotations

import math
import secrets
from functools import cache
from importlib.resources import files

from labmesh.cli.options import Options
from labmesh.cli.outcomes import DONE

__all__ = ["new", "words"]

_OPTIONS = Options()
_WORDS = 6


@cache
def words() -> tuple[str, ...]:
    """The words that passwords are made of; no two begin with the same four letters."""
    text = files("labmesh").joinpath("words.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def new(*, options: Options = _OPTIONS) -> int:
    """Make a network password of six words.

    For example:

        labmesh password new
    """
    out = options.out
    password = "-".join(secrets.choice(words()) for _ in range(_WORDS))
    bits = _WORDS * math.log2(len(words()))
    out.line(password)
    if out.json:
        out.record({"password": password, "entropy_bits": bits, "words": len(words())})
    out.say(f"{_WORDS} words, each one of {len(words())}, drawn at random: {bits:.0f} bits")
    out.say("set LMH_NETWORK_PASSWORD to it wherever a node, a script or a command runs")
    return DONE
