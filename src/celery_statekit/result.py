"""StatefulResult: an ``AsyncResult`` that also knows the task's record."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from celery import states
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult, EagerResult, GroupResult
from kombu.utils.encoding import bytes_to_str

from celery_statekit import asking
from celery_statekit.backends.onewrite import OneWrite
from celery_statekit.record import Change, TaskState
from celery_statekit.settings import Settings

if TYPE_CHECKING:
    from celery_statekit.watcher import Until, Watcher

Returned = TypeVar("Returned")


class _Recorded(Generic[Returned]):
    """What a result of any kind knows of the task's record."""

    id: str
    app: Any
    #: Name of the task, where it is known: its return annotation says what a result becomes.
    task_name: str | None

    @property
    def task_state(self) -> TaskState:
        """The task's record now, as one snapshot.

        Where there is none, what Celery's result backend knows (``source="celery"``); else
        ``source="nobody"`` and the state UNKNOWN.
        """
        return self._watcher().get(self.id)

    def history(self, after: int = 0, limit: int = 100) -> list[Change]:
        """The task's changes numbered over ``after``, oldest first, over all its attempts."""
        watcher = self._watcher()
        return watcher.store.history(watcher.key(self.id), after, limit)

    def watch(self, *, after: int = 0, timeout: float | None = None) -> Iterator[TaskState]:
        """The state now, then every newer one, until the end, or until the task is ignored.

        Args:
            after: a version seen already; only newer ones come.
            timeout: seconds in all; None: until the task ends.

        Raises:
            UnknownTask: nobody knows the id for 10 seconds.
            WatchTimeout: it has not ended after ``timeout`` seconds.
            StoreUnavailable: the store cannot be read; watching may begin again with ``after``.

        The end is recorded before Celery's result is stored, unless both are one write: what the
        task returned is asked of :meth:`get`, which waits for it, not of ``result``.
        """
        return self._watcher().watch(self.id, after=after, timeout=timeout)

    def awatch(self, *, after: int = 0, timeout: float | None = None) -> AsyncIterator[TaskState]:
        """As :meth:`watch`, for ``async for``; the event loop is never blocked."""
        return self._watcher().awatch(self.id, after=after, timeout=timeout)

    @overload
    def wait(
        self, timeout: float | None = None, *args: Any, until: None = None, **options: Any
    ) -> Any: ...

    @overload
    def wait(self, timeout: float | None = None, *, until: Until, **options: Any) -> TaskState: ...

    def wait(
        self, timeout: float | None = None, *args: Any, until: Until = None, **options: Any
    ) -> Any:
        """Wait for a state.

        Without ``until`` it is Celery's own ``wait``, another name of ``get``.

        Args:
            timeout: seconds; None: as long as it takes.
            until: a state, several, or a function of a :class:`~.record.TaskState`; a state that
                was entered and left between two reads counts.

        Returns:
            The :class:`~.record.TaskState` in which that was seen.

        Raises:
            StateNotReached: the task ended without.
            WatchTimeout, UnknownTask: as :meth:`watch`.
        """
        if until is None:
            return self.get(timeout, *args, **options)
        return self._watcher().wait(self.id, until, timeout=timeout)

    def get(self, *args: Any, **kwargs: Any) -> Returned:
        """As Celery's; a ClientState result is one again."""
        returned: Returned = self._hydrated(super().get(*args, **kwargs))  # type: ignore[misc]
        return returned

    def cancel(self, reason: str = "", *, by: str = "", hard: bool = False) -> bool:
        """Ask the task to end, as REVOKED.

        Its run is told at its next state call (``enter``, ``track``, ``progress``, ``checkpoint``,
        ``update_state``), cleans up and ends. A task that is not running ends at once.

        Args:
            reason: why, in words; it is in the record, and in the error that who waits gets.
            by: who asks; "" for nobody in particular.
            hard: also have its process killed, where the worker's pool can do that (prefork).

        Returns:
            Whether that was asked; False: it has ended, or was cancelled before.

        Raises:
            UnknownTask: no record knows the id.
            InvalidInput: ``reason`` is no text, ``by`` no short one; nothing was changed.
        """
        return asking.cancel(self.app, self.id, reason, by=by, hard=hard, **self._place()).changed

    def pause(self, reason: str = "", *, by: str = "") -> bool:
        """Ask the task to wait, at its next state call or before it begins, until it is resumed.

        Args:
            reason: why, in words.
            by: who asks; "" for nobody in particular.

        Returns:
            Whether that was asked; False: it has ended, or was paused or cancelled before.

        Raises:
            UnknownTask, InvalidInput: as :meth:`cancel`.
        """
        return asking.pause(self.app, self.id, reason, by=by, eager=self._is_eager).changed

    def resume(self, *, by: str = "") -> bool:
        """Let the task go on that was paused.

        Args:
            by: who asks; it is logged.

        Returns:
            Whether it was paused.

        Raises:
            UnknownTask, InvalidInput: as :meth:`cancel`.
        """
        return asking.resume(self.app, self.id, by=by, eager=self._is_eager).changed

    @property
    def _is_eager(self) -> bool:
        return bool(self.app.conf.task_always_eager)

    def _place(self) -> dict[str, Any]:
        return {"eager": self._is_eager, "backend": getattr(self, "backend", None)}

    def _watcher(self) -> Watcher:
        return Settings.of(self.app).watcher_of(eager=self._is_eager)

    def _hydrated(self, value: Any) -> Any:
        task = self.app._tasks.get(self.task_name)  # noqa: SLF001 - .tasks would finalize the app
        if not isinstance(value, (dict, list)) or not getattr(task, "is_stateful", False):
            return value
        from celery_statekit.hydration import Hydration  # noqa: PLC0415 - few results are clients

        return Hydration.of(type(task).run).result(value)


