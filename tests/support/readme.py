"""The blocks of README.md that are code: each stands behind a mark, ``<!-- ... -->``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    """A block of code, the mark above it, and its language."""

    mark: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What a ``console`` block has its reader type."""
        return [line.removeprefix("$ ") for line in self.text.splitlines()]


def blocks() -> list[Block]:
    """Every block of code of README.md, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [
        Block(each["mark"] or "", each["language"], each["text"]) for each in _BLOCK.finditer(text)
    ]


def block(mark: str) -> Block:
    """The one block under this mark."""
    (found,) = [each for each in blocks() if each.mark == mark]
    return found
