"""Several calls of a relay in one trip, as whoever writes them down sees them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Self

from labmesh.errors import Cancelled, LabmeshError
from labmesh.instruments.exposure import call_arguments
from labmesh.protocol.batches import BatchEntry, Outcome, read_outcomes, write_entries
from labmesh.protocol.messages import BatchResult

__all__ = ["AsyncBatch", "CallBatch", "Pending"]


class Pending:
    """One call of a batch; it has a value or an error once the batch is over."""

    __slots__ = ("_outcome", "_unsent", "entry")

    def __init__(self, entry: BatchEntry) -> None:
        self.entry = entry
        self._outcome: Outcome | None = None
        self._unsent = False

    @property
    def done(self) -> bool:
        """The batch is over."""
        return self._outcome is not None

    @property
    def value(self) -> Any:
        """What the call returned.

        :raises LabmeshError: what it raised, or why it was not run.
        :raises RuntimeError: the batch is not over yet.
        """
        outcome = self._ended()
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    @property
    def error(self) -> LabmeshError | None:
        """What the call raised, or why it was not run; None: it returned.

        :raises RuntimeError: the batch is not over yet.
        """
        return self._ended().error

    def end(self, outcome: Outcome) -> None:
        """The batch is over."""
        self._outcome = outcome

    def drop(self) -> None:
        """The batch was given up."""
        self._unsent = True

    def _ended(self) -> Outcome:
        if self._outcome is not None:
            return self._outcome
        if self._unsent:
            raise RuntimeError(
                f"{self.entry.method} was never sent: the block of its batch ended with an error"
            )
        raise RuntimeError(
            f"{self.entry.method} has not been sent yet: the calls of a batch run at the end of "
            "its 'with' block; read this behind it"
        )

    def __repr__(self) -> str:
        method = self.entry.method
        if self._outcome is None:
            return f"<Pending {method}: {'never' if self._unsent else 'not yet'} sent>"
        if self._outcome.error is not None:
            return f"<Pending {method}: {self._outcome.error}>"
        return f"<Pending {method}: {self._outcome.value!r}>"


class CallBatch:
    """Calls that are written down now, and run together later: ``m = batch.measure()``.

    Every name that is not one of this object's own is a method of the driver; for a driver's method
    ``call``, ``get`` or ``set`` there is :meth:`call`.

    :param keep_going: also behind a call that failed.
    """

    def __init__(self, relay_id: str, *, keep_going: bool = False) -> None:
        self._relay_id = relay_id
        self._keep_going = keep_going
        self._written: list[Pending] = []
        self._is_over = False

    def call(self, method: str, params: Any = None) -> Pending:
        """A call; ``params`` as in :meth:`labmesh.asking.remote.RelayClient.call`."""
        args, kwargs = call_arguments(params)
        return self._write(BatchEntry(method, list(args), dict(kwargs)))

    def get(self, name: str) -> Pending:
        """Read one of the driver's values."""
        return self._write(BatchEntry(name, access="get"))

    def set(self, name: str, value: Any) -> Pending:
        """Write one of the driver's values."""
        return self._write(BatchEntry(name, [value], access="set"))

    def __getattr__(self, name: str) -> Callable[..., Pending]:
        if name.startswith("_"):
            raise AttributeError(name)

        def method(*args: Any, **kwargs: Any) -> Pending:
            return self._write(BatchEntry(name, list(args), kwargs))

        method.__name__ = method.__qualname__ = name
        return method

    def __len__(self) -> int:
        return len(self._written)

    def _write(self, entry: BatchEntry) -> Pending:
        if self._is_over:
            raise RuntimeError(
                f"{entry.method} was added behind the end of its batch, which was sent: begin "
                "another one"
            )
        pending = Pending(entry)
        self._written.append(pending)
        return pending

    # ── for whoever sends it ────────────────────────────────────────────────────────────────────

    def _end_block(self, raised: type[BaseException] | None) -> list[Any]:
        """What is to be sent: nothing, if the block raised. Nothing can be added any more.

        :raises TooLarge: too many calls.
        """
        self._is_over = True
        if raised is not None:
            for each in self._written:
                each.drop()
            return []
        try:
            return write_entries([each.entry for each in self._written])
        except LabmeshError as exc:
            self._fail(exc)
            raise

    def _fail(self, error: LabmeshError) -> None:
        """None of it has an outcome of its own."""
        for each in self._written:
            each.end(Outcome(error=error))

    def _end(self, result: BatchResult) -> None:
        """Tell each call its outcome.

        :raises LabmeshError: the first one that failed, unless ``keep_going``.
        """
        try:
            outcomes = read_outcomes(result.outcomes, len(self._written), self._relay_id)
        except LabmeshError as exc:
            self._fail(exc)
            raise
        for pending, outcome in zip(self._written, outcomes, strict=False):
            pending.end(outcome)
        failed = next((each for each in self._written if each.done and each.error), None)
        for pending in self._written[len(outcomes) :]:
            pending.end(Outcome(error=_not_run(pending, failed)))
        error = next((each.error for each in self._written if each.error), None)
        if error is not None and not self._keep_going:
            raise error


def _not_run(pending: Pending, failed: Pending | None) -> Cancelled:
    behind = "" if failed is None else f": {failed.entry.method}, before it in its batch, failed"
    return Cancelled(f"{pending.entry.method} was not run{behind}")


class AsyncBatch(CallBatch):
    """``async with relay.batch() as b:`` sends what was written down at the end of the block.

    :param send: sends ``(calls, keep_going)`` and waits for what became of them.
    """

    def __init__(
        self,
        relay_id: str,
        send: Callable[[list[Any], bool], Coroutine[Any, Any, BatchResult]],
        *,
        keep_going: bool = False,
    ) -> None:
        super().__init__(relay_id, keep_going=keep_going)
        self._send = send

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, raised: type[BaseException] | None, *_details: object) -> None:
        calls = self._end_block(raised)
        if not calls:
            return
        try:
            result = await self._send(calls, self._keep_going)
        except LabmeshError as exc:
            self._fail(exc)
            raise
        self._end(result)
