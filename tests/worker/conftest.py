"""A worker inside the test's process: a test takes milliseconds, and its tasks share its events.

One worker at a time, and a new one for each test, for stopping one stops all of a process (celery
5.7 contrib/testing/worker.py). Each test has an app, a store and queues of its own.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state, signals
from celery.app.trace import reset_worker_optimizations, setup_worker_optimizations
from celery.contrib.testing.worker import start_worker
from celery.utils.dispatch import Signal
from kombu.transport import memory

from celery_statekit import TaskState
from celery_statekit.flusher import flusher
from celery_statekit.leases import renewer
from celery_statekit.settings import Settings

#: Seconds after which a test gives up waiting for what should have happened long ago.
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def _quick_and_clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The broker in memory answers at once; what a test leaves behind reaches no other test."""
    drain_events = memory.Transport.drain_events

    def drain_quickly(self: Any, connection: Any, timeout: float | None = None) -> Any:
        return drain_events(self, connection, timeout=min(timeout or 0.01, 0.01))

    def log_nothing_new(**_: Any) -> None:
        """Stand in for Celery's own set-up of logging, which takes pytest's handlers away."""

    monkeypatch.setattr(memory.Transport, "polling_interval", 0.002)
    monkeypatch.setattr(memory.Transport, "drain_events", drain_quickly)
    signals.setup_logging.connect(log_nothing_new, weak=False)
    current, default = _state._tls.current_app, _state.default_app
    finalizers = set(_state._on_app_finalizers)
    yield
    forget_ends()
    forget_leases()
    signals.setup_logging.disconnect(log_nothing_new)
    _state._tls.current_app = current
    _state.set_default_app(default)
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(finalizers)
    memory.Channel.queues.clear()
    memory.Transport.global_state.clear()


def forget_ends() -> None:
    """Ends that the test's store never took are not tried any more."""
    background = flusher()
    with background._wake:
        background._wake.wait_for(lambda: not background._calling, PATIENCE)
        background._insisted.clear()


def forget_leases() -> None:
    """Runs that the test claimed by hand are over: their store may be gone, and is asked no more."""
    renewer()._held.clear()
    renewer()._others.clear()


@pytest.fixture(params=["solo-memory", "threads-sqlite"])
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The worker's pool, and the kind of store."""
    pool, _, store = request.param.partition("-")
    return pool, store


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store: of the kind that ``place`` says, in memory where no worker runs."""
    kind = request.getfixturevalue("place")[1] if "place" in request.fixturenames else "memory"
    return f"sqlite:///{tmp_path}/states.db" if kind == "sqlite" else f"memory://{uuid.uuid4()}"


@pytest.fixture
def app(store_url: str) -> Iterator[Celery]:
    """An app of this test's own; its tasks and settings are the test's to add."""
    name = f"shop{uuid.uuid4().hex[:8]}"
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        broker_connection_retry_on_startup=True,
        statekit_store=store_url,
        statekit_progress_interval=0.02,
        task_default_queue=name,
    )
    app.set_current()
    yield app
    app.close()


@pytest.fixture
def work(app: Celery, place: tuple[str, str]) -> Iterator[Callable[[], Any]]:
    """Start the app's worker; it runs until the test's end."""
    with ExitStack() as stack:

        def start() -> Any:
            # As a worker does that is started from the command line.
            setup_worker_optimizations(app, "celery@test")
            stack.callback(reset_worker_optimizations, app)
            Settings.of(app).watcher.poll = 0.005
            return stack.enter_context(
                start_worker(
                    app,
                    pool=place[0],
                    concurrency=4,
                    perform_ping_check=False,
                    hostname="celery@test",
                )
            )

        yield start


@pytest.fixture
def seems_lost(app: Celery) -> Callable[[Any], None]:
    """The lease of a task's run has ended: the next delivery takes over, though the run lives."""

    def lose(result: Any) -> None:
        tracker = Settings.of(app).tracker
        assert tracker.lose(result.id, lambda _: True, reason="it seems so") is not None

    return lose


@pytest.fixture
def gate() -> Iterator[Callable[[], threading.Event]]:
    """Make events that tasks wait for; all are set at the test's end, so that no task hangs."""
    made: list[threading.Event] = []

    class Gate(threading.Event):
        def wait(self, timeout: float | None = PATIENCE) -> bool:
            return super().wait(timeout)

    def make() -> threading.Event:
        made.append(Gate())
        return made[-1]

    yield make
    for event in made:
        event.set()


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait until a condition holds, and return what it gave."""

    def wait(condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (holds := condition()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.002)
        return holds

    return wait


@pytest.fixture
def ended(until: Callable[..., Any]) -> Callable[[Any], TaskState]:
    """Wait until a task has ended for its record and for Celery, and return its record."""

    def wait(result: Any) -> TaskState:
        state: TaskState = until(
            lambda: (now := result.task_state).final and now.source == "record" and now
        )
        until(result.ready)
        return state

    return wait


@pytest.fixture
def hear() -> Iterator[Callable[[Signal], list[Any]]]:
    """Listen to a signal of ours: the list of its payloads, growing."""
    with ExitStack() as stack:

        def listen(signal: Signal) -> list[Any]:
            heard: list[Any] = []

            def receive(sender: Any, signal: Signal, **payload: Any) -> None:
                heard.extend(payload.values())

            signal.connect(receive, weak=False)
            stack.callback(signal.disconnect, receive)
            return heard

        yield listen


@pytest.fixture
def states_of() -> Callable[[Any], list[str]]:
    """What a task went through, from its history."""
    return lambda result: [change.to_state for change in result.history()]
