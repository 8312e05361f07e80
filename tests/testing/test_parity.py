"""What passes in ``stateful_run`` passes in a worker: the same code does the same in both."""

from __future__ import annotations

import re

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject

from celery_statekit import ClientState, StatefulTask, States
from celery_statekit.errors import IllegalTransition

pytest_plugins = ("celery_statekit.testing.fixtures",)


class Import(States):
    READING = "Reading the file"
    IMPORTING = "Importing rows"

    __guards__ = {("READING", "IMPORTING"): lambda state: "file" in state.reason or "no file"}


class Order(ClientState):
    items: list[str] = []


def returns(self):
    return {"rows": (1, 2)}


def enters_and_tracks(self):
    self.enter(Import.READING, reason="a file", rows=3)
    self.progress.step("rows", total=3)
    for _ in self.track(range(3), "counting"):
        pass
    self.enter("IMPORTING")
    self.checkpoint({"row": 3})
    return [self.next_states, self.last_checkpoint, self.progress.current]


def fails(self):
    self.enter(Import.READING)
    raise ValueError("bad row")


def is_refused(self):
    self.enter(Import.IMPORTING)
    self.enter(Import.READING)


def is_refused_by_its_guard(self):
    self.enter(Import.READING)
    try:
        self.enter(Import.IMPORTING)
    except IllegalTransition as refused:
        return refused.why


def retries(self):
    self.enter(Import.READING)
    self.checkpoint(self.request.retries)
    if not self.request.retries:
        raise self.retry(countdown=0, exc=OSError("again"))


def retries_and_goes_on(self):
    if not self.request.retries:
        self.retry(countdown=0, throw=False)
        self.enter(Import.READING)
    return "done"


def retries_too_often(self):
    raise self.retry(countdown=0, max_retries=0, exc=OSError("again"))


def is_ignored(self):
    self.enter(Import.READING)
    raise Ignore("not today")


def is_rejected(self):
    raise Reject("no", requeue=False)


def replaces_itself(self):
    if self.request.replaced_task_nesting:
        return "the other"
    self.checkpoint(1)
    raise self.replace(self.s())


def reports_in_the_old_way(self):
    self.update_state(state="PROGRESS", meta={"current": 1, "total": 2, "status": "half"})
    self.update_state(state="IMPORTING")
    self.update_state(state="SUCCESS", meta={"rows": 2})
    return "x"


def reports_a_failure_and_is_ignored(self):
    self.update_state(state="FAILURE", meta={"why": "no rows"})
    raise Ignore


def returns_what_cannot_be_sent(self):
    return object()


def returns_a_client(self) -> Order:
    return Order("o-1", items=["book"])


def checkpoints_what_is_no_json(self):
    self.checkpoint({"at": object()})


def updates_a_client(self):
    orders = self.clients(Order)
    orders.create("o-1")
    return orders.update("o-1", lambda order: order.items.append("pen"), once="pen").items


BEHAVIOURS = [
    returns,
    enters_and_tracks,
    fails,
    is_refused,
    is_refused_by_its_guard,
    retries,
    retries_and_goes_on,
    retries_too_often,
    is_ignored,
    is_rejected,
    replaces_itself,
    reports_in_the_old_way,
    reports_a_failure_and_is_ignored,
    returns_what_cannot_be_sent,
    returns_a_client,
    checkpoints_what_is_no_json,
    updates_a_client,
]


@pytest.mark.parametrize("body", BEHAVIOURS, ids=lambda body: body.__name__)
def test_the_first_attempt_is_the_same_in_both(
    app: Celery, stateful_run, stateful_worker, body
) -> None:
    """Every move with its reason and detail, the error, the result as its caller gets it."""
    task = app.task(bind=True, base=StatefulTask, states=Import, shared=False, name="shop.load")(
        body
    )
    run = stateful_run(task)
    stateful_worker(app)
    result = task.delay()

    def ended() -> object:
        state = result.task_state
        return state.final or (state.state == "IGNORED" and body is is_ignored) or None

    assert result.wait(until=lambda _: ended(), timeout=10)
    history = [change for change in result.history() if change.attempt <= 1]

    assert _told(run.changes) == _told(history)
    if len(history) == len(result.history()):
        state = result.task_state
        assert _record(run.task_state) == _record(state)
        if run.state == "SUCCESS":
            assert run.result == result.get(timeout=10)
            assert type(run.result) is type(result.get())
        elif run.state == "FAILURE" and body is not is_rejected:  # of which Celery stores nothing
            assert run.error is not None
            with pytest.raises(Exception):  # noqa: B017 - which one the record says
                result.get(timeout=10)


def _told(changes: object) -> list[object]:
    return [
        (
            change.from_state,
            change.to_state,
            re.sub("0x[0-9a-f]+", "0x", change.reason.replace(change.task_id, "id")),
            change.attempt,
            {**change.detail, "due_at": None},
        )
        for change in changes
    ]


def _record(state: object) -> object:
    progress, left = state.progress, state.checkpoint
    return (
        state.state,
        state.attempt,
        state.error and state.error["type"],
        progress and (str(progress), progress.details),
        left and (left.value, left.finished),
    )
