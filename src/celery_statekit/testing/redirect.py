"""An app that for a while has another broker, other results and another store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final, TypeAlias

from celery import Celery, _state
from celery.app import trace
from celery.app.task import Task
from celery.utils.imports import instantiate
from kombu import pools
from kombu.connection import Connection
from kombu.utils.collections import eqhash

from celery_statekit.record import Limits
from celery_statekit.settings import Settings
from celery_statekit.stores.base import Store

#: Makes the store, which holds to these limits.
MakeStore: TypeAlias = Callable[[Limits], Store]

_MISSING: Final = object()


@contextmanager
def redirected(
    app: Celery,
    *,
    connect: Callable[[], Connection],
    make_backend: Callable[[Celery], Any],
    make_store: MakeStore,
    progress_interval: float | None = None,
    lease: float | None = None,
) -> Iterator[Settings]:
    """Within the block the app sends, stores and records elsewhere; all else it does as ever.

    Its configuration stays, but for ``task_always_eager``, which is off within the block.

    Args:
        connect: makes a connection to the broker.
        make_backend: makes the result backend of the app, and of each of its tasks.
        make_store: makes the store; it is closed at the end.
        progress_interval: seconds between two writes of progress; None: as the app has it.
        lease: seconds for which a run counts as alive that says no more, at most; None: likewise.

    Raises:
        InvalidSetting: one of the app's ``statekit_*`` settings cannot be obeyed.
    """
    app.finalize()
    with ExitStack() as stack:
        settings = Settings(app)
        values = settings.values
        if progress_interval is not None:
            values = replace(values, progress_interval=progress_interval)
        if lease is not None:
            values = replace(values, lease=min(values.lease, lease))
        limits = Limits(
            record_bytes=values.record_bytes,
            message_bytes=values.message_bytes,
            history_changes=values.history,
        )
        store = make_store(limits)
        stack.callback(store.close)
        vars(settings).update(values=values, store=store)
        backend = make_backend(app)
        stack.callback(_close_pools, connect())
        put(stack, app, _connection=lambda *_, **__: connect(), _pool=None)
        put(stack, app, _get_backend=lambda: backend, _backend_cache=backend, _statekit=settings)
        # The queues that a worker selects are remembered there, and so is the pool.
        put(stack, app, amqp=instantiate(app.amqp_cls, app=app))
        for task in app.tasks.values():
            # What Celery made for a worker holds the backend of that time.
            put(stack, task, __trace__=None)
            if getattr(task, "_backend", None) is not None:
                put(stack, task, _backend=backend)
            if not isinstance(getattr(type(task), "backend", None), property):
                put(stack, task, backend=backend)
        changes = app.conf.changes
        stack.callback(changes.update, {**changes})
        stack.callback(changes.clear)
        app.conf.task_always_eager = False
        yield settings


@contextmanager
def as_in_a_worker(app: Celery, hostname: str) -> Iterator[None]:
    """Within the block Celery is set up as in a worker of ``app``, and the app is the current one."""
    with ExitStack() as stack:
        stack.callback(_state._set_task_join_will_block, _state.task_join_will_block())  # noqa: SLF001
        put(stack, _state, default_app=_state.default_app)
        put(stack, _state._tls, current_app=_state._tls.current_app)  # noqa: SLF001
        if not getattr(Task, "_stackprotected", False):
            stack.callback(trace.reset_worker_optimizations, app)
        trace.setup_worker_optimizations(app, hostname)
        yield


def put(stack: ExitStack, owner: Any, **attributes: Any) -> None:
    """Set ``attributes`` of ``owner`` itself, until ``stack`` is left."""
    held = vars(owner)
    for name, value in attributes.items():
        stack.callback(_restore, owner, name, held.get(name, _MISSING))
        setattr(owner, name, value)


def _restore(owner: Any, name: str, value: Any) -> None:
    if value is not _MISSING:
        setattr(owner, name, value)
    elif name in vars(owner):
        delattr(owner, name)


def _close_pools(connection: Connection) -> None:
    for group in (pools.producers, pools.connections):
        pool = group.pop(eqhash(connection), None)
        if pool is not None:
            pool.force_close_all()
