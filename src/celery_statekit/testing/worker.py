"""A real worker in the test's process: a task takes milliseconds, and shares the test's objects."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from unittest import mock

from celery import Celery, signals
from celery.app.log import Logging
from celery.contrib.testing.worker import start_worker
from celery.result import AsyncResult
from celery.worker import state as worker_state

from celery_statekit.errors import InvalidInput
from celery_statekit.record import Limits, TaskState
from celery_statekit.settings import Settings, unwrapped
from celery_statekit.stores import MemoryStore, SQLiteStore, Store
from celery_statekit.testing.redirect import MakeStore, as_in_a_worker, put, redirected
from celery_statekit.testing.results import MemoryResults
from celery_statekit.testing.transport import Wire

#: Where the records of a test are.
StoreKind: TypeAlias = Literal["memory", "sqlite"]

#: Seconds between two writes of progress, and two reads of who watches.
INTERVAL: Final = 0.02
POLL: Final = 0.005
#: Seconds for which a test waits for what should happen soon.
PATIENCE: Final = 10.0

_running: list[InProcessWorker] = []


class InProcessWorker:
    """A worker of ``app`` in threads of this process, with queues and results in its memory."""

    def __init__(self, app: Celery, controller: Any, patience: float) -> None:
        self.app = app
        #: Celery's own worker.
        self.controller = controller
        self.patience = patience

    def __repr__(self) -> str:
        return f"<InProcessWorker of {self.app.main} as {self.controller.hostname}>"

    def wait(self, result: AsyncResult, timeout: float | None = None) -> TaskState:
        """The task's record at its end, when Celery's result has it too; or where it rests.

        Args:
            timeout: seconds; None: the worker's ``patience``.

        Raises:
            WatchTimeout: it has not ended by then.
        """
        seconds = self.patience if timeout is None else timeout
        state = Settings.of(self.app).watcher.wait(result.id, timeout=seconds)
        until = time.monotonic() + seconds
        while state.final and not result.ready() and time.monotonic() < until:
            time.sleep(POLL)
        return state

    def reload(self) -> None:
        """Take up tasks that were made after the worker began."""
        self.app.finalize()
        self.controller.consumer.update_strategies()

    @classmethod
    @contextmanager
    def started(
        cls,
        app: Celery,
        *,
        folder: Path,
        pool: str = "solo",
        concurrency: int = 1,
        store: StoreKind = "memory",
        patience: float = PATIENCE,
        **options: Any,
    ) -> Iterator[InProcessWorker]:
        """Within the block the worker runs, and ``app`` sends to it.

        At its end the worker has stopped, tasks that were running have ended, and nothing is left
        in queues, results and records.

        Args:
            folder: an empty one, for a store that keeps files.
            pool: ``solo``, or ``threads``, which runs ``concurrency`` tasks at once.
            concurrency: how many tasks run at once.
            store: ``memory``, or ``sqlite`` for a file.
            patience: seconds for which it waits for tasks to end.
            options: of Celery's worker: ``queues``.

        Raises:
            InvalidInput: another one runs: stopping one stops all of a process (celery 5.7
                contrib/testing/worker.py:184); or there is no such pool or store.
            RuntimeError: a task has not ended in time.
        """
        app = unwrapped(app)
        if _running:
            rule = "one at a time; others in processes of their own"
            raise InvalidInput("a second worker in this process", "app", app, rule)
        if pool not in {"solo", "threads"}:
            rule = "solo or threads; others in a process of their own"
            raise InvalidInput("no pool of this process", "pool", pool, rule)
        wire, hostname = Wire(), options.pop("hostname", "celery@test")
        with ExitStack() as stack:
            settings = stack.enter_context(
                redirected(
                    app,
                    connect=wire.connect,
                    make_backend=MemoryResults,
                    make_store=_store(store, folder),
                    progress_interval=INTERVAL,
                )
            )
            settings.watcher.poll = POLL
            stack.enter_context(_as_it_was())
            stack.enter_context(as_in_a_worker(app, hostname))
            options |= {"pool": pool, "concurrency": concurrency, "hostname": hostname}
            controller = stack.enter_context(_controller(app, patience, options))
            worker = cls(app, controller, patience)
            _running.append(worker)
            stack.callback(_running.remove, worker)
            stack.callback(worker._wait_for_tasks)
            yield worker

    def _wait_for_tasks(self) -> None:
        """Celery stops without waiting for the tasks of a pool of threads."""
        until = time.monotonic() + self.patience
        while running := {*worker_state.active_requests}:
            if time.monotonic() > until:
                named = ", ".join(sorted(f"{request.name}[{request.id}]" for request in running))
                raise RuntimeError(f"still running after {self.patience} seconds: {named}")
            time.sleep(POLL)


@contextmanager
def _controller(app: Celery, patience: float, options: dict[str, Any]) -> Iterator[Any]:
    """Celery's own embedded worker."""
    limits = {"perform_ping_check": False, "shutdown_timeout": patience}
    with start_worker(app, **limits, **options) as controller:
        yield controller
    # It terminates its pool, whose threads go on waiting (celery 5.7 concurrency/thread.py).
    executor = getattr(controller.pool, "executor", None)
    if executor is not None:
        executor.shutdown()


class WorkerStarter:
    """What the fixture ``stateful_worker`` is: call it with an app to start its worker."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    def __call__(
        self,
        app: Celery,
        *,
        pool: str = "solo",
        concurrency: int = 1,
        store: StoreKind = "memory",
        patience: float = PATIENCE,
        **options: Any,
    ) -> InProcessWorker:
        """Start a worker that runs until the test's end; see :meth:`InProcessWorker.started`."""
        return self._stack.enter_context(
            InProcessWorker.started(
                app,
                folder=self._folder,
                pool=pool,
                concurrency=concurrency,
                store=store,
                patience=patience,
                **options,
            )
        )


def _store(kind: str, folder: Path) -> MakeStore:
    if kind == "memory":
        return _memory
    if kind == "sqlite":
        return lambda limits: SQLiteStore(folder / "states.db", limits)
    raise InvalidInput("no store", "store", kind, "memory or sqlite")


def _memory(limits: Limits) -> Store:
    store = MemoryStore(None, limits)
    store.name = "the store of a test"  # a worker warns of one that other processes do not see
    return store


@contextmanager
def _as_it_was() -> Iterator[None]:
    """At the end logging, environment and what Celery's worker knows are as they were."""

    def keep(**_: Any) -> None:
        """Stand in for Celery's set-up of logging, which takes the handlers of pytest away."""

    signals.setup_logging.connect(keep, weak=False)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))
        put(stack, Logging, _setup=Logging._setup)  # noqa: SLF001 - Celery's tests do the same
        stack.callback(signals.setup_logging.disconnect, keep)
        stack.callback(worker_state.reset_state)
        yield
