"""A notebook session: notebook.py BROKER CELL... runs each cell as a notebook does.

``mesh`` is there. Before each cell it prints ``[n]``, then what the cell displays: the value of its
last expression, or the error as one line, with its notes. Ctrl-C ends the cell, not the session.
"""

from __future__ import annotations

import ast
import sys
from typing import Any

import labmesh


def run(text: str, names: dict[str, Any]) -> None:
    """One cell."""
    *first, last = ast.parse(text).body
    if not isinstance(last, ast.Expr):
        first.append(last)
    exec(compile(ast.Module(first, []), "cell", "exec"), names)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
        if value is not None:
            print(repr(value))


def main(broker: str, cells: list[str]) -> None:
    """The session."""
    names: dict[str, Any] = {"mesh": labmesh.connect(broker), "labmesh": labmesh}
    for number, cell in enumerate(cells, start=1):
        print(f"[{number}]")
        try:
            run(cell, names)
        except (Exception, KeyboardInterrupt) as exc:  # as a notebook: whatever a cell raises
            print(f"{type(exc).__name__}: {exc}")
            for note in getattr(exc, "__notes__", ()):
                print(f"note: {note}")
    names["mesh"].close()
    print("[end]")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
