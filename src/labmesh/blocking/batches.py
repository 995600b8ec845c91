"""Several calls in one trip, for scripts and notebooks."""

from __future__ import annotations

from typing import Any, Self

from labmesh.asking.batching import CallBatch
from labmesh.blocking.names import check_gettable, check_settable, unknown
from labmesh.blocking.session import Session
from labmesh.errors import LabmeshError

__all__ = ["Batch"]


class Batch(CallBatch):
    """Calls that are written down in a ``with`` block, and run together at its end.

    ``m = b.measure()`` writes down a call, ``v = b.voltage`` or ``b.get("voltage")`` the reading of
    a value, ``b.voltage = 2.5`` or ``b.set("voltage", 2.5)`` the writing of one. What they gave is
    in ``m.value`` behind the block.
    """

    def __init__(
        self, session: Session, relay_id: str, *, keep_going: bool, timeout: float | None
    ) -> None:
        super().__init__(relay_id, keep_going=keep_going)
        self._session = session
        self._timeout = timeout

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name, name=name, obj=self)
        driver = self._session.driver(self._relay_id)
        if name in driver.values:
            check_gettable(driver, self._relay_id, name)
            return self.get(name)
        if name not in driver.methods:
            raise unknown(driver, self._relay_id, name)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        if hasattr(type(self), name):
            raise AttributeError(f"{name!r} is a name of the batch: write set({name!r}, ...)")
        check_settable(self._session.driver(self._relay_id), self._relay_id, name)
        self.set(name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, raised: type[BaseException] | None, *_details: object) -> None:
        calls = self._end_block(raised)
        if not calls:
            return
        try:
            result = self._session.batch(
                self._relay_id, calls, keep_going=self._keep_going, timeout=self._timeout
            )
        except LabmeshError as exc:
            self._fail(exc)
            raise
        self._end(result)
