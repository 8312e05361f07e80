"""When a task was done, in the result that Celery keeps: as Celery itself would say it."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import VERSION as CELERY
from celery import Celery
from celery.exceptions import Retry
from celery.utils import uuid

ZONES = [
    {},
    {"timezone": "UTC"},
    {"timezone": "Asia/Kolkata"},
    {"timezone": "America/St_Johns"},
    {"timezone": "Europe/Berlin", "enable_utc": False},
    {"enable_utc": False},
]


def meta_of(backend: Any, id: str) -> dict[str, Any]:
    """What is stored, as it is stored."""
    meta: dict[str, Any] = json.loads(backend.get(backend.get_key_for_task(id)))
    return meta


@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_ends(app: Celery, make: Any, task: Any, work: Any, zone: dict[str, Any]) -> None:
    """The same moment in the same form and zone, for SUCCESS, FAILURE and REVOKED."""
    plain = make("celery")
    for each in (app, plain):
        each.conf.update(zone)

    @task(name="load")
    def load(fails: bool) -> str:
        if fails:
            raise KeyError("row")
        return "loaded"

    work()
    revoked = uuid()
    if CELERY < (5, 6, 2):
        # It is stored by who gets the message, and not when a revoke is broadcast (celery 5.6.0
        # worker/control.py:214): the worker must have heard of that.
        assert app.control.revoke(revoked, reply=True, limit=1, timeout=10)
    results = [
        load.delay(False),
        load.delay(True),
        load.apply_async((False,), countdown=60, task_id=revoked),
    ]
    results[2].revoke()
    for number, result in enumerate(results):
        began = datetime.now(timezone.utc)
        result.get(timeout=10, propagate=False)
        said = meta_of(app.backend, result.id)
        plain.backend.store_result(f"{app.main}-{number}", "loaded", said["status"])
        by_celery = meta_of(plain.backend, f"{app.main}-{number}")
        assert said.keys() >= by_celery.keys() - {"traceback"}
        ours, theirs = (datetime.fromisoformat(each["date_done"]) for each in (said, by_celery))
        assert abs(ours - theirs) < timedelta(minutes=1)
        assert ours.utcoffset() == theirs.utcoffset()
        assert began - timedelta(minutes=1) < ours < datetime.now(timezone.utc)
        assert form(said["date_done"]) == form(by_celery["date_done"])
        assert result.date_done == ours


def form(text: str) -> str:
    """``text`` without what differs from one moment to the next; whole seconds have no fraction."""
    return re.sub(r"\d", "0", re.sub(r"\.\d{6}", "", text))


def test_what_is_no_end_has_none(app: Celery, task: Any, work: Any) -> None:
    """STARTED, RETRY and states of the task's own."""
    seen = []

    @task(bind=True, name="load", track_started=True)
    def load(self: Any) -> None:
        seen.append(meta_of(app.backend, self.request.id))
        self.update_state(state="READING", meta={"row": 1})
        if self.request.retries:
            seen.append(meta_of(app.backend, self.request.id))
            return
        try:
            self.retry(countdown=0)
        except Retry:
            seen.append(meta_of(app.backend, self.request.id))
            raise

    work()
    result = load.delay()
    result.get(timeout=10)
    assert {meta["date_done"] for meta in seen} == {None}
    assert meta_of(app.backend, result.id)["date_done"] is not None
    assert meta_of(app.backend, result.id)["status"] == "SUCCESS"
    assert {meta["status"] for meta in seen} <= {"STARTED", "RETRY", "READING"}
