"""What Celery's backend shows of a run that goes on: the current run's newest state, no other."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery

from celery_statekit import States
from celery_statekit.attempt import Attempt
from celery_statekit.backends import RedisBackend
from celery_statekit.errors import StaleAttempt, StoreUnavailable
from celery_statekit.flusher import flusher
from celery_statekit.settings import Settings


class Import(States):
    READING = "Reading"
    WRITING = "Writing"


def test_a_state_that_waits_to_be_shown_is_written_with_the_record(
    app: Celery, work: Any, gate: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flusher asks the store, which knows the fence; it writes nothing beside it."""
    go = gate()
    alone: list[Any] = []
    monkeypatch.setattr(
        RedisBackend, "compare_and_set", lambda self, new, current: alone.append(new) or True
    )

    @app.task(name="load", bind=True, states=Import)
    def load(self: Any) -> None:
        self.enter(Import.READING)
        self.enter(Import.WRITING)
        go.wait()

    work()
    result = load.delay()
    until(lambda: app.backend.get_state(result.id) == "WRITING")
    go.set()
    until(result.ready)
    assert alone == []


def test_a_stale_run_shows_nothing(
    app: Celery, work: Any, gate: Any, until: Any, seems_lost: Any
) -> None:
    """What it entered last is not shown over the run that took over; it is stopped."""
    entered, go, over = gate(), gate(), gate()
    app.conf.statekit_progress_interval = 0.2

    @app.task(name="load", bind=True, states=Import)
    def load(self: Any) -> None:
        self.enter(Import.READING)
        self.enter(Import.WRITING)
        entered.set()
        go.wait()
        try:
            self.progress.update(1)
        except StaleAttempt:
            over.set()
            raise

    work()
    result = load.delay()
    entered.wait()
    seems_lost(result)
    Attempt.of(Settings.of(app).tracker, result.id, "load", load._flow).claim()
    report = next(iter(each for each in flusher()._watched if each.attempt.id == result.id))
    until(lambda: report.attempt.reporter._stopped is not None)
    assert app.backend.get_state(result.id) == "READING"
    go.set()
    assert over.wait()


def test_what_could_not_be_written_is_shown_later(
    app: Celery, work: Any, gate: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that failed has shown nothing: the state that follows gets its turn."""
    go = gate()
    failed = threading.Event()
    store = Settings.of(app).store
    write = store.write_beside

    def fails_once(record: Any, beside: Any, **options: Any) -> bool:
        if b"half" in str(record.document).encode() and not failed.is_set():
            failed.set()
            raise StoreUnavailable(store.name, "test")
        return bool(write(record, beside, **options))

    monkeypatch.setattr(store, "write_beside", fails_once)

    @app.task(name="load", bind=True, states=Import)
    def load(self: Any) -> None:
        self.enter(Import.READING)
        self.progress.set(1, 2, "half")
        failed.wait(10)
        self.request.statekit_report.rest()
        self.enter(Import.WRITING)
        go.wait()

    work()
    result = load.delay()
    until(lambda: app.backend.get_state(result.id) == "WRITING")
    go.set()


def test_states_entered_by_update_state_are_shown_once_an_interval(
    app: Celery, work: Any, gate: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many that follow each other cost few writes to Celery's result; the newest is shown."""
    app.conf.statekit_progress_interval = 0.5
    go = gate()
    hurried: list[Any] = []
    hurry = flusher().hurry
    monkeypatch.setattr(flusher(), "hurry", lambda report: (hurried.append(report), hurry(report)))

    @app.task(name="load", bind=True)
    def load(self: Any) -> None:
        for number in range(50):
            self.update_state(state="ODD" if number % 2 else "EVEN", meta={"number": number})
        go.wait()

    work()
    result = load.delay()
    until(lambda: (app.AsyncResult(result.id).info or {}).get("number") == 49)
    go.set()
    until(result.ready)
    assert len(hurried) < 25


def test_a_result_backend_that_hangs_holds_up_no_record(
    app: Celery,
    work: Any,
    gate: Any,
    until: Any,
    store_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the store is another one: PENDING and progress are written all the same."""
    app.conf.statekit_store = store_url
    hangs, go = gate(), gate()
    there = threading.Event()

    def hang(self: Any, *args: Any, **options: Any) -> bool:
        there.set()
        return bool(hangs.wait(60))

    monkeypatch.setattr(RedisBackend, "show", hang)

    @app.task(name="load", bind=True, states=Import)
    def load(self: Any) -> None:
        self.enter(Import.READING)
        go.wait()

    work()
    first = load.delay()
    assert there.wait(10)
    second = load.delay()
    until(lambda: second.task_state.state == "READING")
    go.set()
    until(lambda: first.task_state.final and second.task_state.final)
    hangs.set()
