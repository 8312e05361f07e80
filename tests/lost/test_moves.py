"""What is found to be gone, and moves before that is written, is not LOST."""

from __future__ import annotations

import uuid

import pytest
from celery import Celery

from celery_statekit import StatefulTask
from celery_statekit.attempt import Attempt
from celery_statekit.settings import Settings
from celery_statekit.sweep import sweep

LEASE = 0.2


@pytest.fixture
def app():
    app = Celery("lost", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(statekit_store=f"memory://{uuid.uuid4()}", statekit_lease=LEASE)
    yield app
    app.close()


@pytest.fixture
def begin(app):
    """Begins a run of the task with this id, by a worker that is not there."""

    @app.task(base=StatefulTask, shared=False, name="load")
    def load():
        """Does nothing."""

    def run(id, worker):
        attempt = Attempt.of(
            Settings.of(app).tracker, id, load.name, load._flow, worker=worker, comes_again=True
        )
        attempt.claim()
        attempt.release()
        return attempt

    return run


def test_what_has_been_taken_over_meanwhile(app, begin, monkeypatch):
    """By who was asked whether it has ended."""
    tracker = Settings.of(app).tracker
    begin("7", "celery@gone:1")
    asked = []

    def ask(id):
        asked.append(id)
        tracker.lose(id, lambda _: True, reason="it seems so")
        begin(id, "celery@here:2")
        return {"status": "PENDING"}

    monkeypatch.setattr(app.backend, "get_task_meta", ask)
    while not asked:
        assert sweep(app).lost == []
    state = tracker.read("7")
    assert (state.state, state.attempt) == ("STARTED", 2)


def test_what_is_renewed_meanwhile(app, begin, monkeypatch):
    """Who lives, and could not renew, has a moment to do so."""
    settings = Settings.of(app)
    store, key = settings.store, settings.tracker.key("7")
    begin("7", "celery@slow:1")
    looks, left = [], store.left

    def look(*lease):
        gave = left(*lease)
        if gave == 0.0:
            looks.append(gave)
            store.renew([(key, "celery@slow:1")], 60.0)
        return gave

    monkeypatch.setattr(store, "left", look)
    while not looks:
        assert sweep(app).lost == []
    assert settings.tracker.read("7").state == "STARTED"
    assert sweep(app).lost == []
