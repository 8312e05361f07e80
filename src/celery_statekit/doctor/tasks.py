"""Checks of versions and tasks."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator

import celery
from celery import Celery, Task
from celery.local import maybe_evaluate
from celery.utils.imports import symbol_by_name

from celery_statekit.adoption import setup
from celery_statekit.doctor.finding import Finding
from celery_statekit.errors import sentence
from celery_statekit.task import StatefulTask

#: First Celery that works, first that is tested in full, and first that is not known yet.
_OLDEST, _FULL, _UNKNOWN = (5, 5), (5, 6), (5, 8)
#: What of a long list is shown.
_SHOWN = 5


def nobodys(app: Celery) -> Finding:
    """No app was named: this is the default one."""
    return Finding.warning(
        "app",
        f"no -A: this is Celery's default app {str(app.main or 'default')!r}, not one of yours",
        "celery -A proj statekit doctor",
    )


def versions(app: Celery) -> Iterator[Finding]:  # noqa: ARG001 - as every check
    """Celery's version is one that is supported."""
    found = f"Celery {celery.__version__}, Python {platform.python_version()}"
    version = tuple(int(part) for part in re.findall(r"\d+", celery.__version__)[:2])
    if version < _OLDEST:
        yield Finding.must("versions", found, 'pip install "celery>=5.7"')
    elif version < _FULL:
        yield Finding.warning("versions", f"{found}: little tested", 'pip install "celery>=5.7"')
    elif version >= _UNKNOWN or sys.version_info >= (3, 15):
        yield Finding.warning("versions", f"{found}: newer than what this release was tested with")
    else:
        yield Finding.ok("versions", found)


def loaded(app: Celery) -> Iterator[Finding]:
    """The task modules can be imported, and every task can be made."""
    yield from _tried("a module cannot be imported", app.loader.import_default_modules)
    yield from _tried("a task cannot be made", lambda: app.finalize(auto=True))
    pending = app._pending  # noqa: SLF001 - what Celery leaves unmade behind the first bad task
    while pending:
        yield from _tried("a task cannot be made", lambda: maybe_evaluate(pending.popleft()))


def _tried(what: str, call: Callable[[], object]) -> Iterator[Finding]:
    try:
        call()
    except Exception as exc:  # noqa: BLE001 - foreign code that is imported may raise anything
        yield Finding.must("tasks", f"{what}: {sentence(exc)}", "mend it: no worker starts with it")


def tasks(app: Celery) -> Iterator[Finding]:
    """How many tasks there are, and which of them keep no record."""
    own = _own(app)
    plain = sorted(name for name, task in own.items() if not isinstance(task, StatefulTask))
    if not own:
        yield Finding.warning("tasks", "the app has no tasks", f"{_import_line(app)} = [...]")
        return
    found = f"{len(own) - len(plain)} of {len(own)} tasks are stateful"
    if not plain:
        yield Finding.ok("tasks", found)
    elif len(plain) < len(own):
        yield Finding.ok("tasks", f"{found}; no record is kept of {_some(plain)}")
    else:
        yield Finding.warning("tasks", found, f"celery_statekit.{setup.__name__}(app)")


def base(app: Celery) -> Iterator[Finding]:
    """``base=`` keeps what the app's own task class does (Django's, Flask's)."""
    needed = [
        found
        for found in _task_class(app).__mro__
        if found not in StatefulTask.__mro__
        and found.__module__ != setup.__module__
        # What Celery makes of the app's class, once for each app, does nothing.
        and not ("_app" in vars(found) and found.__name__ == "Task")
    ]
    if not needed:
        yield Finding.ok("base", "the app has no task class of its own that could be dropped")
        return
    names = ", ".join(found.__name__ for found in needed)
    dropping = sorted(
        name
        for name, task in _own(app).items()
        if isinstance(task, StatefulTask) and not set(needed) <= set(type(task).__mro__)
    )
    if dropping:
        yield Finding.must(
            "base",
            f"base= drops the app's task class {names} in {_some(dropping)}",
            "celery_statekit.setup(app) and no base=; "
            f"or base= a class Base(StatefulTask, {names})",
        )
    else:
        yield Finding.ok("base", f"every stateful task is a {names}")


def _task_class(app: Celery) -> type[Task]:
    # app.Task is where Flask's older recipe puts its class; Celery makes it of task_cls else.
    found: type[Task] = vars(app).get("Task") or symbol_by_name(app.task_cls)
    return found


def _own(app: Celery) -> dict[str, Task]:
    return {name: task for name, task in app.tasks.items() if not name.startswith("celery.")}


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _import_line(app: Celery) -> str:
    return f"{app.namespace}_IMPORTS".upper() if app.namespace else "app.conf.imports"