class StatefulResult(_Recorded[Returned], AsyncResult):
    """An ``AsyncResult`` with the task's record, its history and a way to watch it."""

    def __init__(
        self,
        id: str,
        backend: Any = None,
        task_name: str | None = None,
        app: Any = None,
        parent: Any = None,
    ) -> None:
        super().__init__(id, backend, task_name, app, parent)
        self.task_name = task_name

    def forget(self) -> None:
        """Forget Celery's result and, of a task that has ended, the record.

        For a minute (after REVOKED for a day) the end is kept for runs and watchers that missed it.
        The record of a task that has not ended stays, and expires a while after the end as others
        do.
        """
        super().forget()
        eager = self.app.conf.task_always_eager
        if eager or not isinstance(self.backend, OneWrite):  # else that has forgotten it
            Settings.of(self.app).tracker_of(eager=eager).forget(bytes_to_str(self.id))

    def _get_result(self) -> Any:
        return self._hydrated(self._get_task_meta()["result"])

    result = info = property(_get_result, doc="The result, hydrated, or the meta of its state.")


class StatefulEagerResult(_Recorded[Returned], EagerResult):
    """The same of a task that was run eagerly."""

    @classmethod
    def of(cls, result: EagerResult, app: Any) -> StatefulEagerResult[Any]:
        """``result``, made into one of these."""
        made = cls(*result.__reduce_args__())
        made.app, made.task_name = app, result._name  # noqa: SLF001
        if isinstance(made._result, TaskRevokedError):
            made._state = states.REVOKED  # Celery's tracer calls all that is raised FAILURE
        return made

    @property
    def _is_eager(self) -> bool:
        return True

    def _place(self) -> dict[str, Any]:
        return {"eager": True}


class StatefulGroupResult(GroupResult):
    """A ``GroupResult`` whose clients are clients, whichever way its backend joins results."""

    def join_native(self, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; it reads the stored values without asking each result."""
        values = super().join_native(*args, **kwargs)
        if not isinstance(values, list):
            return values
        return [
            result._hydrated(value) if isinstance(result, StatefulResult) else value  # noqa: SLF001
            for result, value in zip(self.results, values, strict=False)
        ]
