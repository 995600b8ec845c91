"""A whole mesh on a background thread, for tests that block."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, Self, TypeVar

from labmesh.blocking.background import BackgroundLoop
from labmesh.mesh import Mesh, connect
from labmesh.testing import LocalMesh

T = TypeVar("T")

_LOOK_AGAIN_S = 0.005


class ServedMesh:
    """A :class:`LocalMesh` and the meshes that are connected to it; a context manager."""

    def __init__(self, drivers: dict[str, object] | None = None, **options: Any) -> None:
        self.local = LocalMesh(drivers, **{"in_memory": True, **options})

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.nodes = BackgroundLoop("nodes")
            stack.callback(self.nodes.close)
            self.nodes.enter(self.local)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the nodes' loop."""
        return self.nodes.run(work)

    def connect(self, **options: Any) -> Mesh:
        """A mesh, closed at the end of the test."""
        mesh = connect(self.local.address, **options)
        self._stack.callback(mesh.close)
        return mesh


def eventually(true: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    """Wait for something that happens elsewhere and that nobody announces."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(_LOOK_AGAIN_S)
