"""How an app takes this library up: ``setup(app)``, ``@stateful``, and ``track()`` without bind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from celery import Celery, Task, shared_task
from celery._state import get_current_task
from celery.utils.imports import symbol_by_name

from celery_statekit.backends import ONE_WRITE
from celery_statekit.errors import InvalidInput, SetupTooLate
from celery_statekit.result import StatefulResult
from celery_statekit.task import StatefulTask

Params = ParamSpec("Params")
Returned = TypeVar("Returned")
Item = TypeVar("Item")


def setup(app: Celery) -> Celery:
    """Make every task of ``app`` a :class:`~celery_statekit.StatefulTask`, and its results too.

    Composes with the task class that the app has (Django's, Flask's); leaves Celery's own tasks
    alone. Where the app's result backend is Redis, one that writes each result together with the
    record takes its place. Calling it twice changes nothing.

    Returns:
        ``app``.

    Raises:
        SetupTooLate: the app has made its task class already.
    """
    task_class = _task_class(app)
    if not issubclass(task_class, StatefulTask):
        if "Task" in vars(app) or app.finalized:
            made = sorted(name for name in app._tasks if not name.startswith("celery."))  # noqa: SLF001
            raise SetupTooLate(str(app.main), made or ["app.Task"])
        app.task_cls = _composed(task_class)
    app.AsyncResult = app.subclass_with_self(StatefulResult, name="AsyncResult")
    # What the app has put in place of Celery's backends itself stays in its place.
    app.loader.override_backends = {**ONE_WRITE, **app.loader.override_backends}
    # What was opened before is Celery's own (celery 5.7 app/base.py:1728).
    app._local, app._backend_cache = threading.local(), None  # noqa: SLF001
    # An app that is pickled takes its fixups with it, and is set up where it arrives.
    app.fixups = {*app.fixups, f"{__name__}:fixup"}
    return app


def fixup(app: Celery) -> None:
    """Set up an app that was pickled; as one of the app's ``fixups``."""
    setup(app)


def _task_class(app: Celery) -> type[Task]:
    given: object = app
    if not isinstance(given, Celery):
        raise InvalidInput("no app", "app", given, "a Celery app")
    found: type[Task] = symbol_by_name(app.task_cls)
    return found


def _composed(task_class: type[Task]) -> type[StatefulTask]:
    if issubclass(task_class, StatefulTask):
        return task_class
    if issubclass(StatefulTask, task_class):
        return StatefulTask
    return type("StatefulTask", (StatefulTask, task_class), {"__module__": __name__})


if TYPE_CHECKING:

    class TypedTask(StatefulTask, Generic[Params, Returned]):
        """A task whose ``delay`` takes what its function takes."""

        def delay(
            self, *args: Params.args, **kwargs: Params.kwargs
        ) -> StatefulResult[Returned]: ...
        def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> Returned: ...


@overload
def stateful(
    app: Celery | None = None,
    *,
    bind: Literal[True],
    states: type[Enum] | None = None,
    **options: Any,
) -> Callable[
    [Callable[Concatenate[StatefulTask, Params], Returned]], TypedTask[Params, Returned]
]: ...


@overload
def stateful(
    app: Celery | None = None,
    *,
    bind: Literal[False] = False,
    states: type[Enum] | None = None,
    **options: Any,
) -> Callable[[Callable[Params, Returned]], TypedTask[Params, Returned]]: ...


def stateful(
    app: Celery | None = None,
    *,
    bind: bool = False,
    states: type[Enum] | None = None,
    **options: Any,
) -> Any:
    """Make a stateful task of a function, and keep its argument types for type checkers.

    Args:
        app: whose task it is; None: a shared task, of whatever app there is.
        bind: the function takes the task as its first argument.
        states: the task's own states.
        options: any option of ``app.task``.
    """
    if app is None:
        return shared_task(base=StatefulTask, bind=bind, states=states, **options)
    base = _composed(_task_class(app))
    return app.task(base=base, bind=bind, states=states, **options)


def track(
    iterable: Iterable[Item],
    message: str = "",
    total: float | None = None,
    *,
    resume: bool | str = False,
) -> Iterator[Item]:
    """Iterate, and report each item finished as the progress of the running task.

    Needs no ``bind``: the task is the one that runs in this thread. Outside a task it merely
    iterates.

    Args:
        iterable: what to iterate.
        message: what is being done.
        total: how many items; ``len(iterable)`` if it has one.
        resume: as that of ``self.track``: pass over what earlier attempts finished.
    """
    task = get_current_task()
    request = getattr(task, "request_stack", None) and task.request_stack.top
    attempt = getattr(request, "statekit", None)
    if attempt is None:
        return iter(iterable)
    tracked: Iterator[Item] = attempt.track(iterable, message, total, resume=resume)
    return tracked
